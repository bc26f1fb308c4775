# SPDX-License-Identifier: MIT
"""The operational log: one line an event on standard error, for people, journald and log collectors.

A line is `TIME LEVEL event key=value …`, or one JSON object with log.format = "json"; the journal gets its priority
too, so that `journalctl --priority=err` finds it. Events are named in the past
tense (`worker_started`, `redis_lost`). What repeats is limited (oplog_limit.py) and summed up by a `repeated` line.
What every process of a daemon finds out by itself, such as a server that is away, is said by the first one (`changed`).
Secrets are never passed in here. The delivery log is another file: delivery/log.py.
"""

import hashlib
import json
import mmap
import os
import sys
import threading
import time
import traceback
from typing import Literal

from postbackd import systemd
from postbackd.oplog_limit import Repeats, Summary

Level = Literal["INFO", "WARNING", "ERROR"]
LOOK_EVERY_MS = 1_000
RANKS: dict[str, int] = {"INFO": 0, "WARNING": 1, "ERROR": 2}
PRIORITIES: dict[str, str] = {"INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>"}  # sd-daemon(3)


class Changes:
    """What was said last of each subject, in memory that forked processes share.

    Without a lock: two that find out in the same microsecond may both say it.
    """

    ENTRIES = 1024  # subjects that share an entry cost a line too many

    def __init__(self) -> None:
        self._said = memoryview(mmap.mmap(-1, self.ENTRIES * 8)).cast("Q")

    def changed(self, subject: str, state: str) -> bool:
        """Whether the state is another than was said last, by whomever; from now on it is this one."""
        entry = _digest(subject) % self.ENTRIES
        value = _digest(f"{subject}={state}")
        if self._said[entry] == value:
            return False
        self._said[entry] = value
        return True


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _format_value(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "='):
        return text
    return json.dumps(text)


def _stamp(now_s: float) -> str:
    whole_s, fraction = divmod(now_s, 1)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s)) + f".{int(fraction * 1000):03d}Z"


def format_event(level: Level, event: str, fields: dict[str, object], now_s: float) -> str:
    """One line, without its newline. Values with blanks, quotes or controls are quoted as JSON strings."""
    pairs = "".join(f" {key}={_format_value(value)}" for key, value in fields.items())
    return f"{_stamp(now_s)} {level} {event}{pairs}"


def format_json(level: Level, event: str, fields: dict[str, object], now_s: float) -> str:
    """The same as one JSON object; what JSON does not know is written as text."""
    return json.dumps(
        {"time": _stamp(now_s), "level": level.lower(), "event": event, **fields}, default=str, ensure_ascii=False
    )


class _OpLog:
    """One process' log. A forked child begins with the format and level of its parent and nothing counted."""

    def __init__(self) -> None:
        self.is_json = False
        self.rank = 0
        self._is_journal = systemd.is_journal(2)
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # bjoern's thread, the guard and the replay of the spool all have events
        self._repeats = Repeats()
        self._look_ms = 0

    def event(self, level: Level, event: str, fields: dict[str, object]) -> None:
        if RANKS[level] < self.rank:
            return
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if self._repeats.admits(level, event, fields, _monotonic_ms()):
                self._write(level, event, fields)

    def say_repeats(self, *, is_end: bool = False) -> None:
        if self._repeats.is_quiet or self._pid != os.getpid():
            return
        now_ms = _monotonic_ms()
        if now_ms < self._look_ms and not is_end:
            return
        self._look_ms = now_ms + LOOK_EVERY_MS
        with self._lock:
            for summary in self._repeats.take(now_ms, is_end=is_end):
                self._write_summary(summary)

    def _write_summary(self, summary: Summary) -> None:
        fields: dict[str, object] = {"what": summary.event, "more": summary.held_back, "in_s": summary.for_ms // 1000}
        self._write(summary.level, "repeated", {**fields, **dict(summary.words)})

    def _write(self, level: Level, event: str, fields: dict[str, object]) -> None:
        make = format_json if self.is_json else format_event
        self.line(level, make(level, event, {"pid": self._pid, **fields}, time.time()))

    def line(self, level: Level, text: str) -> None:
        if self._is_journal:
            text = "\n".join(PRIORITIES[level] + part for part in text.split("\n"))
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except OSError:
            # The reader of standard error is gone (a closed pipe, a full disk behind it). There is nowhere
            # left to say so, and a daemon must not die of its own log.
            return


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


_log = _OpLog()
_changes: Changes | None = None


def configure(form: str, level: str) -> None:
    """Take up log.format and log.level, for this process and those it forks from now on."""
    _log.is_json = form == "json"
    _log.rank = RANKS[level.upper()]


def share_changes() -> None:
    """From now on this process and those it forks say what is `changed` once, together."""
    global _changes
    _changes = Changes()


def changed(subject: str, state: object) -> bool:
    """Whether nobody of this daemon has said so of the subject last. A process on its own says everything."""
    return _changes is None or _changes.changed(subject, str(state))


def info(event: str, **fields: object) -> None:
    """Something happened as it should."""
    _log.event("INFO", event, fields)


def warning(event: str, **fields: object) -> None:
    """Something a person may want to look at; the daemon goes on by itself."""
    _log.event("WARNING", event, fields)


def error(event: str, **fields: object) -> None:
    """Something a person must look at."""
    _log.event("ERROR", event, fields)


def message(text: str) -> None:
    """A line that is no event: the sentence that ends a process which could not start."""
    if _log.is_json:
        error("message", text=text)
    else:
        _log.line("ERROR", text)


def crash() -> None:
    """The exception being handled, with its traceback: a fault of ours."""
    if _log.is_json:
        error("crashed", traceback=traceback.format_exc())
    else:
        _log.line("ERROR", traceback.format_exc().rstrip())


def say_repeats(*, is_end: bool = False) -> None:
    """Sum up what was held back and is over its minute; at the end of a process, all of it. Called by every loop."""
    _log.say_repeats(is_end=is_end)
