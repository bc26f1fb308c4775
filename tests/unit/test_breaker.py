# SPDX-License-Identifier: MIT
"""The breaker with an invented clock: when it opens, for how long, and what closes it."""

import pytest

from postbackd.delivery.breaker import FIRST_OPEN_MS, LONGEST_OPEN_MS, WINDOW_MS, Breaker, State


@pytest.mark.parametrize(
    ("attempts", "failures", "opens"),
    [(19, 19, False), (20, 14, True), (20, 13, False), (20, 20, True), (1000, 699, False), (1000, 700, True)],
)
def test_opens_at_20_samples_and_70_percent(attempts: int, failures: int, opens: bool) -> None:
    assert Breaker().count(attempts, failures, 0) is opens


def test_samples_add_up_over_a_minute_and_are_forgotten_after_it() -> None:
    subject = Breaker()
    for second in range(19):
        assert not subject.count(1, 1, second * 1000)
    assert subject.count(1, 1, 19_000)
    subject = Breaker()
    for second in range(19):
        subject.count(1, 1, second * 1000)
    assert not subject.count(1, 1, 19_000 + WINDOW_MS)


def test_success_alone_never_opens_what_failed_before() -> None:
    subject = Breaker()
    subject.count(19, 19, 0)
    assert not subject.count(1, 0, 1000)


def test_each_failed_probe_doubles_the_time_to_ten_minutes_and_a_good_one_starts_over() -> None:
    subject = Breaker()
    now_ms, spans = 0, []
    subject.count(20, 20, now_ms)
    for _ in range(7):
        spans.append(subject.open_until_ms - now_ms)
        assert not subject.let_probe(subject.open_until_ms - 1)
        assert not subject.count(5, 5, now_ms), "what ends while it is open says nothing new"
        now_ms = subject.open_until_ms
        assert subject.let_probe(now_ms)
        assert subject.count(1, 1, now_ms)
    assert spans == [30_000, 60_000, 120_000, 240_000, 480_000, LONGEST_OPEN_MS, LONGEST_OPEN_MS]
    subject.let_probe(subject.open_until_ms)
    assert not subject.count(1, 0, subject.open_until_ms)
    assert subject.state is State.CLOSED
    subject.count(20, 20, 0)
    assert subject.open_until_ms == FIRST_OPEN_MS
