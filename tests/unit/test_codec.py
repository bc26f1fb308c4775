# SPDX-License-Identifier: MIT
"""The wire format: exact bytes for the sample, round trips, trails, ids under a bad clock."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.codec import (
    EPOCH_MS,
    MAX_MS,
    MAX_SEQUENCE,
    TRAIL_RECLAIM,
    BodyTemplate,
    CodecError,
    EndpointRecord,
    ErrorClass,
    IdGenerator,
    accept_ms,
    attempt_class_name,
    attempt_status,
    decode_item,
    decode_record,
    encode_element,
    encode_record,
    endpoint_id,
    format_id,
    parse_id,
    trail_attempt,
    trail_expiry,
)

DIGEST = bytes(range(8))
SAMPLE_ID = 0x0C2A57BA80001403
SAMPLE = EndpointRecord(
    method="GET",
    url="http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}",
    fields=("key", "value", "bar"),
)
VALUES = st.lists(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.binary(),
    ),
    max_size=20,
)


def test_first_postback_of_the_sample_has_exactly_these_40_bytes() -> None:
    element = encode_element(DIGEST, SAMPLE_ID, ["Azureus", "Dendrobates", None])
    assert element == bytes.fromhex("94c4080001020304050607cf0c2a57ba80001403") + b"\xa7Azureus\xabDendrobates"
    assert len(element) == 40


def test_record_of_the_sample_has_exactly_these_bytes() -> None:
    expected = (
        b"\x83\xa6method\xa3GET\xa3url\xd9\x48http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}"
        b"\xa6fields\x93\xa3key\xa5value\xa3bar"
    )
    assert encode_record(SAMPLE) == expected
    assert decode_record(expected) == SAMPLE
    assert len(endpoint_id(expected)) == 8
    assert endpoint_id(expected) != endpoint_id(expected + b" ")


@given(VALUES)
def test_element_round_trips(values: list[object]) -> None:
    item = decode_item(encode_element(DIGEST, SAMPLE_ID, values))
    while values and values[-1] is None:
        values = values[:-1]
    assert (item.endpoint_id, item.postback_id) == (DIGEST, SAMPLE_ID)
    assert item.values == values
    assert [type(value) for value in item.values] == [type(value) for value in values]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RECORDS = st.builds(
    EndpointRecord,
    method=TEXT,
    url=TEXT,
    headers=st.lists(st.tuples(TEXT, TEXT), max_size=3).map(tuple),
    body=st.one_of(TEXT, st.builds(BodyTemplate, template=TEXT, content_type=TEXT)),
    default=TEXT,
    unmatched=TEXT,
    max_attempts=st.none() | st.integers(1, 25),
    schedule=st.none() | st.lists(st.floats(0, 43200), max_size=4).map(tuple),
    timeout=st.none() | st.floats(0.1, 60),
    fields=st.lists(TEXT, max_size=4).map(tuple),
)


@given(RECORDS)
def test_record_round_trips(record: EndpointRecord) -> None:
    assert decode_record(encode_record(record)) == record


def test_member_of_a_newer_version_is_refused_and_not_left_out() -> None:
    newer = b"\x84" + encode_record(SAMPLE)[1:] + b"\xa9sign_with\xa1k"
    with pytest.raises(CodecError, match="sign_with"):
        decode_record(newer)


def test_trail_counts_attempts_and_reclaims() -> None:
    element = encode_element(DIGEST, SAMPLE_ID, ["a"])
    item = decode_item(element + trail_attempt(EPOCH_MS, 503) + TRAIL_RECLAIM + trail_attempt(EPOCH_MS + 1, 5))
    assert item.values == ["a"]
    assert item.attempts == [(EPOCH_MS, 503), (EPOCH_MS + 1, ErrorClass.TIMEOUT)]
    assert (item.attempt, item.reclaims) == (3, 1)
    assert item.due_from_ms == accept_ms(SAMPLE_ID)


def test_new_start_forgets_attempts_and_reclaims() -> None:
    start = b"\xcf" + (EPOCH_MS + 7).to_bytes(8)
    element = encode_element(DIGEST, SAMPLE_ID, [])
    item = decode_item(
        element + b"\x81\xa1x\x3c" + trail_attempt(1, 500) + TRAIL_RECLAIM + start + trail_attempt(2, 404)
    )
    assert (item.attempts, item.reclaims, item.start_ms) == ([(2, 404)], 0, EPOCH_MS + 7)
    assert item.due_from_ms == EPOCH_MS + 7
    assert item.expires_after_s == 60


ELEMENT = encode_element(DIGEST, SAMPLE_ID, ["a", 1])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        ELEMENT[:-1],
        ELEMENT + b"\x81\x80\x01",
        b"\x91\x81\x80\x01",
        ELEMENT + b"\xa3ab",
        ELEMENT + b"\xa3abc",
        ELEMENT + b"\x93\x01\x02\x03",
        encode_element(b"short", SAMPLE_ID, []),
        b"\x92\xc4\x08" + DIGEST + b"\xa1x",
        encode_element(DIGEST, -5, []),
        ELEMENT + b"\xcf" + MAX_MS.to_bytes(8),
        ELEMENT + b"\xff",
        ELEMENT + trail_attempt(MAX_MS, 503),
        ELEMENT + trail_attempt(-1, 503),
        ELEMENT + trail_attempt(1, 1000),
        ELEMENT + trail_attempt(1, -1),
        ELEMENT + trail_expiry(math.nan),
        ELEMENT + trail_expiry(math.inf),
        ELEMENT + trail_expiry(-1),
        ELEMENT + b"\x81\xa1x\xc3",
    ],
)
def test_bytes_that_are_no_item_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_item(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_item_or_refused(data: bytes) -> None:
    try:
        decode_item(data)
        decode_item(ELEMENT + data)
    except CodecError:
        return


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    try:
        decode_record(data)
    except CodecError:
        return


@given(st.lists(st.tuples(st.integers(-5000, 5000), st.integers(1, 3000)), max_size=8))
def test_ids_rise_whatever_the_clock_does(steps: list[tuple[int, int]]) -> None:
    now = [EPOCH_MS + 10_000_000]
    generator = IdGenerator(5, lambda: now[0])
    ids: list[int] = []
    for step_ms, count in steps:
        now[0] += step_ms
        ids += generator.next_ids(count)
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert {(i >> 10) & 0xFFF for i in ids} <= {5}


def test_full_sequence_takes_the_next_millisecond() -> None:
    generator = IdGenerator(0, lambda: EPOCH_MS + 1000)
    ids = generator.next_ids(MAX_SEQUENCE + 2)
    assert accept_ms(ids[MAX_SEQUENCE]) == EPOCH_MS + 1000
    assert accept_ms(ids[MAX_SEQUENCE + 1]) == EPOCH_MS + 1001


def test_id_is_16_hex_digits_and_holds_the_time() -> None:
    assert format_id(SAMPLE_ID) == "0c2a57ba80001403"
    assert parse_id("0c2a57ba80001403") == SAMPLE_ID
    for bad in ("", "0C2A57BA80001403", "0c2a57ba8000140", "0x2a57ba80001403"):
        with pytest.raises(ValueError, match="16 lowercase hex"):
            parse_id(bad)


def test_attempt_classes_have_names() -> None:
    names = [attempt_class_name(code) for code in (503, 404, 204, 150, 5, 99)]
    assert names == ["http_5xx", "http_4xx", "http_2xx", "network_error", "timeout", "error_99"]
    assert [attempt_status(code) for code in (503, 5)] == [503, None]


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(CodecError):
        decode_item(b"\x91" * 100_000)
    with pytest.raises(CodecError):
        decode_record(b"\x81\xa6method" + b"\x91" * 100_000)
