# SPDX-License-Identifier: MIT
"""Series per host: bounded, never going back, and their sum is the board's whatever moves."""

import random

from postbackd.admin.host_series import SHOWN, HostSeries
from postbackd.host_board import OTHER, HostBoard, HostCell, HostFigures


def look(*hosts: tuple[str, int], other: int = 0) -> list[HostFigures]:
    found = [HostFigures(host=name, attempts=count, delivered=count) for name, count in hosts]
    return [*found, HostFigures(host=OTHER, attempts=other)]


def test_each_host_has_its_series() -> None:
    series = HostSeries()
    series.take(look(("a", 3), ("b", 1), other=7))
    series.take(look(("a", 5), ("b", 1), other=9))
    assert {host: figures.attempts for host, figures in series.shown.items()} == {"a": 5, "b": 1}
    assert series.other.attempts == 9


def test_row_given_to_another_host_is_not_counted_twice() -> None:
    series = HostSeries()
    series.take(look(("a", 100), other=10))
    series.take(look(("b", 2), other=115))  # a's row went to b: its 100 and 5 more are in other now
    assert series.shown["a"].attempts == 100 and series.shown["b"].attempts == 2
    assert series.other.attempts == 15


def test_busier_host_takes_the_place_of_the_quietest() -> None:
    series = HostSeries()
    quiet = [(f"h{number}", 10 + number) for number in range(SHOWN)]
    series.take(look(*quiet))
    series.take(look(*quiet, ("new", 12)))
    assert "new" not in series.shown and series.other.attempts == 12
    series.take(look(*quiet, ("new", 1000)))
    assert "new" in series.shown and "h0" not in series.shown and len(series.shown) == SHOWN
    assert series.shown["new"].attempts == 988  # what came before is in other, and stays there
    assert series.other.attempts == 12


def test_host_whose_breaker_is_open_is_shown() -> None:
    series = HostSeries()
    busy = [HostFigures(host=f"h{number}", attempts=1000) for number in range(SHOWN)]
    series.take([*busy, HostFigures(host="down", attempts=20, breaker=2), HostFigures(host=OTHER)])
    assert series.shown["down"].breaker == 2


def test_nothing_goes_back_and_nothing_is_lost_on_a_real_board() -> None:
    chance = random.Random(7)
    board, series = HostBoard(2), HostSeries()
    before: dict[str, int] = {}
    other_before = gone = 0
    for _ in range(200):
        for slot in range(2):
            rows = board.rows(slot)
            for _ in range(5):
                host = f"h{chance.randrange(120)}"
                number = rows.hosts.get(host)
                if number is None:
                    number = chance.randrange(1, 64)
                    rows.give(number, host)
                rows.row(number)[HostCell.ATTEMPTS] += chance.randrange(1, 50)
            rows.row(0)[HostCell.ATTEMPTS] += 1
        series.take(board.hosts())
        assert len(series.shown) <= SHOWN
        now = {host: figures.attempts for host, figures in series.shown.items()}
        assert all(now[host] >= count for host, count in before.items() if host in now)
        assert series.other.attempts >= other_before
        gone += sum(count for host, count in before.items() if host not in now)
        before, other_before = now, series.other.attempts
    counted = sum(figures.attempts for figures in board.hosts())
    told = sum(before.values()) + other_before + gone
    assert told == counted
