# SPDX-License-Identifier: MIT
"""A configured rate over several workers, with an invented clock: kept together, used in full by whoever has work."""

import os
from collections.abc import Callable
from itertools import accumulate

import pytest

from postbackd.delivery.lane import Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.delivery.pacer import Pacer
from postbackd.host_board import HostBoard
from postbackd.rate_board import CELLS, STARTED, RateBoard

START_MS = 1_000_000
SECONDS = 10


class Machine:
    """Some workers' pacers of one host."""

    def __init__(self, workers: int, rate_per_s: float, burst: float) -> None:
        self.cells = RateBoard(workers).cells("h")
        self.rate_per_s, self.burst = rate_per_s, burst
        self.pacers = [self.pacer(slot) for slot in range(workers)]
        self.started_ms: list[int] = []

    def pacer(self, slot: int) -> Pacer:
        return Pacer(self.rate_per_s, self.burst, self.cells, slot)

    def run(self, from_ms: int, ms: int, wants: Callable[[int, int], bool]) -> int:
        """Each ms each worker that wants to starts as many as it may; how many."""
        before = len(self.started_ms)
        for now_ms in range(from_ms, from_ms + ms):
            for slot, pacer in enumerate(self.pacers):
                while wants(slot, now_ms) and pacer.spend(now_ms):
                    self.started_ms.append(now_ms)
        return len(self.started_ms) - before

    def most_over(self) -> float:
        """By how many starts any span of time exceeded rate * time + burst."""
        ahead = [number - now_ms * self.rate_per_s / 1000 for number, now_ms in enumerate(self.started_ms)]
        return max(one - least for one, least in zip(ahead, accumulate(ahead, min), strict=True)) + 1 - self.burst


@pytest.mark.parametrize(("rate_per_s", "burst"), [(20, 20), (20, 1), (7.5, 3), (333, 5), (0.5, 1)])
@pytest.mark.parametrize(
    "wants",
    [
        lambda slot, now_ms: slot == 0,
        lambda slot, now_ms: True,
        lambda slot, now_ms: slot == now_ms // 1700 % 3,
        lambda slot, now_ms: now_ms % (slot + 2) == 0,
    ],
    ids=["one", "all", "in turns", "unequal"],
)
def test_rate_is_used_in_full_and_never_exceeded(
    wants: Callable[[int, int], bool], rate_per_s: float, burst: float
) -> None:
    machine = Machine(3, rate_per_s, burst)
    count = machine.run(START_MS, SECONDS * 1000, wants)
    assert machine.most_over() < 0.01
    assert count >= rate_per_s * SECONDS * 0.99 + burst - 2


def test_dead_worker_and_its_successor_change_nothing() -> None:
    machine = Machine(2, 20, 20)
    machine.run(START_MS, 5000, lambda slot, now_ms: True)
    assert machine.run(START_MS + 5000, 5000, lambda slot, now_ms: slot == 1) == 100, "all of it is the other's now"
    machine.pacers[0] = machine.pacer(0)
    assert not machine.pacers[0].spend(START_MS + 9999), "a successor finds the bucket as it is"
    machine.run(START_MS + 10_000, 5000, lambda slot, now_ms: True)
    assert machine.most_over() < 0.01


def test_lane_forgotten_and_opened_anew_gets_no_second_burst() -> None:
    machine = Machine(2, 1, 100)
    assert machine.run(START_MS, 1, lambda slot, now_ms: slot == 0) == 100
    machine.pacers = [machine.pacer(0), machine.pacer(1)]
    assert machine.run(START_MS + 60_000, 1, lambda slot, now_ms: True) == 60


def test_both_at_the_same_moment_is_paid_back() -> None:
    """Each has looked before the other's start is to be seen: as if they had run at once."""
    machine = Machine(2, 10, 1)
    shown = machine.cells[CELLS + STARTED]
    assert machine.pacers[1].spend(START_MS)
    machine.cells[CELLS + STARTED] = shown
    assert machine.pacers[0].spend(START_MS)
    machine.cells[CELLS + STARTED] = shown + 1
    assert machine.run(START_MS, 1000, lambda slot, now_ms: True) == 8


def test_lower_and_higher_rate_after_a_reload_hold_at_once() -> None:
    machine = Machine(1, 1, 100)
    machine.run(START_MS, 1, lambda slot, now_ms: True)
    machine.pacers = [Pacer(100, 100, machine.cells)]
    assert machine.run(START_MS + 1, 3000, lambda slot, now_ms: True) >= 295, "no wait for the old rate's bucket"


def test_start_that_did_not_happen_is_given_back() -> None:
    machine = Machine(2, 10, 1)
    assert machine.pacers[0].spend(START_MS)
    machine.pacers[0].give_back()
    assert machine.pacers[1].spend(START_MS) and not machine.pacers[0].spend(START_MS)


def lanes_of(board: HostBoard, slot: int) -> Lanes[str]:
    return Lanes(lambda host: Bounds(100, 10, 1, board.rates.cells(host), slot), in_flight=256)


def test_workers_park_on_one_clock() -> None:
    board = HostBoard(2)
    workers = [lanes_of(board, slot) for slot in range(2)]
    for number in range(52):
        for lanes in workers:
            lanes.add("h", str(number), START_MS)
    started = [lanes.take(START_MS) for lanes in workers]
    assert [taken is not None for taken in started] == [True, False]
    delays = sorted(delay for lanes in workers for _, delay in lanes.overflow(START_MS + 200))
    assert len(delays) == 99 and len(set(delays)) == 99
    assert delays[0] >= 1000 and delays[-1] - delays[0] == 9800


def test_lane_goes_on_at_the_ms_its_rate_allows() -> None:
    """The look each 100 ms is too rare for a burst of 1."""
    lanes = Lanes[str](lambda _host: Bounds(100, 100, 1), in_flight=256)
    for number in range(20):
        lanes.add("h", str(number), START_MS)
    started = 0
    for now_ms in range(START_MS, START_MS + 95):
        lanes.open_gates(now_ms)
        while lanes.take(now_ms) is not None:
            started += 1
            lanes.done("h", now_ms, 1.0)
    assert started == 10
    assert lanes.gates[0][0] == START_MS + 100, "when the worker is to wake up"


def test_absurd_rates_overflow_no_cell() -> None:
    for rate_per_s, burst in [(1e-300, 1e9), (1e-9, 1e12), (1e18, 1)]:
        machine = Machine(2, rate_per_s, burst)
        assert sum(machine.pacers[number % 2].spend(START_MS) for number in range(600)) > 0
        machine.pacers[0].parked(1e300)


def test_host_that_a_reload_adds_is_shared_by_what_forks_then() -> None:
    board = RateBoard(2)
    board.assign(["old"])
    old = board.cells("old")
    board.assign(["old", "new"])
    child = os.fork()
    if not child:
        Pacer(10, 1, board.cells("new"), 1).spend(START_MS)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert board.cells("new")[CELLS + STARTED] == 1
    assert not Pacer(10, 1, board.cells("new"), 0).spend(START_MS)
    assert board.cells("old") is old and not any(old)
