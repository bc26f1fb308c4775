# SPDX-License-Identifier: MIT
"""The delivery log: one JSON object a line, one line an attempt, in a file that all workers append to.

Lines are gathered and written with one O_APPEND write per batch, before the batch is settled. The file is opened
again after a rename and on SIGUSR1. A full disk never stops a worker: its lines are counted as lost and said so.
"""

import base64
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from postbackd import oplog
from postbackd.delivery.transfer import NO_TIMINGS, Timings
from postbackd.errors import BootError

LOOK_EVERY_MS = 1000
COMPLAIN_EVERY_MS = 60_000


class Line(msgspec.Struct):
    """One attempt, or one postback given up without one. The fields and their order are the contract."""

    time: str
    id: str | None
    attempt: int
    outcome: str
    reason: str | None
    method: str | None
    host: str | None
    url: str | None
    response_code: int | None
    response_time_ms: float | None
    response_body: str | None
    body_truncated: bool
    error: str | None
    error_detail: str | None
    next_attempt_at: str | None
    timings_ms: msgspec.Raw
    remote_ip: str | None
    endpoint: str | None
    worker: str


class BinaryLine(Line):
    """A line whose response body is not UTF-8: `response_body` is null."""

    response_body_b64: str = ""


class Body(NamedTuple):
    """A response body as it is logged."""

    text: str | None
    base64: str | None
    truncated: bool


class TimeText:
    """Times as `2026-11-24T01:02:03.456Z`; the text of a second is made once."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def format(self, now_ms: int) -> str:
        second, ms = divmod(now_ms, 1000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{ms:03d}Z"


def log_body(body: bytes, cut_already: bool, limit_bytes: int) -> Body:
    """The first `limit_bytes` of a body, as text where it is UTF-8 (a character cut in two is left off)."""
    cut = len(body) > limit_bytes
    if cut:
        body = body[:limit_bytes]
    try:
        return Body(body.decode(), None, cut or cut_already)
    except UnicodeDecodeError as error:
        if (cut or cut_already) and error.reason == "unexpected end of data" and error.start >= len(body) - 3:
            return Body(body[: error.start].decode(), None, True)
    return Body(None, base64.b64encode(body).decode(), cut or cut_already)


def timings_json(timings: Timings) -> msgspec.Raw:
    """The phases in ms with a digit or three behind the point. By % as an encoder's floats would have sixteen."""
    return msgspec.Raw(b'{"dns":%.3f,"connect":%.3f,"tls":%.3f,"ttfb":%.3f,"total":%.3f}' % timings)


NO_TIMINGS_JSON = timings_json(NO_TIMINGS)
_encode = msgspec.json.Encoder().encode


def encode_line(line: Line) -> bytes:
    """The line's bytes, without its newline."""
    return _encode(line)


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
