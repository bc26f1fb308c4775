# SPDX-License-Identifier: MIT
"""Answers held back: bjoern goes on with other requests, and the answer is sent when it is known.

bjoern 3.2.2 writes an answer's head before it asks the app's iterator for a second piece, so an app could begin an
answer early but not late. Its loop, though, first runs every request that has arrived (ev_io_on_read), and in its next
round writes to whatever `Request.client_fd` says. So that is /dev/null until the answer is known: what bjoern writes
goes nowhere, the iterator's second step is called when all requests of the round have run, puts the connection back,
and writes the answer itself. /dev/null is always writable (epoll takes no such file; libev then calls its watchers in
each round), and bjoern's change of interest in the connection, two epoll_ctl a request, falls away.

The iterator gives bjoern one piece for nowhere and ends when the answer is out. bjoern never leaves it before: nothing
keeps /dev/null from being written to. The client may do what it likes meanwhile: libev drops an event of a descriptor
that nobody watches (one EPOLL_CTL_DEL) and adds it again when bjoern does.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Any

from postbackd.server.bjoern_request import CLIENT_FD_OFFSET, has_fd_in_its_place, request_of

Answer = tuple[str, list[tuple[str, str]], bytes]

_PIECE = b"-"  # what the iterator gives first; not empty, or bjoern would ask for the next piece at once
_HEAD = [("Content-Length", "1")]  # a length, so that bjoern keeps the connection
# libev walks the list of a descriptor's watchers to end one, and ends the oldest first: with 10,000 held on one, each
# cost twice the CPU. So not more than this many stand on one, up to the product of both (max_connections by default).
_MOST_ON_ONE = 256
_NOWHERES = 16

_int_at = ctypes.c_int.from_address


class UnreadAnswersError(Exception):
    """Ends an iterator, and with it the connection: the client has not read the answers before this one."""


class Held:
    """A connection that bjoern does not write to until it is answered."""

    __slots__ = ("_cell", "_holder")

    def __init__(self, cell: ctypes.c_int, holder: "Holder") -> None:
        self._cell = cell
        self._holder = holder

    def wait_for(self, find_answer: Callable[[], Answer], start_response: Any) -> Iterator[bytes]:
        """What the app is to return: `find_answer` is called when every request that has arrived has run.

        If it raises, the connection ends without an answer. So does one whose socket's buffer does not take the answer
        whole, since nobody would wait for it to become writable: keep to what fits (8 kB) unless earlier answers lie
        there unread.
        """
        start_response("202 Accepted", _HEAD)
        return self._steps(find_answer)

    def _steps(self, find_answer: Callable[[], Answer]) -> Iterator[bytes]:
        cell, holder = self._cell, self._holder
        fd = cell.value
        try:
            cell.value = holder.nowhere()
            holder.held.add(fd)
            yield _PIECE
            status, headers, body = find_answer()
        finally:  # whatever was raised (a signal's handler may, anywhere): bjoern closes the descriptor that it finds
            cell.value = fd
            holder.held.discard(fd)
        head = "".join([f"{name}: {value}\r\n" for name, value in headers])
        data = f"HTTP/1.1 {status}\r\n{head}Connection: Keep-Alive\r\n\r\n".encode() + body
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the client has gone: bjoern reads its end and closes
            return
        if sent != len(data):
            raise UnreadAnswersError


class Holder:
    """Takes connections from one process' bjoern."""

    def __init__(self) -> None:
        self.held: set[int] = set()  # descriptors; the guard looks into it, too
        self._nowheres = [os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) for _ in range(_NOWHERES)]

    def nowhere(self) -> int:
        """The descriptor of /dev/null for the connection that is held now."""
        return self._nowheres[len(self.held) // _MOST_ON_ONE % _NOWHERES]

    def hold(self, env: dict[str, Any], start_response: Any) -> Held | None:
        """The connection of the call that is running; None when it must be answered at once: its place cannot be told,
        or bjoern will close it (its parser takes Proxy-Connection for Connection).

        It is held from the first step of what `Held.wait_for` gives, which the app must return.
        """
        if env["SERVER_PROTOCOL"] != "HTTP/1.1" or env.get("HTTP_CONNECTION", "keep-alive").lower() != "keep-alive":
            return None
        request = request_of(start_response)
        if request is None or "HTTP_PROXY_CONNECTION" in env or not has_fd_in_its_place(request, env["REMOTE_ADDR"]):
            return None
        return Held(_int_at(request + CLIENT_FD_OFFSET), self)
