# SPDX-License-Identifier: MIT
"""Listening sockets, and bjoern on one from the first request to the end of the drain.

The supervisor opens a socket once and keeps it for its life; every ingest worker, or the admin process, inherits it
and runs `serve` in its main thread. The only importer of bjoern. Facts it rests on (bjoern 3.2.2, server.c): Python's
signal handlers run in a timer of the loop each 0.1 s; on SIGINT the loop stops accepting, stops that timer
and returns when the last connection has closed.
"""

import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Container
from ipaddress import ip_address
from types import FrameType
from typing import Any

import bjoern

from postbackd import systemd
from postbackd.errors import BootError, ConfigError
from postbackd.server.framing import Framing, quiet_excepthook
from postbackd.server.guard import Guard
from postbackd.server.watch import NO_LIMITS, Limits
from postbackd.settings import Admin
from postbackd.suggestion import with_other_port

BACKLOG = 1024
BEAT_EVERY_S = 5.0  # the supervisor calls a worker stuck after 60 s; one wake-up in 5 s costs nothing
# mallopt(3): what is larger gets pages of its own and gives them back when freed. glibc would raise this by itself
# with the first large body, and the process then kept what came later (39 MB after 20,000 hostile requests; now 3).
LARGE_BYTES = 128 * 1024
_M_MMAP_THRESHOLD = -3


def open_listener(host: str, port: int) -> socket.socket:
    """The socket that systemd handed over, else one bound here."""
    try:
        inherited = systemd.inherited_sockets()
    except OSError as error:
        raise BootError(f"systemd handed over what is no socket ({error.strerror}): name one ListenStream") from error
    if len(inherited) > 1:
        raise BootError(
            f"systemd handed over {len(inherited)} sockets, but there is one ingest socket: name one ListenStream"
        )
    if not inherited:
        return bind(host, port)
    if not inherited[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise BootError("the socket from systemd does not listen: its unit needs ListenStream and Accept=no")
    return _prepare(inherited[0])


def open_admin(settings: Admin) -> socket.socket:
    """The admin app's socket; off loopback only behind a token."""
    if not settings.token and not is_loopback(settings.host):
        raise ConfigError(
            f"admin.host {settings.host} is reached by others and admin.token is empty: set admin.token "
            "(openssl rand -hex 16), or admin.host = 127.0.0.1"
        )
    return bind(settings.host, settings.port, section="admin")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, backlog: int = BACKLOG, section: str = "ingest") -> socket.socket:
    """Listen on host and port; a BootError says in one line why not, and which setting of `section` mends it.

    Without SO_REUSEPORT: with it a stopped worker left 41 of 100 connections hanging, and a second daemon
    started unnoticed on the same port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BootError(
            f"cannot listen on {host}:{port}: {error.strerror}; set {section}.host to an address of this machine"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held up by our own TIME_WAITs
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise BootError(f"cannot listen on {host}:{port}: {_explain_bind(error, section, port)}") from error
    return _prepare(listener)


def _explain_bind(error: OSError, section: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            other = with_other_port(f"{section}.port", port)
            return f"the port is taken; stop what listens there (ss -ltnp shows it) or take another: {other}"
        case errno.EACCES:
            return f"ports below 1024 need CAP_NET_BIND_SERVICE; set {section}.port higher or grant it"
        case errno.EADDRNOTAVAIL:
            return f"this machine has no such address; set {section}.host"
        case _:
            return os.strerror(error.errno or 0)


def _prepare(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)  # several workers wake for one connection; who comes late must not block in accept
    if listener.family != socket.AF_UNIX:
        # Inherited by accepted connections. Without it each answer waited 44 ms (Nagle against delayed ACK).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    listener: socket.socket,
    app: Callable[..., Any],
    on_drain: Callable[[], None],
    drain_timeout_s: float,
    *,
    beat: Callable[[], None],
    progress: Callable[[], int],
    drain_delay_s: float = 0.0,
    limits: Limits = NO_LIMITS,
    held: Container[int] = (),
    on_refused: Callable[[], None] = lambda: None,
    on_cut: Callable[[], None] = lambda: None,
) -> None:
    """Run the app until SIGTERM and through the drain: every request that was read is answered.

    SIGTERM calls `on_drain` (from then on /ready is to say 503), and after `drain_delay_s` accepting stops and
    connections are closed as they come to rest. Past `drain_timeout_s` the guard ends the process. SIGUSR2, for a
    worker that is replaced: the same at once and untold, since the daemon stays ready. `progress`
    counts the requests the app has begun: see `_heartbeat`. `limits` are kept by the guard, which leaves alone what is
    in `held` (held.py); `on_cut` is told of each connection that it cuts, `on_refused` of each request that is none
    (framing.py). Lets blocked signals in; main thread only.
    """
    signal.signal(signal.SIGINT, _ignore)  # bjoern's loop ends by raising one for Python
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    sys.excepthook = quiet_excepthook
    framing = Framing(limits.body_bytes, limits.arriving_bytes, on_refused, lambda: guard.look_soon())
    guard = Guard(
        listener,
        limits,
        drain_timeout_s,
        drain_delay_s,
        held_bytes=lambda: framing.held_bytes,
        held=held,
        on_started=framing.install(),
        on_cut=on_cut,
    )
    guard.start()  # with signals still blocked: they belong to the main thread

    def handle_sigterm(_signum: int, _frame: FrameType | None) -> None:
        on_drain()
        guard.begin_drain()

    signal.signal(signal.SIGTERM, handle_sigterm)
    signal.signal(signal.SIGUSR2, lambda _signum, _frame: guard.begin_drain(at_once=True))
    signal.signal(signal.SIGALRM, _heartbeat(beat, progress))
    signal.setitimer(signal.ITIMER_REAL, BEAT_EVERY_S, BEAT_EVERY_S)
    beat()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        bjoern.server_run(listener, framing.around(app))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _heartbeat(beat: Callable[[], None], progress: Callable[[], int]) -> Callable[[int, FrameType | None], None]:
    """A beat from bjoern's own loop, which calls nobody while no request comes.

    The alarm's handler runs in the main thread, and in two places: in the loop's timer, when the innermost
    Python frame is the call of bjoern itself, and then the loop moves; or between two instructions of the app,
    which proves nothing (it may never return), so there the beat needs a request begun since the last alarm.
    """
    seen = progress()

    def handle_sigalrm(_signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        begun = progress()
        if begun != seen or (frame is not None and frame.f_code is bjoern.server_run.__code__):
            beat()
        seen = begun

    return handle_sigalrm


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    return
