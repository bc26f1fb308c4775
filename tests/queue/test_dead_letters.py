# SPDX-License-Identifier: MIT
"""Dead letters on a real server: filters, replay in one place at a time, purge."""

import msgspec
import pytest
import redis

from postbackd.codec import (
    EPOCH_MS,
    EndpointRecord,
    decode_item,
    encode_element,
    encode_record,
    endpoint_id,
    trail_attempt,
)
from postbackd.queue.dead_letters import DeadLetters, Filter
from postbackd.queue.keys import Keys
from postbackd.tools.dead import Letters, as_object, parse_time_ms

KEYS = Keys("pb")
RECORD = encode_record(EndpointRecord(method="GET", url="http://h/"))
EID = endpoint_id(RECORD)
ALL = Filter()


def die(
    server: redis.Redis, number: int, reason: str = "refused_status", host: str = "h", record: bytes = RECORD
) -> str:
    """Put a dead letter there as settle.lua does; its stream id is 1000 + number."""
    postback_id = (1_700_000_000_000 - EPOCH_MS) << 22 | number
    item = encode_element(EID, postback_id, []) + trail_attempt(5, 503) + b"\xc0" + trail_attempt(6, 404)
    answer = msgspec.json.encode({"host": host, "response_code": 404})
    fields = {"item": item, "record": record, "reason": reason, "answer": answer}
    server.xadd(KEYS.dead, fields, id=f"{1000 + number}-0")
    return f"{postback_id:016x}"


def ids(letters: Letters, wanted: Filter) -> list[str]:
    return [letter.postback_id for _, page in letters.pages(wanted) for letter in page]


def test_filters_say_which_are_meant(server: redis.Redis, url: str) -> None:
    first = die(server, 1)
    second = die(server, 2, reason="expired")
    third = die(server, 3, host="other")
    subject = DeadLetters(url, "pb")
    assert ids(subject, ALL) == [first, second, third]
    assert ids(subject, Filter(host="h")) == [first, second]
    assert ids(subject, Filter(reason="expired")) == [second]
    assert ids(subject, Filter(postback_id=third)) == [third]
    assert ids(subject, Filter(endpoint=EID.hex())) == [first, second, third]
    assert ids(subject, Filter(endpoint="0" * 16)) == []
    assert ids(subject, Filter(since_ms=1002)) == [second, third]
    assert ids(subject, Filter(until_ms=1002)) == [first]


def test_pages_go_to_the_end(server: redis.Redis, url: str) -> None:
    for number in range(1201):
        die(server, number)
    subject = DeadLetters(url, "pb")
    assert [looked_at for looked_at, _ in subject.pages(ALL)] == [500, 500, 201]
    assert len(set(ids(subject, ALL))) == 1201


def test_replay_moves_each_once_and_starts_it_anew(server: redis.Redis, url: str) -> None:
    for number in range(3):
        die(server, number)
    first, second = DeadLetters(url, "pb"), DeadLetters(url, "pb")
    [(_, letters)] = first.pages(ALL)
    assert first.replay(letters[:2]) == 2
    assert second.replay(letters) == 1, "two at once: each entry once"
    assert server.xlen(KEYS.dead) == 0
    items = [decode_item(item) for item in server.lrange(KEYS.ready, 0, -1)]
    assert len(items) == 3
    seconds, _ = server.time()
    for item in items:
        assert (item.attempts, item.reclaims) == ([], 0)
        assert item.start_ms is not None and abs(item.start_ms / 1000 - seconds) < 60
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert 2_591_000 < server.ttl(KEYS.endpoint(EID)) <= 2_592_000


def test_replay_does_not_overwrite_a_stored_record(server: redis.Redis, url: str) -> None:
    die(server, 1)
    server.set(KEYS.endpoint(EID), b"stored meanwhile")
    subject = DeadLetters(url, "pb")
    for _, page in subject.pages(ALL):
        subject.replay(page)
    assert server.get(KEYS.endpoint(EID)) == b"stored meanwhile"


def test_poison_is_listed_and_replayed_as_it_is(server: redis.Redis, url: str) -> None:
    server.xadd(KEYS.dead, {"item": b"\xc1", "record": b"", "reason": "poison", "answer": b"{cut"})
    subject = DeadLetters(url, "pb")
    [(_, [letter])] = subject.pages(Filter(reason="poison"))
    assert (letter.item, letter.postback_id, letter.line) == (None, "", {})
    assert as_object(letter)["id"] is None
    assert subject.replay([letter]) == 1
    assert server.lindex(KEYS.ready, 0).startswith(b"\xc1")


def test_purge_deletes_and_counts(server: redis.Redis, url: str) -> None:
    for number in range(3):
        die(server, number)
    subject = DeadLetters(url, "pb")
    [(_, letters)] = subject.pages(ALL)
    assert (subject.purge(letters[:2]), subject.purge(letters)) == (2, 1)
    assert (server.xlen(KEYS.dead), server.hget(KEYS.stats, "purged")) == (0, b"3")


def test_everything_known_is_shown(server: redis.Redis, url: str) -> None:
    die(server, 1)
    [(_, [letter])] = DeadLetters(url, "pb").pages(ALL)
    shown = as_object(letter)
    assert [attempt["class"] for attempt in shown["attempts"]] == ["http_503", "http_404"]
    assert (shown["reclaims"], shown["reason"], shown["accepted"]) == (1, "refused_status", "2023-11-14T22:13:20.000Z")
    assert shown["endpoint"] == {"method": "GET", "url": "http://h/"}
    assert shown["last"]["response_code"] == 404


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [("30m", 8_200_000), ("2h", 2_800_000), ("1s", 9_999_000), ("1970-01-01T00:00:01Z", 1000),
     ("1970-01-01", 0), ("1970-01-01T01:00:00+01:00", 0)],
)  # fmt: skip
def test_times_are_ages_or_iso(text: str, at_ms: int) -> None:
    assert parse_time_ms("--since", text, 10_000) == at_ms
