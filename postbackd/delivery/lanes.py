# SPDX-License-Identifier: MIT
"""Lanes: one queue per host, so that a host at its limit never holds up another. Pure.

In come claimed postbacks with their host and the time; out go the next ones to start, hosts taking turns,
and the ones to park because their host cannot take them soon. A lane knows how many of its transfers are
in flight, how fast they complete, and when its next parked postback is due (its virtual clock, so that
parked ones come back spread out at the host's own pace and never many at one instant). A lane is shut
while its host pauses (Retry-After), its breaker is open (breaker.py) or its configured rate is used up.

It does not render, send, or talk to Redis; the worker does, with what it gets from here.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic

from postbackd.delivery.breaker import Hint, State
from postbackd.delivery.lane import (
    FAST,
    LONGEST_PAUSE_MS,
    NEW,
    PARK_FAR_MS,
    RATE_WINDOW_MS,
    SLOW,
    Bounds,
    Delivery,
    Lane,
)

IDLE_LANE_MS = 60_000  # a lane unused this long is forgotten
FORGET_SHUT_MS = 600_000  # an open breaker is forgotten when nobody wanted to send there so long beyond its time
SWEEP_EVERY_MS = 10_000
YOUNG_MS = 600_000  # of a worker: what was parked before it came is looked for
FAST_KEPT_MS = 10_000  # places are kept so long for a fast host that is not seen


class Lanes(Generic[Delivery]):
    """All lanes of one worker, and the order in which hosts take turns."""

    def __init__(self, bounds_of: Callable[[str], Bounds], in_flight: int) -> None:
        """`bounds_of` gives what is configured for a host, by its key; `in_flight`: the worker's transfers in all."""
        self._bounds_of = bounds_of
        self._in_flight = in_flight
        self._lanes: dict[str, Lane[Delivery]] = {}
        self._turns: tuple[deque[Lane[Delivery]], ...] = (deque(), deque(), deque())  # FAST, NEW, SLOW
        self._last = SLOW  # the kind that had the last turn, while there is work of several
        self._held_places = 0  # in flight to hosts that are no fast ones
        self._held_bound = in_flight
        self._new_places = 0  # of those
        self.held_up = 0  # waiting for hosts that are no fast ones: no reason to claim less for others
        self._spare = in_flight // 4  # nothing is parked for want of room while fewer wait
        self._swept_ms = 0
        self._began_ms: int | None = None
        self.gates: list[tuple[int, int, Lane[Delivery]]] = []  # when lanes shut by their rate may go on: a heap
        self._shut_count = 0
        self.wanting: list[Lane[Delivery]] = []  # lanes that could take some of what is parked, as of the last look
        self.hints: list[dict[str, Hint]] = []  # what the workers of this machine say, by host; host_report.py
        self.waiting = 0

    def __len__(self) -> int:
        return len(self._lanes)

    def add(self, host_key: str, delivery: Delivery, now_ms: int) -> int | None:
        """Put one claimed postback at the end of its host's lane; or it is to be parked, so many ms."""
        lane = self._lanes.get(host_key)
        if lane is None:
            lane = self._open(host_key, now_ms)
        if len(lane.waiting) >= lane.room or (lane.kind is not FAST and self.held_up >= self._in_flight):
            lane.look(now_ms)  # what was seen last may be over
            if self._exceeds(lane, len(lane.waiting) + 1):
                return lane.park_delay_ms(now_ms)
        lane.waiting.append(delivery)
        self.waiting += 1
        if lane.kind is not FAST:
            self.held_up += 1
        if not lane.queued:
            if now_ms - lane.used_ms > RATE_WINDOW_MS and not lane.in_flight:
                lane.window_ms = now_ms  # a rest says nothing of the host's rate
            self._queue(lane, now_ms)
        lane.used_ms = now_ms
        return None

    def _exceeds(self, lane: Lane[Delivery], waiting: int) -> bool:
        """Whether the last of so many in this lane is to be parked: the lane is shut, or has more than it can take soon
        while the worker holds many; or too many wait for slow hosts and this one has its next already."""
        if waiting > lane.room and (lane.is_strict or self.waiting >= self._spare):
            return True
        return lane.kind is not FAST and self.held_up > self._in_flight and waiting > 1

    def _open(self, host_key: str, now_ms: int) -> Lane[Delivery]:
        lane = self._lanes[host_key] = Lane(host_key, self._bounds_of(host_key), now_ms)
        for hints in self.hints:
            if (hint := hints.get(host_key)) is not None:
                lane.adopt(hint, now_ms)
        if self._began_ms is None:
            self._began_ms = now_ms
        if now_ms - self._began_ms < YOUNG_MS:
            lane.parked_until_ms = now_ms + PARK_FAR_MS  # by a worker that is no more
        return lane

    def look_for_parked(self, now_ms: int) -> None:
        """A worker has died, perhaps with all of its machine: what it had parked, it calls back no more."""
        self._began_ms = now_ms
        for lane in self:
            lane.parked_until_ms = max(lane.parked_until_ms, now_ms + PARK_FAR_MS)

    def get(self, host_key: str) -> Lane[Delivery] | None:
        return self._lanes.get(host_key)

    def __iter__(self) -> Iterator[Lane[Delivery]]:
        return iter(self._lanes.values())

    def _queue(self, lane: Lane[Delivery], now_ms: int) -> None:
        """Give the lane a turn when it has work and room."""
        if not lane.waiting or lane.queued or now_ms < lane.gate_ms or lane.suspended_ms is not None:
            return
        if lane.kind is not FAST:
            lane.breaker.let_probe(now_ms)
        if lane.in_flight < lane.limit:
            lane.queued = True
            self._turns[lane.kind].append(lane)

    def take(self, now_ms: int) -> tuple[str, Delivery] | None:
        """The next postback to start, counted as in flight from now; None when nothing may start."""
        fast, new, slow = self._turns
        while turns := self._next_turns() if new or slow else fast:
            lane = turns.popleft()
            if not lane.waiting or lane.in_flight >= lane.limit or now_ms < lane.gate_ms:
                lane.queued = False  # parked, or shut, since it got its turn
                continue
            if lane.pacer is not None and not lane.pacer.spend(now_ms):
                self._wait_for_pace(lane, lane.pacer.next_ms)
                continue
            delivery = lane.waiting.popleft()
            self.waiting -= 1
            lane.in_flight += 1
            if lane.kind is not FAST:
                self.held_up -= 1
                self._held_places += 1
            if lane.in_flight >= lane.limit:
                lane.was_full = True
                lane.queued = False
            elif lane.waiting:
                self._turns[lane.kind].append(lane)
            else:
                lane.queued = False
            return lane.host_key, delivery
        return None

    def _wait_for_pace(self, lane: Lane[Delivery], until_ms: int) -> None:
        lane.wait_for_pace(until_ms)
        lane.queued = False
        self._shut_count += 1
        heapq.heappush(self.gates, (until_ms, self._shut_count, lane))

    def open_gates(self, now_ms: int) -> None:
        """Turns again for the lanes whose rate lets them go on: by the ms, since the look every 100 ms would take the
        tokens of a tenth of a second at once and lose what is beyond a small burst."""
        while self.gates and self.gates[0][0] <= now_ms:
            self._queue(heapq.heappop(self.gates)[2], now_ms)

    def _next_turns(self) -> deque[Lane[Delivery]]:
        """Whose turn it is. The kinds alternate; a share of the places in flight is kept for fast hosts, and of what is
        not a part for new ones: most of them are fast, and should not wait behind the slow to show it."""
        free = self._held_bound - self._held_places
        for step in (1, 2, 3):
            kind = (self._last + step) % 3
            if self._turns[kind] and (kind is FAST or free > (0 if kind is NEW else self._new_places)):
                self._last = kind
                return self._turns[kind]
        return self._turns[FAST]

    def _change_kind(self, lane: Lane[Delivery], was: int) -> None:
        """What it has in flight and waiting counts with its new kind; it stands with it from its next turn on."""
        sign = (was is FAST) - (lane.kind is FAST)
        self._held_places += sign * lane.in_flight
        self.held_up += sign * len(lane.waiting)

    def _keep_places(self, now_ms: int) -> None:
        """Up to half of the places in flight are not for hosts that hold them for long: as many as fast hosts use."""
        used = sum(lane.limit for lane in self if lane.kind is FAST and now_ms - lane.used_ms < FAST_KEPT_MS)
        self._held_bound = self._in_flight - min(used, self._in_flight // 2)
        self._new_places = self._in_flight // 8 if used or self._turns[NEW] else 0

    def done(self, host_key: str, now_ms: int, took_ms: float = 0.0) -> None:
        """One transfer of this host has ended with an answer."""
        lane = self._lanes[host_key]
        lane.in_flight -= 1
        if lane.kind is not FAST:
            self._held_places -= 1
        lane.times_ms.append(took_ms)
        if len(lane.times_ms) >= lane.round_left:
            self._end_round(lane, now_ms)
        lane.used_ms = now_ms
        if not lane.queued:
            self._queue(lane, now_ms)

    def failed(self, host_key: str, now_ms: int, took_ms: float = 0.0, *, is_fault: bool, is_dead: bool) -> None:
        """One attempt has failed, `is_fault`: by the host's fault; its postback will be tried again, or is dead."""
        lane = self._lanes[host_key]
        lane.dead += is_dead
        lane.retried += not is_dead
        if not is_fault:
            self.done(host_key, now_ms, took_ms)
            return
        lane.in_flight -= 1
        if lane.kind is not FAST:
            self._held_places -= 1
        lane.fault(took_ms)
        if len(lane.times_ms) >= lane.round_left:
            self._end_round(lane, now_ms)
        lane.used_ms = now_ms
        if not lane.queued:
            self._queue(lane, now_ms)

    def _end_round(self, lane: Lane[Delivery], now_ms: int) -> None:
        was = lane.kind
        lane.end_round(now_ms)
        if lane.kind is not was:
            self._change_kind(lane, was)

    def cancel(self, host_key: str, now_ms: int) -> None:
        """What `take` gave could not be sent at all, by no fault of its host."""
        lane = self._lanes[host_key]
        self._take_back(lane)
        self._queue(lane, now_ms)

    def _take_back(self, lane: Lane[Delivery]) -> None:
        lane.in_flight -= 1
        if lane.kind is not FAST:
            self._held_places -= 1
        if lane.pacer is not None:
            lane.pacer.give_back()

    def pause(self, host_key: str, for_ms: int, now_ms: int) -> None:
        """The host has asked for a pause: start nothing for so long."""
        self._lanes[host_key].pause(now_ms + min(for_ms, LONGEST_PAUSE_MS))

    def adopt(self, host_key: str, hint: Hint, now_ms: int) -> None:
        """Another worker of this machine has found out something of a host."""
        lane = self._lanes.get(host_key)
        if lane is not None:
            was = lane.kind
            lane.adopt(hint, now_ms)
            if lane.kind is not was:
                self._change_kind(lane, was)

    def suspend(self, host_key: str, delivery: Delivery, now_ms: int) -> None:
        """Take back what `take` gave: its host's address is not known yet. No more turns until `resume`."""
        lane = self._lanes[host_key]
        self._take_back(lane)
        lane.waiting.appendleft(delivery)
        self.waiting += 1
        if lane.kind is not FAST:
            self.held_up += 1
        if lane.suspended_ms is None:
            lane.suspended_ms = now_ms
        if lane.queued:
            lane.queued = False
            for turns in self._turns:
                if lane in turns:
                    turns.remove(lane)

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
        self._keep_places(now_ms)
        wanting = self.wanting = []
        for lane in self._lanes.values():
            if lane.parked_until_ms and lane.wants_recall(now_ms):
                wanting.append(lane)
            if not lane.waiting and not lane.in_flight and lane.ended() == lane.measured:
                continue
            was = lane.kind
            lane.measure(now_ms)
            if lane.kind is not was:
                self._change_kind(lane, was)
            if lane.waiting and not lane.queued:
                self._queue(lane, now_ms)  # its gate may have opened
            lane.look(now_ms)
            while lane.waiting and self._exceeds(lane, len(lane.waiting)):
                self.waiting -= 1
                if lane.kind is not FAST:
                    self.held_up -= 1
                yield lane.waiting.pop(), lane.park_delay_ms(now_ms)

    def drop_waiting(self) -> Iterator[Delivery]:
        """Empty every lane of what was not started, at a drain."""
        for lane in self._lanes.values():
            lane.queued = False
            while lane.waiting:
                self.waiting -= 1
                if lane.kind is not FAST:
                    self.held_up -= 1
                yield lane.waiting.popleft()
        for turns in self._turns:
            turns.clear()

    def _sweep(self, now_ms: int) -> None:
        self._swept_ms = now_ms
        for lane in self:
            is_idle = not lane.waiting and not lane.in_flight
            is_over = now_ms - lane.breaker.open_until_ms > FORGET_SHUT_MS
            if lane.breaker.state is not State.CLOSED and is_idle and is_over:
                lane.forget_breaker(now_ms)
        idle = [
            key
            for key, lane in self._lanes.items()
            if not lane.waiting
            and not lane.in_flight
            and now_ms - lane.used_ms > IDLE_LANE_MS
            and lane.suspended_ms is None
            and not lane.is_shut(now_ms)
            and lane.breaker.state is State.CLOSED
            and lane.parked_until_ms <= now_ms
        ]
        for key in idle:
            del self._lanes[key]
