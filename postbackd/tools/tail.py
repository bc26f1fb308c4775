# SPDX-License-Identifier: MIT
"""`postbackd tail`: the end of the delivery log, and with -f what is appended, over renames and truncation.

It reads the file alone: it works on another machine's log, and while no daemon runs.
"""

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
from rich.console import Console
from rich.text import Text

from postbackd.errors import ExitCode, PostbackdError
from postbackd.settings import Settings
from postbackd.suggestion import command
from postbackd.tools.admin_client import supervisor_pid
from postbackd.tools.plain_text import printable
from postbackd.url import is_same_host

POLL_S = 0.2
LINGER_MS = 5_000  # workers look once a second whether the file was renamed: until then they write to the old one
BLOCK_BYTES = 1 << 20
BODY_CHARS = 160
STYLES = {"delivered": "green", "retry": "yellow", "dead": "bold red"}

_decode = msgspec.json.Decoder().decode
Entry = dict[str, Any]


class Filter(NamedTuple):
    """Which lines are wanted."""

    failed: bool = False
    postback_id: str | None = None
    host: str | None = None  # with or without its port

    def entry(self, line: bytes) -> Entry | None:
        """The line decoded, or None: not wanted, or no line of the delivery log (a torn one)."""
        # A quote within a JSON string is escaped, so these bytes are members and never part of a body.
        if self.failed and b'"outcome":"delivered"' in line:
            return None
        if self.postback_id is not None and b'"id":"%b"' % self.postback_id.encode() not in line:
            return None
        if self.host is not None and self.host.encode() not in line:
            return None
        try:
            entry = _decode(line)
        except msgspec.DecodeError:
            return None
        if not isinstance(entry, dict) or "outcome" not in entry:
            return None
        if self.host is not None and not is_same_host(self.host, str(entry.get("host"))):
            return None
        return entry


def tail(settings: Settings, wanted: Filter, count: int | None, follow: bool, as_json: bool) -> int:
    """Print the last `count` wanted lines (None: all), then with `follow` whatever comes, until Ctrl-C."""
    path = Path(settings.log.path)
    console = Console(soft_wrap=True, highlight=False)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        if not follow:
            raise PostbackdError(
                f"there is no delivery log at {path.absolute()}: nothing was tried yet, or another file is meant (-c)"
            ) from None
        file = None
    except OSError as error:
        raise PostbackdError(f"the delivery log {path} cannot be read: {error.strerror}") from None
    if follow and supervisor_pid(settings) is None:
        data_dir = Path(settings.data_dir).absolute()
        print(f"postbackd: no daemon runs on data_dir {data_dir}; waiting for its log", file=sys.stderr)
    try:
        if file is not None:
            end = file.seek(0, os.SEEK_END)
            found = last_lines(file, end, wanted, count)
            _show(found, console, as_json)
            file.seek(end)
            if not found and wanted.postback_id is not None and not follow:
                explain = command(f"explain {wanted.postback_id}")
                raise PostbackdError(
                    f"no line of id {wanted.postback_id} in {path}: {explain} looks in rotated logs and the queue too"
                )
        if follow:
            _follow(Follower(path, file), wanted, console, as_json)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _follow(follower: "Follower", wanted: Filter, console: Console, as_json: bool) -> None:
    while True:
        lines = follower.read(time.monotonic_ns() // 1_000_000)
        found = [(line, entry) for line in lines if (entry := wanted.entry(line)) is not None]
        _show(found, console, as_json)
        if not lines:
            time.sleep(POLL_S)


def _show(found: list[tuple[bytes, Entry]], console: Console, as_json: bool) -> None:
    if not found:
        return
    if as_json:
        sys.stdout.buffer.write(b"".join(line + b"\n" for line, _ in found))
        sys.stdout.buffer.flush()
    else:
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        console.print(Text("\n").join([render(entry, today) for _, entry in found]))


def last_lines(file: BinaryIO, end: int, wanted: Filter, count: int | None) -> list[tuple[bytes, Entry]]:
    """The last wanted lines before `end`, in the file's order; reads no further back than it must."""
    found: list[tuple[bytes, Entry]] = []
    for line in _backwards(file, end):
        if count is not None and len(found) >= count:
            break
        entry = wanted.entry(line)
        if entry is not None:
            found.append((line, entry))
    return found[::-1]


def _backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    rest = b""
    while end > 0:
        begin = max(0, end - BLOCK_BYTES)
        file.seek(begin)
        lines = (file.read(end - begin) + rest).split(b"\n")
        rest = lines.pop(0)
        yield from reversed(lines)
        end = begin
    yield rest


class _Source:
    """One file being read to its end, again and again."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        status = os.fstat(file.fileno())
        self.identity = (status.st_dev, status.st_ino)
        self.closes_ms: int | None = None  # renamed: read until then
        self._rest = b""

    def read(self) -> list[bytes]:
        if os.fstat(self.file.fileno()).st_size < self.file.tell():  # cut to nothing (copytruncate)
            self.file.seek(0)
            self._rest = b""
        *lines, self._rest = (self._rest + self.file.read(BLOCK_BYTES)).split(b"\n")
        return lines


class Follower:
    """What is appended at a path, whatever file is there. The times are passed in."""

    def __init__(self, path: Path, file: BinaryIO | None) -> None:
        """`file` stands where reading begins; None: there is none yet."""
        self._path = path
        self._sources = [] if file is None else [_Source(file)]

    def read(self, now_ms: int) -> list[bytes]:
        """Whole lines that came since the last call; empty when there are none."""
        lines = [line for source in self._sources for line in source.read()]
        if not lines:
            self._close_old(now_ms)
        self._look(now_ms)
        return lines

    def _close_old(self, now_ms: int) -> None:
        over = [s for s in self._sources if s.closes_ms is not None and now_ms >= s.closes_ms]
        for source in over:
            source.file.close()
            self._sources.remove(source)

    def _look(self, now_ms: int) -> None:
        try:
            status = self._path.stat()
            if self._sources and self._sources[-1].identity == (status.st_dev, status.st_ino):
                return
            source = _Source(self._path.open("rb"))
        except OSError:  # renamed and not made anew yet, or not readable: looked at again
            return
        if self._sources:
            self._sources[-1].closes_ms = now_ms + LINGER_MS
        self._sources.append(source)


def render(entry: Entry, today: str) -> Text:
    """One attempt as one line for a person; `today` is a date, left off where it is the line's."""
    outcome = str(entry["outcome"])
    took = "" if entry.get("response_time_ms") is None else f"{entry['response_time_ms']:.1f} ms"
    text = Text()
    text.append(_time(entry.get("time"), today), "dim")
    text.append(f" {outcome:<9}", STYLES.get(outcome, ""))
    text.append(f" {entry.get('response_code') or '-':>3} {took:>10} ")
    text.append(f" {entry.get('id') or '-'}", "cyan")
    target = printable(entry.get("url") or entry.get("host") or "-")
    text.append(f" #{entry.get('attempt')} {entry.get('method') or '-'} {target}")
    if outcome != "delivered":
        _append_failure(text, entry, today)
    return text


def _append_failure(text: Text, entry: Entry, today: str) -> None:
    causes = [entry.get("reason"), entry.get("error"), entry.get("error_detail")]
    text.append(
        "  " + ": ".join(printable(str(cause)) for cause in dict.fromkeys(causes) if cause),
        STYLES.get(entry["outcome"], ""),
    )
    if entry.get("next_attempt_at"):
        text.append(f", again {_time(entry['next_attempt_at'], today)}")
    body = entry.get("response_body")
    if body:
        more = "…" if len(body) > BODY_CHARS or entry.get("body_truncated") else ""
        text.append(f", answered “{printable(body[:BODY_CHARS])}{more}”", "dim")


def _time(value: str | None, today: str) -> str:
    if not value:
        return "-"
    date, _, clock = value.partition("T")
    return clock if date == today else f"{date} {clock}"
