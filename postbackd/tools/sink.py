# SPDX-License-Identifier: MIT
"""The sink: an HTTP/1.1 target that records what arrives and fails on order.

One process, one epoll, no framework: fast enough (when quiet) to be the target of a benchmark. It answers every
request with one status, can wait before it answers, fail a share of requests (500), ask for a pause (Retry-After), drop
a share without an answer, or leave a share hanging. Each request is one line for a person, and one JSON line in the
record: time, method, url, headers, body, and the status it is about to be answered with (null where it gets no answer).
For tests, benches and trying things out; it is no server for the open network.
"""

import base64
import heapq
import os
import random
import select
import signal
import socket
import time
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple, TextIO

import msgspec

from postbackd.errors import PostbackdError
from postbackd.tools.plain_text import printable

READ_BYTES = 65_536
MAX_HEAD_BYTES = 65_536
ANSWER_BODY = b"ok\n"
BACKLOG = 1024
WITHOUT_BODY = (204, 304)
REASONS = {
    200: "OK",
    204: "No Content",
    301: "Moved Permanently",
    302: "Found",
    304: "Not Modified",
    429: "Too Many Requests",
}
_READ = select.EPOLLIN | select.EPOLLRDHUP


class Options(NamedTuple):
    """How the sink answers."""

    status: int = 200
    latency_s: float = 0.0
    fail_rate: float = 0.0
    drop_rate: float = 0.0
    hang_rate: float = 0.0
    fail_status: int = 500
    retry_after_s: int | None = None  # as Retry-After of every answer from 400 on


class Request(NamedTuple):
    """One request as it was read."""

    method: bytes
    url: bytes
    head: bytes
    body: bytes


class BadRequestError(ValueError):
    """Bytes that are no HTTP/1.1 request."""


def take_request(buffer: bytearray) -> Request | None:
    """Cut the first whole request out of the buffer; None when it is not all there yet."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise BadRequestError("header too large")
        return None
    head = bytes(buffer[:end])
    first = head.find(b"\r\n")
    line = head if first < 0 else head[:first]
    try:
        method, url, _ = line.split(b" ")
    except ValueError:
        raise BadRequestError("bad request line") from None
    body, end = _take_body(buffer, head.lower(), end + 4)
    if body is None:
        return None
    del buffer[:end]
    return Request(method, url, head, body)


def _take_body(buffer: bytearray, head: bytes, start: int) -> tuple[bytes | None, int]:
    if (position := head.find(b"\r\ncontent-length:")) >= 0:
        length = int(head[position + 17 :].split(b"\r\n", 1)[0])
        if len(buffer) < start + length:
            return None, 0
        return bytes(buffer[start : start + length]), start + length
    if b"\r\ntransfer-encoding: chunked" not in head:
        return b"", start
    body = b""
    while True:
        line_end = buffer.find(b"\r\n", start)
        if line_end < 0:
            return None, 0
        size = int(bytes(buffer[start:line_end]).split(b";")[0], 16)
        chunk_end = line_end + 2 + size + 2
        if len(buffer) < chunk_end:
            return None, 0
        if size == 0:
            return body, chunk_end
        body += buffer[line_end + 2 : chunk_end - 2]
        start = chunk_end


def record_line(request: Request, now_s: float, status: int | None) -> bytes:
    """One line of the record; `status` None = no answer. A body that is not UTF-8 is base64 in `body_b64`."""
    headers = {}
    for line in request.head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        headers[name.decode("latin-1")] = value.strip().decode("utf-8", "replace")
    entry: dict[str, object] = {
        "time": now_s,
        "method": request.method.decode("latin-1"),
        "url": request.url.decode("latin-1"),
        "headers": headers,
        "status": status,
    }
    try:
        entry["body"] = request.body.decode()
    except UnicodeDecodeError:
        entry["body_b64"] = base64.b64encode(request.body).decode()
    return msgspec.json.encode(entry) + b"\n"


def shown_line(request: Request, now_s: float, status: int | None) -> str:
    """One line for a person; `status` None = no answer."""
    clock = time.strftime("%H:%M:%S", time.localtime(now_s)) + f".{int(now_s * 1000) % 1000:03}"
    method, url = printable(request.method.decode("latin-1")), printable(request.url.decode("latin-1"))
    answer = "no answer" if status is None else str(status)
    return f"{clock} {method} {url} {answer}, body {len(request.body)} bytes\n"


def answer_bytes(status: int, method: bytes = b"GET", retry_after_s: int | None = None) -> bytes:
    """The whole answer with this status."""
    body = b"" if status in WITHOUT_BODY else ANSWER_BODY
    reason = REASONS.get(status, "Status")
    length = b"" if status in WITHOUT_BODY else b"Content-Length: %d\r\n" % len(body)
    pause = b"" if retry_after_s is None or status < 400 else b"Retry-After: %d\r\n" % retry_after_s
    head = f"HTTP/1.1 {status} {reason}\r\n".encode() + length + pause + b"\r\n"
    return head + (b"" if method == b"HEAD" else body)


def _open_record(path: Path) -> IO[bytes]:
    """Behind a line that a killed sink has torn a new one begins, which else would be no part of anything."""
    record = path.open("ab")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as written:
            written.seek(-1, os.SEEK_END)
            if written.read() != b"\n":
                record.write(b"\n")
    return record


class _Connection:
    """One client."""

    __slots__ = ("buffer", "out", "socket", "waiting")

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.buffer = bytearray()
        self.out = b""
        self.waiting = False  # an answer is due later: what is pipelined behind it waits too


class Sink:
    """Listens, answers, records and shows, until SIGTERM or SIGINT."""

    def __init__(
        self, host: str, port: int, options: Options, record: Path | None = None, output: TextIO | None = None
    ) -> None:
        """`output` gets one line a request; None: none."""
        self._options = options
        self._output = output
        self._unshown: list[str] = []
        self._record: IO[bytes] | None = None
        try:
            self._listener = socket.create_server((host, port), backlog=BACKLOG)
            if record is not None:
                self._record = _open_record(record)
        except OSError as error:
            what = f"write {record}" if hasattr(self, "_listener") else f"listen on {host}:{port}"
            raise PostbackdError(f"the sink cannot {what}: {error.strerror}; choose another") from None
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._due: list[tuple[float, int, _Connection, bytes]] = []
        self._sequence = 0
        self._stopping = False
        self.received = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self) -> int:
        """Serve until a signal says stop; how many requests were received."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._handle_stop)
        try:
            while not self._stopping:
                self._turn()
        finally:
            if self._record is not None:
                self._record.close()
        return self.received

    def _handle_stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _turn(self) -> None:
        wait_s = 0.5 if not self._due else max(0.0, min(0.5, self._due[0][0] - time.monotonic()))
        for descriptor, _ in self._epoll.poll(wait_s):
            if descriptor == self._listener.fileno():
                self._accept()
            elif (connection := self._connections.get(descriptor)) is not None:
                self._read(connection)
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, _, connection, answer = heapq.heappop(self._due)
            connection.waiting = False
            self._send(connection, answer)
            self._take_requests(connection)
        if self._unshown and self._output is not None:  # once a turn: a flush for each would halve its speed
            self._output.write("".join(self._unshown))
            self._output.flush()
            self._unshown.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # no more of them, or gone again
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[client.fileno()] = _Connection(client)
            self._epoll.register(client, _READ)

    def _read(self, connection: _Connection) -> None:
        if connection.out:
            self._send(connection, b"")
        try:
            data = connection.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.buffer += data
        self._take_requests(connection)

    def _take_requests(self, connection: _Connection) -> None:
        try:
            while not connection.waiting and connection.buffer:
                request = take_request(connection.buffer)
                if request is None:
                    return
                self._answer(connection, request)
        except (BadRequestError, ValueError):
            self._send(connection, answer_bytes(400))
            self._close(connection)

    def _answer(self, connection: _Connection, request: Request) -> None:
        self.received += 1
        options = self._options
        drops, hangs, fails = (
            rate > 0 and random.random() < rate for rate in (options.drop_rate, options.hang_rate, options.fail_rate)
        )
        status = None if drops or hangs else options.fail_status if fails else options.status
        if self._record is not None:
            self._record.write(record_line(request, time.time(), status))
            self._record.flush()  # before the answer: what was answered stands in the record
        if self._output is not None:
            self._unshown.append(shown_line(request, time.time(), status))
        if status is None:
            connection.buffer.clear()
            connection.waiting = True
            if drops:
                self._close(connection)
            return
        answer = answer_bytes(status, request.method, options.retry_after_s)
        if options.latency_s:
            self._sequence += 1
            connection.waiting = True
            due = (time.monotonic() + options.latency_s, self._sequence, connection, answer)
            heapq.heappush(self._due, due)
        else:
            self._send(connection, answer)

    def _send(self, connection: _Connection, data: bytes) -> None:
        data = connection.out + data
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        was_blocked, connection.out = bool(connection.out), data[sent:]
        if bool(connection.out) != was_blocked and connection.socket.fileno() >= 0:
            self._epoll.modify(connection.socket, _READ | (select.EPOLLOUT if connection.out else 0))

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        connection.socket.close()
