# SPDX-License-Identifier: MIT
"""Dead letters on a real server: filters, replay in one place at a time, purge."""

import json
import re
import time

import msgspec
import pytest
import redis
from click.testing import CliRunner

from postbackd.cli import main
from postbackd.codec import (
    EPOCH_MS,
    EndpointRecord,
    decode_item,
    encode_element,
    encode_record,
    endpoint_id,
    trail_attempt,
)
from postbackd.queue.dead_letters import DeadLetter, DeadLetters, Filter
from postbackd.queue.keys import Keys
from postbackd.tools.dead import Letters, as_object, list_letters, parse_time_ms, replay_letters, show_letter

KEYS = Keys("pb")
RECORD = encode_record(EndpointRecord(method="GET", url="http://h/"))
EID = endpoint_id(RECORD)
ALL = Filter()
ACCEPTED_MS = 1_700_000_000_000


def die(
    server: redis.Redis, number: int, reason: str = "refused_status", host: str = "h", record: bytes = RECORD
) -> str:
    """Put a dead letter there as settle.lua does; it died `number` ms after its acceptance."""
    postback_id = (ACCEPTED_MS - EPOCH_MS) << 22 | number
    item = encode_element(EID, postback_id, []) + trail_attempt(5, 503) + b"\xc0" + trail_attempt(6, 404)
    answer = msgspec.json.encode({"host": host, "response_code": 404})
    fields = {"item": item, "record": record, "reason": reason, "answer": answer}
    server.xadd(KEYS.dead, fields, id=f"{ACCEPTED_MS + number}-0")
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
    fourth = die(server, 4, host="other:8443")
    assert ids(subject, Filter(host="other")) == [third, fourth], "without a port, at any"
    assert ids(subject, Filter(host="other:8443")) == [fourth]
    assert server.xdel(KEYS.dead, f"{ACCEPTED_MS + 4}-0") == 1
    assert ids(subject, Filter(reason="expired")) == [second]
    assert ids(subject, Filter(postback_id=third)) == [third]
    assert ids(subject, Filter(postback_id=third, since_ms=ACCEPTED_MS + 4)) == []
    assert ids(subject, Filter(endpoint=EID.hex())) == [first, second, third]
    assert ids(subject, Filter(endpoint="0" * 16)) == []
    assert ids(subject, Filter(since_ms=ACCEPTED_MS + 2)) == [second, third]
    assert ids(subject, Filter(until_ms=ACCEPTED_MS + 2)) == [first]


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


def test_interrupted_replay_says_how_far_it_came_and_how_to_go_on(
    server: redis.Redis, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1001):
        die(server, number)
    subject = DeadLetters(url, "pb")
    replay, calls = subject.replay, []

    def interrupted(page: list[DeadLetter]) -> int:
        calls.append(len(page))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return replay(page)

    subject.replay = interrupted  # type: ignore[method-assign]
    assert replay_letters(subject, ALL, None, dry_run=False) == 1
    told = capsys.readouterr()
    assert told.out == "" and "interrupted after 1000 replayed" in told.err
    assert (server.llen(KEYS.ready), server.xlen(KEYS.dead)) == (1000, 1), "in one place each"
    until = re.search(r"--until (\S+)", told.err)
    assert until is not None
    until_ms = parse_time_ms("--until", until[1], 0)
    server.xadd(KEYS.dead, {"item": b"", "record": b"", "reason": "poison", "answer": b"{}"}, id=f"{until_ms}-0")
    assert replay_letters(DeadLetters(url, "pb"), Filter(until_ms=until_ms), None, dry_run=False) == 0
    assert (server.llen(KEYS.ready), server.xlen(KEYS.dead)) == (1001, 1), "what died since is left out"


def test_rate_is_kept_in_even_portions(server: redis.Redis, url: str) -> None:
    for number in range(30):
        die(server, number)
    subject = DeadLetters(url, "pb")
    replay, sizes = subject.replay, []
    subject.replay = lambda page: sizes.append(len(page)) or replay(page)  # type: ignore[method-assign,func-returns-value]
    began_s = time.monotonic()
    assert replay_letters(subject, ALL, 100.0, dry_run=False) == 0
    assert sizes == [10, 10, 10]
    assert time.monotonic() - began_s > 0.29, "30 at 100 a second"
    assert server.llen(KEYS.ready) == 30


def test_list_counts_the_rest_without_reading_it(
    server: redis.Redis, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = die(server, 0)
    for number in range(1, 1201):
        die(server, number, reason="expired")
    assert list_letters(DeadLetters(url, "pb"), ALL, 1, as_json=False) == 0
    told = capsys.readouterr()
    assert first in told.out and "1 shown, 1200 more (--limit)" in told.err
    assert list_letters(DeadLetters(url, "pb"), Filter(reason="expired"), 2, as_json=False) == 0
    assert "2 shown, 1198 more (--limit)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "or say --all"),
        (["purge"], "or say --all"),
        (["list", "--id", "123"], "--id 123: 16 hex digits"),
        (["list", "--endpoint", "xyz"], "--endpoint xyz: 16 hex digits"),
        (["list", "--reason", "bogus"], "'attempts_exhausted'"),
        (["show", "123"], "16 hex digits"),
    ],
)
def test_options_that_mean_no_letter_are_refused(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(main, ["dead", *arguments, "--set", "queue.url=redis://127.0.0.1:1"])
    assert ended.exit_code == 2
    assert said in ended.output


def test_absent_letter_is_looked_for_elsewhere(
    server: redis.Redis, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    died = die(server, 1)
    assert show_letter(DeadLetters(url, "pb"), died, overflow=False) == 0
    assert json.loads(capsys.readouterr().out)["id"] == died
    assert show_letter(DeadLetters(url, "pb"), died[:-1] + "f", overflow=False) == 1
    assert "--overflow" in capsys.readouterr().err


def test_everything_known_is_shown(server: redis.Redis, url: str) -> None:
    die(server, 1)
    [(_, [letter])] = DeadLetters(url, "pb").pages(ALL)
    shown = as_object(letter)
    told = [(attempt["class"], attempt["response_code"]) for attempt in shown["attempts"]]
    assert told == [("http_5xx", 503), ("http_4xx", 404)]
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
