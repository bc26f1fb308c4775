# SPDX-License-Identifier: MIT
"""Who is asked for in a pass through the later set, and when a host is done with."""

from postbackd.delivery.lane import Bounds, Lane
from postbackd.delivery.recall import EVERY_MS, MAX_HOSTS, MAX_IDS, Recall, Recaller

START_MS = 1_000_000


def lane(name: str, room: int = 5) -> Lane[str]:
    made = Lane[str](name, Bounds(32), START_MS)
    made.parked_until_ms, made.parked_ms, made.recall_room = START_MS + 3_600_000, START_MS - 1, room
    return made


def ask(subject: Recaller, lanes: list[Lane[str]], number: int) -> Recall:
    found = subject.next(lanes, START_MS + number * EVERY_MS)
    assert found is not None
    return found


def answer(subject: Recaller, number: int, cursor: bytes, *counts: int) -> None:
    subject.took(cursor, counts, START_MS + number * EVERY_MS)


def test_host_is_done_with_after_a_pass_that_found_nothing_of_it() -> None:
    a, b = lane("a"), lane("b")
    subject = Recaller(lambda host: [host.encode()])
    assert ask(subject, [a, b], 1).cursor == b""
    answer(subject, 1, b"17", 2, 0, 0, 0)
    assert (a.recall_room, b.recall_room) == (3, 5)
    assert ask(subject, [a, b], 2).cursor == b"17"
    answer(subject, 2, b"", 0, 0, 0, 0)
    assert (a.parked_until_ms > 0, b.parked_until_ms) == (True, 0)


def test_host_that_parks_during_the_pass_is_not_done_with() -> None:
    a = lane("a")
    subject = Recaller(lambda _host: [b"id"])
    ask(subject, [a], 1)
    a.parked_ms = START_MS + EVERY_MS + 1
    answer(subject, 1, b"", 0, 0)
    assert a.parked_until_ms


def test_all_hosts_have_their_turn_and_all_their_endpoints() -> None:
    lanes = [lane(f"h{number}") for number in range(MAX_HOSTS + 5)]
    subject = Recaller(lambda host: [host.encode()])
    seen: set[bytes] = set()
    for number in range(1, 4):
        hosts = ask(subject, lanes, number).hosts
        seen |= {ids[0] for _, ids in hosts}
        answer(subject, number, b"", *([0, 1] * len(hosts)))
    assert len(seen) == MAX_HOSTS + 5
    many = [b"%d" % number for number in range(5 * MAX_IDS // 2)]
    subject = Recaller(lambda _host: many)
    big = lane("big")
    found: set[bytes] = set()
    for number in range(1, 6):
        [(room, ids)] = ask(subject, [big], number).hosts
        assert room == 5 and len(ids) == MAX_IDS
        found |= set(ids)
        answer(subject, number, b"", 0, 0)
    assert found == set(many) and big.parked_until_ms, "one pass does not speak for all its endpoints"
