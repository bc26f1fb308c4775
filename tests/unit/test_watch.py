# SPDX-License-Identifier: MIT
"""Whom the guard cuts, with invented figures and an invented clock."""

import pytest

from postbackd.server.watch import (
    HEADER_BYTES,
    HEADER_WEIGHT,
    MIN_BYTES_PER_MS,
    OBJECT_BYTES,
    PATIENCE_MS,
    Limits,
    Look,
    Reason,
    Watched,
    arriving_long,
    is_calm,
    too_heavy,
    too_many,
)

LIMITS = Limits(
    max_connections=3, per_address=0, idle_ms=60_000, request_ms=20_000, body_bytes=1_000_000, arriving_bytes=1_000_000
)


def look(**figures: int) -> Look:
    """A connection that has sent something and got nothing, but for what is given."""
    quiet = dict.fromkeys(Look._fields, 0) | {"received_bytes": 10, "sent_age_ms": 5_000}
    return Look(**{**quiet, **figures})


AT_REST = look(sent_segments=1, sent_bytes=80, acked_bytes=80, sent_age_ms=10, received_age_ms=20)


def judged(*steps: tuple[int, Look], limits: Limits = LIMITS) -> Reason | None:
    """The reason after these looks, each at its time."""
    watched = Watched(1, "10.0.0.1")
    reason = None
    for now_ms, figures in steps:
        reason = watched.judge(figures, now_ms, limits)
    return reason


@pytest.mark.parametrize(("age_ms", "expected"), [(60_000, None), (60_001, Reason.IDLE)])
def test_idle_connection_is_cut_after_its_time(age_ms: int, expected: Reason | None) -> None:
    assert judged((1, AT_REST._replace(sent_age_ms=age_ms, received_age_ms=age_ms + 5))) is expected
    assert judged((1, look(received_bytes=0, received_age_ms=age_ms))) is expected


@pytest.mark.parametrize(("later_ms", "expected"), [(20_001, None), (20_002, Reason.SLOW_SENDER)])
def test_request_has_to_arrive_in_its_time(later_ms: int, expected: Reason | None) -> None:
    assert judged((1, look()), (later_ms, look(received_bytes=11))) is expected


def test_request_that_moves_fast_enough_gets_the_time_it_needs() -> None:
    size = 500_000
    in_time_ms = 1 + LIMITS.request_ms + size // MIN_BYTES_PER_MS
    assert judged((1, look()), (in_time_ms, look(received_bytes=size))) is None
    assert judged((1, look()), (in_time_ms + 1, look(received_bytes=size))) is Reason.SLOW_SENDER


def test_answer_ends_a_request_time() -> None:
    busy = look(sent_segments=1, sent_bytes=80, received_bytes=200, sent_age_ms=9_000)
    assert judged((1, look()), (19_000, busy), (38_000, busy._replace(received_bytes=201))) is None
    assert judged((1, look()), (19_000, busy), (39_002, busy._replace(received_bytes=201))) is Reason.SLOW_SENDER


def test_byte_now_and_then_behind_an_answer_is_a_slow_sender() -> None:
    drip = AT_REST._replace(received_bytes=11, sent_age_ms=30_000, received_age_ms=1)
    assert judged((1, AT_REST), (2, drip), (20_003, drip._replace(received_bytes=12))) is Reason.SLOW_SENDER


@pytest.mark.parametrize(("size", "expected"), [(0, None), (1, Reason.TOO_LARGE)])
def test_more_than_any_request_may_have_is_cut(size: int, expected: Reason | None) -> None:
    received = LIMITS.body_bytes + HEADER_BYTES + size
    assert judged((1, look(received_bytes=received))) is expected


def test_many_requests_on_one_connection_are_not_one_large_request() -> None:
    first = look(sent_segments=1, sent_bytes=80, received_bytes=900_000)
    second = first._replace(sent_bytes=160, sent_segments=2, received_bytes=1_800_000)
    third = second._replace(sent_bytes=240, sent_segments=3, received_bytes=2_700_000)
    assert judged((1, first), (500, second), (1000, third)) is None


@pytest.mark.parametrize(("later_ms", "expected"), [(20_001, None), (20_002, Reason.SLOW_READER)])
def test_answer_has_to_be_taken_in_its_time(later_ms: int, expected: Reason | None) -> None:
    full = AT_REST._replace(not_sent_bytes=5_000)
    assert judged((1, full), (later_ms, full)) is expected


def test_client_that_acknowledges_nothing_is_gone() -> None:
    assert judged((1, AT_REST._replace(unacked=1, acked_age_ms=20_000))) is None
    assert judged((1, AT_REST._replace(unacked=1, acked_age_ms=20_001))) is Reason.SLOW_READER


def known(*idle_ms: int, address: str = "10.0.0.1") -> list[tuple[int, Watched]]:
    return [(fd, Watched(fd, address, idle_ms=idle)) for fd, idle in enumerate(idle_ms, 10)]


def test_longest_idle_goes_first_when_they_are_too_many() -> None:
    assert too_many(known(5, 900, 0), LIMITS) == []
    assert too_many(known(5, 900, 0, 30, 40), LIMITS) == [(11, Reason.TOO_MANY), (14, Reason.TOO_MANY)]


def test_limit_of_an_address_touches_no_other_address() -> None:
    limits = LIMITS._replace(per_address=2, max_connections=100)
    others = [(fd + 50, w) for fd, w in known(9_000, 9_000, address="10.0.0.2")]
    assert too_many([*others, *known(5, 900, 0)], limits) == [(11, Reason.ADDRESS)]
    assert too_many([*others, *known(5, 900, 0)], limits._replace(max_connections=3)) == [
        (11, Reason.ADDRESS),
        (60, Reason.TOO_MANY),
    ]


def arriving(*sizes: int) -> list[tuple[int, Watched]]:
    return [(fd, Watched(fd, "a", arriving_since_ms=1, arriving_bytes=n)) for fd, n in enumerate(sizes, 10)]


def test_largest_unfinished_requests_go_when_they_take_too_much() -> None:
    bodies = arriving(300_000, 600_000, 200_000)
    assert too_heavy(bodies, 1_100_000, 0, LIMITS) == [(11, Reason.MEMORY)]
    headers = arriving(*[HEADER_BYTES] * 3)
    assert LIMITS.arriving_bytes < 3 * HEADER_BYTES * HEADER_WEIGHT
    assert len(too_heavy(headers, 0, 1_000_000, LIMITS)) == 3
    assert too_heavy(arriving(300, 300, 300), 0, 1_000_000, LIMITS) == []


def test_headers_weigh_what_they_have_become() -> None:
    headers = arriving(*[20_000] * 30)
    assert LIMITS.arriving_bytes < 30 * 20_000 * HEADER_WEIGHT
    few = (LIMITS.arriving_bytes - 30 * 20_000) // OBJECT_BYTES
    assert too_heavy(headers, 0, few, LIMITS) == []
    assert len(too_heavy(headers, 0, few + 1, LIMITS)) == 1
    assert too_heavy(headers, 0, -1, LIMITS) == []


def test_what_has_only_begun_to_arrive_is_no_load() -> None:
    begun = arriving(600_000)
    assert arriving_long(begun, PATIENCE_MS) == []
    assert arriving_long(begun, 1 + PATIENCE_MS) == begun


def test_it_is_calm_while_the_heaviest_headers_would_take_little() -> None:
    little = LIMITS.arriving_bytes // HEADER_WEIGHT // 8
    assert is_calm(arriving(little - 1), LIMITS)
    assert not is_calm(arriving(little // 2, little // 2 + 1), LIMITS)
