# SPDX-License-Identifier: MIT
"""Lanes: one queue per host, so that a host at its limit never holds up another. Pure.

In come claimed postbacks with their host and the time; out go the next ones to start, hosts taking turns,
and the ones to park because their host cannot take them soon. A lane knows how many of its transfers are
in flight, how fast they complete, and when its next parked postback is due (its virtual clock, so that
parked ones come back spread out at the host's own pace and never many at one instant). A lane is shut
while its host pauses (Retry-After), its breaker is open (breaker.py) or its configured rate is used up.

It does not render, send, or talk to Redis; the worker does, with what it gets from here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic

from postbackd.delivery.breaker import Hint, State
from postbackd.delivery.lane import LONGEST_PAUSE_MS, Bounds, Delivery, Lane
from postbackd.host_board import bucket_of

IDLE_LANE_MS = 60_000  # a lane unused this long is forgotten
SWEEP_EVERY_MS = 10_000


class Lanes(Generic[Delivery]):
    """All lanes of one worker, and the order in which hosts take turns."""

    def __init__(self, bounds_of: Callable[[str], Bounds]) -> None:
        """`bounds_of` gives what is configured for a host, by its key."""
        self._bounds_of = bounds_of
        self._lanes: dict[str, Lane[Delivery]] = {}
        self._turns: deque[Lane[Delivery]] = deque()
        self._swept_ms = 0
        self.hints: list[dict[str, Hint]] = []  # what the workers of this machine say, by host; host_report.py
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def add(self, host_key: str, delivery: Delivery, now_ms: int) -> None:
        """Put one claimed postback at the end of its host's lane."""
        lane = self._lanes.get(host_key)
        if lane is None:
            lane = self._open(host_key, now_ms)
        lane.waiting.append(delivery)
        lane.used_ms = now_ms
        self.waiting += 1
        if not lane.queued:
            self._queue(lane, now_ms)

    def _open(self, host_key: str, now_ms: int) -> Lane[Delivery]:
        lane = self._lanes[host_key] = Lane(host_key, self._bounds_of(host_key), now_ms)
        for hints in self.hints:
            if (hint := hints.get(host_key)) is not None:
                lane.adopt(hint, now_ms)
        return lane

    def get(self, host_key: str) -> Lane[Delivery] | None:
        return self._lanes.get(host_key)

    def __iter__(self) -> Iterator[Lane[Delivery]]:
        return iter(self._lanes.values())

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

    def done(self, host_key: str, now_ms: int, took_ms: float = 0.0) -> None:
        """One transfer of this host has delivered its postback."""
        lane = self._lanes[host_key]
        lane.in_flight -= 1
        lane.completed += 1
        lane.buckets[bucket_of(took_ms)] += 1
        lane.used_ms = now_ms
        if not lane.queued:
            self._queue(lane, now_ms)

    def failed(self, host_key: str, now_ms: int, took_ms: float = 0.0, *, is_fault: bool, is_dead: bool) -> None:
        """One attempt has failed, `is_fault`: by the host's fault; its postback will be tried again, or is dead."""
        lane = self._lanes[host_key]
        lane.failed += is_fault
        lane.faults += is_fault
        lane.dead += is_dead
        lane.retried += not is_dead
        self.done(host_key, now_ms, took_ms)

    def cancel(self, host_key: str, now_ms: int) -> None:
        """What `take` gave could not be sent at all, by no fault of its host."""
        lane = self._lanes[host_key]
        lane.in_flight -= 1
        self._queue(lane, now_ms)

    def pause(self, host_key: str, for_ms: int, now_ms: int) -> None:
        """The host has asked for a pause: start nothing for so long."""
        self._lanes[host_key].pause(now_ms + min(for_ms, LONGEST_PAUSE_MS))

    def adopt(self, host_key: str, hint: Hint, now_ms: int) -> None:
        """Another worker of this machine has found out something of a host."""
        lane = self._lanes.get(host_key)
        if lane is not None:
            lane.adopt(hint, now_ms)

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
