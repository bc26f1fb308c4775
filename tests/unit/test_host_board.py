# SPDX-License-Identifier: MIT
"""The host board: rows that processes share, sums that never go back, quantiles off its histogram."""

import os

import pytest

from postbackd.host_board import (
    BOUNDS_MS,
    BUCKETS,
    CELLS_PER_ROW,
    COUNTERS,
    NAME_BYTES,
    OTHER,
    ROWS,
    STALE_MS,
    HostBoard,
    HostCell,
    bucket_of,
    quantile_ms,
)

NOW_MS = 1_000_000


def test_rows_written_by_children_are_summed_by_host() -> None:
    board = HostBoard(2)
    for slot in range(2):
        if os.fork() == 0:
            rows = board.rows(slot)
            rows.take_over()
            rows.give(1 + slot, "a.example")
            row = rows.row(1 + slot)
            row[HostCell.ATTEMPTS] += 5
            row[HostCell.DELIVERED] += 4
            row[HostCell.FIRST_BUCKET + bucket_of(3)] += 5
            row[HostCell.IN_FLIGHT], row[HostCell.LIMIT], row[HostCell.BREAKER] = 2, 8, 2 * slot
            rows.publish(NOW_MS, 0)
            os._exit(0)
        assert os.wait()[1] == 0
    host, other = board.hosts(NOW_MS)
    assert (host.host, host.attempts, host.delivered) == ("a.example", 10, 8)
    assert (host.in_flight, host.limit, host.breaker) == (4, 16, 2)
    assert other.host == OTHER and other.attempts == 0


def test_counters_of_a_row_that_is_given_away_stay_in_the_sum() -> None:
    board = HostBoard(1)
    rows = board.rows(0)
    rows.give(1, "old")
    for cell in range(COUNTERS):
        rows.row(1)[cell] = cell + 1
    rows.row(1)[HostCell.BREAKER] = 2
    rows.give(1, "new")
    assert rows.hosts == {"new": 1}
    assert rows.row(0)[:COUNTERS].tolist() == list(range(1, COUNTERS + 1))
    assert rows.row(1).tolist() == [0] * CELLS_PER_ROW
    assert rows.row(0)[HostCell.BREAKER] == 0


def test_successor_finds_the_hosts_and_goes_on_from_the_counters() -> None:
    board = HostBoard(1)
    rows = board.rows(0)
    rows.give(7, "a")
    rows.row(7)[HostCell.ATTEMPTS], rows.row(7)[HostCell.IN_FLIGHT] = 3, 9
    rows._header[0] += 1  # it died while a row changed hands
    rows.take_over()
    assert rows.hosts == {"a": 7} and rows._header[0] == 4
    assert (rows.row(7)[HostCell.ATTEMPTS], rows.row(7)[HostCell.IN_FLIGHT]) == (3, 0)


def test_state_of_a_worker_that_is_gone_is_not_shown_but_its_breaker_until_its_time() -> None:
    board = HostBoard(1)
    rows = board.rows(0)
    rows.give(1, "a")
    row = rows.row(1)
    row[HostCell.IN_FLIGHT], row[HostCell.BREAKER], row[HostCell.GATE_UNTIL_MS] = 4, 2, NOW_MS + 20_000
    rows.publish(NOW_MS, 0)
    assert next((h.in_flight, h.breaker) for h in board.hosts(NOW_MS + STALE_MS)) == (4, 2)
    assert next((h.in_flight, h.breaker) for h in board.hosts(NOW_MS + STALE_MS + 1)) == (0, 2)
    assert next((h.in_flight, h.breaker) for h in board.hosts(NOW_MS + 20_000)) == (0, 0)


@pytest.mark.parametrize("name", ["h" * NAME_BYTES, "é" * 128, OTHER])
def test_name_that_has_no_row_is_counted_with_the_others(name: str) -> None:
    rows = HostBoard(1).rows(0)
    assert not rows.give(1, name)
    assert rows.hosts == {} and rows.name(1) == ""
    assert rows.give(1, "h" * (NAME_BYTES - 1))


def test_last_row_and_last_cell_are_within_the_slot() -> None:
    board = HostBoard(2)
    rows = board.rows(0)
    rows.give(ROWS - 1, "x" * (NAME_BYTES - 1))
    rows.row(ROWS - 1)[CELLS_PER_ROW - 1] = 2**63 - 1
    assert board.rows(1).name(1) == "" and board.rows(1).row(0).tolist() == [0] * CELLS_PER_ROW
    assert max(HostCell) < CELLS_PER_ROW


def test_quantiles_are_right_to_a_quarter() -> None:
    for took_ms in (0.3, 1, 7, 99, 1234, 60_000):
        buckets = [0] * BUCKETS
        buckets[bucket_of(took_ms)] = 100
        for share in (0.01, 0.5, 0.99):
            found_ms = quantile_ms(buckets, share)
            assert found_ms is not None and 0.6 * took_ms < found_ms < 1.6 * took_ms
    assert quantile_ms([0] * BUCKETS, 0.5) is None
    assert bucket_of(1e9) == BUCKETS - 1
    assert quantile_ms([0] * (BUCKETS - 1) + [1], 0.5) == BOUNDS_MS[-1]
    mixed = [0] * BUCKETS
    mixed[bucket_of(1)], mixed[bucket_of(1000)] = 90, 10
    assert quantile_ms(mixed, 0.5) <= 1.0 and quantile_ms(mixed, 0.99) > 600
