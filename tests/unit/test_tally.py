# SPDX-License-Identifier: MIT
"""The tally: everything counted arrives in the scoreboard once, where it belongs, and names are never mixed up."""

from pathlib import Path

import pytest

from postbackd import tally
from postbackd.admin import totals
from postbackd.codec import ErrorClass
from postbackd.scoreboard import Cell, Scoreboard
from postbackd.tally import METHOD_STEP, Tally, quantile


def test_blocks_do_not_overlap_and_fit_the_row() -> None:
    starts = [
        *(tally.ATTEMPTS_AT, tally.REASONS_AT, tally.CODES_AT, tally.NEW_CONNECTIONS_AT, tally.REUSED_CONNECTIONS_AT),
        *(tally.DURATIONS_AT, tally.DURATION_SUM_AT, tally.LAGS_AT, tally.LAG_SUM_AT, tally.END_AT),
    ]
    assert starts == sorted(set(starts))
    assert max(Cell) < tally.PLAIN_CELLS == tally.ATTEMPTS_AT
    assert tally.END_AT <= tally.CELLS_PER_SLOT
    assert max(ErrorClass) < tally.CLASSES and len(tally.METHODS) < METHOD_STEP


def test_everything_counted_arrives_once() -> None:
    board = Scoreboard(2)
    mine = Tally(board.row(1), Cell.ATTEMPTS, Cell.DELIVERED)
    post = tally.method_index("POST")
    mine.attempt(tally.method_index("GET"), 0.5, True, 7)
    mine.attempt(post, 12.25, False, -1)
    mine.attempt(int(ErrorClass.TIMEOUT) * METHOD_STEP + post, None, False, 100)
    assert board.total(Cell.ATTEMPTS) == 0
    mine.publish()
    mine.publish()
    sums = board.sums()
    assert (sums[Cell.ATTEMPTS], sums[Cell.DELIVERED]) == (3, 2)
    assert sorted(totals.by_class_and_method(sums)) == [
        ("ok", "GET", 1),
        ("ok", "POST", 1),
        ("timeout", "POST", 1),
    ]
    assert totals.by_class(sums) == {"ok": 2, "timeout": 1}
    assert (sums[tally.NEW_CONNECTIONS_AT], sums[tally.REUSED_CONNECTIONS_AT]) == (1, 1)
    assert (sum(totals.durations(sums).buckets), sums[tally.DURATION_SUM_AT]) == (2, 12_750)
    assert (sum(totals.lags(sums).buckets), sums[tally.LAG_SUM_AT]) == (2, 107)
    assert sum(board.row(0)) == 0


@pytest.mark.parametrize(
    ("took_ms", "bucket"), [(0.0, 0), (0.5, 0), (0.51, 1), (1.0, 1), (60_000.0, 27), (60_000.1, 28), (1e9, 28)]
)
def test_bound_belongs_to_its_bucket(took_ms: float, bucket: int) -> None:
    board = Scoreboard(1)
    mine = Tally(board.row(0), Cell.ATTEMPTS, Cell.DELIVERED)
    mine.attempt(0, took_ms, True, -1)
    mine.publish()
    assert totals.durations(board.sums()).buckets.index(1) == bucket


def test_every_code_and_reason_has_its_cell_and_strangers_share_one() -> None:
    codes = [tally.code_cell(code) for code in (*tally.CODES, 299, 599)]
    reasons = [tally.reason_cell(reason) for reason in (*tally.REASONS, "no_such", "")]
    for cells, names in ((codes, tally.CODES), (reasons, tally.REASONS)):
        assert len(set(cells)) == len(names) + 1 and cells[-1] == cells[-2]
    sums = [0] * tally.CELLS_PER_SLOT
    sums[tally.code_cell(202)], sums[tally.code_cell(599)] = 3, 1
    sums[tally.reason_cell("poison")] = 2
    assert totals.by_code(sums) == {"202": 3, "other": 1}
    assert totals.by_reason(sums) == {"poison": 2}


def test_every_reason_in_the_sources_is_known() -> None:
    sources = Path(tally.__file__).parent / "delivery"
    text = "".join((sources / name).read_text() for name in ("outcome.py", "intake.py", "recorder.py", "worker.py"))
    assert [reason for reason in tally.REASONS if reason != "unexpected_body" and f'"{reason}"' not in text] == []


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 5.0),
        ([10, 0, 0], 1.0, 10.0),
        ([0, 10, 0], 0.5, 15.0),
        ([5, 5, 0], 0.5, 10.0),
        ([5, 5, 0], 0.9, 18.0),
        ([0, 0, 3], 0.5, 20.0),  # beyond the last bound
        ([1, 0, 99], 0.99, 20.0),
    ],
)
def test_quantile_is_on_a_line_within_its_bucket(buckets: list[int], share: float, expected: float | None) -> None:
    assert quantile([10, 20], buckets, share) == expected
