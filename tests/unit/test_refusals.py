# SPDX-License-Identifier: MIT
"""Requests refused for a fault of ours: counted, said once, and judged whether that is all of them."""

from typing import Any

import pytest

from postbackd import oplog, tally
from postbackd.admin import totals
from postbackd.admin.refusals import Refusals
from postbackd.errors import RequestError
from postbackd.refusal_count import CALM_MS, RefusalCount
from postbackd.scoreboard import Cell

FULL = RequestError(503, "queue_full", "Redis is out of memory.")
SPOOL = RequestError(503, "spool_full", "The disk is full.")


class Log:
    """The events that were said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        for name in ("info", "warning"):
            monkeypatch.setattr(oplog, name, lambda event, **fields: self.said.append((event, fields)))

    def events(self) -> list[str]:
        return [event for event, _ in self.said]


def made(now_ms: list[int]) -> tuple[RefusalCount, list[int]]:
    cells = [0] * tally.CELLS_PER_SLOT
    return RefusalCount(memoryview(bytearray(8 * len(cells))).cast("q"), lambda: now_ms[0]), cells


def test_counts_5xx_by_error_code_and_4xx_apart() -> None:
    cells = memoryview(bytearray(8 * tally.CELLS_PER_SLOT)).cast("q")
    refusals = RefusalCount(cells, lambda: 0)
    for refusal in (FULL, FULL, SPOOL, RequestError(503, "new_code", "?"), RequestError(422, "x", "?")):
        refusals.add(refusal)
    refusals.add(RequestError(429, "rate_limited", "?"))
    assert (cells[Cell.UNAVAILABLE], cells[Cell.REFUSED], cells[Cell.RATE_LIMITED]) == (4, 2, 1)
    assert totals.by_error(cells.tolist()) == {"queue_full": 2, "spool_full": 1, "other": 1}


def test_beginning_and_end_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now_ms = Log(monkeypatch), [0]
    refusals, _ = made(now_ms)
    for _ in range(50):
        refusals.add(FULL)
    refusals.add(RequestError(422, "x", "?"))
    assert log.said == [("ingest_refuses", {"code": "queue_full", "error": "Redis is out of memory."})]
    refusals.end()
    assert refusals.refuses and len(log.said) == 1, "one that is taken in between ends nothing"
    refusals.add(SPOOL)
    refusals.add(FULL)
    now_ms[0] += CALM_MS
    refusals.end()
    assert log.events() == ["ingest_refuses", "ingest_refuses", "ingest_takes_again"]
    assert log.said[-1][1] == {"codes": "queue_full,spool_full", "refused": 52} and not refusals.refuses


def test_two_processes_tell_it_once_and_an_end_that_came_too_soon_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, now_ms = Log(monkeypatch), [0]
    monkeypatch.setattr(oplog, "_changes", oplog.Changes())
    one, other = made(now_ms)[0], made(now_ms)[0]
    one.add(FULL)
    other.add(FULL)
    now_ms[0] += CALM_MS
    one.end()
    other.add(FULL)
    assert log.events() == ["ingest_refuses", "ingest_takes_again", "ingest_refuses"]


def looks(*counters: tuple[dict[str, int], int]) -> Refusals:
    """A look each two seconds: refused since the start, and taken."""
    refusals = Refusals()
    for number, (refused, taken) in enumerate(counters):
        refusals.take(2.0 * number, refused, taken)
    return refusals


def test_all_refused_is_told_and_a_part_is_not() -> None:
    assert looks().all_refused() is None
    assert looks(({}, 5), ({}, 5)).all_refused() is None
    assert looks(({}, 5), ({"queue_full": 3}, 5)).all_refused() == "3 x queue_full"
    assert looks(({}, 5), ({"queue_full": 3}, 6)).all_refused() is None
    assert looks(({}, 5), ({"queue_full": 3}, 5), ({"queue_full": 3}, 6)).all_refused() is None, "taken again"
    assert looks(({}, 5), ({}, 6), ({"queue_full": 3}, 6)).all_refused() is None, "one was taken just before"


def test_pause_between_tries_changes_nothing_for_a_minute() -> None:
    begins = [({}, 5), ({}, 6), *[({}, 6)] * 6, ({"spool_full": 2}, 6)]
    quiet = ({"spool_full": 2}, 6)
    assert looks(*begins, *[quiet] * 29).all_refused() == "2 x spool_full"
    assert looks(*begins, *[quiet] * 31).all_refused() is None


def test_fault_of_one_request_is_counted_and_no_outage() -> None:
    seen = looks(({}, 5), ({"internal_error": 1}, 5))
    assert seen.all_refused() is None and seen.by_error() == {"internal_error": 1}


def test_what_was_refused_before_the_first_look_counts_if_the_daemon_is_young() -> None:
    for age_s, seen in ((1.5, {"queue_full": 20}), (61.0, {})):
        refusals = Refusals()
        refusals.begin(100.0, 100.0 - age_s)
        refusals.take(100.0, {"queue_full": 20}, 0)
        refusals.take(102.0, {"queue_full": 20}, 0)
        assert refusals.by_error() == seen
        assert (refusals.all_refused() is not None) is bool(seen)


def test_last_minute_forgets_what_was_before() -> None:
    seen = looks(({}, 0), ({"queue_full": 9}, 0), *[({"queue_full": 9}, 1)] * 30, ({"queue_full": 11}, 2))
    assert seen.by_error() == {"queue_full": 2}
