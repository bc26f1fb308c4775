# SPDX-License-Identifier: MIT
"""One connection to the queue server: packed commands out, replies in. Nothing is retried here.

redis-py connects (URL, AUTH, TLS, SELECT); from then on its socket is used with hiredis' packer and reader, since
a command through redis-py's client costs 75 µs of CPU, through its Connection 40, and this way 30 (25 on a unix
socket). Redis' errors end here: they become QueueUnavailableError (certainly not run), QueueUnsureError (sent, no
answer) and QueueFullError.
"""

import contextlib
import math
import re
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

from postbackd.errors import (
    PostbackdError,
    QueueDeniedError,
    QueueFullError,
    QueueUnavailableError,
    QueueUnsureError,
    RecordConflictError,
)
from postbackd.queue.tls import TlsConnection
from postbackd.queue_url import Node

# A claim of 512 samples is 30 kB. A buffer over listener.LARGE_BYTES would be mapped and unmapped for each read: with
# 256 KiB a request cost 1.6 times the CPU.
READ_BYTES = 65_536
CONNECT_TIMEOUT_S = 1.0
SLICE_S = 1.0  # of a time-out; shorter than the time between two signals

_PASSWORD_OPTION = re.compile(r"([?&]\w*password=)[^&]*")
Argument = bytes | str | int | float
pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)  # its stub allows one argument only


def mask(url: str) -> str:
    """A queue URL without its passwords, for messages."""
    scheme, mark, rest = _PASSWORD_OPTION.sub(r"\1***", url).partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return f"{scheme}{mark}{rest}"
    user = credentials.partition(":")[0]
    return f"{scheme}{mark}{user}{':' if ':' in credentials else ''}***@{place}"


def error_of(reply: hiredis.ReplyError) -> PostbackdError:
    """Our error for an error reply: all of them mean that the command was not run."""
    text = str(reply)
    code = text.partition(" ")[0]
    if code == "OOM":
        return QueueFullError("Redis is out of memory (maxmemory is reached): raise maxmemory, or let it drain.")
    if code == "CONFLICT":
        return RecordConflictError(text)
    refused = f"Redis refused the command: {text}."
    return QueueDeniedError(refused) if code in ("NOAUTH", "WRONGPASS") else QueueUnavailableError(refused)


def parse_info(reply: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


class Wire:
    """An open connection. Any failure closes it; the owner makes another."""

    def __init__(self, url: str, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect; raises QueueUnavailableError."""
        try:
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
            kind = options.pop("connection_class", Connection)
            assert kind in (Connection, SSLConnection, UnixDomainSocketConnection)
            if kind is SSLConnection:
                kind = TlsConnection
            self._connection = kind(
                **{
                    "socket_timeout": connect_timeout_s,
                    "socket_connect_timeout": connect_timeout_s,
                    **options,
                    "retry": Retry(NoBackoff(), 0),
                    "protocol": 2,
                }
            )
            self._connection.connect()
        except redis.AuthenticationError as error:
            raise QueueDeniedError(f"{mask(url)} refuses the user or password: {str(error).rstrip('.')}.") from None
        except redis.ResponseError as error:  # AUTH, SELECT, or LOADING
            raise QueueUnavailableError(f"{mask(url)} refused the connection: {error}.") from None
        except (redis.RedisError, OSError, ValueError, TypeError) as error:  # TypeError: an unknown option
            raise QueueUnavailableError(f"{mask(url)} cannot be reached: {_reason(error)}.") from None
        self._socket: socket.socket = self._connection._sock  # there is no public way to it
        self.node: Node | None = None  # which server it is, where there are several
        self._set_timeout(timeout_s)
        self._reader = hiredis.Reader()
        self.is_open = True

    def _set_timeout(self, timeout_s: float) -> None:
        """Blocking with the kernel's own time-out: Python's costs a poll() more for each call.

        In slices: a signal makes Python begin a receive anew with its whole time-out (PEP 475), and with an alarm
        every 5 s a time-out of 5 s never came.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            self._slices = 1
            self._socket.settimeout(timeout_s)
            return
        self._slices = math.ceil(timeout_s / SLICE_S)
        slice_s = timeout_s / self._slices
        self._socket.settimeout(None)
        value = struct.pack("@ll", int(slice_s), int(slice_s % 1 * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def fileno(self) -> int:
        return self._socket.fileno() if self.is_open else -1

    def close(self) -> None:
        """Close without a word; safe to call again."""
        if self.is_open:
            self.is_open = False
            self._connection.disconnect()

    def cut(self) -> None:
        """Break the connection from another thread: its owner finds it broken, also in the middle of a wait."""
        with contextlib.suppress(OSError):  # past TLS, whose shutdown takes away what the owner is reading with
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send packed commands. A failure is certain: a command of which a byte is missing is never run."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise QueueUnavailableError(f"The connection to Redis broke: {_reason(error)}.") from None

    def read(self) -> Any:
        """The next reply, waiting for it; error replies are returned as hiredis.ReplyError. Raises QueueUnsureError."""
        reply = self._next()
        slices = self._slices
        while reply is False:
            try:
                data = self._socket.recv(READ_BYTES)
            except OSError as error:
                slices -= 1
                if slices and isinstance(error, BlockingIOError):
                    continue
                self.close()
                raise QueueUnsureError(f"no answer from Redis: {_reason(error)}.") from None
            if not data:
                self.close()
                raise QueueUnsureError("Redis closed the connection.")
            self._reader.feed(data)
            reply = self._next()
        return reply

    def receive(self) -> list[Any]:
        """The replies that are there by now, without waiting. Raises QueueUnsureError."""
        replies: list[Any] = []
        while True:
            try:
                data = self._receive_bytes()
            except (BlockingIOError, ssl.SSLWantReadError):
                return replies
            except OSError as error:
                self.close()
                raise QueueUnsureError(f"no answer from Redis: {_reason(error)}.") from None
            if not data:
                self.close()
                raise QueueUnsureError("Redis closed the connection.")
            self._reader.feed(data)
            while (reply := self._next()) is not False:
                replies.append(reply)
            if len(data) < READ_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                return replies

    def _receive_bytes(self) -> bytes:
        if not isinstance(self._socket, ssl.SSLSocket):
            return self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        timeout_s = self._socket.gettimeout()
        self._socket.settimeout(0)  # TLS knows no MSG_DONTWAIT
        try:
            return self._socket.recv(READ_BYTES)
        finally:
            self._socket.settimeout(timeout_s)

    def _next(self) -> Any:
        """The next reply of what has come, False when it is not whole yet."""
        try:
            return self._reader.gets()
        except hiredis.ProtocolError as error:
            self.close()
            raise QueueUnsureError(f"what answers is no Redis: {error}.") from None

    def call(self, *arguments: Argument) -> Any:
        """One command and its reply; error replies are raised as errors of ours."""
        self.send(pack(arguments))
        reply = self.read()
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(reply)
        return reply

    def pipeline(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Several commands in one packet and their replies; the first error reply is raised after all were read."""
        self.send(b"".join(pack(command) for command in commands))
        replies = [self.read() for _ in commands]
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise error_of(reply)
        return replies

    def has_gone(self) -> bool:
        """Whether the server has closed the connection while it was idle. One system call."""
        if isinstance(self._socket, ssl.SSLSocket):
            return self._has_tls_gone(self._socket)
        with contextlib.suppress(BlockingIOError):
            try:
                return not self._socket.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            except BlockingIOError:
                raise
            except OSError:
                return True
        return False

    def _has_tls_gone(self, connection: ssl.SSLSocket) -> bool:
        """The same beneath TLS, which has no MSG_PEEK. Nothing is outstanding: what came is the server's farewell."""
        timeout_s = connection.gettimeout()
        connection.settimeout(0)
        try:
            socket.socket.recv(connection, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(timeout_s)
        return True

    def server_ms(self) -> int:
        """The server's TIME in ms since 1970."""
        seconds, micros = self.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _reason(error: BaseException) -> str:
    if isinstance(error, BlockingIOError | TimeoutError | redis.TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__
