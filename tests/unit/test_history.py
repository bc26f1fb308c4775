# SPDX-License-Identifier: MIT
"""The history: two resolutions, no spike lost, no more memory than said."""

import pytest

from postbackd.admin.history import COARSE_POINTS, FINE_POINTS, STEP_S, History, Point, merge


def filled(seconds: int) -> History:
    history = History()
    for t in range(0, seconds, STEP_S):
        history.add(Point(t=t, in_=t, ready=t, p99=None))
    return history


def test_nothing_yet_is_an_empty_range() -> None:
    assert [History().points(name) for name in ("15m", "1h", "6h")] == [(2, []), (30, []), (30, [])]


def test_unknown_range_is_refused() -> None:
    with pytest.raises(KeyError):
        History().points("7h")


def test_fine_range_has_every_point_of_15_minutes() -> None:
    step_s, points = filled(20 * 60).points("15m")
    assert (step_s, len(points)) == (2, FINE_POINTS)
    assert points[-1].t == 20 * 60 - STEP_S
    assert points[0].t == points[-1].t - (FINE_POINTS - 1) * STEP_S


def test_coarse_ranges_reach_to_now_and_no_further_back_than_asked() -> None:
    history = filled(7 * 3600)
    step_s, points = history.points("1h")
    assert (step_s, len(points)) == (30, 120)
    assert points[-1].t == 7 * 3600 - STEP_S
    step_s, points = history.points("6h")
    assert len(points) == COARSE_POINTS
    assert points[0].t >= 3600


def test_coarse_point_averages_rates_and_keeps_the_worst_of_the_rest() -> None:
    calm = Point(t=2, in_=10, p50=1.0, p99=5.0, ready=3, dead_total=1, oldest_s=None, in_flight=9)
    spike = Point(t=4, in_=30, p50=None, p99=80.0, ready=1, dead_total=2, oldest_s=7.5, in_flight=2)
    merged = merge([calm, spike])
    assert (merged.t, merged.in_, merged.p50, merged.p99) == (4, 20, 1.0, 80.0)
    assert (merged.ready, merged.dead_total, merged.oldest_s, merged.in_flight) == (3, 2, 7.5, 9)
    assert merge([calm]).oldest_s is None


def test_successor_goes_on_with_what_is_not_too_old() -> None:
    before = filled(2 * 3600)
    now = 2 * 3600 + 600
    after = History()
    after.unpack(before.pack(), now)
    assert [len(after.points(name)[1]) for name in ("15m", "1h", "6h")] == [149, 120, 240]
    after.add(Point(t=now))
    assert after.points("15m")[1][-1].t == now
    late = History()
    late.unpack(before.pack(), now + 24 * 3600)
    late.add(Point(t=now + 24 * 3600))
    assert [point.t for point in late.points("15m")[1]] == [now + 24 * 3600]


def test_history_of_a_clock_that_was_ahead_is_not_taken() -> None:
    after = History()
    after.unpack(filled(3600).pack(), 100)
    assert all(point.t <= 100 for name in ("15m", "1h") for point in after.points(name)[1])
