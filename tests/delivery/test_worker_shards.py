# SPDX-License-Identifier: MIT
"""The delivery worker with several shards: each claimed, settled, reclaimed and given back where it belongs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from postbackd.codec import EPOCH_MS, decode_item, parse_id
from postbackd.endpoint import IngestEndpoint
from postbackd.errors import LeaseLostError
from postbackd.queue.keys import Keys
from postbackd.scoreboard import Cell, monotonic_ms
from tests.delivery.test_worker import KEYS, PATIENT, WORKER, Bench
from tests.support.daemon import Sink, free_port, running_sink
from tests.support.gated_target import gated_target


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with running_sink(tmp_path_factory.mktemp("sink")) as started:
        yield started


def shard_items(bench: Bench, endpoint: IngestEndpoint, shards: int, each: int) -> None:
    """So many postbacks in each shard."""
    for shard in range(shards):
        keys = Keys("pb", shard)
        bench.server.set(keys.endpoint(endpoint.id), endpoint.record)
        for number in range(each):
            postback_id = (int(time.time() * 1000) - EPOCH_MS) << 22 | (shard * each + number)
            bench.server.rpush(keys.ready, endpoint.encode(postback_id, {"n": number}, 0, None))


def leased(bench: Bench, shards: int) -> list[int]:
    return [max(bench.server.hlen(Keys("pb", shard).lease(WORKER)) - 1, 0) for shard in range(shards)]


def test_every_shard_is_claimed_and_settled_where_it_was_claimed(
    server: redis.Redis, url: str, tmp_path: Path, sink: Sink
) -> None:
    bench = Bench(server, url, tmp_path, "queue.shards=3", "delivery.workers=1")
    endpoint = bench.endpoint(sink.url + "/shards?n={n}")
    refused = bench.endpoint(f"http://127.0.0.1:{free_port()}/", retry={"schedule": [30]})
    shard_items(bench, endpoint, 3, 50)
    shard_items(bench, refused, 3, 2)
    bench.run_until(lambda: len(bench.log()) == 156 and leased(bench, 3) == [0, 0, 0], "all are settled")
    for shard in range(3):
        keys = Keys("pb", shard)
        assert bench.server.hget(keys.stats, "delivered") == b"50"
        assert bench.server.zcard(keys.later) == 2
        assert bench.server.zrange(keys.workers, 0, -1) == [WORKER.encode()]


def test_backlog_of_one_shard_starves_no_other(server: redis.Redis, url: str, tmp_path: Path) -> None:
    with running_sink(tmp_path / "s", "--latency", "0.02") as slow:
        bench = Bench(server, url, tmp_path, "queue.shards=2", "delivery.workers=1", "delivery.in_flight=64")
        endpoint = bench.endpoint(slow.url + "/b?n={n}")
        shard_items(bench, endpoint, 2, 2000)
        delivered = lambda: [int(bench.server.hget(Keys("pb", n).stats, "delivered") or 0) for n in range(2)]  # noqa: E731
        bench.run_until(lambda: sum(delivered()) > 1500, "a good part is delivered")
        assert min(delivered()) > 300


def test_lost_lease_of_one_shard_gives_back_the_others(server: redis.Redis, url: str, tmp_path: Path) -> None:
    with gated_target() as target:
        bench = Bench(server, url, tmp_path, "queue.shards=2", "delivery.workers=1", *PATIENT)
        endpoint = bench.endpoint(target.url + "/lost")
        shard_items(bench, endpoint, 2, 40)
        bench.run_until(lambda: leased(bench, 2) == [40, 40] and bench.context.cells[Cell.IN_FLIGHT] > 0, "it has all")
        held = bench.server.hgetall(KEYS.lease(WORKER))
        kept = {decode_item(item).postback_id for token, item in held.items() if token != b"n"}
        lost = next(shard for shard in bench.worker._shards if shard.number == 1)
        if lost.lease.busy:
            lost.lease.wait()
        assert lost.lease.reclaim(WORKER, "death") == 40
        sent = bench.context.cells[Cell.IN_FLIGHT]
        with pytest.raises(LeaseLostError):
            bench.run_until(lambda: False, "the lease is lost")
        target.open()
        bench.worker.drain(monotonic_ms() + 30_000, lambda: None, lambda: False)
        assert len(bench.log()) == target.received == sent < 80, "no attempt more"
    assert leased(bench, 2) == [0, 0]
    assert bench.server.llen(Keys("pb", 1).ready) == 40
    delivered = {parse_id(line["id"]) for line in bench.log() if line["outcome"] == "delivered"} & kept
    back = bench.server.lrange(KEYS.ready, 0, -1) + bench.server.zrange(KEYS.later, 0, -1)  # some may be parked
    waiting = {decode_item(item).postback_id for item in back}
    assert waiting | delivered == kept and not waiting & delivered and len(kept) == 40
    assert {decode_item(item).reclaims for item in bench.server.lrange(KEYS.ready, 0, -1)} == {0}


def test_noted_death_is_reclaimed_in_every_shard(server: redis.Redis, url: str, tmp_path: Path, sink: Sink) -> None:
    bench = Bench(server, url, tmp_path, "queue.shards=2", "delivery.workers=1")
    endpoint = bench.endpoint(sink.url + "/reclaimed")
    for shard in range(2):
        keys = Keys("pb", shard)
        bench.server.set(keys.endpoint(endpoint.id), endpoint.record)
        item = endpoint.encode(((int(time.time() * 1000) - EPOCH_MS) << 22) + shard, {}, 0, None)
        bench.server.hset(keys.lease("n.7.dead"), mapping={"n": 1, "0": item})
        bench.server.zadd(keys.workers, {"n.7.dead": 0})
    bench.scoreboard.note_death("n.7.dead")
    bench.run_until(lambda: len(bench.log()) == 2, "both are delivered")
    assert bench.context.cells[Cell.RECLAIMED] == 2


def test_shard_away_holds_up_no_other(server: redis.Redis, url: str, tmp_path: Path, sink: Sink) -> None:
    bench = Bench(server, url, tmp_path, "queue.shards=2", "delivery.workers=1")
    away = next(shard for shard in bench.worker._shards if shard.number == 1)
    away.lease._url = f"redis://127.0.0.1:{free_port()}"
    endpoint = bench.endpoint(sink.url + "/here?n={n}")
    shard_items(bench, endpoint, 1, 20)
    bench.run_until(lambda: len(bench.log()) == 20, "the other shard's are delivered")
    assert not away.lease.is_connected
    shard_items(bench, endpoint, 2, 1)
    away.lease._url = url
    bench.run_until(lambda: len(bench.log()) == 22, "and this one's when it is back")


@pytest.mark.parametrize("shard", [0, 1])
def test_retry_is_due_at_its_time_at_home_and_abroad(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    """Nothing but its time brings it: idle wait, look at other shards and heartbeat are ten minutes away."""
    never_ms = 600_000
    monkeypatch.setattr("postbackd.queue.idle_wait.LONGEST_MS", never_ms)
    monkeypatch.setattr("postbackd.delivery.shard.LONGEST_MS", never_ms)
    monkeypatch.setattr("postbackd.delivery.shard.ABROAD_MS", never_ms)
    monkeypatch.setattr("postbackd.delivery.pace.HEARTBEAT_MS", never_ms)
    bench = Bench(server, url, tmp_path, "queue.shards=2", "delivery.workers=2")
    retry = {"schedule": [0.2, 0.05], "max_attempts": 4}
    endpoint = bench.endpoint(f"http://127.0.0.1:{free_port()}/", retry=retry)
    keys = Keys("pb", shard)
    server.set(keys.endpoint(endpoint.id), endpoint.record)
    server.rpush(keys.ready, endpoint.encode((int(time.time() * 1000) - EPOCH_MS) << 22, {}, 0, None))
    bench.run_until(lambda: len(bench.log()) == 4, "all attempts are made")
    assert [line["outcome"] for line in bench.log()] == ["retry", "retry", "retry", "dead"]
