# SPDX-License-Identifier: MIT
"""The adaptive limit against invented hosts: how it grows, where it ends, what shrinks it."""

import random
from collections.abc import Callable

import pytest

from postbackd.delivery.flow_limit import START, FlowLimit


def run(subject: FlowLimit, time_of: Callable[[int], float], rounds: int, failed_share: float = 0.0) -> int:
    for _ in range(rounds):
        subject.round_ended(time_of(subject.value), failed_share, was_used=True)
    return subject.value


def test_steady_slow_host_gets_a_thousand_within_nine_rounds() -> None:
    """That is 0.9 s where a transfer takes 100 ms."""
    assert run(FlowLimit(1000), lambda _limit: 100.0, 8) == 1000


def test_fast_host_gets_all_in_three_rounds_whatever_our_own_loop_adds() -> None:
    subject = FlowLimit(32)
    assert run(subject, lambda limit: 0.3 + 0.03 * limit, 3) == 32
    assert run(subject, lambda limit: 0.3 + 0.5 * limit, 100) == 32


@pytest.mark.parametrize("capacity", [10, 100])
def test_host_that_queues_is_not_given_much_more_than_it_serves(capacity: int) -> None:
    """It serves so many at once in 100 ms, more wait: latency grows with what is in flight."""
    found = run(FlowLimit(1000), lambda limit: 100.0 * max(1, limit / capacity), 200)
    assert capacity <= found <= 4 * capacity


def test_noise_of_latency_does_not_shrink_it() -> None:
    chance = random.Random(5)
    subject = FlowLimit(256)
    run(subject, lambda limit: sum(chance.uniform(40, 200) for _ in range(limit)) / limit, 400)
    assert subject.value > 128


def test_host_that_has_become_slow_for_good_gets_its_room_back() -> None:
    subject = FlowLimit(64)
    assert run(subject, lambda _limit: 100.0, 10) == 64
    assert min(run(subject, lambda _limit: 400.0, 1) for _ in range(20)) < 30, "at first it looks full"
    assert run(subject, lambda _limit: 400.0, 100) == 64


def test_failures_halve_it_to_its_start_and_success_lets_it_grow_again() -> None:
    subject = FlowLimit(256)
    run(subject, lambda _limit: 50.0, 10)
    assert subject.value == 256
    subject.round_ended(0.0, 1.0, True)
    assert subject.value == 128
    assert run(subject, lambda _limit: 0.0, 20, failed_share=1.0) == START
    assert run(subject, lambda _limit: 50.0, 40) > 30


def test_a_tenth_of_failures_leaves_some_room_and_a_hundredth_all() -> None:
    assert 8 <= run(FlowLimit(256), lambda _limit: 50.0, 200, failed_share=0.1) <= 32
    assert run(FlowLimit(256), lambda _limit: 50.0, 200, failed_share=0.01) == 256


def test_limit_that_is_not_used_does_not_grow() -> None:
    subject = FlowLimit(256)
    for _ in range(50):
        subject.round_ended(50.0, 0.0, was_used=False)
    assert subject.value == START


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_configured_limit_below_the_start_holds(longest: int) -> None:
    subject = FlowLimit(longest)
    assert run(subject, lambda _limit: 5.0, 10) == longest
    assert run(subject, lambda _limit: 0.0, 10, failed_share=1.0) == longest
