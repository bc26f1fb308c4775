# SPDX-License-Identifier: MIT
"""A lane: one host's waiting postbacks, its transfers in flight, its measured pace, and what shuts it. Pure.

Shut by its breaker (breaker.py), by the host's own wish (Retry-After), or by its configured rate: one gate, a time
before which nothing starts. What waits beyond its share is parked on its virtual clock.
"""

import math
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from postbackd import oplog
from postbackd.delivery.breaker import Breaker, Hint, State
from postbackd.host_board import BUCKETS

Delivery = TypeVar("Delivery")

RATE_WINDOW_MS = 100  # completions are counted this long before they count as a rate
WAIT_BOUND_MS = 250  # a lane may hold as many waiting postbacks as its host completes in this time
PARK_MIN_MS = 1000  # QUEUE.md "settle, park": below this the same items go round and round
PARK_MAX_MS = 60_000  # a host that recovers is tried again within a minute, whatever stood before
PARK_MAX_BUSY_MS = 600_000  # or within ten, when coming back each minute would be too much work
PARK_BUSY_PER_S = 1000  # that is: 2 % of a worker's time
PARK_WINDOW_MS = 10_000
FIRST_RATE_PER_S = 3.2  # a rate nobody has measured yet: 32 connections that all time out after 10 s
SUSPENDED_BOUND_MS = 1000  # a name that takes longer to look up has its postbacks parked: they hold up others' claims
LONGEST_PAUSE_MS = 60_000  # of a host that asked for one; a single postback obeys it to an hour


class Bounds(NamedTuple):
    """What is configured for one host in one process."""

    in_flight: int
    rate_per_s: float | None = None
    burst: float = 1.0


class Lane(Generic[Delivery]):
    """One host's waiting postbacks, its transfers in flight and its measured pace."""

    __slots__ = (
        "breaker",
        "buckets",
        "burst",
        "completed",
        "dead",
        "failed",
        "faults",
        "gate_ms",
        "host_key",
        "in_flight",
        "limit",
        "next_park_ms",
        "pace_ms",
        "paced_ms",
        "park_max_ms",
        "parked",
        "parked_count",
        "parked_from_ms",
        "pause_ms",
        "queued",
        "rate_limit_per_s",
        "rate_per_s",
        "retried",
        "suspended_ms",
        "tokens",
        "traffic",
        "used_ms",
        "waiting",
        "window_ms",
    )

    def __init__(self, host_key: str, bounds: Bounds, now_ms: int) -> None:
        self.host_key = host_key
        self.limit = bounds.in_flight
        self.rate_limit_per_s = bounds.rate_per_s
        self.burst = self.tokens = max(bounds.burst, 1.0)
        self.paced_ms = now_ms  # when tokens were counted last
        self.gate_ms = 0  # nothing starts before: the latest of the breaker's, the pause's and the rate's
        self.pause_ms = 0
        self.pace_ms = 0
        self.breaker = Breaker()
        self.failed = 0
        self.waiting: deque[Delivery] = deque()
        self.in_flight = 0
        self.queued = False  # stands in the turn order
        self.rate_per_s: float | None = None  # None until one window has passed
        self.completed = 0
        self.window_ms = now_ms
        self.used_ms = now_ms
        self.next_park_ms = 0
        self.park_max_ms = PARK_MAX_MS
        self.parked = 0  # since parked_from_ms
        self.parked_from_ms = now_ms
        self.suspended_ms: int | None = None  # since when its host's name is being looked up
        # What the host board has not been told yet (host_report.py): attempts by their time, and what failed of them.
        self.buckets = [0] * BUCKETS
        self.retried = self.dead = self.faults = self.parked_count = 0
        self.traffic = 0.0  # attempts and parked ones of late: who deserves a row

    def measure(self, now_ms: int) -> None:
        """Fold the finished window into the rate; half old, half new follows a host within a few windows."""
        passed_ms = now_ms - self.window_ms
        if passed_ms < RATE_WINDOW_MS:
            return
        if self.in_flight or self.completed:  # an idle host has no pace to learn from
            rate_per_s = self.completed * 1000 / passed_ms
            self.rate_per_s = rate_per_s if self.rate_per_s is None else (self.rate_per_s + rate_per_s) / 2
        if self.completed:
            self._judge(now_ms)
        self.completed = self.failed = 0
        self.window_ms = now_ms

    def _judge(self, now_ms: int) -> None:
        """Let the breaker see what ended in this window."""
        was = self.breaker.state
        if self.breaker.count(self.completed, self.failed, now_ms):
            self.set_gate()
            open_s = round((self.breaker.open_until_ms - now_ms) / 1000)
            oplog.warning("breaker_opened", host=self.host_key, for_s=open_s)
        elif was is State.HALF_OPEN:
            oplog.info("breaker_closed", host=self.host_key)

    def is_shut(self, now_ms: int) -> bool:
        """Whether nothing may start now."""
        return now_ms < self.gate_ms

    def set_gate(self) -> None:
        """One of the three has changed."""
        until_ms = self.breaker.open_until_ms if self.breaker.state is State.OPEN else 0
        self.gate_ms = max(until_ms, self.pause_ms, self.pace_ms)

    def pause(self, until_ms: int) -> None:
        """Nothing starts before, as the host has asked."""
        if until_ms > self.pause_ms:
            self.pause_ms = until_ms
            self.set_gate()

    def adopt(self, sibling: Hint, now_ms: int) -> None:
        """Take over what another worker knows of the breaker and the pause."""
        if sibling.until_ms > now_ms and sibling.state is State.CLOSED:
            self.pause(min(sibling.until_ms, now_ms + LONGEST_PAUSE_MS))
        self.breaker.adopt(sibling, now_ms)
        self.set_gate()

    def spend(self, now_ms: int) -> None:
        """A transfer starts; with a configured rate this may shut the lane until the next one is due (token bucket)."""
        rate_per_s = self.rate_limit_per_s
        if rate_per_s is None:
            return
        self.tokens = min(self.tokens + (now_ms - self.paced_ms) * rate_per_s / 1000, self.burst) - 1
        self.paced_ms = now_ms
        if self.tokens < 1:
            self.pace_ms = now_ms + math.ceil((1 - self.tokens) * 1000 / rate_per_s)
            self.set_gate()

    def share(self, now_ms: int) -> int | None:
        """How many may wait here; None while nothing is known, so that a first burst is not parked in vain."""
        if self.suspended_ms is not None:
            return 0 if now_ms - self.suspended_ms > SUSPENDED_BOUND_MS else self.limit
        if self.gate_ms - now_ms > PARK_MIN_MS:
            return 0
        if self.breaker.state is State.HALF_OPEN:
            return 0 if self.in_flight else 1
        if self.rate_limit_per_s is not None:
            return max(1, int(self.rate_limit_per_s * WAIT_BOUND_MS / 1000))
        if self.rate_per_s is None:
            return None
        return max(self.limit, int(self.rate_per_s * WAIT_BOUND_MS / 1000))

    def park_delay_ms(self, now_ms: int) -> int:
        """The next free place of the virtual clock, as a delay."""
        self.parked += 1
        self.parked_count += 1
        passed_ms = now_ms - self.parked_from_ms
        if passed_ms >= PARK_WINDOW_MS:
            is_busy = self.parked * 1000 > PARK_BUSY_PER_S * passed_ms
            self.park_max_ms = PARK_MAX_BUSY_MS if is_busy else PARK_MAX_MS
            self.parked, self.parked_from_ms = 0, now_ms
        rate_per_s = self.rate_limit_per_s or max(self.rate_per_s or 0.0, FIRST_RATE_PER_S)
        first_ms = max(now_ms + PARK_MIN_MS, self.gate_ms)
        due_ms = max(first_ms, self.next_park_ms) + int(1000 / rate_per_s)
        if due_ms > max(now_ms, self.gate_ms) + self.park_max_ms and self.rate_limit_per_s is None:
            due_ms = first_ms  # the clock has run full: begin again, or all would fall on its end
        self.next_park_ms = due_ms
        return due_ms - now_ms
