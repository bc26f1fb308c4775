# SPDX-License-Identifier: MIT
"""The guard: one thread beside bjoern that does to connections what bjoern cannot.

bjoern stops accepting on SIGINT, but runs on until the last connection closes, and an idle keep-alive
connection may never close. The guard finds this process' connections among its descriptors, shuts the reading
side of those that are at rest (bjoern then reads their end and closes them), leaves requests that are still
arriving some time, and ends the process when the drain's time is over. It never touches a request.
"""

import ctypes
import os
import queue
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from postbackd import oplog
from postbackd.errors import ExitCode

SCAN_EVERY_S = 0.02
AT_REST_MS = 1_000  # nothing arrived for so long: the rest of a request is not on its way
HANDLER_WAIT_S = 0.01

# struct tcp_info, all u32: tcpi_last_data_sent at 44, tcpi_last_data_recv at 52 (ms ago), tcpi_data_segs_out at 156
_TCP_INFO = struct.Struct("=44x I 4x I 100x I")
_libc = ctypes.CDLL(None, use_errno=True)


def connections(listener: socket.socket) -> Iterator[socket.socket]:
    """This process' connections that were accepted on the listener, each as a duplicate to use and forget.

    bjoern owns the descriptors and may close one and get the number again at any moment. A duplicate is asked
    who it is after it was made, so it is never somebody else's, and shutting it down shuts the connection.
    """
    door = _door(listener)
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed since it was listed
            continue
        with connection:
            try:
                connection.getpeername()
                is_ours = _door(connection) == door
            except OSError:  # a listening socket, or one whose peer is gone
                continue
            if is_ours:
                yield connection


def _door(endpoint: socket.socket) -> object:
    """What an accepted connection shares with its listener: the local port (or the path of a unix socket).

    Not the address: a listener on 0.0.0.0 accepts on all of them. No connection that we open ourselves has
    this port, since the kernel gives out no local port that something is bound to.
    """
    name = endpoint.getsockname()
    return name[1] if endpoint.family in (socket.AF_INET, socket.AF_INET6) else name


def is_at_rest(connection: socket.socket) -> bool:
    """Whether nothing is half received: our answer is younger than the last data, or no data came for a while.

    A request that has arrived whole may be cut off here: bjoern still reads and answers it. A connection on
    which nothing came yet gets the same second as a request that is still arriving. The kernel's ages step by
    4 ms and begin with the connection, so equal ones mean "answered" only where something was sent at all.
    """
    if connection.family == socket.AF_UNIX:
        return True
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    sent_ms, received_ms, sent_segments = _TCP_INFO.unpack(info)
    answered = sent_segments > 0 and sent_ms <= received_ms
    return bool(answered or received_ms >= AT_REST_MS)


class Guard(threading.Thread):
    """Waits, costing nothing, until the drain begins; then sees it through."""

    def __init__(self, listener: socket.socket, drain_timeout_s: float, drain_delay_s: float) -> None:
        super().__init__(name="guard", daemon=True)
        self._listener = listener
        self._drain_timeout_s = drain_timeout_s
        self._drain_delay_s = drain_delay_s
        # SimpleQueue.put may be called in a signal handler that interrupts another put; Event.set may not.
        self._asked: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._python_handler = _sigint_handler()

    def begin_drain(self, *, at_once: bool = False) -> None:
        """Called by the signal handler; more than once does no harm. `at_once`: without the delay."""
        self._asked.put(0.0 if at_once else self._drain_delay_s)

    def run(self) -> None:
        time.sleep(self._asked.get())
        self._stop_accepting()
        started_s = time.monotonic()
        while (passed_s := time.monotonic() - started_s) < self._drain_timeout_s:
            self._shut_down(whatever=passed_s > self._drain_timeout_s / 2)
            time.sleep(SCAN_EVERY_S)
        self._cut_short()

    def _stop_accepting(self) -> None:
        """SIGINT for bjoern, exactly one and not before it listens to it.

        Before its loop runs, Python's handler would swallow the signal; once bjoern (libev) has seen one, it
        puts back SIG_DFL, and a second one would kill the process with its requests.
        """
        while _sigint_handler() == self._python_handler:
            time.sleep(HANDLER_WAIT_S)
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGINT)

    def _shut_down(self, whatever: bool) -> None:
        for connection in connections(self._listener):
            try:
                if whatever or is_at_rest(connection):
                    connection.shutdown(socket.SHUT_RD)
            except OSError:  # its peer has gone meanwhile, which is what we want
                continue

    def _cut_short(self) -> NoReturn:
        open_count = sum(1 for _ in connections(self._listener))
        oplog.warning("drain_cut_short", connections=open_count, after_s=self._drain_timeout_s)
        os._exit(ExitCode.FAILED)


def _sigint_handler() -> int:
    """The address of the C handler of SIGINT: the first member of struct sigaction."""
    action = (ctypes.c_void_p * 32)()
    _libc.sigaction(signal.SIGINT, None, action)
    return action[0] or 0
