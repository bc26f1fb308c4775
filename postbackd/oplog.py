# SPDX-License-Identifier: MIT
"""The operational log: one line an event on standard error, for people and for journald.

A line is `TIME LEVEL event key=value …`. Events are named in the past tense (`worker_started`,
`redis_lost`). Secrets are never passed in here. The delivery log is another file: delivery/log.py.
"""

import json
import os
import sys
import time
from typing import Literal

Level = Literal["INFO", "WARNING", "ERROR"]


def _format_value(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "='):
        return text
    return json.dumps(text)


def format_event(level: Level, event: str, fields: dict[str, object], now_s: float) -> str:
    """One line, without its newline. Values with blanks, quotes or controls are quoted as JSON strings."""
    whole_s, fraction = divmod(now_s, 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole_s))
    pairs = "".join(f" {key}={_format_value(value)}" for key, value in fields.items())
    return f"{stamp}.{int(fraction * 1000):03d}Z {level} {event}{pairs}"


def _write(level: Level, event: str, fields: dict[str, object]) -> None:
    line = format_event(level, event, {"pid": os.getpid(), **fields}, time.time())
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except OSError:
        # The reader of standard error is gone (a closed pipe, a full disk behind it). There is nowhere
        # left to say so, and a daemon must not die of its own log.
        return


def info(event: str, **fields: object) -> None:
    """Something happened as it should."""
    _write("INFO", event, fields)


def warning(event: str, **fields: object) -> None:
    """Something a person may want to look at; the daemon goes on by itself."""
    _write("WARNING", event, fields)


def error(event: str, **fields: object) -> None:
    """Something a person must look at."""
    _write("ERROR", event, fields)
