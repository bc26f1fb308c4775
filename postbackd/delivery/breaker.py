# SPDX-License-Identifier: MIT
"""The breaker of one host: stops sending to a host that fails, and tries it again with one postback. Pure.

closed ── ≥ 20 attempts in 60 s, ≥ 70 % of them failed ──> open for 30 s
open ── its time is over ──> half open: one attempt, the probe
half open ── the probe failed ──> open, twice as long as before, at most 10 min
          ── it did not ──> closed, with nothing remembered
open ── nobody wants to send there for ten minutes beyond its time ──> the same

A failure is one of the host (no connection, time-out, 5xx), not an answer that refuses one postback (4xx).

The workers of one machine share what they find (`adopt`): who opened it probes it, the others give that probe time.
"""

from collections import deque
from enum import IntEnum
from typing import NamedTuple

MIN_SAMPLES = 20
FAILED_SHARE = 0.7
WINDOW_MS = 60_000
BUCKET_MS = 5_000
FIRST_OPEN_MS = 30_000
LONGEST_OPEN_MS = 600_000
PROBE_HEAD_START_MS = 2_000  # of the worker that opened it: the others come later, should it have nothing to probe with
PROBE_TIME_MS = 15_000  # that a sibling's probe is waited for


class State(IntEnum):
    """As the metric postbackd_breaker_state shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Hint(NamedTuple):
    """What a sibling says of a host: its breaker, and until when nothing starts there."""

    state: State
    until_ms: int
    opened_ms: int
    closed_ms: int
    open_next_ms: int


class Breaker:
    """What one worker knows of one host. Times are monotonic, in ms."""

    __slots__ = ("_buckets", "closed_ms", "open_next_ms", "open_until_ms", "opened_ms", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.open_until_ms = 0
        self.open_next_ms = FIRST_OPEN_MS  # how long it opens the next time
        self.opened_ms = 0  # when, at last; by our own samples or a sibling's
        self.closed_ms = 0
        self._buckets: deque[tuple[int, int, int]] = deque()  # begin, attempts, failures

    def count(self, attempts: int, failures: int, now_ms: int) -> bool:
        """Attempts have ended; whether that opens it. While half open this is the probe, while open nothing new."""
        if self.state is State.OPEN:
            return False
        if self.state is State.HALF_OPEN:
            if failures:
                self._open(now_ms)
                return True
            self._close(now_ms)
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

    def forget(self, now_ms: int) -> None:
        """What it knows is too old to count."""
        self._close(now_ms)

    def adopt(self, sibling: "Hint", now_ms: int) -> None:
        """Take over what another worker of this machine has found out since we did: it has the same host before it."""
        if sibling.closed_ms > self.opened_ms:
            if self.state is not State.CLOSED:
                self._close(sibling.closed_ms)
        elif sibling.state is State.HALF_OPEN:
            if self.state is State.OPEN:
                self.open_until_ms = max(self.open_until_ms, now_ms + PROBE_TIME_MS)
        elif sibling.state is State.OPEN and sibling.opened_ms > max(self.opened_ms, self.closed_ms):
            self.state = State.OPEN
            self.opened_ms = sibling.opened_ms
            self.open_until_ms = sibling.until_ms + PROBE_HEAD_START_MS
            self.open_next_ms = sibling.open_next_ms
            self._buckets.clear()

    def _open(self, now_ms: int) -> None:
        self.state = State.OPEN
        self.opened_ms = now_ms
        self.open_until_ms = now_ms + self.open_next_ms
        self.open_next_ms = min(self.open_next_ms * 2, LONGEST_OPEN_MS)
        self._buckets.clear()

    def _close(self, at_ms: int) -> None:
        self.state = State.CLOSED
        self.closed_ms = at_ms
        self.open_next_ms = FIRST_OPEN_MS
        self._buckets.clear()
