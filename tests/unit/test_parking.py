# SPDX-License-Identifier: MIT
"""Parked postbacks with an invented clock and a model of the queue: how often each is claimed, how late it is.

The model: ready, and later as one heap of items a second. A claim takes due ones for at most half. A tick is 100 ms.
"""

from collections import Counter, defaultdict, deque

import pytest

from postbackd.delivery.lane import PARK_FAR_MS, PARK_MIN_MS, PARK_NEAR_MS, Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.delivery.recall import Recaller

TICK_MS = 100
START_MS = 10_000_000
CLAIMS_PER_TICK = 2000
HOUR_MS = 3_600_000
RETRIES_MS = (5_000, 30_000, 120_000, 600_000, 1_800_000, 7_200_000)


class World:
    """One worker and one host, which is dead at first: it refuses each attempt."""

    def __init__(self, count: int, per_tick: int = 200) -> None:
        self.now_ms = START_MS
        self.is_dead = True
        self.per_tick = per_tick  # how many it answers in one, once it is back
        self.ready = deque(range(count))
        self.later: dict[int, list[tuple[int, bool]]] = defaultdict(list)  # second → item, whether it is parked
        self.seen_s = START_MS // 1000
        self.due: deque[int] = deque()
        self.claims: Counter[int] = Counter()
        self.attempts: Counter[int] = Counter()
        self.most_due = 0  # at one second, of those parked
        self.delivered: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """A new worker, which knows of nothing."""
        self.lanes = Lanes[int](lambda _host: Bounds(32), 256)
        self.recaller = Recaller(lambda _host: [b"endpoint"])

    def run(self, for_ms: int) -> None:
        for _ in range(for_ms // TICK_MS):
            self.tick()

    def run_until_delivered(self, count: int) -> int:
        """How long it took."""
        began_ms = self.now_ms
        while len(self.delivered) < count:
            assert self.now_ms - began_ms < 4 * HOUR_MS
            self.tick()
        return self.now_ms - began_ms

    def tick(self) -> None:
        self.now_ms += TICK_MS
        for item, delay_ms in self.lanes.overflow(self.now_ms):
            self.park(item, delay_ms)
        self.exchange()
        room = self.per_tick
        while room and (taken := self.lanes.take(self.now_ms)) is not None:
            room -= not self.is_dead
            self.attempt(taken[1])

    def attempt(self, item: int) -> None:
        if not self.is_dead:
            self.delivered.add(item)
            self.lanes.done("h", self.now_ms, 5.0)
            return
        self.attempts[item] += 1
        self.lanes.failed("h", self.now_ms, 0.0, is_fault=True, is_dead=False)
        self.put(item, RETRIES_MS[min(self.attempts[item], len(RETRIES_MS)) - 1], False)

    def put(self, item: int, delay_ms: int, is_parked: bool) -> None:
        self.later[(self.now_ms + delay_ms) // 1000 + 1].append((item, is_parked))

    def park(self, item: int, delay_ms: int) -> None:
        assert delay_ms >= PARK_MIN_MS
        self.put(item, delay_ms, True)

    def exchange(self) -> None:
        recall = self.recaller.next(self.lanes.wanting, self.now_ms)
        if recall is not None:
            [(most, _ids)] = recall.hosts
            self.recaller.took(*self.recall(recall.cursor, recall.page, most), self.now_ms)
        while self.seen_s < self.now_ms // 1000:
            self.seen_s += 1
            found = self.later.pop(self.seen_s, [])
            self.most_due = max(self.most_due, len(found))
            self.due += [item for item, _ in found]
        for _ in range(CLAIMS_PER_TICK):
            source = self.due if self.due and (not self.ready or _ % 2) else self.ready
            if not source:
                return
            item = source.popleft()
            self.claims[item] += 1
            delay_ms = self.lanes.add("h", item, self.now_ms)
            if delay_ms is not None:
                self.park(item, delay_ms)

    def recall(self, cursor: bytes, page: int, most: int) -> tuple[bytes, list[int]]:
        """What lua/recall.lua does, a second's items at a time."""
        moved = beyond = looked = 0
        for second in sorted(s for s in self.later if s > (int(cursor) if cursor else self.seen_s)):
            kept = []
            for item, is_parked in self.later[second]:
                looked += 1
                if is_parked and moved < most:
                    moved += 1
                    self.due.append(item)
                else:
                    beyond += is_parked
                    kept.append((item, is_parked))
            self.later[second] = kept
            if looked >= page:
                return b"%d" % second, [moved, beyond]
        return b"", [moved, beyond]

    def claims_without_attempt(self) -> Counter[int]:
        return Counter(self.claims[item] - self.attempts[item] for item in self.claims)


def test_mass_of_a_host_that_is_dead_for_an_hour_is_claimed_three_times_at_most_and_delivered_when_it_is_back() -> None:
    world = World(100_000)
    world.run(HOUR_MS)
    assert sum(world.attempts.values()) < 400, "a probe at a time"
    assert max(world.claims_without_attempt()) <= 2
    world.is_dead = False
    took_ms = world.run_until_delivered(100_000 - len(world.attempts))
    assert max(world.claims_without_attempt()) <= 3, "the last one brings it on its way"
    host_alone_ms = 100_000 / world.per_tick * TICK_MS
    assert took_ms < 1.3 * host_alone_ms + 600_000, "the host is used as far as it goes, once its breaker is tried"


@pytest.mark.parametrize("dead_for_ms", [20_000, 300_000])
def test_short_outage_leaves_nobody_waiting_long(dead_for_ms: int) -> None:
    world = World(20_000)
    world.run(dead_for_ms)
    world.is_dead = False
    took_ms = world.run_until_delivered(20_000 - len(world.attempts))
    assert took_ms < dead_for_ms + 30_000 + 1.3 * 20_000 / world.per_tick * TICK_MS


def test_few_parked_postbacks_come_back_as_soon_as_the_breaker_lets_them() -> None:
    world = World(60)
    world.run(100_000)
    world.is_dead = False
    assert world.run_until_delivered(60 - len(world.attempts)) < 150_000


def test_mass_is_spread_and_never_due_at_one_instant() -> None:
    world = World(100_000)
    world.run(60_000)
    counts = [sum(parked for _, parked in items) for items in world.later.values()]
    assert sum(counts) > 99_000
    assert max(counts) < 30


def test_successor_of_a_dead_worker_calls_back_what_it_never_saw_parked() -> None:
    world = World(50_000)
    world.run(120_000)
    world.restart()
    world.is_dead = False
    world.ready.append(50_000)  # one fresh postback of that host is all that the new worker gets
    took_ms = world.run_until_delivered(50_000 - len(world.attempts))
    assert took_ms < 60_000


def test_survivor_calls_back_what_a_worker_of_another_machine_had_parked() -> None:
    world = World(50_000)
    world.run(120_000)
    world.restart()
    world.is_dead = False
    world.lanes._began_ms = -HOUR_MS  # an old worker, that never met the host
    world.ready.append(50_000)
    world.run(30_000)
    assert len(world.delivered) < 5_000, "it knows of nothing"
    world.lanes.look_for_parked(world.now_ms)
    assert world.run_until_delivered(50_000 - len(world.attempts)) < 60_000


def test_steady_slow_host_gets_each_parked_postback_at_its_pace() -> None:
    """10 a second for 2,000 of them: claimed once to be parked, and once or twice more, in 200 s."""
    world = World(2_000, per_tick=1)
    world.is_dead = False
    took_ms = world.run_until_delivered(2_000)
    assert took_ms < 240_000
    assert sum(world.claims.values()) < 4 * 2_000


def test_clock_of_a_lane_ends_half_a_day_ahead() -> None:
    lanes = Lanes[int](lambda _host: Bounds(1), 4)
    lanes.add("h", 0, START_MS)
    lanes.take(START_MS)
    list(lanes.overflow(START_MS + TICK_MS))
    lane = lanes.get("h")
    assert lane is not None
    delays = [lane.park_delay_ms(START_MS) for _ in range(300_000)]
    assert max(delays) <= PARK_FAR_MS + PARK_MIN_MS
    assert len({delay // 1000 for delay in delays if delay > PARK_NEAR_MS}) > 39_000, "the whole far part is used"
    assert max(Counter(delays).values()) <= 3
