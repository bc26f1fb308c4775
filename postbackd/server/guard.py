# SPDX-License-Identifier: MIT
"""The guard: one thread beside bjoern that does to connections what bjoern cannot.

While the process serves, it looks at every connection twice a second, a slice at a time, and cuts those that are over
a limit of watch.py: bjoern has none of its own. It touches no request that has arrived whole.

At the drain bjoern stops accepting on SIGINT, but runs on until the last connection closes, and an idle keep-alive
connection may never close. The guard then shuts the reading side of those that are at rest (bjoern reads their end
and closes them), leaves requests that are still arriving some time, and ends the process when the drain's time is
over.
"""

import contextlib
import ctypes
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Container
from typing import NoReturn

from postbackd import oplog
from postbackd.errors import ExitCode
from postbackd.server import watch
from postbackd.server.connections import Door, duplicate, listed_descriptors, look_at, socket_inode, waits_for_us
from postbackd.server.framing import closing_answer, send_and_shut
from postbackd.server.watch import Limits, Reason, Watched

PASS_EVERY_S = 0.5
SLICE = 64  # connections looked at with the GIL held: 0.3 ms
SLICE_REST_S = 0.002
SAY_EVERY_S = 10.0
REST_STEP = 5_000  # objects that the app may keep more of a pass (caches); what is finished meanwhile is not at rest
LONGEST_STEP_MS = 2_000  # of our clock: a process that was stopped finds nobody late
SCAN_EVERY_S = 0.02
AT_REST_MS = 1_000  # nothing arrived for so long: the rest of a request is not on its way
HANDLER_WAIT_S = 0.01
# bjoern's close then sends a reset: a client that waits for room to send more would otherwise wait another minute.
RESET = struct.pack("ii", 1, 0)
TOO_LARGE = closing_answer(
    "413 Content Too Large",
    b'{"error":{"code":"body_too_large","message":"The body is too large: split the request."}}',
)

_libc = ctypes.CDLL(None, use_errno=True)


class Guard(threading.Thread):
    """Keeps the limits until the drain begins; then sees it through."""

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        drain_timeout_s: float,
        drain_delay_s: float,
        *,
        held_bytes: Callable[[], int] = lambda: 0,
        held: Container[int] = (),
        on_started: Callable[[], None] = lambda: None,
        on_cut: Callable[[], None] = lambda: None,
    ) -> None:
        """`held_bytes` says what unfinished bodies take, `held` has the descriptors of requests that have arrived and
        wait for their answer, `on_started` is called when bjoern runs, `on_cut` for each."""
        super().__init__(name="guard", daemon=True)
        self._door = Door(listener)
        self._limits = limits
        self._drain_timeout_s = drain_timeout_s
        self._drain_delay_s = drain_delay_s
        self._held_bytes = held_bytes
        self._held = held
        self._on_started = on_started
        self._on_cut = on_cut
        # Seconds: drain after so many; None: look now. SimpleQueue.put may be called in a signal handler that
        # interrupts another put; Event.set may not.
        self._asked: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._python_handler = _sigint_handler()
        self._watched: dict[int, Watched] = {}
        self._now_ms = 1
        self._looked_s = time.monotonic()
        self._objects_at_rest = sys.getallocatedblocks()
        self._unsaid: dict[Reason, int] = {}
        self._said_s = 0.0

    def begin_drain(self, *, at_once: bool = False) -> None:
        """Called by the signal handler; more than once does no harm. `at_once`: without the delay."""
        self._asked.put(0.0 if at_once else self._drain_delay_s)

    def look_soon(self) -> None:
        """A body has passed its limit. Called by bjoern's thread, in the middle of a read."""
        self._asked.put(None)

    def run(self) -> None:
        self._await_start()
        self._on_started()
        delay_s = None
        while delay_s is None:
            delay_s = self._wait(PASS_EVERY_S)
            if delay_s is None:
                delay_s = self._pass()
        time.sleep(delay_s)
        self._stop_accepting()
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) < self._drain_timeout_s:
            self._shut_down(whatever=passed_s > self._drain_timeout_s / 2)
            time.sleep(SCAN_EVERY_S)
        self._cut_short()

    # While it serves

    def _wait(self, seconds: float) -> float | None:
        """The drain's delay when that was asked for; returns earlier when there is something to look at."""
        try:
            return self._asked.get(timeout=seconds)
        except queue.Empty:
            return None

    def _pass(self) -> float | None:
        """Look at every connection and cut those over a limit; the drain's delay if that was asked for meanwhile."""
        now_s = time.monotonic()
        self._now_ms += min(int((now_s - self._looked_s) * 1000), LONGEST_STEP_MS)
        self._looked_s = now_s
        objects = sys.getallocatedblocks()  # 4 µs; 0.2 ms when they take 100 MB
        descriptors = listed_descriptors(max(self._watched, default=0))
        for fd in self._watched.keys() - set(descriptors):
            del self._watched[fd]
        for start in range(0, len(descriptors), SLICE):
            if start and (delay_s := self._wait(SLICE_REST_S)) is not None:
                return delay_s
            for fd in descriptors[start : start + SLICE]:
                self._look(fd)
        known = list(self._watched.items())
        for fd, reason in watch.too_many(known, self._limits) if self._may_be_too_many(len(known)) else []:
            self._cut(fd, reason)
        for fd, reason in self._too_heavy(known, objects):
            self._cut(fd, reason)
        self._say(now_s)
        return None

    def _too_heavy(self, known: list[tuple[int, Watched]], objects: int) -> list[tuple[int, Reason]]:
        """Whom to cut because unfinished requests take too much memory. `objects` were alive when this pass began.

        Small whole ones seem unfinished, too, while Redis keeps this process waiting: they lie in the kernel, or bjoern
        has run them and answers all of one turn of its loop together. At the default limit 1,000 clients with 3.4 kB
        each were cut for that, as if theirs were tiny headers.
        """
        if watch.is_calm(known, self._limits):
            self._objects_at_rest = min(objects, self._objects_at_rest + REST_STEP)
            return []
        arriving = watch.arriving_long(known, self._now_ms)
        more = objects - self._objects_at_rest
        if not watch.too_heavy(arriving, self._held_bytes(), more, self._limits):
            return []
        read = [fd for fd, _ in arriving if not waits_for_us(fd)]
        for fd in read:
            self._look(fd)  # answered since
        arriving = watch.arriving_long([(fd, self._watched[fd]) for fd in read if fd in self._watched], self._now_ms)
        return watch.too_heavy(arriving, self._held_bytes(), more, self._limits)

    def _may_be_too_many(self, count: int) -> bool:
        return count > self._limits.max_connections or 0 < self._limits.per_address < count

    def _look(self, fd: int) -> None:
        inode = socket_inode(fd)
        watched = self._watched.get(fd)
        if watched is None or watched.inode != inode:
            self._watched.pop(fd, None)
            address = self._door.client_of(fd, inode) if inode else None
            if address is None:
                return
            watched = self._watched[fd] = Watched(inode, address)
        if fd in self._held:  # before the look: answered between the two it would seem to arrive still
            watched.arriving_since_ms = watched.arriving_bytes = watched.idle_ms = 0
            return
        look = look_at(fd)
        if look is None:  # a unix socket: only counted
            return
        reason = watched.judge(look, self._now_ms, self._limits)
        if reason is not None and not (reason is Reason.SLOW_SENDER and waits_for_us(fd)):
            self._cut(fd, reason)

    def _cut(self, fd: int, reason: Reason) -> None:
        """Shut a connection both ways; bjoern reads its end and closes it."""
        watched = self._watched.pop(fd, None)
        if watched is None:
            return
        with duplicate(fd, watched.inode) as connection:
            if connection is None:
                return
            with contextlib.suppress(OSError):  # its peer has gone meanwhile, which is what we want
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                send_and_shut(connection, TOO_LARGE if reason is Reason.TOO_LARGE else b"")
        self._on_cut()
        self._unsaid[reason] = self._unsaid.get(reason, 0) + 1

    def _say(self, now_s: float) -> None:
        """One line in ten seconds, whatever is sent; connections that are only idle are nobody's concern."""
        if self._unsaid.keys() - {Reason.IDLE} and now_s - self._said_s >= SAY_EVERY_S:
            counts = {reason.value: count for reason, count in self._unsaid.items()}
            oplog.warning("connections_cut", connections=len(self._watched), **counts)
            self._said_s = now_s
            self._unsaid.clear()

    # The drain

    def _await_start(self) -> None:
        while _sigint_handler() == self._python_handler:
            time.sleep(HANDLER_WAIT_S)

    def _stop_accepting(self) -> None:
        """SIGINT for bjoern, exactly one and not before it listens to it (`_await_start`).

        Before its loop runs, Python's handler would swallow the signal; once bjoern (libev) has seen one, it
        puts back SIG_DFL, and a second one would kill the process with its requests.
        """
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGINT)

    def _shut_down(self, whatever: bool) -> None:
        for fd, inode in self._connections():
            if whatever or _is_at_rest(fd):
                with duplicate(fd, inode) as connection, contextlib.suppress(OSError):
                    if connection is not None:
                        connection.shutdown(socket.SHUT_RD)

    def _connections(self) -> list[tuple[int, int]]:
        found = [(fd, socket_inode(fd)) for fd in listed_descriptors(max(self._watched, default=0))]
        return [(fd, inode) for fd, inode in found if inode and self._door.client_of(fd, inode) is not None]

    def _cut_short(self) -> NoReturn:
        oplog.warning("drain_cut_short", connections=len(self._connections()), after_s=self._drain_timeout_s)
        os._exit(ExitCode.FAILED)


def _is_at_rest(fd: int) -> bool:
    """Whether nothing is half received: our answer is younger than the last data, or no data came for a while.

    A request that has arrived whole may be cut off here: bjoern still reads and answers it. A connection on
    which nothing came yet gets the same second as a request that is still arriving.
    """
    look = look_at(fd)
    if look is None:
        return True
    answered = look.sent_segments > 0 and look.sent_age_ms <= look.received_age_ms
    return answered or look.received_age_ms >= AT_REST_MS


def _sigint_handler() -> int:
    """The address of the C handler of SIGINT: the first member of struct sigaction."""
    action = (ctypes.c_void_p * 32)()
    _libc.sigaction(signal.SIGINT, None, action)
    return action[0] or 0
