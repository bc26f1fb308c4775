# SPDX-License-Identifier: MIT
"""Lanes with an invented clock: turns, limits, shares and the virtual clock of parked postbacks."""

from postbackd.delivery.breaker import FIRST_OPEN_MS
from postbackd.delivery.lane import (
    PARK_MIN_MS,
    RATE_WINDOW_MS,
    Bounds,
)
from postbackd.delivery.lanes import FORGET_SHUT_MS, IDLE_LANE_MS, SWEEP_EVERY_MS, Lanes

NOW_MS = 1_000_000


def lanes(limit: int = 2, rate_per_s: float | None = None, burst: float = 1.0) -> Lanes[str]:
    subject = Lanes[str](lambda _host: Bounds(limit, rate_per_s, burst), in_flight=256)
    subject._spare = 0  # park for want of a host's room alone, whatever the worker could hold
    return subject


def fill(subject: Lanes[str], host: str, count: int, now_ms: int = NOW_MS) -> list[int]:
    """Add so many; the delays of those that are to be parked at once."""
    delays = (subject.add(host, f"{host}{number}", now_ms) for number in range(count))
    return [delay for delay in delays if delay is not None]


def take_all(subject: Lanes[str], now_ms: int = NOW_MS) -> list[str]:
    taken = []
    while (pair := subject.take(now_ms)) is not None:
        taken.append(pair[1])
    return taken


def test_hosts_take_turns() -> None:
    subject = lanes(limit=3)
    fill(subject, "a", 3)
    fill(subject, "b", 2)
    assert take_all(subject) == ["a0", "b0", "a1", "b1", "a2"]


def test_host_at_its_limit_does_not_hold_up_another() -> None:
    subject = lanes(limit=1)
    fill(subject, "slow", 50)
    fill(subject, "fast", 1)
    assert take_all(subject) == ["slow0", "fast0"]
    assert subject.waiting == 49


def test_end_of_a_transfer_lets_the_next_one_go() -> None:
    subject = lanes(limit=1)
    fill(subject, "a", 2)
    assert take_all(subject) == ["a0"]
    subject.done("a", NOW_MS)
    assert take_all(subject) == ["a1"]
    subject.done("a", NOW_MS)
    assert take_all(subject) == []
    assert subject.waiting == 0


def test_first_burst_is_not_parked_before_the_host_was_measured() -> None:
    subject = lanes(limit=2)
    assert fill(subject, "a", 250) == []
    assert list(subject.overflow(NOW_MS)) == []


def test_slow_host_keeps_its_limit_waiting_and_the_rest_is_parked() -> None:
    subject = lanes(limit=2)
    fill(subject, "slow", 100)
    take_all(subject)
    parked = list(subject.overflow(NOW_MS + RATE_WINDOW_MS))
    assert len(parked) == 100 - 2 - 2
    assert subject.waiting == 2
    assert take_all(subject) == []


def test_oldest_stay_and_newest_are_parked() -> None:
    subject = lanes(limit=1)
    fill(subject, "slow", 4)
    take_all(subject)
    assert [name for name, _delay in subject.overflow(NOW_MS + RATE_WINDOW_MS)] == ["slow3", "slow2"]


def test_fast_host_keeps_what_it_completes_in_the_bound() -> None:
    subject = lanes(limit=32)
    fill(subject, "fast", 50)
    for number in range(200):  # 200 in 100 ms: 2,000/s, so 500 may wait
        if number == 40:
            assert fill(subject, "fast", 550) == [], "it is known to be fast by now"
        assert subject.take(NOW_MS) is not None
        subject.done("fast", NOW_MS + 50, 5.0)
    assert list(subject.overflow(NOW_MS + RATE_WINDOW_MS)) == []
    assert subject.waiting == 400


def test_parked_postbacks_come_back_spread_out() -> None:
    subject = lanes(limit=1)
    fill(subject, "slow", 102)
    take_all(subject)
    delays = [delay for _name, delay in subject.overflow(NOW_MS + RATE_WINDOW_MS)]
    assert len(delays) == 100
    assert min(delays) >= PARK_MIN_MS
    assert len(set(delays)) == 100
    assert max(delays) - min(delays) >= 99 * 300  # 3.2 a second


def test_unused_lane_is_forgotten_and_a_used_one_is_not() -> None:
    subject = lanes(limit=1)
    fill(subject, "gone", 1)
    fill(subject, "busy", 1)
    take_all(subject)
    subject.done("gone", NOW_MS)
    for key in ("gone", "busy"):
        subject.get(key).forget_parked()  # type: ignore[union-attr]  # a recall has looked for them
    list(subject.overflow(NOW_MS + IDLE_LANE_MS + SWEEP_EVERY_MS + 1))
    assert len(subject) == 1
    subject.done("busy", NOW_MS)


def test_dropping_waiting_leaves_what_is_in_flight() -> None:
    subject = lanes(limit=1)
    fill(subject, "a", 3)
    take_all(subject)
    assert list(subject.drop_waiting()) == ["a1", "a2"]
    assert subject.waiting == 0
    subject.done("a", NOW_MS)
    assert take_all(subject) == []


# Shut lanes


def fail_all(subject: Lanes[str], host: str, count: int, now_ms: int) -> None:
    fill(subject, host, count)
    while subject.take(now_ms) is not None:
        subject.failed(host, now_ms, is_fault=True, is_dead=False)
    list(subject.overflow(now_ms + RATE_WINDOW_MS))


def test_failing_host_is_tried_by_one_probe_after_its_time_and_nobody_else_is_touched() -> None:
    subject = lanes(limit=100)
    fail_all(subject, "dead", 30, NOW_MS)
    delays = fill(subject, "dead", 5)
    fill(subject, "well", 2)
    assert take_all(subject, NOW_MS + 200) == ["well0", "well1"]
    assert len(delays) == 5 and min(delays) > FIRST_OPEN_MS - 1000, "parked until the breaker lets a probe through"
    later_ms = NOW_MS + FIRST_OPEN_MS + 1000
    assert len(fill(subject, "dead", 3, later_ms)) == 2
    assert take_all(subject, later_ms) == ["dead0"], "one probe"
    subject.done("dead", later_ms)
    list(subject.overflow(later_ms + RATE_WINDOW_MS))
    fill(subject, "dead", 3, later_ms + RATE_WINDOW_MS)
    assert len(take_all(subject, later_ms + RATE_WINDOW_MS)) == 3, "closed: the probe did not fail"


def test_failed_probe_opens_twice_as_long() -> None:
    subject = lanes(limit=100)
    fail_all(subject, "dead", 30, NOW_MS)
    probed_ms = NOW_MS + FIRST_OPEN_MS + 1000
    fill(subject, "dead", 1, probed_ms)
    assert take_all(subject, probed_ms) == ["dead0"]
    subject.failed("dead", probed_ms, is_fault=True, is_dead=False)
    list(subject.overflow(probed_ms + RATE_WINDOW_MS))
    fill(subject, "dead", 1)
    assert take_all(subject, probed_ms + 2 * FIRST_OPEN_MS - 1000) == []
    fill(subject, "dead", 1, probed_ms + 2 * FIRST_OPEN_MS + 1000)
    assert take_all(subject, probed_ms + 2 * FIRST_OPEN_MS + 1000) == ["dead0"]


def test_open_breaker_is_forgotten_when_nobody_sends_there_any_more() -> None:
    subject = lanes(limit=100)
    fail_all(subject, "dead", 30, NOW_MS)
    over_ms = NOW_MS + FIRST_OPEN_MS + FORGET_SHUT_MS
    list(subject.overflow(over_ms - SWEEP_EVERY_MS))
    assert fill(subject, "dead", 3, over_ms - SWEEP_EVERY_MS), "only a probe may stay"
    assert take_all(subject, over_ms - SWEEP_EVERY_MS) == ["dead0"]
    subject.failed("dead", over_ms, is_fault=True, is_dead=True)
    list(subject.overflow(over_ms + RATE_WINDOW_MS))
    forgotten_ms = over_ms + 2 * FIRST_OPEN_MS + FORGET_SHUT_MS + SWEEP_EVERY_MS
    list(subject.overflow(forgotten_ms))
    assert not fill(subject, "dead", 3, forgotten_ms) and len(take_all(subject, forgotten_ms)) == 3


def test_host_that_asks_for_a_pause_gets_it_and_no_more_than_a_minute() -> None:
    subject = lanes(limit=10)
    fill(subject, "busy", 1)
    take_all(subject)
    subject.failed("busy", NOW_MS, is_fault=True, is_dead=False)
    subject.pause("busy", 3_600_000, NOW_MS)
    fill(subject, "busy", 4)
    assert take_all(subject, NOW_MS + 59_000) == []
    delays = [delay for _name, delay in subject.overflow(NOW_MS + 1000)]
    assert len(delays) == 4 and min(delays) > 58_000 and len(set(delays)) == 4
    fill(subject, "busy", 1, NOW_MS + 60_000)
    assert take_all(subject, NOW_MS + 60_000) == ["busy0"]


def test_configured_rate_is_kept_with_its_burst() -> None:
    subject = lanes(limit=100, rate_per_s=10, burst=3)
    fill(subject, "paced", 5)
    assert take_all(subject) == ["paced0", "paced1", "paced2"], "the burst"
    started = []
    for now_ms in range(NOW_MS, NOW_MS + 1000, 20):
        parked = [name for name, _delay in subject.overflow(now_ms)]
        assert all(name != "paced3" for name in parked), "the oldest stays"
        for name in take_all(subject, now_ms):
            started.append(name)
            subject.done("paced", now_ms)
        if not subject.waiting:
            fill(subject, "paced", 1)
    assert 9 <= len(started) <= 10, started


def test_parked_ones_of_a_paced_host_come_back_at_its_rate() -> None:
    subject = lanes(limit=100, rate_per_s=10)
    fill(subject, "paced", 103)
    take_all(subject)
    delays = sorted(delay for _name, delay in subject.overflow(NOW_MS + RATE_WINDOW_MS))
    assert len(delays) == 100
    assert 9_800 <= delays[-1] - delays[0] <= 10_000


# Adaptive limit, and places kept for fast hosts


def serve(subject: Lanes[str], host: str, rounds: int, took_ms: float, now_ms: int = NOW_MS) -> int:
    """Let a host answer so many rounds, with more waiting than it can take; its limit in the end."""
    lane = None
    for _ in range(rounds):
        fill(subject, host, 2000, now_ms)
        for name in take_all(subject, now_ms):
            subject.done(name.rstrip("0123456789"), now_ms, took_ms)
        lane = subject.get(host)
        assert lane is not None
        lane.waiting.clear()
        subject.waiting = 0
    assert lane is not None
    return lane.limit


def test_limit_of_a_host_grows_from_4_to_what_is_configured() -> None:
    subject = lanes(limit=1000)
    fill(subject, "a", 50)
    assert len(take_all(subject)) == 4
    for _ in range(4):
        subject.done("a", NOW_MS, 100.0)
    assert len(take_all(subject)) == 8
    assert serve(lanes(limit=1000), "b", 8, 100.0) == 1000
    assert serve(lanes(limit=2), "c", 8, 100.0) == 2


def test_never_answering_hosts_leave_half_of_the_places_to_one_that_answers() -> None:
    subject = Lanes[str](lambda _host: Bounds(200), in_flight=256)
    serve(subject, "well", 7, 10.0)
    list(subject.overflow(NOW_MS + 1))
    for number in range(100):
        fill(subject, f"dead{number}.", 10)
    fill(subject, "well", 200)
    taken = take_all(subject)
    assert sum(name.startswith("well") for name in taken) == 200, "its whole limit"
    assert sum(name.startswith("dead") for name in taken) == 128
    assert subject._held_places == 128


def test_slow_hosts_have_all_places_where_no_fast_one_is_there() -> None:
    subject = Lanes[str](lambda _host: Bounds(4), in_flight=256)
    for number in range(64):
        fill(subject, f"dead{number}.", 4)
    assert len(take_all(subject)) == 256


def test_waiting_for_slow_hosts_is_bounded_and_each_has_its_next() -> None:
    subject = Lanes[str](lambda _host: Bounds(4), in_flight=256)
    for number in range(300):
        fill(subject, f"dead{number}.", 10)
    assert 256 < subject.held_up <= 256 + 300
    assert all(lane.waiting for lane in subject)
    assert subject.held_up == subject.waiting


def test_fast_host_has_every_third_turn_beside_a_hundred_slow_ones() -> None:
    subject = Lanes[str](lambda _host: Bounds(32), in_flight=256)
    serve(subject, "well", 5, 10.0)
    for number in range(100):
        fill(subject, f"dead{number}.", 10)
    fill(subject, "well", 30)
    turns = [subject.take(NOW_MS) for _ in range(9)]
    assert sum(turn is not None and turn[0] == "well" for turn in turns) >= 3


def test_places_held_are_counted_right_when_a_host_changes() -> None:
    subject = Lanes[str](lambda _host: Bounds(8), in_flight=256)
    fill(subject, "a", 40)
    held = len(take_all(subject))
    assert subject._held_places == held == 4
    for _ in range(4):
        subject.done("a", NOW_MS, 10.0)  # fast from here on
    assert subject._held_places == 0
    take_all(subject)
    for step in range(1, 16):  # it hangs
        list(subject.overflow(NOW_MS + step * 100))
    assert subject._held_places == 8
    for _ in range(8):
        subject.failed("a", NOW_MS + 2000, 10_000.0, is_fault=True, is_dead=False)
    assert subject._held_places == 0
    assert subject.get("a").limit < 8  # type: ignore[union-attr]


def test_host_that_is_known_to_be_fast_stands_with_the_fast_ones_though_it_always_has_work() -> None:
    subject = Lanes[str](lambda _host: Bounds(32), in_flight=256)
    fill(subject, "a", 200)
    for _ in range(20):
        taken = subject.take(NOW_MS)
        assert taken is not None
        subject.done("a", NOW_MS, 5.0)
    subject.take(NOW_MS)
    assert [len(turns) for turns in subject._turns] == [1, 0, 0]
