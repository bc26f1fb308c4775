# SPDX-License-Identifier: MIT
"""The breaker of one host: stops sending to a host that fails, and tries it again with one postback. Pure.

closed ── ≥ 20 attempts in 60 s, ≥ 70 % of them failed ──> open for 30 s
open ── its time is over ──> half open: one attempt, the probe
half open ── the probe failed ──> open, twice as long as before, at most 10 min
          ── it did not ──> closed, with nothing remembered

A failure is one of the host (no connection, time-out, 5xx), not an answer that refuses one postback (4xx).
"""

from collections import deque
from enum import IntEnum

MIN_SAMPLES = 20
FAILED_SHARE = 0.7
WINDOW_MS = 60_000
BUCKET_MS = 5_000
FIRST_OPEN_MS = 30_000
LONGEST_OPEN_MS = 600_000


class State(IntEnum):
    """As the metric postbackd_breaker_state shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """What one worker knows of one host. Times are monotonic, in ms."""

    __slots__ = ("_buckets", "_open_ms", "open_until_ms", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.open_until_ms = 0
        self._open_ms = FIRST_OPEN_MS  # how long it opens the next time
        self._buckets: deque[tuple[int, int, int]] = deque()  # begin, attempts, failures

    def count(self, attempts: int, failures: int, now_ms: int) -> bool:
        """Attempts have ended; whether that opens it. While half open this is the probe, while open nothing new."""
        if self.state is State.OPEN:
            return False
        if self.state is State.HALF_OPEN:
            if failures:
                self._open(now_ms)
                return True
            self._close()
            return False
        buckets = self._buckets
        if buckets and now_ms - buckets[-1][0] < BUCKET_MS:
            begin_ms, before, failed_before = buckets.pop()
            buckets.append((begin_ms, before + attempts, failed_before + failures))
        else:
            buckets.append((now_ms, attempts, failures))
        while buckets[0][0] <= now_ms - WINDOW_MS:
            buckets.popleft()
        samples = sum(bucket[1] for bucket in buckets)
        if not failures or samples < MIN_SAMPLES or sum(bucket[2] for bucket in buckets) < FAILED_SHARE * samples:
            return False
        self._open(now_ms)
        return True

    def let_probe(self, now_ms: int) -> bool:
        """Whether its time is over: from now on one attempt may be made."""
        if self.state is State.OPEN and now_ms >= self.open_until_ms:
            self.state = State.HALF_OPEN
            return True
        return False

    def _open(self, now_ms: int) -> None:
        self.state = State.OPEN
        self.open_until_ms = now_ms + self._open_ms
        self._open_ms = min(self._open_ms * 2, LONGEST_OPEN_MS)
        self._buckets.clear()

    def _close(self) -> None:
        self.state = State.CLOSED
        self._open_ms = FIRST_OPEN_MS
        self._buckets.clear()
