# SPDX-License-Identifier: MIT
"""Since when a host fails."""

from typing import Any

import pytest

from postbackd.admin.host_troubles import HostTroubles


def row(ratio: float | None, breaker: str = "closed") -> list[dict[str, Any]]:
    return [{"host": "a", "success_ratio": ratio, "breaker": breaker}]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (row(0.5), None),
        (row(0.49), 1000),
        (row(None), None),
        (row(None, "open"), 1000),
        (row(1.0, "half_open"), 1000),
        ([], None),
    ],
)
def test_trouble_begins(rows: list[dict[str, Any]], expected: int | None) -> None:
    troubles = HostTroubles()
    troubles.look(rows, 1000)
    assert troubles.since_ms("a") == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(row(0.1), 1000), (row(None), 1000), (row(None, "half_open"), 1000), (row(0.5), None), ([], None)],
)
def test_trouble_lasts_until_more_succeed(rows: list[dict[str, Any]], expected: int | None) -> None:
    troubles = HostTroubles()
    troubles.look(row(0.0, "open"), 1000)
    troubles.look(rows, 2000)
    assert troubles.since_ms("a") == expected


def test_second_trouble_has_a_time_of_its_own() -> None:
    troubles = HostTroubles()
    for now_ms, ratio in ((1000, 0.0), (2000, 1.0), (3000, 0.0)):
        troubles.look(row(ratio), now_ms)
    assert troubles.since_ms("a") == 3000
