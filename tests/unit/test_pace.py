# SPDX-License-Identifier: MIT
"""The pace with an invented clock: when a worker talks to the queue, and how much it asks for."""

from postbackd.delivery.pace import BATCH, HEARTBEAT_MS, HOLD_MAX, HOLD_MIN, IDLE_SLACK_MS, SETTLE_AGE_MS, Pace


def busy(per_s: int, in_flight: int = 256) -> Pace:
    """A pace after seconds of so many completions."""
    subject = Pace(in_flight)
    for turn in range(1, 51):
        subject.completed(per_s // 10, turn * 100)
    subject.sent(5000)
    return subject


def test_first_exchange_is_due_at_once() -> None:
    assert Pace(256).is_due(0, 0, 0, None, True)


def test_heartbeat_is_due_after_a_second_full_or_idle() -> None:
    subject = busy(0)
    full = 256 + HOLD_MIN
    assert not subject.is_due(5000 + HEARTBEAT_MS - 1, full, 0, None, True)
    assert subject.is_due(5000 + HEARTBEAT_MS, full, 0, None, True)
    assert not subject.is_due(5000 + HEARTBEAT_MS, 0, 0, None, False)  # the idle wait's own claim is coming
    assert subject.is_due(5000 + HEARTBEAT_MS + IDLE_SLACK_MS, 0, 0, None, False)


def test_outcome_waits_no_longer_than_its_age() -> None:
    subject = busy(0)
    assert not subject.is_due(5100, 288, 1, 5100 - SETTLE_AGE_MS + 1, True)
    assert subject.is_due(5100, 288, 1, 5100 - SETTLE_AGE_MS, True)
    assert subject.is_due(5001, 288, BATCH, 5001, True)


def test_held_items_follow_the_pace() -> None:
    assert busy(0).hold_limit == 256 + HOLD_MIN
    assert 256 + 95 <= busy(1000).hold_limit <= 256 + 100
    assert busy(100_000).hold_limit == 256 + HOLD_MAX


def test_busy_worker_claims_large_batches() -> None:
    subject = busy(30_000)
    limit = subject.hold_limit
    assert not subject.is_due(5001, limit - 383, 0, None, True)
    assert subject.is_due(5001, limit - 384, 0, None, True)
    assert subject.room(0) == BATCH


def test_wait_is_never_zero_unless_something_is_due() -> None:
    """Or the loop would spin."""
    for per_s in (0, 10, 600, 5000, 50_000):
        subject = busy(per_s)
        for open_items in range(0, 1000, 7):
            for now_ms in (5000, 5003, 5010, 5500, 6000):
                for may_find in (True, False):
                    wait_ms = subject.next_ms(now_ms, open_items, None, may_find)
                    assert (wait_ms == 0) == subject.is_due(now_ms, open_items, 0, None, may_find)
