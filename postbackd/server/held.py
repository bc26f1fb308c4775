# SPDX-License-Identifier: MIT
"""Answers held back: bjoern goes on with other requests, and the answer is sent when it is known.

bjoern 3.2.2 writes an answer's head before it asks the app's iterator for a second piece, so an app could begin an
answer early but not late. Its loop, though, first runs every request that has arrived (ev_io_on_read), and in its next
round writes to whatever `Request.client_fd` says. So that is /dev/null until the answer is known: what bjoern writes
goes nowhere, the iterator's second step is called when all requests of the round have run, puts the connection back,
and writes the answer itself. /dev/null is always writable (epoll takes no such file; libev then calls its watchers in
each round), and bjoern's change of interest in the connection, two epoll_ctl a request, falls away.

The iterator gives bjoern one piece for nowhere and ends when the answer is out. bjoern never leaves it before: nothing
keeps /dev/null from being written to.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Any

from postbackd.server.bjoern_request import CLIENT_FD_OFFSET, has_fd_in_its_place, request_of

Answer = tuple[str, list[tuple[str, str]], bytes]

_PIECE = b"-"  # what the iterator gives first; not empty, or bjoern would ask for the next piece at once
_HEAD = [("Content-Length", "1")]  # a length, so that bjoern keeps the connection

_int_at = ctypes.c_int.from_address


class UnreadAnswersError(Exception):
    """Ends an iterator, and with it the connection: the client has not read the answers before this one."""


class Held:
    """A connection that bjoern does not write to until it is answered."""

    __slots__ = ("_cell", "_fd")

    def __init__(self, cell: ctypes.c_int, fd: int) -> None:
        self._cell = cell
        self._fd = fd

    def wait_for(self, find_answer: Callable[[], Answer], start_response: Any) -> Iterator[bytes]:
        """What the app is to return: `find_answer` is called when every request that has arrived has run.

        It must not raise. An answer that the socket's buffer does not take whole ends the connection, since nobody
        would wait for it to become writable: keep to what fits (8 kB) unless earlier answers lie there unread.
        """
        start_response("202 Accepted", _HEAD)
        return self._steps(find_answer)

    def _steps(self, find_answer: Callable[[], Answer]) -> Iterator[bytes]:
        yield _PIECE
        status, headers, body = find_answer()
        head = "".join([f"{name}: {value}\r\n" for name, value in headers])
        data = f"HTTP/1.1 {status}\r\n{head}Connection: Keep-Alive\r\n\r\n".encode() + body
        self._cell.value = self._fd
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the client has gone: bjoern reads its end and closes
            return
        if sent != len(data):
            raise UnreadAnswersError


class Holder:
    """Takes connections from one process' bjoern."""

    def __init__(self) -> None:
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def hold(self, env: dict[str, Any], start_response: Any) -> Held | None:
        """The connection of the call that is running; None when it must be answered at once: its place cannot be told,
        or bjoern will close it.

        The app must return what `Held.wait_for` gives, whatever happens, or the connection stays held.
        """
        if env["SERVER_PROTOCOL"] != "HTTP/1.1" or env.get("HTTP_CONNECTION", "keep-alive").lower() != "keep-alive":
            return None
        request = request_of(start_response)
        if request is None or not has_fd_in_its_place(request, env["REMOTE_ADDR"]):
            return None
        cell = _int_at(request + CLIENT_FD_OFFSET)
        fd = cell.value
        cell.value = self._nowhere
        return Held(cell, fd)
