# SPDX-License-Identifier: MIT
"""Recall against a real server: what a lane has parked is due at once, whatever else waits stays."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import redis

from postbackd.clock import Clock
from postbackd.queue.keys import Keys
from postbackd.queue.lease_client import Claim, LeaseClient
from tests.support.servers import server, url

__all__ = ["server", "url"]
KEYS = Keys("pb")
A, B = b"endpoint", b"\x00\xff\x93\xdc\x00\x01\xc4\x08"


def item(endpoint_id: bytes, number: int, values: Sequence[Any] = ()) -> bytes:
    return msgspec.msgpack.encode([endpoint_id, number, *values])


def in_an_hour_ms(server: redis.Redis) -> int:
    return int(server.time()[0]) * 1000 + 3_600_000


@pytest.fixture
def lease(url: str) -> LeaseClient:
    made = LeaseClient(url, KEYS, "n.0.aaaa", 30_000, Clock(), lambda: None)
    assert made.connect(0)
    return made


def recall(lease: LeaseClient, cursor: bytes, page: int, *hosts: tuple[int, Sequence[bytes]], wanted: int = 0) -> Claim:
    lease.recall(cursor, page, hosts)
    assert lease.send(wanted)
    claim = lease.wait()
    assert claim is not None and claim.recalled is not None
    return claim


def test_parked_items_of_a_host_are_claimed_in_the_same_exchange(server: redis.Redis, lease: LeaseClient) -> None:
    at_ms = in_an_hour_ms(server)
    wide = item(B, 9, range(20))  # an array of more than 15
    server.zadd(KEYS.later, {item(A, 1): at_ms + 0.5, item(A, 2): at_ms + 1.5, wide: at_ms + 2.5, item(B, 3): at_ms})
    claim = recall(lease, b"", 500, (10, [A]), (10, [B]), wanted=10)
    assert claim.recalled == [b"", 2, 0, 1, 0]
    assert sorted(data for _, data in claim.items) == sorted([item(A, 1), item(A, 2), wide])
    assert server.zrange(KEYS.later, 0, -1) == [item(B, 3)], "it waits for its retry or its deliver_at"


def test_no_more_than_the_host_has_room_for_and_the_earliest_first(server: redis.Redis, lease: LeaseClient) -> None:
    at_ms = in_an_hour_ms(server)
    server.zadd(KEYS.later, {item(A, number): at_ms + number + 0.5 for number in range(10)})
    claim = recall(lease, b"", 500, (3, [A]), wanted=10)
    assert claim.recalled == [b"", 3, 7]
    assert [data for _, data in claim.items] == [item(A, number) for number in range(3)]
    assert recall(lease, b"", 500, (0, [A])).recalled == [b"", 0, 7]


@pytest.mark.parametrize("step_ms", [0, 1])
def test_pass_goes_through_all_pages_and_ends(server: redis.Redis, lease: LeaseClient, step_ms: int) -> None:
    """Also where a page ends between items that are due at the same ms."""
    at_ms = in_an_hour_ms(server)
    others = {item(B, number): at_ms + number * step_ms for number in range(50)}
    server.zadd(KEYS.later, others | {item(A, number): at_ms + 5 * number + 0.5 for number in range(40)})
    cursor, found, pages = b"", 0, 0
    while pages == 0 or cursor:
        claim = recall(lease, cursor, 20, (100, [A]))
        assert claim.recalled is not None
        cursor, found, pages = claim.recalled[0], found + claim.recalled[1], pages + 1
        assert pages < 20
    assert found == 40
    now_ms = int(server.time()[0] + 1) * 1000
    assert server.zcount(KEYS.later, "-inf", now_ms) == 40


def test_settle_goes_before_the_recall_and_one_call_goes_out_once(server: redis.Redis, lease: LeaseClient) -> None:
    from postbackd.queue.lease_client import Later

    server.rpush(KEYS.ready, item(A, 1))
    lease.send(1)
    claim = lease.wait()
    assert claim is not None
    lease.settle(Later(claim.items[0][0], 3_600_000.5, b""))
    claim = recall(lease, b"", 500, (5, [A]), wanted=5)
    assert claim.settled == 1 and claim.recalled == [b"", 1, 0]
    assert [data for _, data in claim.items] == [item(A, 1)]
    lease.send(5)
    claim = lease.wait()
    assert claim is not None and claim.recalled is None


def test_script_flush_costs_no_recall_its_claim(server: redis.Redis, lease: LeaseClient) -> None:
    server.rpush(KEYS.ready, item(A, 1))
    server.script_flush()
    lease.recall(b"", 500, [(5, [A])])
    lease.send(5)
    assert lease.wait() is None
    claim = lease.wait()
    assert claim is not None and len(claim.items) == 1
