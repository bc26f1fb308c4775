# SPDX-License-Identifier: MIT
"""What `postbackd explain` makes of an item and its log lines, whose times are those of different clocks."""

from typing import Any

import pytest

from postbackd.clock import format_ms
from postbackd.codec import Item
from postbackd.queue.find import Found
from postbackd.tools.explain import _add_found
from postbackd.tools.story import tell

REPLAYED_MS = 1_800_000_000_000


def dead(at_ms: int) -> dict[str, Any]:
    """A log line of a first attempt that was refused."""
    line = {"attempt": 1, "time": format_ms(at_ms), "outcome": "dead", "reason": "refused_status", "response_code": 410}
    return line | dict.fromkeys(("response_time_ms", "error", "error_detail", "remote_ip", "next_attempt_at"))


def told(found: Found, *attempts: dict[str, Any]) -> list[str]:
    """The first word of each line between the head and the last, with the number of an attempt."""
    story: dict[str, Any] = {"id": "0" * 16, "accepted": "", "accepted_here": False, "attempts": list(attempts)}
    _add_found(found, story)
    story["attempts"].sort(key=lambda attempt: attempt.get("time") or attempt["ended"])
    return [line.split("  ")[0].strip() for line in tell(story, "log")][1:-1]


def found(*attempts: tuple[int, int]) -> Found:
    """A postback that was replayed and had these attempts since."""
    return Found("ready", Item(b"endpoint", 1, [], attempts=list(attempts), start_ms=REPLAYED_MS))


@pytest.mark.parametrize("ahead_ms", [-900, -5, 0, 5, 900])
def test_replay_stands_before_its_attempt_whatever_the_workers_clock(ahead_ms: int) -> None:
    tried_ms = REPLAYED_MS + ahead_ms
    lines = told(found((tried_ms + 3, 410)), dead(REPLAYED_MS - 950), dead(tried_ms))
    assert lines == ["attempt 1", "replayed", "attempt 1"]


def test_replay_that_was_not_tried_stands_last() -> None:
    assert told(found(), dead(REPLAYED_MS - 60_000), dead(REPLAYED_MS - 5)) == [
        "attempt 1",
        "replayed",
        "attempt 1",
        "replayed",
    ]


def test_attempt_that_another_log_has_is_told_from_the_trail() -> None:
    lines = told(found((REPLAYED_MS + 5, 410)), dead(REPLAYED_MS - 60_000))
    assert lines == ["attempt 1", "replayed", "attempt 1"]
