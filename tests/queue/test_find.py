# SPDX-License-Identifier: MIT
"""Finding one postback in every place it can be in."""

import pytest
import redis

from postbackd.codec import EPOCH_MS, encode_element, trail_attempt
from postbackd.delivery.recorder import RECALLABLE
from postbackd.queue.find import PAGE, Finder, Found
from postbackd.queue.keys import Keys
from tests.queue.test_dead_letters import EID, RECORD, die

KEYS = Keys("pb")
ACCEPTED_MS = 1_700_000_000_000


def postback_id(number: int) -> int:
    return (ACCEPTED_MS - EPOCH_MS) << 22 | number


def item(number: int) -> bytes:
    return encode_element(EID, postback_id(number), ["value"]) + trail_attempt(7, 503)


def find(url: str, number: int) -> Found | None:
    looked_through = 0

    def advance(count: int) -> None:
        nonlocal looked_through
        looked_through += count

    return Finder(url, "pb").find(postback_id(number), advance)


@pytest.mark.parametrize("position", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
def test_ready_is_read_to_both_ends(server: redis.Redis, url: str, position: int) -> None:
    server.rpush(KEYS.ready, *(item(number) for number in range(2 * PAGE + 1)))
    found = find(url, position)
    assert found is not None
    assert (found.place, found.item.postback_id, found.item.attempts) == ("ready", postback_id(position), [(7, 503)])


def test_wake_later_and_leases_are_looked_through(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.wake, item(1))
    server.zadd(KEYS.later, {item(2): ACCEPTED_MS + 5000, item(3): 1})
    server.hset(KEYS.lease("n.0.aa"), mapping={"n": 1, "0": item(4)})
    server.zadd(KEYS.workers, {"n.0.aa": 1})
    server.zadd(KEYS.later, {item(5): ACCEPTED_MS + 7000 + RECALLABLE})
    places = [find(url, number) for number in (1, 2, 4, 5)]
    assert [found and (found.place, found.due_ms, found.worker, found.is_parked) for found in places] == [
        ("ready", None, None, False),
        ("later", ACCEPTED_MS + 5000, None, False),
        ("leased", None, "n.0.aa", False),
        ("later", ACCEPTED_MS + 7000, None, True),
    ]


def test_dead_comes_with_its_letter(server: redis.Redis, url: str) -> None:
    for number in range(3):
        fields = {"item": item(number), "record": RECORD, "reason": "expired", "answer": b"{}"}
        server.xadd(KEYS.dead, fields, id=f"{ACCEPTED_MS + number}-0")
    found = find(url, 2)
    assert found is not None and found.letter is not None
    assert (found.place, found.letter.reason, found.letter.died_ms) == ("dead", "expired", ACCEPTED_MS + 2)


def test_absent_one_is_none_among_look_alikes(server: redis.Redis, url: str) -> None:
    die(server, 2)
    lookalike = encode_element(EID, postback_id(9), [b"\xcf" + postback_id(1).to_bytes(8, "big")])
    server.rpush(KEYS.ready, lookalike, b"\xcf" + postback_id(1).to_bytes(8, "big"))
    assert find(url, 1) is None


def test_many_are_found_in_one_pass_wherever_they_are(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, *(item(number) for number in range(PAGE + 5)))
    server.zadd(KEYS.later, {item(number): 5 for number in range(10_000, 10_005)})
    server.zadd(KEYS.workers, {"w": 1})
    server.hset(KEYS.lease("w"), mapping={"t": item(20_000), "n": 7})
    die(server, 30_000)
    wanted = {1: "ready", PAGE + 4: "ready", 10_003: "later", 20_000: "leased", 30_000: "dead", 99: "ready"}
    looked: list[int] = []
    found = Finder(url, "pb").places([postback_id(number) for number in [*wanted, 77_777]], looked.append)
    assert found == {postback_id(number): place for number, place in wanted.items()}
    assert sum(looked) == 2 * (PAGE + 10), "a second look for the one that may have moved, and no more"
