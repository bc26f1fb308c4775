# SPDX-License-Identifier: MIT
"""Where a request begins and ends: what bjoern's parser takes for one, and what may be run as one.

bjoern 3.2.2 keeps a body of any size in memory, drops all but the last of the requests that come in one read (and
answers the last in the place of the first), takes the last of two Content-Lengths, and crashes when such a read ends
in the middle of a request. So between bjoern and the app stands `Framing`: the bodies that bjoern writes into are ours
(it looks up `io.BytesIO` for each), they tell which requests are complete, they store no more than the limit, and
what is not exactly one whole request with one length is answered with 400 and its connection closed.

A request costs four short Python calls here, 1.8 µs together. It knows no application, no setting and no time.
"""

import contextlib
import ctypes
import gc
import io
import os
import socket
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any

from postbackd.server.bjoern_request import CLIENT_FD_OFFSET, find_fd, request_of
from postbackd.server.held import UnreadAnswersError

Environ = dict[str, Any]
App = Callable[..., Iterable[bytes]]

MAX_DROPPED = 2_000  # complete requests of parsers that failed, kept until they are cleared away
OTHER_ENDS = 16

_BytesIO = io.BytesIO
_write, _seek, _tell = _BytesIO.write, _BytesIO.seek, _BytesIO.tell


class MisframedError(Exception):
    """Ends the call of bjoern with its own 500 and a closed connection; see `quiet_excepthook`."""


class Framing:
    """One process' bodies: each at most `max_body_bytes`, those in several pieces together `budget_bytes`."""

    def __init__(
        self,
        max_body_bytes: int,
        budget_bytes: int,
        on_refused: Callable[[], None] = lambda: None,
        on_overflow: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_refused` is told of each request that is not run, `on_overflow` of a body that passes the limit."""
        self.held_bytes = 0  # of bodies that came in several pieces
        self.budget_bytes = budget_bytes
        self._max_body_bytes = max_body_bytes
        self._finished: list[io.BytesIO] = []  # complete requests that the app has not been called with
        self._on_refused = on_refused
        self._fd_offset = CLIENT_FD_OFFSET
        self._other_ends: deque[socket.socket] = deque()
        self._body = _body_class(self, max_body_bytes, self._finished, on_overflow)

    def new_body(self) -> io.BytesIO:
        """What bjoern calls for a body that begins to arrive, or for a complete request without one."""
        finished = self._finished
        if len(finished) > MAX_DROPPED:
            self._clear_dropped(None)
        body = self._body()
        finished.append(body)
        return body

    def install(self) -> Callable[[], None]:
        """Have a bjoern that starts now use our bodies; the result is to be called when it has started.

        bjoern imports `io` once, when it starts, and takes `BytesIO` from it for each body. Nobody else is to get
        ours, so a copy of the module stands in its place for that moment.
        """
        gc.collect()
        gc.freeze()  # what is there now stays for good: `_clear_dropped` need not look at it
        copy = ModuleType("io")
        copy.__dict__.update(vars(io))
        copy.__dict__["BytesIO"] = self.new_body
        sys.modules["io"] = copy
        return lambda: sys.modules.update(io=io)

    def around(self, app: App) -> App:
        """The app, called only with what is one whole request."""
        finished, whole, max_body_bytes = self._finished, self._body, self._max_body_bytes

        def call(env: Environ, start_response: Any) -> Iterable[bytes]:
            body: Any = env.get("wsgi.input")
            if len(finished) != 1 or finished[0] is not body or "REQUEST_METHOD" not in env:
                self._take(env, body, start_response)
            finished.clear()
            if body.__class__ is not whole and body.overflow:
                return _too_large(body, start_response, max_body_bytes)
            size = len(body.getvalue())  # shares the bytes: nothing is copied here, nor by the app's read()
            length = env.get("CONTENT_LENGTH")
            if (
                (length is not None and length != str(size))
                or "HTTP_TRANSFER_ENCODING" in env
                or " " in "".join(env)  # bjoern's parser honours "Transfer-Encoding : chunked"
            ):
                self._judge_length(env, size, start_response)
            if size == 0 and "HTTP_EXPECT" in env:  # bjoern would run the next request on top of this one
                self.refuse(env, start_response, "expect_without_body", "Expect without a body is not taken.")
            if "HTTP_UPGRADE" in env:  # bjoern's parser stops in the middle
                self.refuse(env, start_response, "upgrade_refused", "Send the request without Upgrade.")
            if "PATH_INFO" not in env:  # CONNECT, or http://host without a path
                env["PATH_INFO"] = "/"
            return app(env, start_response)

        return call

    def _take(self, env: Environ, body: io.BytesIO | None, start_response: Any) -> None:
        """Return if the request is whole and the only one of its read; what other parsers left is cleared away."""
        address = env.get("REMOTE_ADDR")
        is_whole = "REQUEST_METHOD" in env and bool(self._finished) and self._finished[-1] is body
        dropped = self._clear_dropped(env)
        # A part of a request behind a whole one has no REMOTE_ADDR yet. Within one connection it is one object.
        if not is_whole or any(known is address for known in dropped):
            message = "Wait for the answer before you send the next request: pipelining is not taken."
            self.refuse(env, start_response, "pipelining_refused", message)

    def _clear_dropped(self, env: Environ | None) -> list[str]:
        """Give back what bjoern lost sight of: the requests it dropped; the client address objects of those.

        bjoern forgets the environment of a request when the next begins in the same read, without freeing it (1.4 kB
        each, 3,600 in a read). Of each connection the last one may still be in use where its parser failed behind it,
        so that one is emptied and not freed, unless the call of now is known to come behind it.
        """
        current = None if env is None else env.get("wsgi.input")
        lost = {id(body) for body in self._finished if body is not current}
        environs: dict[int, Environ] = {}
        for generation in range(3):  # most are young
            for candidate in gc.get_objects(generation) if len(environs) < len(lost) else []:
                if type(candidate) is dict and id(body := candidate.get("wsgi.input")) in lost and candidate is not env:
                    environs[id(body)] = candidate
        ordered = [environs[id(body)] for body in self._finished if id(body) in environs]
        addresses = [environ.get("REMOTE_ADDR", "") for environ in ordered]
        # A part of a request has no REMOTE_ADDR yet, but it came right behind the last of these.
        last = None if env is None else env.get("REMOTE_ADDR", addresses[-1] if addresses else None)
        behind = [*addresses[1:], last]
        for environ, address, following in zip(ordered, addresses, behind, strict=False):
            environ.clear()
            if following is address:
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(environ))
        self._finished.clear()
        return addresses

    def _judge_length(self, env: Environ, size: int, start_response: Any) -> None:
        """Refuse what two servers may read as two different requests (RFC 9112, 6.3 and 11.2); else return."""
        for name in env:
            if " " in name:
                self.refuse(env, start_response, "malformed_request", "A header's name holds no blank.")
        length = env.get("CONTENT_LENGTH")
        coding = env.get("HTTP_TRANSFER_ENCODING")
        if coding is not None and (length is not None or coding.strip(" \t").lower() != "chunked"):
            message = "Send Content-Length, or Transfer-Encoding: chunked and nothing else, not both."
            self.refuse(env, start_response, "ambiguous_length", message)
        if length is not None and length.strip(" \t") != str(size):  # bjoern puts the values of equal headers in a row
            message = "Send one Content-Length, as plain decimal digits."
            self.refuse(env, start_response, "ambiguous_length", message)

    def refuse(self, env: Environ, start_response: Any, code: str, message: str) -> None:
        """Answer 400 and close the connection, whatever else it has sent; always raises MisframedError.

        The app cannot close a connection, and bjoern would go on with a parser whose state is wrong. So the answer is
        sent here and bjoern's descriptor becomes the end of a pair: what it still writes is gone, what it reads is the
        end. (Not /dev/null: epoll takes no files.)
        """
        self._finished.clear()
        self._on_refused()
        fd = self._connection_of(env, start_response)
        if fd is not None:
            body = b'{"error":{"code":"%b","message":"%b"}}' % (code.encode(), message.encode())
            answer = closing_answer("400 Bad Request", body)
            with socket.socket(fileno=os.dup(fd)) as connection:
                dead_end, other_end = socket.socketpair()
                other_end.shutdown(socket.SHUT_WR)
                with dead_end:
                    os.dup2(dead_end.fileno(), fd, inheritable=False)
                if len(self._other_ends) == OTHER_ENDS:  # bjoern has written there long ago what it had to write
                    self._other_ends.popleft().close()
                self._other_ends.append(other_end)
                send_and_shut(connection, answer)
        raise MisframedError(code)

    def _connection_of(self, env: Environ, start_response: Any) -> int | None:
        """bjoern's descriptor of the connection that this call belongs to, if it can be told.

        An incomplete request has no REMOTE_ADDR to check its place by, and is then trusted to be as those before.
        """
        request = request_of(start_response)
        if request is None:
            return None
        if "REMOTE_ADDR" in env:
            offset = find_fd(request, env["REMOTE_ADDR"])
            if offset is None:
                return None
            self._fd_offset = offset
        fd = ctypes.c_int.from_address(request + self._fd_offset).value
        try:
            return fd if stat.S_ISSOCK(os.fstat(fd).st_mode) else None
        except OSError:
            return None


def closing_answer(status: str, body: bytes) -> bytes:
    """A whole answer with which a connection ends."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def send_and_shut(connection: socket.socket, answer: bytes) -> None:
    """Send what fits into the socket's buffer, then shut the connection both ways."""
    with contextlib.suppress(OSError):  # the client has gone, or takes nothing: closed all the same
        connection.setblocking(False)
        connection.send(answer)
        connection.shutdown(socket.SHUT_RDWR)


def _too_large(body: Any, start_response: Any, max_body_bytes: int) -> list[bytes]:
    """The answer to a body of which a part was not kept."""
    if len(body.getvalue()) + body.overflow > max_body_bytes:
        status, code = "413 Content Too Large", b"body_too_large"
        message = f"The body has over {max_body_bytes} bytes, the most that is taken: split the request."
        headers = []
    else:
        status, code = "503 Service Unavailable", b"overloaded"
        message = "Too many large bodies arrive at once. Nothing was queued; send the request again."
        headers = [("Retry-After", "5")]
    answer = b'{"error":{"code":"%b","message":"%b"}}' % (code, message.encode())
    headers += [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
    start_response(status, headers)
    return [answer]


def quiet_excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """bjoern prints what the app raises; what a client does wrong is no fault of ours and leaves no traceback."""
    if kind is MisframedError or kind is UnreadAnswersError:
        sys.last_value = sys.last_traceback = None  # it would keep the request until the next one
        return
    sys.__excepthook__(kind, error, trace)


def _body_class(
    framing: Framing, max_bytes: int, finished: list[io.BytesIO], on_overflow: Callable[[], None]
) -> type[io.BytesIO]:
    """The class of a process' bodies. None of its methods may raise: bjoern would use the missing result."""

    class Body(_BytesIO):
        """A body of one piece, the busy case. `write` comes right behind `new_body`, before anything else."""

        def write(self, piece: Any) -> int:
            if _tell(self):
                self.__class__ = LongBody  # type: ignore[assignment]
                framing.held_bytes += _tell(self)
                return self.write(piece)
            finished.pop()  # it has a body, so it is not complete yet
            return _write(self, piece)

        def seek(self, position: int, whence: int = 0) -> int:
            finished.append(self)  # bjoern, when the request is complete
            return _seek(self, position, whence)

    class LongBody(_BytesIO):
        """A body of several pieces: counted, and what is beyond the limits is not kept."""

        overflow = 0  # bytes not kept

        def write(self, piece: Any) -> int:
            size = len(piece)
            if _tell(self) + size > max_bytes or framing.held_bytes + size > framing.budget_bytes:
                if not self.overflow:
                    on_overflow()
                self.overflow += size
                return size
            framing.held_bytes += size
            return _write(self, piece)

        def seek(self, position: int, whence: int = 0) -> int:
            finished.append(self)
            return _seek(self, position, whence)

        def __del__(self) -> None:
            framing.held_bytes -= len(self.getbuffer())

    return Body
