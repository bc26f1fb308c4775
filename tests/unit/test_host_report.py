# SPDX-License-Identifier: MIT
"""What workers of one machine tell each other of their hosts, with an invented clock: two of them, one board."""

from postbackd.delivery.breaker import FIRST_OPEN_MS, PROBE_HEAD_START_MS, PROBE_TIME_MS, State
from postbackd.delivery.host_report import DEAL_EVERY_MS, PUBLISH_EVERY_MS, HostReport
from postbackd.delivery.lane import RATE_WINDOW_MS, Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.host_board import ROWS, HostBoard

START_MS = 1_000_000


class Machine:
    """Some workers' lanes on one board."""

    def __init__(self, workers: int = 2) -> None:
        self.board = HostBoard(workers)
        self.now_ms = START_MS
        self.lanes = [Lanes[str](lambda _host: Bounds(100), 256) for _ in range(workers)]
        self.reports = [HostReport(self.board, slot) for slot in range(workers)]

    def pass_time(self, ms: int = PUBLISH_EVERY_MS) -> None:
        """To then, and a round of reports: everybody publishes, everybody reads."""
        self.now_ms += ms
        for _ in range(2):
            for lanes, report in zip(self.lanes, self.reports, strict=True):
                list(lanes.overflow(self.now_ms))
                report.turn(lanes, self.now_ms)
            self.now_ms += PUBLISH_EVERY_MS

    def attempt(self, worker: int, host: str, count: int = 1, fails: bool = False) -> int:
        """Add and start so many, end those that could start; how many."""
        lanes = self.lanes[worker]
        for number in range(count):
            lanes.add(host, f"{host}{number}", self.now_ms)
        started = 0
        while lanes.take(self.now_ms) is not None:
            started += 1
            if fails:
                lanes.failed(host, self.now_ms, 5.0, is_fault=True, is_dead=False)
            else:
                lanes.done(host, self.now_ms, 5.0)
        list(lanes.overflow(self.now_ms + RATE_WINDOW_MS))
        self.now_ms += RATE_WINDOW_MS
        return started

    def state(self, worker: int, host: str) -> State:
        lane = self.lanes[worker].get(host)
        assert lane is not None
        return lane.breaker.state


def opened() -> Machine:
    """Worker 0 has found the host dead, worker 1 has used it too."""
    machine = Machine()
    assert machine.attempt(1, "h") == 1
    assert machine.attempt(0, "h", 20, fails=True) == 20
    machine.pass_time()
    return machine


def test_breaker_of_one_worker_holds_for_its_sibling() -> None:
    machine = opened()
    assert machine.state(1, "h") is State.OPEN
    assert machine.attempt(1, "h", 5) == 0
    assert machine.attempt(1, "other", 5) == 5


def test_host_that_a_worker_has_not_met_is_shut_from_the_start() -> None:
    machine = Machine()
    machine.attempt(0, "h", 20, fails=True)
    machine.pass_time()
    assert machine.attempt(1, "h", 5) == 0


def test_one_worker_probes_and_its_success_closes_all() -> None:
    machine = opened()
    machine.now_ms += FIRST_OPEN_MS - 2 * PUBLISH_EVERY_MS
    machine.lanes[0].add("h", "probe", machine.now_ms)
    assert machine.lanes[0].take(machine.now_ms) == ("h", "probe")
    machine.pass_time()
    machine.now_ms += PROBE_HEAD_START_MS
    assert machine.attempt(1, "h", 5) == 0, "the sibling's probe is waited for"
    machine.lanes[0].done("h", machine.now_ms, 5.0)
    machine.pass_time()
    assert [machine.state(worker, "h") for worker in (0, 1)] == [State.CLOSED] * 2
    assert machine.attempt(1, "h", 5) == 5


def test_failed_probe_keeps_all_away_twice_as_long() -> None:
    machine = opened()
    machine.now_ms += FIRST_OPEN_MS
    assert machine.attempt(0, "h", fails=True) == 1
    machine.pass_time()
    machine.now_ms += FIRST_OPEN_MS + PROBE_HEAD_START_MS
    assert machine.attempt(1, "h", 5) == 0
    machine.now_ms += FIRST_OPEN_MS
    assert machine.attempt(1, "h", 1) == 1, "a probe of its own, where the other has nothing to probe with"


def test_probe_that_never_ends_does_not_hold_up_the_sibling_for_ever() -> None:
    machine = opened()
    machine.now_ms += FIRST_OPEN_MS
    machine.lanes[0].add("h", "probe", machine.now_ms)
    assert machine.lanes[0].take(machine.now_ms) is not None
    machine.pass_time()
    machine.now_ms += PROBE_TIME_MS
    assert machine.attempt(1, "h", 1) == 1


def test_pause_of_one_worker_holds_for_its_sibling_and_ends() -> None:
    machine = Machine()
    for worker in (0, 1):
        machine.attempt(worker, "h")
    machine.lanes[0].pause("h", 20_000, machine.now_ms)
    machine.pass_time()
    assert machine.attempt(1, "h", 2) == 0
    machine.now_ms += 20_000
    assert machine.attempt(1, "h", 1) > 0
    machine.pass_time()
    assert machine.attempt(0, "h", 1) > 0, "an ended pause does not come back from the sibling"


def test_successor_takes_over_its_predecessors_breaker() -> None:
    machine = Machine(1)
    machine.attempt(0, "h", 20, fails=True)
    machine.pass_time()
    machine.lanes[0] = Lanes[str](lambda _host: Bounds(100), 256)
    machine.reports[0] = HostReport(machine.board, 0)
    machine.pass_time()
    assert machine.attempt(0, "h", 5) == 0
    machine.now_ms += FIRST_OPEN_MS + PROBE_HEAD_START_MS
    assert machine.attempt(0, "h", 1) == 1


def test_counts_are_published_whole_and_by_host() -> None:
    machine = Machine(1)
    machine.attempt(0, "h", 3)
    machine.attempt(0, "h", 2, fails=True)
    machine.lanes[0].add("h", "x", machine.now_ms)
    assert machine.lanes[0].take(machine.now_ms) is not None
    machine.lanes[0].failed("h", machine.now_ms, 5.0, is_fault=False, is_dead=True)
    machine.pass_time()
    host, _other = machine.board.hosts(machine.now_ms)
    assert (host.attempts, host.delivered, host.retried, host.dead, host.failures) == (6, 3, 2, 1, 2)
    assert sum(host.buckets) == 6 and host.in_flight == 0


def test_more_hosts_than_rows_are_summed_up_and_the_busy_ones_shown() -> None:
    machine = Machine(1)
    for number in range(200):
        machine.attempt(0, f"quiet{number}")
    machine.pass_time()
    for _ in range(8):
        for number in range(ROWS - 4):
            machine.attempt(0, f"busy{number}", 50)
        machine.pass_time(DEAL_EVERY_MS)
    found = machine.board.hosts(machine.now_ms)
    assert sum(host.attempts for host in found) == 200 + 8 * 50 * (ROWS - 4)
    assert sum(host.host.startswith("busy") for host in found) == ROWS - 4
    assert len(found) == ROWS


def test_shut_host_gets_a_row_before_busy_ones() -> None:
    machine = Machine(2)
    for number in range(ROWS + 10):
        machine.attempt(0, f"busy{number}", 50)
    machine.attempt(0, "dead", 20, fails=True)
    machine.pass_time(DEAL_EVERY_MS)
    machine.pass_time(DEAL_EVERY_MS)
    assert machine.attempt(1, "dead", 5) == 0
