# SPDX-License-Identifier: MIT
"""deliver_at, delay and expires_after: what they mean, what is refused, and the trail they become."""

import pytest

from postbackd.codec import EPOCH_MS, accept_ms, decode_item, encode_element
from postbackd.errors import RequestError
from postbackd.timing import NOTHING, Timing, read_timing

NOW_MS = 1_800_000_000_000
DAY_S = 86_400.0


def item_of(timing: Timing) -> tuple[int | None, float | None]:
    """Start, in ms from now, and expiry, as the worker reads them."""
    element = encode_element(bytes(8), (NOW_MS - EPOCH_MS) << 22, ["v"])
    item = decode_item(element + timing.trail(NOW_MS, DAY_S, "x"))
    assert accept_ms(item.postback_id) == NOW_MS
    return None if item.start_ms is None else item.start_ms - NOW_MS, item.expires_after_s


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, (None, None)),
        ({"delay": 1.5}, (1500, None)),
        ({"delay": 0}, (None, None)),
        ({"deliver_at": NOW_MS / 1000 + 60}, (60_000, None)),
        ({"deliver_at": NOW_MS // 1000}, (None, None)),
        ({"deliver_at": 0}, (None, None)),  # past = now
        ({"deliver_at": "2027-01-15T08:00:01Z"}, (1000, None)),
        ({"deliver_at": "2027-01-15T09:00:01+01:00"}, (1000, None)),
        ({"expires_after": 30}, (None, 30)),
        ({"delay": 10, "expires_after": 0.5}, (10_000, 0.5)),
        ({"delay": None, "deliver_at": None, "expires_after": None}, (None, None)),
        ({"delay": 28 * DAY_S}, (28 * DAY_S * 1000, None)),
        ({"expires_after": 29 * DAY_S}, (None, 29 * DAY_S)),
    ],
)
def test_words_become_a_trail(members: dict[str, object], expected: tuple[int | None, float | None]) -> None:
    assert item_of(read_timing(members, "")) == expected


@pytest.mark.parametrize(
    ("members", "code", "path"),
    [
        ({"delay": -1}, "invalid_value", "data[3].@.delay"),
        ({"delay": "5"}, "invalid_value", "data[3].@.delay"),
        ({"delay": True}, "invalid_value", "data[3].@.delay"),
        ({"expires_after": 0}, "invalid_value", "data[3].@.expires_after"),
        ({"expires_after": 30 * DAY_S}, "invalid_value", "data[3].@.expires_after"),
        ({"deliver_at": "tomorrow"}, "invalid_value", "data[3].@.deliver_at"),
        ({"deliver_at": "2027-01-15T08:00:01"}, "invalid_value", "data[3].@.deliver_at"),
        ({"deliver_at": 1, "delay": 1}, "invalid_value", "data[3].@.delay"),
        ({"after": 1}, "unknown_member", "data[3].@.after"),
    ],
)
def test_what_cannot_be_meant_is_refused(members: dict[str, object], code: str, path: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_timing(members, "data[3].@")
    assert (caught.value.status, caught.value.code, caught.value.path) == (422, code, path)


@pytest.mark.parametrize(
    "timing",
    [Timing(delay_s=28.1 * DAY_S), Timing(delay_s=1.0, expires_after_s=29 * DAY_S), Timing(deliver_at_s=1e12)],
)
def test_more_than_29_days_ahead_is_refused(timing: Timing) -> None:
    with pytest.raises(RequestError, match="29 days") as caught:
        timing.trail(NOW_MS, DAY_S, "deliver_at")
    assert caught.value.status == 422


def test_item_goes_before_its_request() -> None:
    outer = Timing(deliver_at_s=5.0, expires_after_s=7.0)
    assert NOTHING.over(outer) == outer
    assert Timing(delay_s=1.0).over(outer) == Timing(None, 1.0, 7.0)
    assert Timing(expires_after_s=2.0).over(outer) == Timing(5.0, None, 2.0)
