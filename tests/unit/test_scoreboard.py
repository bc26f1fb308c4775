# SPDX-License-Identifier: MIT
"""The scoreboard: cells that processes share, and the ring that names the dead."""

import os

import pytest

from postbackd.scoreboard import FIRST_GAUGE, NAME_BYTES, RING_KEPT, Cell, Scoreboard
from postbackd.tally import PLAIN_CELLS


def in_child(action) -> None:
    """Run something in a forked child and wait for it; a child that fails fails the test."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_cells_written_by_a_child_are_read_by_its_parent() -> None:
    board = Scoreboard(3)

    def count() -> None:
        board.row(1)[Cell.DELIVERED] += 41
        board.row(1)[Cell.DELIVERED] += 1

    in_child(count)
    assert board.row(1)[Cell.DELIVERED] == 42
    assert [sum(board.row(number)) for number in (0, 2)] == [0, 0]


def test_every_cell_has_its_own_place_in_the_row() -> None:
    assert [int(cell) for cell in Cell] == list(range(len(Cell)))
    assert len(Cell) <= PLAIN_CELLS


def test_total_adds_up_one_cell_of_all_slots() -> None:
    board = Scoreboard(3)
    for number in range(3):
        board.row(number)[Cell.ACCEPTED] = 10**number
        board.row(number)[Cell.ATTEMPTS] = 7000
    assert board.total(Cell.ACCEPTED) == 111


def test_cells_hold_64_bits() -> None:
    board = Scoreboard(1)
    board.row(0)[Cell.REQUESTS] = 2**63 - 1
    assert board.row(0)[Cell.REQUESTS] == 2**63 - 1


def test_successor_goes_on_from_the_counters_but_not_from_the_gauges() -> None:
    board = Scoreboard(2)
    for number in range(2):
        for cell in Cell:
            board.row(number)[cell] = 5
    board.clear_gauges(0)
    assert [board.row(0)[cell] for cell in Cell] == [5 if cell < FIRST_GAUGE else 0 for cell in Cell]
    assert [board.row(1)[cell] for cell in Cell] == [5] * len(Cell)


@pytest.mark.parametrize("number", [-1, 2])
def test_slot_outside_the_board_is_refused(number: int) -> None:
    with pytest.raises(IndexError):
        Scoreboard(2).row(number)


def test_deaths_are_seen_once_and_in_order() -> None:
    board = Scoreboard(1)
    assert board.deaths_since(0) == (0, [])
    board.note_death("node.0.aa")
    board.note_death("node.1.bb")
    assert board.deaths_since(0) == (2, ["node.0.aa", "node.1.bb"])
    board.note_death("node.0.c")
    assert board.deaths_since(2) == (3, ["node.0.c"])
    assert board.deaths_since(3) == (3, [])


def test_deaths_noted_by_the_parent_are_seen_by_a_running_child() -> None:
    board = Scoreboard(1)
    pid = os.fork()
    if pid == 0:
        seen: list[str] = []
        while not seen:
            _, seen = board.deaths_since(0)
        os._exit(0 if seen == ["node.0.aa"] else 1)
    board.note_death("node.0.aa")
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("deaths", [RING_KEPT - 1, RING_KEPT, RING_KEPT + 1, 1000])
def test_ring_keeps_the_latest_deaths(deaths: int) -> None:
    board = Scoreboard(1)
    names = [f"node.{index}.{'f' * (index % 20)}" for index in range(deaths)]
    for name in names:
        board.note_death(name)
    assert board.deaths_since(0) == (deaths, names[-RING_KEPT:])


def test_name_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    board = Scoreboard(1)
    board.note_death("n" * (NAME_BYTES - 1))
    with pytest.raises(ValueError, match="127"):
        board.note_death("n" * NAME_BYTES)
    assert board.deaths_since(0) == (1, ["n" * (NAME_BYTES - 1)])
