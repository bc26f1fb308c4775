# SPDX-License-Identifier: MIT
"""Each Lua script against a real server: what it moves, what it refuses, and what it repeats when asked again."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

import postbackd.queue
from postbackd.queue.keys import Keys

LUA = Path(postbackd.queue.__file__).parent / "lua"
TTL_S = 2_592_000
EP = bytes(8)
_prefixes = count()


class Queue:
    """The scripts under a prefix of their own, called with plain arguments."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.keys = Keys(f"t{next(_prefixes)}")
        self.timeout_ms = 10_000

    def _run(self, name: str, keys: list[bytes], *arguments: Any) -> Any:
        return self.client.eval((LUA / f"{name}.lua").read_text(), len(keys), *keys, *arguments)

    def enqueue(self, *elements: Any, record: bytes = b"r") -> Any:
        return self._run("enqueue", [self.keys.ready, self.keys.endpoint(EP)], TTL_S, record, *elements)

    def claim(self, worker: str = "w", base: int = 0, held: int = 0, n: int = 512) -> Any:
        k = self.keys
        keys = [k.ready, k.wake, k.later, k.lease(worker), k.workers, k.clock]
        return self._run("claim", keys, worker, base, held, n, self.timeout_ms)

    def settle(self, worker: str = "w", acks: Any = (), laters: Any = (), deads: Any = ()) -> Any:
        k = self.keys
        keys = [k.lease(worker), k.later, k.dead, k.stats, k.endpoint(EP)]
        flat = [TTL_S, len(acks), *acks, len(laters), *sum(laters, ()), len(deads), *sum(deads, ())]
        return self._run("settle", keys, *flat)

    def reclaim(self, worker: str = "w", why: str = "death") -> Any:
        k = self.keys
        return self._run("reclaim", [k.lease(worker), k.ready, k.workers, k.clock], worker, why, self.timeout_ms)

    def ready(self) -> list[bytes]:
        return self.client.lrange(self.keys.ready, 0, -1)

    def lease(self, worker: str = "w") -> dict[bytes, bytes]:
        return self.client.hgetall(self.keys.lease(worker))


@pytest.fixture
def queue(server: redis.Redis) -> Queue:
    return Queue(server)


def test_enqueue_stores_the_record_once_and_appends(queue: Queue) -> None:
    assert queue.enqueue("a", "b") == 2
    assert queue.enqueue("c") == 3
    assert queue.ready() == [b"a", b"b", b"c"]
    assert queue.client.get(queue.keys.endpoint(EP)) == b"r"
    assert TTL_S - 60 < queue.client.ttl(queue.keys.endpoint(EP)) <= TTL_S


def test_enqueue_refuses_another_record_under_the_same_id(queue: Queue) -> None:
    queue.enqueue("a")
    with pytest.raises(redis.ResponseError, match="CONFLICT"):
        queue.enqueue("b", record=b"other")
    assert queue.ready() == [b"a"]


def test_enqueue_takes_more_than_lua_can_unpack(queue: Queue) -> None:
    assert queue.enqueue(*range(20_000)) == 20_000
    assert queue.ready() == [b"%d" % i for i in range(20_000)]


def test_claim_moves_the_oldest_into_the_lease(queue: Queue) -> None:
    queue.enqueue("a", "b", "c")
    assert queue.claim(n=2) == [b"ok", 0, [b"a", b"b"], None, None]
    assert queue.lease() == {b"n": b"2", b"0": b"a", b"1": b"b"}
    assert queue.ready() == [b"c"]


def test_lost_answer_is_given_again_and_nothing_new_is_taken(queue: Queue) -> None:
    queue.enqueue("a", "b", "c")
    first = queue.claim(n=2)
    assert queue.claim(n=2)[:3] == first[:3]
    assert queue.ready() == [b"c"]
    assert queue.claim(base=2, held=2)[:3] == [b"ok", 2, [b"c"]]


def test_wake_is_claimed_before_ready(queue: Queue) -> None:
    queue.enqueue("a", "b", "c")
    queue.client.blmove(queue.keys.ready, queue.keys.wake, 1, "LEFT", "RIGHT")
    queue.client.rpush(queue.keys.wake, "w")
    assert queue.claim()[2] == [b"a", b"w", b"b", b"c"]


def test_due_items_get_half_while_fresh_ones_wait(queue: Queue) -> None:
    queue.enqueue(*range(10))
    queue.client.zadd(queue.keys.later, {f"l{i}": i for i in range(10)})
    items = queue.claim(n=8)[2]
    assert sorted(items) == [b"0", b"1", b"2", b"3", b"l0", b"l1", b"l2", b"l3"]


def test_unused_half_goes_to_the_other(queue: Queue) -> None:
    queue.enqueue("a")
    queue.client.zadd(queue.keys.later, {f"l{i}": i for i in range(10)})
    assert sorted(queue.claim(n=8)[2]) == [b"a", *(b"l%d" % i for i in range(7))]
    queue.enqueue(*range(10))
    assert len(queue.claim(base=8, held=8, n=12)[2]) == 12


def test_claims_of_one_give_both_their_turn(queue: Queue) -> None:
    queue.enqueue("a", "b")
    queue.client.zadd(queue.keys.later, {"l0": 1, "l1": 2})
    assert [queue.claim(base=i, held=i, n=1)[2] for i in range(4)] == [[b"a"], [b"l0"], [b"b"], [b"l1"]]


def test_items_not_yet_due_stay_and_say_when(queue: Queue) -> None:
    seconds, _ = queue.client.time()
    queue.client.zadd(queue.keys.later, {"l": (seconds + 60) * 1000})
    _, _, items, next_due_ms, _ = queue.claim()
    assert items == []
    assert 50_000 < next_due_ms <= 60_000


def test_heartbeat_takes_nothing(queue: Queue) -> None:
    queue.enqueue("a")
    assert queue.claim(n=0) == [b"ok", 0, [], None, None]
    assert queue.ready() == [b"a"]
    assert queue.client.zscore(queue.keys.workers, "w") is not None


@pytest.mark.parametrize(("base", "held"), [(1, 0), (0, 1), (3, 2), (2, 1), (2, 3)])
def test_claim_that_does_not_fit_the_lease_is_lost(queue: Queue, base: int, held: int) -> None:
    queue.enqueue("a", "b", "c")
    if base > 1:
        queue.claim(n=2)
    assert queue.claim(base=base, held=held) == [b"lost"]
    assert b"c" in queue.ready()


def test_settle_moves_each_item_to_its_place(queue: Queue) -> None:
    queue.enqueue("a", "b", "c", "d")
    queue.claim()
    assert queue.settle(acks=[0], laters=[(1, 1000, "!")], deads=[(2, "?", "poison", "why", 1)]) == 3
    assert queue.lease() == {b"n": b"4", b"3": b"d"}
    assert queue.client.zrange(queue.keys.later, 0, -1) == [b"b!"]
    [(_, entry)] = queue.client.xrange(queue.keys.dead)
    assert entry == {b"item": b"c?", b"record": b"r", b"reason": b"poison", b"answer": b"why"}
    assert queue.client.hgetall(queue.keys.stats) == {b"delivered": b"1", b"dead": b"1"}
    assert queue.claim(base=4, held=1, n=0)[0] == b"ok"


def test_settling_twice_changes_nothing(queue: Queue) -> None:
    queue.enqueue("a", "b", "c")
    queue.claim()
    outcomes = {"acks": [0], "laters": [(1, 1000, "")], "deads": [(2, "", "poison", "", 0)]}
    assert queue.settle(**outcomes) == 3
    assert queue.settle(**outcomes) == 0
    assert queue.client.zcard(queue.keys.later) == 1
    assert queue.client.xlen(queue.keys.dead) == 1


def test_late_settle_from_reclaimed_worker_changes_nothing(queue: Queue) -> None:
    queue.enqueue("a", "b")
    queue.claim()
    assert queue.reclaim() == 2
    assert queue.settle(acks=[0], laters=[(1, 0, "x")]) == 0
    assert sorted(queue.ready()) == [b"a\xc0", b"b\xc0"]


def test_late_claim_from_reclaimed_worker_is_lost(queue: Queue) -> None:
    queue.enqueue("a")
    queue.claim()
    queue.reclaim()
    assert queue.claim(base=1, held=1) == [b"lost"]
    assert queue.claim() == [b"lost"]
    assert 86_000 < queue.client.ttl(queue.keys.lease("w")) <= 86_400
    assert queue.claim("successor")[2] == [b"a\xc0"]


def test_drain_leaves_no_reclaim_mark(queue: Queue) -> None:
    queue.enqueue("a")
    queue.claim()
    assert queue.reclaim(why="drain") == 1
    assert queue.ready() == [b"a"]


def test_reclaim_takes_more_than_lua_can_unpack(queue: Queue) -> None:
    queue.enqueue(*range(8192))
    for base in range(0, 8192, 512):
        assert len(queue.claim(base=base, held=base)[2]) == 512
    assert queue.reclaim() == 8192
    assert len(queue.ready()) == 8192
    assert queue.lease() == {b"n": b"8192"}


def test_silent_worker_is_named_and_reclaimed_by_the_lease_clock(queue: Queue) -> None:
    queue.enqueue("a")
    queue.claim("silent")
    assert queue.reclaim("silent", "timeout") == 0
    queue.client.hincrby(queue.keys.clock, "ms", queue.timeout_ms + 1)
    assert queue.claim("awake", n=0)[4] == b"silent"
    assert queue.reclaim("silent", "timeout") == 1
    assert queue.claim("awake")[4] is None


def test_paused_server_expires_nobody(queue: Queue) -> None:
    queue.claim("other")
    before = int(queue.client.hget(queue.keys.clock, "ms"))
    queue.client.hincrby(queue.keys.clock, "at", -3_600_000)
    assert queue.claim("w")[4] is None
    assert int(queue.client.hget(queue.keys.clock, "ms")) == before + 2000


def test_full_server_still_hands_out_and_settles(queue: Queue) -> None:
    queue.enqueue("a", "b")
    try:
        queue.client.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError, match=r"OOM|memory"):
            queue.enqueue("c")
        assert queue.claim()[2] == [b"a", b"b"]
        assert queue.settle(acks=[0], laters=[(1, 1000, "")]) == 2
        assert queue.reclaim() == 0
    finally:
        queue.client.config_set("maxmemory", 0)
