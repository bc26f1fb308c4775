# SPDX-License-Identifier: MIT
"""Isolation with an invented clock: what the policy alone does, whatever the machine. bench.isolation is the real one.

One worker of 256 places and its pace; a tick is 5 ms. A tenth of the traffic goes to four hosts that answer in 5 ms,
the rest to one that never answers (time-out after 10 s), one that answers after 5 s, one that resets each connection.
"""

import heapq
from collections import deque

from postbackd.delivery.lane import Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.delivery.pace import Pace

TICK_MS = 5
START_MS = 1_000_000
RETRY_MS = 5_000
PLACES = 256
NEVER, CRAWLS, RESETS = "never", "crawls", "resets"
TOOK_MS = {NEVER: 10_000, CRAWLS: 5_000, RESETS: 0}
CLAIMS_A_TICK = 4  # exchanges that a worker has time for


class World:
    """A worker, its queue, and the hosts; latencies of those that deliver."""

    def __init__(self, latency_ms: dict[str, int]) -> None:
        self.now_ms = START_MS
        self.latency_ms = latency_ms
        self.lanes = Lanes[tuple[str, int]](lambda _host: Bounds(32), PLACES)
        self.pace = Pace(PLACES)
        self.ready: deque[tuple[str, int]] = deque()
        self.later: list[tuple[int, tuple[str, int]]] = []
        self.flying: list[tuple[int, str, tuple[str, int]]] = []
        self.in_flight = 0
        self.times_ms: dict[str, list[int]] = {}
        self.looked_ms = 0

    def run(self, ms: int, flows: list[tuple[list[str], float]]) -> None:
        """Each flow's hosts by turns, so many a second."""
        queued, began_ms = [0] * len(flows), self.now_ms
        for _ in range(ms // TICK_MS):
            self.now_ms += TICK_MS
            for flow, (hosts, per_s) in enumerate(flows):
                while queued[flow] < (self.now_ms - began_ms) * per_s / 1000:
                    self.ready.append((hosts[queued[flow] % len(hosts)], self.now_ms))
                    queued[flow] += 1
            self.tick()

    def tick(self) -> None:
        now_ms = self.now_ms
        ended = 0
        while self.flying and self.flying[0][0] <= now_ms:
            _, host, item = heapq.heappop(self.flying)
            self.in_flight -= 1
            ended += 1
            self.end(host, item)
        self.pace.completed(ended, now_ms)
        if now_ms - self.looked_ms >= 100:
            self.looked_ms = now_ms
            for item, delay_ms in self.lanes.overflow(now_ms):
                heapq.heappush(self.later, (now_ms + delay_ms, item))
        for _ in range(CLAIMS_A_TICK):
            self.claim()
            while self.in_flight < PLACES and (taken := self.lanes.take(now_ms)) is not None:
                self.start(*taken)

    def start(self, host: str, item: tuple[str, int]) -> None:
        self.in_flight += 1
        ends_ms = self.now_ms + (TOOK_MS[host] if host in TOOK_MS else self.latency_ms[host])
        heapq.heappush(self.flying, (ends_ms, host, item))

    def end(self, host: str, item: tuple[str, int]) -> None:
        if host in (NEVER, RESETS):
            self.lanes.failed(host, self.now_ms, float(TOOK_MS[host]), is_fault=True, is_dead=False)
            heapq.heappush(self.later, (self.now_ms + RETRY_MS, item))
            return
        self.lanes.done(host, self.now_ms, float(TOOK_MS.get(host) or self.latency_ms[host]))
        self.times_ms.setdefault(host, []).append(self.now_ms - item[1])

    def claim(self) -> None:
        wanted = self.pace.room(self.in_flight + self.lanes.waiting - self.lanes.held_up)
        due = [
            heapq.heappop(self.later)[1] for _ in range(wanted // 2) if self.later and self.later[0][0] <= self.now_ms
        ]
        fresh = [self.ready.popleft() for _ in range(min(wanted - len(due), len(self.ready)))]
        for item in due + fresh:
            delay_ms = self.lanes.add(item[0], item, self.now_ms)
            if delay_ms is not None:
                heapq.heappush(self.later, (self.now_ms + delay_ms, item))

    def rank_ms(self, hosts: list[str], share: float) -> int:
        times_ms = sorted(time_ms for host in hosts for time_ms in self.times_ms.get(host, []))
        return times_ms[int(len(times_ms) * share)]

    def count(self, hosts: list[str]) -> int:
        return sum(len(self.times_ms.get(host, [])) for host in hosts)


HEALTHY = [f"well{number}" for number in range(4)]


def healthy_world(*flows: tuple[list[str], float]) -> World:
    world = World(dict.fromkeys(HEALTHY, 5))
    world.run(2_000, [(HEALTHY, 500.0)])
    world.times_ms.clear()
    world.run(20_000, [(HEALTHY, 500.0), *flows])
    return world


def test_healthy_tenth_keeps_its_throughput_and_its_p99_beside_three_bad_hosts() -> None:
    alone = healthy_world()
    beside = healthy_world(([NEVER, CRAWLS, RESETS], 4500.0))
    assert beside.count(HEALTHY) >= 0.99 * alone.count(HEALTHY)
    assert beside.rank_ms(HEALTHY, 0.99) <= 2 * alone.rank_ms(HEALTHY, 0.99)
    assert not beside.ready, "what the bad hosts cannot take is parked, and holds up no claim"


def test_host_that_appears_beside_them_is_served_with_its_first_turn() -> None:
    world = World(dict.fromkeys([*HEALTHY, "fresh"], 5))
    world.run(12_000, [(HEALTHY, 500.0), ([NEVER, CRAWLS, RESETS], 4500.0)])
    world.run(500, [(["fresh"], 100.0), (HEALTHY, 500.0), ([NEVER, CRAWLS, RESETS], 4500.0)])
    world.run(100, [])
    assert world.count(["fresh"]) == 50
    assert world.rank_ms(["fresh"], 0.99) <= 4 * TICK_MS


def test_500_hosts_of_unequal_speed_have_what_they_take_and_the_slow_ones_pay() -> None:
    """1 ms to 4 s, two a second each: 550 places are wanted and 256 are there."""
    latency_ms = {f"h{number}": int(4 ** (6 * number / 499)) for number in range(500)}
    world = World(latency_ms)
    world.run(20_000, [(list(latency_ms), 1000.0)])
    fast = [host for host, ms in latency_ms.items() if ms < 1000]
    slow = [host for host, ms in latency_ms.items() if ms >= 1000]
    assert world.count(fast) >= 0.95 * 2 * len(fast) * 20
    beyond_ms = sorted(time_ms - latency_ms[host] for host in fast for time_ms in world.times_ms[host])
    assert beyond_ms[int(len(beyond_ms) * 0.9)] <= 50
    assert 0.2 * 2 * len(slow) * 20 < world.count(slow) < 0.95 * 2 * len(slow) * 20
