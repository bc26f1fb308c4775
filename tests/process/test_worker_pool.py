# SPDX-License-Identifier: MIT
"""Pools of real forked workers, driven with an invented clock."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from postbackd.backoff import QUICK_DEATH_MS, Backoff
from postbackd.errors import BootError, ExitCode, LeaseLostError
from postbackd.rollover import Rollover
from postbackd.scoreboard import Cell, Scoreboard, monotonic_ms
from postbackd.worker_pool import (
    NODE_LENGTH,
    PAUSE_MS,
    STUCK_MS,
    Death,
    Place,
    SlotContext,
    WorkerPool,
    node_name,
)
from tests.support.daemon import wait_until

REPOSITORY = Path(__file__).parents[2]


def work_until_told(context: SlotContext) -> int:
    """A worker as they should be: handlers, a first beat, a loop, exit 0."""
    told: list[bool] = []
    context.handle_signals({signal.SIGTERM: lambda: told.append(True)})
    while not told:
        context.beat()
        time.sleep(0.01)
    return ExitCode.OK


class Watched:
    """A pool with what the supervisor adds: reaping. Times are the test's."""

    def __init__(self, main: Callable[[SlotContext], int], count: int = 1, **options: object) -> None:
        self.scoreboard = Scoreboard(len(options.get("rows", range(count))))  # type: ignore[arg-type]
        self.pool = WorkerPool("deliver", count, main, self.scoreboard, node="node", **options)  # type: ignore[arg-type]

    def reap(self, now_ms: int) -> Death:
        """Wait for one worker to end and tell the pool."""
        deaths: list[Death] = []

        def one_has_died() -> bool:
            for pid in self.pool.pids():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    death = self.pool.died(pid, status, now_ms)
                    assert death
                    deaths.append(death)
                    return True
            return False

        wait_until(one_has_died, "a worker ends")
        return deaths[0]

    def wait_until_ready(self) -> None:
        wait_until(self.pool.is_ready, "all workers have beaten")


Watch = Callable[..., Watched]


@pytest.fixture
def watch() -> Iterator[Watch]:
    started: list[Watched] = []

    def start(*arguments: object, **options: object) -> Watched:
        watched = Watched(*arguments, **options)  # type: ignore[arg-type]
        started.append(watched)
        return watched

    yield start
    for watched in started:
        watched.pool.signal(signal.SIGKILL)
        for pid in watched.pool.pids():
            os.waitpid(pid, 0)


def test_killed_worker_is_replaced_under_a_fresh_name_in_the_same_slot(watch: Watch, tmp_path: Path) -> None:
    def note_names(context: SlotContext) -> int:
        (tmp_path / context.worker).write_text(json.dumps(context.scoreboard.deaths_since(0)[1]))
        return work_until_told(context)

    watched = watch(note_names, 2, owns_leases=True)
    pool = watched.pool
    pool.start(now_ms=1000)
    watched.wait_until_ready()
    [(killed, slot), (other, _)] = pool.running()
    os.kill(killed, signal.SIGKILL)
    death = watched.reap(now_ms=2000)
    assert (death.pid, death.slot, death.exit_code) == (killed, slot, -signal.SIGKILL)
    assert not pool.is_ready()
    pool.turn(now_ms=2000)
    watched.wait_until_ready()
    assert [pid for pid, _ in pool.running()] == [pool.pids()[0], other]
    assert [slot.index for _, slot in pool.running()] == [0, 1]
    assert watched.scoreboard.row(0)[Cell.RESTARTS] == 1
    deaths_seen = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    names = sorted(deaths_seen)
    assert len(names) == 3
    assert all(name.startswith(("node.0.", "node.1.")) and len(name) == len("node.0.") + 16 for name in names)
    # The dead one is in the scoreboard before its successor runs: it may be the only one left to reclaim.
    [successor] = [name for name, seen in deaths_seen.items() if seen]
    assert deaths_seen[successor] == [death.worker]
    assert successor.startswith("node.0.")
    assert successor != death.worker


def test_death_of_who_owns_no_lease_is_not_noted(watch: Watch) -> None:
    watched = watch(lambda _context: 0)
    watched.pool.start(now_ms=0)
    watched.reap(now_ms=0)
    assert watched.scoreboard.deaths_since(0) == (0, [])


def test_stopped_pool_ends_and_replaces_nobody(watch: Watch) -> None:
    watched = watch(work_until_told, 2)
    pool = watched.pool
    pool.start(now_ms=0)
    pool.stop()  # at once: SIGTERM waits, blocked, until there is a handler for it
    assert [watched.reap(now_ms=100).exit_code for _ in range(2)] == [0, 0]
    pool.turn(now_ms=1_000_000)
    assert (pool.pids(), pool.next_due_ms()) == ([], None)


def test_worker_waiting_for_its_back_off_is_not_started_after_stop(watch: Watch) -> None:
    watched = watch(lambda _context: 1)
    watched.pool.start(now_ms=0)
    watched.reap(now_ms=0)
    assert watched.pool.next_due_ms() == 0
    watched.pool.stop()
    watched.pool.turn(now_ms=1_000_000)
    assert watched.pool.pids() == []


def test_crash_loop_backs_off(watch: Watch) -> None:
    watched = watch(lambda _context: 1)
    pool = watched.pool
    now_ms = 0
    pool.start(now_ms)
    waits = []
    for _ in range(9):
        watched.reap(now_ms)
        due_ms = pool.next_due_ms()
        assert due_ms is not None
        waits.append(due_ms - now_ms)
        pool.turn(due_ms - 1)
        assert pool.pids() == []
        pool.turn(due_ms)
        assert len(pool.pids()) == 1
        now_ms = due_ms
    assert waits == [0, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]


@pytest.mark.parametrize(("lived_ms", "delay_ms"), [(QUICK_DEATH_MS - 1, 1000), (QUICK_DEATH_MS, 0)])
def test_only_quick_deaths_back_off(lived_ms: int, delay_ms: int) -> None:
    backoff = Backoff()
    assert backoff.delay_ms(0, 0) == 0
    assert backoff.delay_ms(lived_ms, lived_ms) == delay_ms


def test_who_got_to_work_begins_anew() -> None:
    backoff = Backoff()
    assert [backoff.delay_ms(0, now_ms) for now_ms in (0, 100_000, 200_000)] == [0, 1000, 2000]
    assert backoff.delay_ms(QUICK_DEATH_MS, 300_000) == 0
    assert [backoff.delay_ms(0, now_ms) for now_ms in (400_000, 500_000)] == [0, 1000]


def test_long_crash_loop_stays_at_the_longest_delay() -> None:
    backoff = Backoff()
    assert {backoff.delay_ms(0, turn * 100_000) for turn in range(2000)} >= {30_000}
    assert backoff.delay_ms(0, 10**12) == 30_000


def test_lost_leases_do_not_back_off_but_keep_within_ten_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.delay_ms(5, now_ms, excused=True) for now_ms in range(0, 10_000, 1000)] == [0] * 10
    assert backoff.delay_ms(5, 10_000, excused=True) == 50_000
    assert backoff.delay_ms(5, 61_000, excused=True) == 0


def test_lost_lease_is_replaced_at_once(watch: Watch) -> None:
    def lose(_context: SlotContext) -> int:
        raise LeaseLostError("the lease was reclaimed")

    lines: list[str] = []
    watched = watch(lose, report=lines.append)
    watched.pool.start(now_ms=0)
    for now_ms in range(3):
        assert watched.reap(now_ms).exit_code == ExitCode.LEASE_LOST
        assert watched.pool.next_due_ms() == now_ms
        watched.pool.turn(now_ms)


def test_boot_failure_has_its_exit_code_and_reports_its_line(watch: Watch, tmp_path: Path) -> None:
    def fail(_context: SlotContext) -> int:
        raise BootError("cannot write the log: make the folder")

    watched = watch(fail, report=lambda line: (tmp_path / "line").write_text(line))
    watched.pool.start(now_ms=0)
    assert watched.reap(now_ms=0).exit_code == ExitCode.BOOT_FAILURE
    assert (tmp_path / "line").read_text() == "postbackd: cannot write the log: make the folder"


def test_unexpected_error_leaves_its_traceback(watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_context: SlotContext) -> int:
        return 1 // 0

    watched = watch(fail)
    watched.pool.start(now_ms=0)
    assert watched.reap(now_ms=0).exit_code == ExitCode.FAILED
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_death_reads_well_in_the_log(watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    watched = watch(work_until_told)
    watched.pool.start(now_ms=0)
    watched.wait_until_ready()
    [pid] = watched.pool.pids()
    os.kill(pid, signal.SIGKILL)
    watched.reap(now_ms=2500)
    line = capfd.readouterr().err.splitlines()[-1]
    assert f'WARNING worker_died pid={os.getpid()} role=deliver slot=0 worker_pid={pid} how="killed by SIGKILL"' in line
    assert line.endswith(" lived_s=2.5 restart_in=0s")


def test_successor_is_listed_before_anything_builds_on_it(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """processes.json is written as a turn begins: a supervisor slept between fork and look, and said `reload_done`."""
    watched = watch(work_until_told, 1, rows=range(4))
    pool, add = watched.pool, watched.pool.add

    def add_and_sleep(*arguments: Any, **options: Any) -> Place | None:
        place = add(*arguments, **options)
        assert place
        wait_until(lambda: pool.has_beaten(place), "the successor has beaten")
        return place

    monkeypatch.setattr(pool, "add", add_and_sleep)
    pool.start(now_ms=0)
    rollover = Rollover(pool, work_until_told, 2, drain_limit_ms=60_000)
    rollover.turn(now_ms=0)
    rollover.commit()
    listed: list[int] = []
    while not rollover.is_over():
        listed = pool.pids()
        rollover.turn(now_ms=0)
        if rollover._leaving:
            watched.reap(now_ms=0)
    assert pool.pids() == listed and len(listed) == 2


def test_worker_that_stops_beating_is_killed(watch: Watch) -> None:
    watched = watch(work_until_told)
    pool = watched.pool
    begun_ms = monotonic_ms()
    pool.start(begun_ms)
    watched.wait_until_ready()
    [pid] = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    silent_from_ms = watched.scoreboard.row(0)[Cell.HEARTBEAT_MS]
    for now_ms in range(begun_ms, silent_from_ms + STUCK_MS + 1, 1000):
        pool.turn(now_ms)  # as the supervisor does, each second
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    # It was excused for the first minute, since before the first turn nobody looked.
    pool.turn(max(silent_from_ms, begun_ms) + STUCK_MS + 1)
    assert watched.reap(silent_from_ms + STUCK_MS + 1).exit_code == -signal.SIGKILL


def test_supervisor_that_was_paused_itself_calls_nobody_stuck(watch: Watch) -> None:
    watched = watch(work_until_told)
    pool = watched.pool
    begun_ms = monotonic_ms()
    pool.start(begun_ms)
    watched.wait_until_ready()
    [pid] = pool.pids()
    os.kill(pid, signal.SIGSTOP)
    for now_ms in range(begun_ms, begun_ms + STUCK_MS, 1000):
        pool.turn(now_ms)
    woken_ms = begun_ms + 3 * STUCK_MS
    for now_ms in range(woken_ms, woken_ms + STUCK_MS, PAUSE_MS):
        pool.turn(now_ms)
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    pool.turn(woken_ms + STUCK_MS)
    assert watched.reap(woken_ms + STUCK_MS).exit_code == -signal.SIGKILL


def test_worker_that_never_beats_is_killed_too(watch: Watch) -> None:
    def hang(_context: SlotContext) -> int:
        time.sleep(3600)
        return 0

    watched = watch(hang)
    pool = watched.pool
    pool.start(now_ms=0)
    for now_ms in range(0, STUCK_MS + 2000, 1000):
        pool.turn(now_ms)
    assert watched.reap(STUCK_MS).exit_code == -signal.SIGKILL
    assert not pool.is_ready()


def test_child_sheds_what_is_the_supervisors(watch: Watch, tmp_path: Path) -> None:
    def tell(context: SlotContext) -> int:
        facts = {
            "stdin": os.readlink("/proc/self/fd/0"),
            "name": Path("/proc/self/comm").read_text().strip(),
            "own_group": os.getpgrp() == os.getpid(),
            "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "user": signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL,
            "blocked": signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "random": random.random(),
            "in_child": os.environ.get("IN_CHILD"),
            "place": context.place,
        }
        (tmp_path / str(context.index)).write_text(json.dumps(facts))
        return 0

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    watched = watch(tell, 2, in_child=lambda: os.environ.update(IN_CHILD="yes"))
    watched.pool.start(now_ms=0)
    for _ in range(2):
        assert watched.reap(now_ms=0).exit_code == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in "01")
    assert first.pop("random") != second.pop("random")
    expected = {"stdin": "/dev/null", "own_group": True, "interrupt": True, "user": True, "blocked": True}
    assert first == {**expected, "in_child": "yes", "name": "pb-deliver-0", "place": "node.0"}
    assert second == {**expected, "in_child": "yes", "name": "pb-deliver-1", "place": "node.1"}
    assert "IN_CHILD" not in os.environ
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


ORPHANED = """
import sys, time
from postbackd.scoreboard import Scoreboard
from postbackd.worker_pool import WorkerPool
print("once", end="")  # buffered while it forks
def sleep(context):
    if context.index == 0:
        return 0
    time.sleep(3600)
pool = WorkerPool("deliver", 3, sleep, Scoreboard(3))
pool.start(0)
print("", *pool.pids(), flush=True)
time.sleep(3600)
"""


def test_workers_die_with_their_supervisor() -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", ORPHANED],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert supervisor.stdout
    word, *pids = supervisor.stdout.readline().split()
    assert (word, len(pids)) == ("once", 3)
    workers = [psutil.Process(int(pid)) for pid in pids[1:]]  # the first one is done
    supervisor.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    assert supervisor.communicate()[0] == ""


@pytest.mark.parametrize(
    ("hostname", "node"),
    [
        ("web-1", "web-1"),
        ("web-1.example.com", "web-1"),
        ("Ünïcode_host", "n-code-host"),
        ("", "node"),
        ("...", "node"),
        ("h" * 64, "h" * NODE_LENGTH),
    ],
)
def test_node_name_holds_letters_digits_and_dashes(hostname: str, node: str) -> None:
    assert node_name(hostname) == node
