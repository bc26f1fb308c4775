# SPDX-License-Identifier: MIT
"""The delivery log: one JSON object a line, one line an attempt, in a file that all workers append to.

Lines are gathered and written with one O_APPEND write per batch, before the batch is settled. The file is opened
again after a rename and on SIGUSR1. A full disk never stops a worker: its lines are counted as lost and said so.
"""

import base64
import os
import time
from pathlib import Path

import msgspec

from postbackd import oplog
from postbackd.delivery.transfer import Result
from postbackd.errors import BootError

LOOK_EVERY_MS = 1000
COMPLAIN_EVERY_MS = 60_000


# The fields and their order are the contract. Formatted by % since an encoder of the whole takes twice the time.
_LINE = (
    b'{"time":"%b","id":%b,"attempt":%d,"outcome":"%b","reason":%b,"method":%b,"host":%b,"url":%b,'
    b'"response_code":%b,"response_time_ms":%b,"response_body":%b,"body_truncated":%b,"error":%b,"error_detail":%b,'
    b'"next_attempt_at":%b,"timings_ms":%b,"remote_ip":%b,"endpoint":%b,"worker":"%b"%b}'
)
NULL = b"null"
NO_TIMINGS = b'{"dns":0.0,"connect":0.0,"tls":0.0,"ttfb":0.0,"total":0.0}'
_encode = msgspec.json.Encoder().encode


# A delivered one is the same line with most of it fixed: what is left open are time, id, attempt, url, status, total,
# body, truncated, the timings and the address. Made from the line above, so that there is one contract.
BODIES_KEPT = 256  # short bodies whose JSON is kept: partners answer the same few bytes to everything
BODY_KEPT_BYTES = 64


def delivered_format(method: bytes, host: bytes, endpoint: bytes, worker: bytes) -> bytes:
    """The format of the delivered lines of one endpoint and worker, for `Formatter.delivered`."""
    return _LINE.replace(b"%d", b"%b") % (
        b"%b",
        b'"%016x"',
        b"%d",
        b"delivered",
        NULL,
        method,
        host,
        b'"%b"',
        b"%d",
        b"%b",
        b"%b",
        b"%b",
        NULL,
        NULL,
        NULL,
        b'{"dns":%b,"connect":%b,"tls":%b,"ttfb":%.3f,"total":%b}',
        b'"%b"',
        endpoint,
        worker,
        b"%b",
    )


class Formatter:
    """Makes the lines of one worker."""

    def __init__(self, worker: str, body_bytes: int) -> None:
        self._worker = worker.encode()
        self._body_bytes = body_bytes
        self._bodies: dict[bytes, bytes] = {}

    def delivered_format(self, method: bytes, host: bytes, endpoint: bytes) -> bytes:
        """See `delivered`; to be kept per endpoint. Method, host and endpoint are JSON."""
        return delivered_format(method, host, endpoint, self._worker)

    def delivered(
        self, line_format: bytes, time_text: bytes, postback_id: int, attempt: int, url: str, result: Result
    ) -> bytes:
        """The line of a delivered postback: 0.8 µs where the general form takes 2.2."""
        body, truncated, more = self._bodies.get(result.body), b"false", b""
        if body is None or result.truncated:
            body, truncated, more = self._body(result)
        total = b"%.3f" % result.total_ms
        dns = connect = tls = b"0.0"
        if not result.reused:  # three floats less to format: 0.4 µs
            dns, connect, tls = b"%.3f" % result.dns_ms, b"%.3f" % result.connect_ms, b"%.3f" % result.tls_ms
        return line_format % (
            time_text,
            postback_id,
            attempt,
            url.encode(),  # a URL holds nothing that JSON escapes
            result.status,
            total,
            body,
            truncated,
            dns,
            connect,
            tls,
            result.ttfb_ms,
            total,
            (result.remote_ip or "").encode(),
            more,
        )

    def line(
        self,
        time_text: bytes,
        postback_id: int | None,
        attempt: int,
        outcome: str,
        reason: str | None,
        method: bytes,
        host: bytes,
        url: str | None,
        result: Result | None,
        error: str | None,
        error_detail: str | None,
        next_attempt_at: bytes,
        endpoint: bytes,
    ) -> bytes:
        """Any line, without its newline. Method, host, next_attempt_at and endpoint are JSON already."""
        body, truncated, more = NULL, b"false", b""
        status, total, timings, remote_ip = NULL, NULL, NO_TIMINGS, NULL
        if result is not None and result.remote_ip is not None:
            remote_ip = _encode(result.remote_ip)
            total = b"%.3f" % result.total_ms
            timings = b'{"dns":%.3f,"connect":%.3f,"tls":%.3f,"ttfb":%.3f,"total":%b}' % (
                result.dns_ms,
                result.connect_ms,
                result.tls_ms,
                result.ttfb_ms,
                total,
            )
            if result.status is not None:
                status = b"%d" % result.status
                body, truncated, more = self._body(result)
        return _LINE % (
            time_text,
            NULL if postback_id is None else b'"%016x"' % postback_id,
            attempt,
            outcome.encode(),
            NULL if reason is None else _encode(reason),
            method,
            host,
            NULL if url is None else b'"%b"' % url.encode(),
            status,
            total,
            body,
            truncated,
            NULL if error is None else _encode(error),
            NULL if error_detail is None else _encode(error_detail),
            next_attempt_at,
            timings,
            remote_ip,
            endpoint,
            self._worker,
            more,
        )

    def _body(self, result: Result) -> tuple[bytes, bytes, bytes]:
        data = result.body
        found = body_json(data, result.truncated, self._body_bytes)
        if len(data) <= min(BODY_KEPT_BYTES, self._body_bytes) and not found[2] and not result.truncated:
            if len(self._bodies) >= BODIES_KEPT:
                self._bodies.clear()
            self._bodies[data] = found[0]
        return found


def body_json(data: bytes, cut_already: bool, limit_bytes: int) -> tuple[bytes, bytes, bytes]:
    """`response_body`, `body_truncated` and what follows the line: `response_body_b64` of a body that is no UTF-8.

    A character cut in two at the limit is left off.
    """
    cut = len(data) > limit_bytes
    if cut:
        data = data[:limit_bytes]
    truncated = b"true" if cut or cut_already else b"false"
    try:
        return _encode(data.decode()), truncated, b""
    except UnicodeDecodeError as error:
        if (cut or cut_already) and error.reason == "unexpected end of data" and error.start >= len(data) - 3:
            return _encode(data[: error.start].decode()), truncated, b""
    return NULL, truncated, b',"response_body_b64":"%b"' % base64.b64encode(data)


class TimeText:
    """Times as `2026-11-24T01:02:03.456Z`; many in a turn are the same, and most of the rest in the same second."""

    def __init__(self) -> None:
        self._ms = self._second = -1
        self._prefix = ""
        self._text = b""

    def format(self, now_ms: int) -> bytes:
        if now_ms != self._ms:
            self._ms = now_ms
            second, ms = divmod(now_ms, 1000)
            if second != self._second:
                self._second = second
                self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._text = f"{self._prefix}.{ms:03d}Z".encode()
        return self._text


class DeliveryLog:
    """The file, as one worker writes it."""

    def __init__(self, path: str) -> None:
        """Open it, making its folder; raises BootError."""
        self._path = Path(path)
        self._lines: list[bytes] = []
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._looked_ms = 0
        self._complained_ms = -COMPLAIN_EVERY_MS
        self._is_torn = False
        self._lines_lost = 0
        self._lines_lost_taken = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise BootError(
                f"the delivery log {path} cannot be opened: {error.strerror}: mend that, or set log.path"
            ) from None

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._is_torn = False

    def add(self, line: bytes) -> None:
        """Keep one encoded line for the next flush."""
        self._lines.append(line)

    @property
    def waiting(self) -> int:
        """Lines added and not written."""
        return len(self._lines)

    def take_lines_lost(self) -> int:
        """Lines lost since the last call."""
        count = self._lines_lost - self._lines_lost_taken
        self._lines_lost_taken = self._lines_lost
        return count

    def reopen(self, now_ms: int) -> None:
        """Open the path again: SIGUSR1, or it is another file by now. What fails keeps the old one."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self._complain(error, now_ms)

    def flush(self, now_ms: int) -> None:
        """Write what was added, in one append. Never raises for the disk's sake. `now_ms` is monotonic."""
        if now_ms - self._looked_ms >= LOOK_EVERY_MS:
            self._looked_ms = now_ms
            self._look(now_ms)
        if not self._lines:
            return
        data = b"\n".join(self._lines) + b"\n"
        if self._is_torn:
            data = b"\n" + data  # after a short write: the torn line stays alone on its line
        count = len(self._lines)
        self._lines = []
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            self._lines_lost += count
            self._complain(error, now_ms)
            return
        self._is_torn = written < len(data)
        if self._is_torn:
            self._lines_lost += data[written:].count(b"\n")
            self._complain(OSError(0, "only part of a batch could be written"), now_ms)

    def _look(self, now_ms: int) -> None:
        """Whether the path still is the file that is open."""
        try:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                return
        except FileNotFoundError:
            pass  # renamed or removed: made anew
        except OSError as error:
            self._complain(error, now_ms)
            return
        self.reopen(now_ms)

    def _complain(self, error: OSError, now_ms: int) -> None:
        if now_ms - self._complained_ms >= COMPLAIN_EVERY_MS:
            self._complained_ms = now_ms
            oplog.error(
                "delivery_log_failed",
                path=self._path,
                error=error.strerror,
                lines_lost=self._lines_lost,
                hint="make room or mend log.path; deliveries go on",
            )
