# SPDX-License-Identifier: MIT
"""Lanes with an invented clock: turns, limits, shares and the virtual clock of parked postbacks."""

from postbackd.delivery.lanes import (
    IDLE_LANE_MS,
    PARK_MAX_BUSY_MS,
    PARK_MAX_MS,
    PARK_MIN_MS,
    PARK_WINDOW_MS,
    RATE_WINDOW_MS,
    SWEEP_EVERY_MS,
    Lanes,
)

NOW_MS = 1_000_000


def lanes(limit: int = 2) -> Lanes[str]:
    return Lanes(lambda _host: limit)


def fill(subject: Lanes[str], host: str, count: int) -> None:
    for number in range(count):
        subject.add(host, f"{host}{number}", NOW_MS)


def take_all(subject: Lanes[str]) -> list[str]:
    taken = []
    while (pair := subject.take()) is not None:
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
    fill(subject, "a", 500)
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
    fill(subject, "fast", 600)
    for _ in range(200):  # 200 in 100 ms: 2,000/s, so 500 may wait
        assert subject.take() is not None
        subject.done("fast", NOW_MS + 50)
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


def test_virtual_clock_begins_again_when_it_has_run_full() -> None:
    subject = lanes(limit=1)
    fill(subject, "dead", 5002)
    take_all(subject)
    delays = [delay for _name, delay in subject.overflow(NOW_MS + RATE_WINDOW_MS)]
    assert max(delays) <= PARK_MAX_MS
    assert min(delays) >= PARK_MIN_MS


def test_mass_of_parked_postbacks_comes_back_less_often() -> None:
    subject = lanes(limit=1)
    fill(subject, "dead", 20_002)
    take_all(subject)
    for now_ms in (NOW_MS + PARK_WINDOW_MS, NOW_MS + 2 * PARK_WINDOW_MS):
        parked = list(subject.overflow(now_ms))
        for name, _delay in parked:
            subject.add("dead", name, now_ms)
    assert PARK_MAX_MS < max(delay for _name, delay in parked) <= PARK_MAX_BUSY_MS


def test_unused_lane_is_forgotten_and_a_used_one_is_not() -> None:
    subject = lanes(limit=1)
    fill(subject, "gone", 1)
    fill(subject, "busy", 1)
    take_all(subject)
    subject.done("gone", NOW_MS)
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
