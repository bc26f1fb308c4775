# SPDX-License-Identifier: MIT
"""The clock that follows the queue server's: what is said of a skew, and when again."""

import pytest

from postbackd import oplog
from postbackd.clock import WARN_SKEW_MS, Clock

WALL_MS = 1_800_000_000_000


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every skew that is warned of, by any process of one daemon."""
    found: list[float] = []
    monkeypatch.setattr(oplog, "_changes", oplog.Changes())
    monkeypatch.setattr(oplog, "warning", lambda _event, skew_s, hint: found.append(skew_s))
    return found


def test_skew_is_said_once_for_all_processes_and_again_when_it_comes_back(said: list[float]) -> None:
    clocks = [Clock(monotonic_ms=lambda: 0, wall_ms=lambda: WALL_MS) for _ in range(3)]
    for skew_ms in (WARN_SKEW_MS, -WARN_SKEW_MS, 600_000, 600_000, 0, -600_000):
        for clock in clocks:
            clock.sync(WALL_MS + skew_ms)
            assert clock.now_ms() == WALL_MS + skew_ms
    assert said == [600.0, -600.0]


class Stopped:
    """A machine's two clocks, read by a process that is stopped for half a second behind each look at one."""

    def __init__(self) -> None:
        self.ms = 0

    def monotonic_ms(self) -> int:
        self.ms += 500
        return self.ms - 500

    def wall_ms(self) -> int:
        return WALL_MS + self.monotonic_ms()


def test_process_that_is_stopped_amid_a_look_is_never_behind() -> None:
    """Half a second in the past its ids could be those of its predecessor, and what the file says of it too little."""
    machine = Stopped()
    clock = Clock(machine.monotonic_ms, machine.wall_ms)
    assert clock.now_ms() >= WALL_MS + machine.ms - 500
    assert clock.ahead_ms() >= 0
    clock.assume_ahead(3000)
    assert clock.ahead_ms() >= 3000
