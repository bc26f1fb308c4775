# SPDX-License-Identifier: MIT
"""Lanes: one queue per host, so that a host at its limit never holds up another. Pure.

In come claimed postbacks with their host and the time; out go the next ones to start, hosts taking turns,
and the ones to park because their host cannot take them soon. A lane knows how many of its transfers are
in flight, how fast they complete, and when its next parked postback is due (its virtual clock, so that
parked ones come back spread out at the host's own pace and never many at one instant). A lane is shut
while its host pauses (Retry-After), its breaker is open (breaker.py) or its configured rate is used up.

It does not render, send, or talk to Redis; the worker does, with what it gets from here.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from postbackd import oplog
from postbackd.delivery.breaker import Breaker, State

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
IDLE_LANE_MS = 60_000  # a lane unused this long is forgotten
SWEEP_EVERY_MS = 10_000


class Lane(Generic[Delivery]):
    """One host's waiting postbacks, its transfers in flight and its measured pace."""

    __slots__ = (
        "breaker",
        "burst",
        "completed",
        "failed",
        "gate_ms",
        "host_key",
        "in_flight",
        "limit",
        "next_park_ms",
        "paced_ms",
        "park_max_ms",
        "parked",
        "parked_from_ms",
        "queued",
        "rate_limit_per_s",
        "rate_per_s",
        "suspended_ms",
        "tokens",
        "used_ms",
        "waiting",
        "window_ms",
    )

    def __init__(self, host_key: str, bounds: "Bounds", now_ms: int) -> None:
        self.host_key = host_key
        self.limit = bounds.in_flight
        self.rate_limit_per_s = bounds.rate_per_s
        self.burst = self.tokens = max(bounds.burst, 1.0)
        self.paced_ms = now_ms  # when tokens were counted last
        self.gate_ms = 0  # nothing starts before
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
            self.gate_ms = max(self.gate_ms, self.breaker.open_until_ms)
            open_s = round((self.breaker.open_until_ms - now_ms) / 1000)
            oplog.warning("breaker_opened", host=self.host_key, for_s=open_s)
        elif was is State.HALF_OPEN:
            oplog.info("breaker_closed", host=self.host_key)

    def is_shut(self, now_ms: int) -> bool:
        """Whether nothing may start now."""
        return now_ms < self.gate_ms

    def spend(self, now_ms: int) -> None:
        """A transfer starts; with a configured rate this may shut the lane until the next one is due (token bucket)."""
        rate_per_s = self.rate_limit_per_s
        if rate_per_s is None:
            return
        self.tokens = min(self.tokens + (now_ms - self.paced_ms) * rate_per_s / 1000, self.burst) - 1
        self.paced_ms = now_ms
        if self.tokens < 1:
            self.gate_ms = max(self.gate_ms, now_ms + math.ceil((1 - self.tokens) * 1000 / rate_per_s))

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


class Bounds(NamedTuple):
    """What is configured for one host in one process."""

    in_flight: int
    rate_per_s: float | None = None
    burst: float = 1.0


class Lanes(Generic[Delivery]):
    """All lanes of one worker, and the order in which hosts take turns."""

    def __init__(self, bounds_of: Callable[[str], Bounds]) -> None:
        """`bounds_of` gives what is configured for a host, by its key."""
        self._bounds_of = bounds_of
        self._lanes: dict[str, Lane[Delivery]] = {}
        self._turns: deque[Lane[Delivery]] = deque()
        self._swept_ms = 0
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def add(self, host_key: str, delivery: Delivery, now_ms: int) -> None:
        """Put one claimed postback at the end of its host's lane."""
        lane = self._lanes.get(host_key)
        if lane is None:
            lane = self._lanes[host_key] = Lane(host_key, self._bounds_of(host_key), now_ms)
        lane.waiting.append(delivery)
        lane.used_ms = now_ms
        self.waiting += 1
        if not lane.queued:
            self._queue(lane, now_ms)

    def _queue(self, lane: Lane[Delivery], now_ms: int) -> None:
        """Give the lane a turn when it has work and room."""
        if lane.waiting and not lane.queued and self._has_room(lane, now_ms) and lane.suspended_ms is None:
            lane.queued = True
            self._turns.append(lane)

    def _has_room(self, lane: Lane[Delivery], now_ms: int) -> bool:
        if lane.breaker.state is State.CLOSED:
            return lane.in_flight < lane.limit and now_ms >= lane.gate_ms
        lane.breaker.let_probe(now_ms)
        return lane.in_flight == 0 and now_ms >= lane.gate_ms

    def take(self, now_ms: int) -> tuple[str, Delivery] | None:
        """The next postback to start, counted as in flight from now; None when every host is at its limit."""
        while self._turns:
            lane = self._turns.popleft()
            if not lane.waiting or not self._has_room(lane, now_ms):  # parked, or shut, since it got its turn
                lane.queued = False
                continue
            delivery = lane.waiting.popleft()
            self.waiting -= 1
            lane.in_flight += 1
            lane.spend(now_ms)
            if lane.waiting and self._has_room(lane, now_ms):
                self._turns.append(lane)
            else:
                lane.queued = False
            return lane.host_key, delivery
        return None

    def done(self, host_key: str, now_ms: int, failed: bool = False) -> None:
        """One transfer of this host has ended; `failed`: by the host's fault."""
        lane = self._lanes[host_key]
        lane.in_flight -= 1
        lane.completed += 1
        if failed:
            lane.failed += 1
        lane.used_ms = now_ms
        if not lane.queued:
            self._queue(lane, now_ms)

    def pause(self, host_key: str, for_ms: int, now_ms: int) -> None:
        """The host has asked for a pause: start nothing for so long."""
        lane = self._lanes[host_key]
        lane.gate_ms = max(lane.gate_ms, now_ms + min(for_ms, LONGEST_PAUSE_MS))

    def suspend(self, host_key: str, delivery: Delivery, now_ms: int) -> None:
        """Take back what `take` gave: its host's address is not known yet. No more turns until `resume`."""
        lane = self._lanes[host_key]
        lane.in_flight -= 1
        lane.waiting.appendleft(delivery)
        self.waiting += 1
        if lane.suspended_ms is None:
            lane.suspended_ms = now_ms
        if lane.queued:
            lane.queued = False
            self._turns.remove(lane)

    def resume(self, host_key: str, now_ms: int) -> None:
        """The host's address is known now, or known not to be."""
        lane = self._lanes.get(host_key)
        if lane is not None and lane.suspended_ms is not None:
            lane.suspended_ms = None
            self._queue(lane, now_ms)

    def overflow(self, now_ms: int) -> Iterator[tuple[Delivery, int]]:
        """Take out the postbacks that wait beyond their lane's share: each with its delay in ms, to be parked."""
        if now_ms - self._swept_ms >= SWEEP_EVERY_MS:
            self._sweep(now_ms)
        for lane in self._lanes.values():
            lane.measure(now_ms)
            if lane.waiting and not lane.queued:
                self._queue(lane, now_ms)  # its gate may have opened
            share = lane.share(now_ms)
            if share is None:
                continue
            while len(lane.waiting) > share:
                self.waiting -= 1
                yield lane.waiting.pop(), lane.park_delay_ms(now_ms)

    def drop_waiting(self) -> Iterator[Delivery]:
        """Empty every lane of what was not started, at a drain."""
        for lane in self._lanes.values():
            lane.queued = False
            while lane.waiting:
                self.waiting -= 1
                yield lane.waiting.popleft()
        self._turns.clear()

    def _sweep(self, now_ms: int) -> None:
        self._swept_ms = now_ms
        idle = [
            key
            for key, lane in self._lanes.items()
            if not lane.waiting
            and not lane.in_flight
            and now_ms - lane.used_ms > IDLE_LANE_MS
            and lane.suspended_ms is None
            and not lane.is_shut(now_ms)
            and lane.breaker.state is State.CLOSED
        ]
        for key in idle:
            del self._lanes[key]
