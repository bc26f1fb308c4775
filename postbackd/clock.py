# SPDX-License-Identifier: MIT
"""The clock: milliseconds since 1970 as the queue server counts them, carried by our own monotonic clock.

`sync` is given the server's TIME at each connect and about once a minute. The first one sets the clock; later small
differences are slewed (a clock of ids and expiry must not jump), large ones are set. No I/O.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from postbackd import oplog

SLEW_BOUND_MS = 1000  # a larger step is set at once: slewing it would take too long
SLEW_SHARE = 0.1  # of each difference is taken over per sync, so network jitter hardly moves the clock
WARN_SKEW_MS = 60_000
HINT = "set this machine's or the server's time: timedatectl on both"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def format_ms(at_ms: int) -> str:
    """A time in ms since 1970 as people and JSON have it: 2026-11-24T01:02:03.456Z."""
    at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Clock:
    """One process' clock. Before the first `sync` it shows the machine's own time."""

    def __init__(self, monotonic_ms: Callable[[], int] = _monotonic_ms, wall_ms: Callable[[], int] = _wall_ms) -> None:
        self._monotonic_ms = monotonic_ms
        self._wall_ms = wall_ms
        self._is_set = False
        self.assume_ahead(0)
        self._is_skewed = False

    def now_ms(self) -> int:
        """Server time now, in ms since 1970."""
        return self._monotonic_ms() + self._offset_ms

    def ahead_ms(self) -> int:
        """How far this clock is before the machine's own; more, never less, where we are stopped between the two."""
        wall_ms = self._wall_ms()
        return self.now_ms() - wall_ms

    def machine_ms(self) -> int:
        """The machine's own time."""
        return self._wall_ms()

    def assume_ahead(self, ahead_ms: int) -> None:
        """Take `ahead_ms` as the server's lead until the first `sync`."""
        if not self._is_set:
            # In this order: stopped between the two, we are ahead, and give out no ids of the past.
            before_ms = self._monotonic_ms()
            self._offset_ms = self._wall_ms() - before_ms + ahead_ms

    def sync(self, server_ms: int) -> None:
        """Take over the server's time."""
        difference_ms = server_ms - self.now_ms()
        if not self._is_set or abs(difference_ms) > SLEW_BOUND_MS:
            self._offset_ms += difference_ms
        else:
            self._offset_ms += int(difference_ms * SLEW_SHARE)
        self._is_set = True
        skew_ms = server_ms - self._wall_ms()
        is_skewed = abs(skew_ms) > WARN_SKEW_MS
        if is_skewed is not self._is_skewed:
            self._is_skewed = is_skewed
            if oplog.changed("clock", "skewed" if is_skewed else "right") and is_skewed:
                oplog.warning("clock_skew", skew_s=round(skew_ms / 1000, 1), hint=HINT)
