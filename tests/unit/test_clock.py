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
