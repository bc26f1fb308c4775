# SPDX-License-Identifier: MIT
"""A lane: one host's waiting postbacks, its transfers in flight, its measured pace, and what shuts it. Pure.

Shut by its breaker (breaker.py), by the host's own wish (Retry-After), or by its configured rate: one gate, a time
before which nothing starts. What waits beyond its share is parked on its virtual clock.
"""

from bisect import bisect_right
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from postbackd import oplog
from postbackd.delivery.breaker import Breaker, Hint, State
from postbackd.delivery.flow_limit import FlowLimit
from postbackd.delivery.pacer import Pacer
from postbackd.host_board import BOUNDS_MS, BUCKETS, bucket_of

Delivery = TypeVar("Delivery")

RATE_WINDOW_MS = 100  # completions are counted this long before they count as a rate
WAIT_BOUND_MS = 250  # a lane may hold as many waiting postbacks as its host completes in this time
PARK_MIN_MS = 1000  # QUEUE.md "settle, park": below this the same items go round and round
PARK_NEAR_MS = 3_600_000  # the first hour of the clock is gone through once: enough to probe a dead host with
PARK_FAR_MS = 43_200_000  # a mass is spread up to here; what can be delivered earlier is called back (recall.py)
GOLDEN = 0.618034  # laps of the clock fall between each other
RECALL_AHEAD_MS = 150  # a look comes each 100 ms
FIRST_RATE_PER_S = 3.2  # a rate nobody has measured yet: 32 connections that all time out after 10 s
SUSPENDED_BOUND_MS = 1000  # a name that takes longer to look up has its postbacks parked: they hold up others' claims
SLOW_MS = 1000  # a host whose transfers take longer holds the worker's places for long
UNBOUNDED = 1 << 30
GROWTH = 4  # while slow start goes on: what the limit will be two rounds ahead
LONGEST_PAUSE_MS = 60_000  # of a host that asked for one; a single postback obeys it to an hour


FAST, NEW, SLOW = range(3)  # a lane's kind: answers within SLOW_MS · has not answered yet · takes longer, or fails


class Bounds(NamedTuple):
    """What is configured for one host in one process."""

    in_flight: int
    rate_per_s: float | None = None  # of all workers of the machine, as is the burst
    burst: float = 1.0
    rate_cells: "memoryview[int] | None" = None  # by which these workers keep it together
    slot: int = 0


class Lane(Generic[Delivery]):
    """One host's waiting postbacks, its transfers in flight and its measured pace."""

    __slots__ = (
        "breaker",
        "buckets",
        "dead",
        "ended_before",
        "faults",
        "flow",
        "folded",
        "gate_ms",
        "host_key",
        "in_flight",
        "is_strict",
        "judged",
        "kind",
        "laps",
        "limit",
        "measured",
        "next_park_ms",
        "pace_ms",
        "pacer",
        "parked_count",
        "parked_ms",
        "parked_until_ms",
        "pause_ms",
        "queued",
        "rate_per_s",
        "recall_room",
        "recall_seen_ms",
        "retried",
        "room",
        "round_faults",
        "round_left",
        "samples_failed",
        "stalled_ms",
        "suspended_ms",
        "times_ms",
        "traffic",
        "used_ms",
        "waiting",
        "was_full",
        "window_ms",
    )

    def __init__(self, host_key: str, bounds: Bounds, now_ms: int) -> None:
        self.host_key = host_key
        self.flow = FlowLimit(bounds.in_flight)
        self.limit = self.flow.value
        self.times_ms: list[float] = []  # of the transfers of this round, but for faults
        self.folded = 0  # how many of them stand in the histogram
        self.round_left = 1  # the round is over when there are so many; the first one tells the host's kind
        self.round_faults = 0
        self.was_full = False  # in this round
        self.ended_before = 0  # transfers that have ended before this round
        self.measured = 0  # of all that have ended, those that the rate knows
        self.judged = 0  # and those that the breaker knows
        self.samples_failed = 0  # that it does not know
        self.kind = NEW
        self.stalled_ms = 0  # how long it has had transfers in flight and none ended
        self.room = UNBOUNDED  # how many may wait, as of the last look
        self.is_strict = False  # whether that holds also while the worker has room for more
        self.pacer: Pacer | None = None
        if bounds.rate_per_s is not None:
            self.pacer = Pacer(bounds.rate_per_s, bounds.burst, bounds.rate_cells, bounds.slot)
        self.gate_ms = 0  # nothing starts before: the latest of the breaker's, the pause's and the rate's
        self.pause_ms = 0
        self.pace_ms = 0
        self.breaker = Breaker()
        self.waiting: deque[Delivery] = deque()
        self.in_flight = 0
        self.queued = False  # stands in the turn order
        self.rate_per_s: float | None = None  # None until one window has passed
        self.window_ms = now_ms
        self.used_ms = now_ms
        self.next_park_ms = 0.0
        self.laps = 0
        self.parked_until_ms = 0  # before that time some may be parked
        self.parked_ms = 0  # when the last one was
        self.recall_room = 0  # how many of them it could take now
        self.recall_seen_ms = 0  # when a recall saw one of them last
        self.suspended_ms: int | None = None  # since when its host's name is being looked up
        # What the host board has not been told yet (host_report.py): attempts by their time, and what failed of them.
        self.buckets = [0] * BUCKETS
        self.retried = self.dead = self.faults = self.parked_count = 0
        self.traffic = 0.0  # attempts and parked ones of late: who deserves a row

    def fault(self, took_ms: float) -> None:
        """An attempt has failed by the host's fault."""
        self.round_left -= 1
        self.round_faults += 1
        self.faults += 1
        self.samples_failed += 1
        self.buckets[bucket_of(took_ms)] += 1

    def ended(self) -> int:
        """How many transfers have ended, since ever."""
        return self.ended_before + len(self.times_ms) + self.round_faults

    def fold_times(self) -> None:
        """Bring the histogram up to the last transfer: sorted, so that each bucket costs one look."""
        ordered = sorted(self.times_ms[self.folded :])
        if not ordered:
            return
        self.folded = len(self.times_ms)
        start, last = 0, bucket_of(ordered[-1])
        for bucket in range(bucket_of(ordered[0]), last):
            end = bisect_right(ordered, BOUNDS_MS[bucket])
            self.buckets[bucket] += end - start
            start = end
        self.buckets[last] += len(ordered) - start

    def end_round(self, now_ms: int) -> None:
        """As many transfers as the limit have ended: what they say about the limit, and about the host's kind."""
        self.fold_times()
        answered, faults = len(self.times_ms), self.round_faults
        mean_ms = sum(self.times_ms) / answered if answered else 0.0
        if self.breaker.state is State.CLOSED:
            self.flow.round_ended(mean_ms, faults / (answered + faults), self.was_full)
            self.kind = FAST if 0 < mean_ms <= SLOW_MS else SLOW
        self.stalled_ms = 0
        self._begin_round()
        if self.samples_failed or self.breaker.state is not State.CLOSED:
            self.judge(now_ms)

    def _begin_round(self) -> None:
        """Half open, a round is its probe; open, what was in flight before."""
        self.fold_times()
        self.ended_before = self.ended()
        self.times_ms.clear()
        self.folded = self.round_faults = 0
        self.limit = self.round_left = self.flow.value if self.breaker.state is State.CLOSED else 1
        self.was_full = self.in_flight >= self.limit

    def measure(self, now_ms: int) -> None:
        """Fold the finished window into the rate; half old, half new follows a host within a few windows."""
        passed_ms = now_ms - self.window_ms
        if passed_ms < RATE_WINDOW_MS:
            return
        ended = self.ended()
        completed, self.measured = ended - self.measured, ended
        if self.in_flight or completed:  # an idle host has no pace to learn from
            rate_per_s = completed * 1000 / passed_ms
            self.rate_per_s = rate_per_s if self.rate_per_s is None else (self.rate_per_s + rate_per_s) / 2
        self.stalled_ms = self.stalled_ms + passed_ms if self.in_flight and not completed else 0
        if self.stalled_ms > SLOW_MS:
            self.kind = SLOW
        self.window_ms = now_ms
        if ended != self.judged:
            self.judge(now_ms)

    def judge(self, now_ms: int) -> None:
        """Let the breaker see what ended: each window, and each round with failures, or a host that refuses at once
        would have been tried a thousand times before."""
        was = self.breaker.state
        ended = self.ended()
        samples, failed = ended - self.judged, self.samples_failed
        self.judged, self.samples_failed = ended, 0
        if self.breaker.count(samples, failed, now_ms):
            self.set_gate()
            self.flow.restart()
            self.kind = SLOW
            self._begin_round()
            open_s = round((self.breaker.open_until_ms - now_ms) / 1000)
            oplog.warning("breaker_opened", host=self.host_key, for_s=open_s)
        elif was is State.HALF_OPEN:
            self._begin_round()
            oplog.info("breaker_closed", host=self.host_key)

    def forget_breaker(self, now_ms: int) -> None:
        """Nobody has wanted to send there for long: who is next finds it closed, and whoever watches is told so."""
        self.breaker.forget(now_ms)
        self.set_gate()
        self._begin_round()
        oplog.info("breaker_closed", host=self.host_key, why="nothing is sent there any more")

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
        was = self.breaker.state
        self.breaker.adopt(sibling, now_ms)
        self.set_gate()
        if self.breaker.state is not was:
            if was is State.CLOSED:
                self.flow.restart()
                self.kind = SLOW
            self._begin_round()

    def wait_for_pace(self, until_ms: int) -> None:
        """Its configured rate is used up: the lane is shut until the next transfer is due."""
        self.pace_ms = until_ms
        self.set_gate()

    def capacity_per_s(self) -> float:
        """What the host can take: as much as it did of late, or its limit over the time a transfer takes."""
        if self.pacer is not None:
            return self.pacer.rate_per_s
        if self.breaker.state is not State.CLOSED:
            return FIRST_RATE_PER_S  # that it refuses quickly is no pace
        rate_per_s = self.rate_per_s or 0.0
        if self.kind is FAST:
            rate_per_s = max(rate_per_s, self.limit * 1000 / max(self.flow.base_ms, 1.0))
        return max(rate_per_s, FIRST_RATE_PER_S)

    def look(self, now_ms: int) -> None:
        """How many may wait here; without bound while nothing is known, so that a first burst is not parked in vain."""
        self.is_strict = True
        if self.suspended_ms is not None:
            self.room = 0 if now_ms - self.suspended_ms > SUSPENDED_BOUND_MS else self.limit
        elif self.gate_ms - now_ms > PARK_MIN_MS:
            self.room = 0
        elif self.breaker.state is State.HALF_OPEN:
            self.room = 0 if self.in_flight else 1
        elif self.pacer is not None:
            self.room = max(1, int(self.pacer.rate_per_s * WAIT_BOUND_MS / 1000))
        else:
            self.is_strict = False
            self.room = self._share()

    def _share(self) -> int:
        if self.rate_per_s is None:
            return UNBOUNDED
        limit = self.limit * GROWTH if self.kind is FAST and self.flow.is_starting else self.limit
        return max(limit, int(self.capacity_per_s() * WAIT_BOUND_MS / 1000))

    def park_delay_ms(self, now_ms: int) -> int:
        """The next free place of the virtual clock, as a delay."""
        self.parked_count += 1
        self.parked_ms = now_ms
        step_ms = 1000 / self.capacity_per_s()
        due_ms = max(now_ms + PARK_MIN_MS, self.gate_ms, self.next_park_ms) + step_ms
        open_ms = max(now_ms, self.gate_ms)
        if self.pacer is not None:  # one clock for all workers, or together they would park for more than the rate
            due_ms = max(now_ms + PARK_MIN_MS, self.gate_ms, self.pacer.next_park_ms() + step_ms)
            self.pacer.parked(due_ms)
        elif due_ms > open_ms + PARK_FAR_MS:
            self.laps += 1  # a mass: once more over the far part of the clock, between what stands there
            due_ms = open_ms + PARK_NEAR_MS + step_ms * (self.laps * GOLDEN % 1)
        self.next_park_ms = due_ms
        self.parked_until_ms = max(self.parked_until_ms, int(due_ms))
        return int(due_ms) - now_ms

    def wants_recall(self, now_ms: int) -> bool:
        """Whether the host could take some of what may be parked for it; `recall_room` says how many. A configured rate
        is what the clock went by: nothing is early there."""
        if (
            self.parked_until_ms <= now_ms
            or self.breaker.state is not State.CLOSED
            or self.gate_ms > now_ms
            or self.suspended_ms is not None
            or self.pacer is not None
        ):
            self.recall_room = 0
            return False
        per_look = int(self.capacity_per_s() * RECALL_AHEAD_MS / 1000)
        self.recall_room = max(2 * self.limit, per_look) - self.in_flight - len(self.waiting)
        return self.recall_room > 0

    def forget_parked(self) -> None:
        """Nothing is parked for it: its clock begins anew."""
        self.parked_until_ms = 0
        self.next_park_ms = 0.0
        self.laps = 0
