# SPDX-License-Identifier: MIT
"""The delivery worker, turn by turn, with a real queue server and real targets: what ends where, and why."""

import json
import math
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from postbackd.children import _delivery_worker
from postbackd.codec import (
    EPOCH_MS,
    TRAIL_RECLAIM,
    ErrorClass,
    decode_item,
    trail_attempt,
    trail_expiry,
    trail_start,
)
from postbackd.delivery.log import DeliveryLog
from postbackd.delivery.worker import DeliveryWorker
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.errors import LeaseLostError
from postbackd.host_board import HostBoard
from postbackd.queue.keys import Keys
from postbackd.scoreboard import Cell, Scoreboard, monotonic_ms
from postbackd.settings_loader import load
from postbackd.worker_pool import Slot, SlotContext
from tests.support.daemon import Sink, free_port, read_json_lines, running_sink
from tests.support.gated_target import gated_target
from tests.support.raw_server import raw_server, read_request
from tests.support.servers import Server

KEYS = Keys("pb")
WORKER = "n.0.aaaa"
BOUND_S = 60
PATIENT = ("delivery.connect_timeout=60", "delivery.timeout=60")  # where a transfer ends when the test says so


class Bench:
    """A worker in this process, with the queue's other end in our hands."""

    def __init__(self, server: redis.Redis, url: str, folder: Path, *settings: str) -> None:
        self.server = server
        self.log_path = folder / "log"
        self.scoreboard = Scoreboard(1)
        self.hosts = HostBoard(1)
        self.context = SlotContext(Slot("deliver", 0, 0), WORKER, self.scoreboard)
        chosen = [f"queue.url={url}", 'security.allow_networks=["127.0.0.0/8"]', "retry.jitter=0", *settings]
        self._pipe = os.pipe()
        self.worker: DeliveryWorker = _delivery_worker(
            self.context, load(None, {}, chosen), url, DeliveryLog(str(self.log_path)), self._pipe[0], self.hosts
        )

    def endpoint(self, url: str, **members: Any) -> IngestEndpoint:
        text = json.dumps({"method": "GET", "url": url, **members}).encode()
        made = compile_endpoint(text, default="", unmatched="empty", allow_host=True, schemes=["http"])
        self.server.set(KEYS.endpoint(made.id), made.record)
        return made

    def enqueue(self, endpoint: IngestEndpoint, item: dict[str, Any], number: int = 0, trail: bytes = b"") -> str:
        postback_id = (int(time.time() * 1000) - EPOCH_MS) << 22 | number
        self.server.rpush(KEYS.ready, endpoint.encode(postback_id, item, 0, b"{}") + trail)
        return f"{postback_id:016x}"

    def run_until(self, condition: Any, what: str) -> None:
        deadline_s = time.monotonic() + BOUND_S
        while not condition():
            assert time.monotonic() < deadline_s, f"never: {what}; log {self.log()}"
            self.worker.turn(monotonic_ms())

    def log(self) -> list[dict[str, Any]]:
        return read_json_lines(self.log_path)

    def run_until_settled(self, count: int) -> list[dict[str, Any]]:
        """Until so many lines are written and no item is in the lease."""
        self.run_until(
            lambda: len(self.log()) >= count and self.server.hlen(KEYS.lease(WORKER)) == 1, f"{count} are settled"
        )
        return self.log()

    def dead(self) -> list[dict[bytes, bytes]]:
        return [entry for _, entry in self.server.xrange(KEYS.dead)]

    def later(self) -> list[tuple[bytes, float]]:
        return self.server.zrange(KEYS.later, 0, -1, withscores=True)


@pytest.fixture
def bench(server: redis.Redis, url: str, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(server, url, tmp_path)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with running_sink(tmp_path_factory.mktemp("sink")) as started:
        yield started


def server_seconds(bench: Bench) -> float:
    seconds, micros = bench.server.time()
    return int((seconds * 1_000_000 + micros) / 1000) / 1000  # whole ms, as the scripts count


def test_delivered_postback_leaves_nothing_behind(bench: Bench, sink: Sink) -> None:
    sent = bench.enqueue(bench.endpoint(sink.url + "/a?k={k}"), {"k": 1})
    [line] = bench.run_until_settled(1)
    assert (line["id"], line["outcome"], line["worker"]) == (sent, "delivered", "n.0")
    assert bench.server.keys("pb:{0}:later") == [] and bench.dead() == []
    cells = bench.context.cells
    assert [cells[c] for c in (Cell.CLAIMED, Cell.ATTEMPTS, Cell.DELIVERED)] == [1, 1, 1]
    bench.run_until(lambda: bench.hosts.hosts()[0].attempts, "the host board shows it")
    host = bench.hosts.hosts()[0]
    assert (host.host, host.delivered, sum(host.buckets)) == (f"127.0.0.1:{sink.port}", 1, 1)


def test_what_cannot_be_decoded_is_poison_and_stops_nobody(bench: Bench, sink: Sink) -> None:
    bench.server.rpush(KEYS.ready, b"\xc1 no msgpack", b"\x93\x01\x02\x03", b"")
    endpoint = bench.endpoint(sink.url + "/b")
    bench.enqueue(endpoint, {}, 1, trail_expiry(math.nan))
    bench.enqueue(endpoint, {})
    lines = bench.run_until_settled(5)
    assert sorted((line["outcome"], line["reason"]) for line in lines if line["id"] is None) == [("dead", "poison")] * 4
    assert [line["outcome"] for line in lines if line["id"]] == ["delivered"]
    assert [entry[b"reason"] for entry in bench.dead()] == [b"poison"] * 4


def test_start_beyond_what_ingest_takes_is_poison(bench: Bench, sink: Sink) -> None:
    far_ms = int(time.time() * 1000) + 31 * 86_400_000
    bench.enqueue(bench.endpoint(sink.url + "/far"), {}, trail=trail_start(far_ms))
    [line] = bench.run_until_settled(1)
    assert (line["outcome"], line["reason"], line["attempt"]) == ("dead", "poison", 0)


def test_dead_letter_of_a_long_answer_still_names_its_host(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, "log.body_bytes=60000")
    body = b"HTTP/1.1 410 Gone\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(body)

    with raw_server(answer) as port:
        bench.enqueue(bench.endpoint(f"http://127.0.0.1:{port}/long"), {})
        [line] = bench.run_until_settled(1)
    assert len(line["response_body"]) == 50_000
    [dead] = bench.dead()
    kept = json.loads(dead[b"answer"])
    assert (kept["host"], kept["response_code"], kept["body_truncated"]) == (f"127.0.0.1:{port}", 410, True)
    assert len(dead[b"answer"]) < 16_384


@pytest.mark.parametrize(("reclaims", "outcome"), [(4, "delivered"), (5, "dead")])
def test_item_of_five_dead_workers_is_poison(bench: Bench, sink: Sink, reclaims: int, outcome: str) -> None:
    bench.enqueue(bench.endpoint(sink.url + "/c"), {}, trail=TRAIL_RECLAIM * reclaims)
    [line] = bench.run_until_settled(1)
    assert line["outcome"] == outcome
    assert line["attempt"] == (1 if outcome == "delivered" else 0)
    assert line["host"] == f"127.0.0.1:{sink.port}", "what --host goes by"


def test_expired_postback_is_dead_without_an_attempt(bench: Bench, sink: Sink) -> None:
    endpoint = bench.endpoint(sink.url + "/expired")
    old = (int(time.time() * 1000) - 172_800_001 - EPOCH_MS) << 22
    bench.server.rpush(KEYS.ready, endpoint.encode(old, {}, 0, None))
    [line] = bench.run_until_settled(1)
    assert (line["outcome"], line["reason"], line["error"], line["attempt"]) == ("dead", "expired", "expired", 0)
    assert line["url"] == sink.url + "/expired"
    assert line["host"] == f"127.0.0.1:{sink.port}"
    assert not [request for request in sink.received() if request["url"] == "/expired"]


def test_values_that_cannot_be_rendered_are_dead_with_the_record_kept(bench: Bench, sink: Sink) -> None:
    endpoint = bench.endpoint(sink.url + "/d/{k}/e")
    bench.enqueue(endpoint, {"k": ".."})
    [line] = bench.run_until_settled(1)
    assert (line["reason"], line["error"], line["url"]) == ("render_error", "render_error", None)
    [dead] = bench.dead()
    assert dead[b"record"] == endpoint.record
    assert decode_item(dead[b"item"]).attempts == [], "none was made"


def test_record_that_cannot_be_compiled_is_dead(bench: Bench) -> None:
    endpoint = bench.endpoint("http://h/{k}")
    bench.server.set(KEYS.endpoint(endpoint.id), b"\x80")
    bench.enqueue(endpoint, {"k": 1})
    [line] = bench.run_until_settled(1)
    assert (line["reason"], line["method"], line["endpoint"]) == ("render_error", None, endpoint.id.hex())


def test_missing_record_is_parked_ten_times_and_then_dead(bench: Bench, sink: Sink) -> None:
    endpoint = bench.endpoint(sink.url + "/f")
    bench.server.delete(KEYS.endpoint(endpoint.id))
    missed = trail_attempt(1, ErrorClass.ENDPOINT_MISSING)
    before_s = server_seconds(bench)
    bench.enqueue(endpoint, {}, 1, missed * 9)
    last = bench.enqueue(endpoint, {}, 2, missed * 10)
    [line] = bench.run_until_settled(1)
    assert (line["id"], line["reason"]) == (last, "endpoint_missing")
    [(item, due_ms)] = bench.later()
    assert [code for _, code in decode_item(item).attempts] == [ErrorClass.ENDPOINT_MISSING] * 10
    assert before_s + 60 <= due_ms / 1000 <= server_seconds(bench) + 60


def test_endpoint_that_comes_back_is_found(bench: Bench, sink: Sink) -> None:
    """A miss is not remembered: ingest may store the record again."""
    endpoint = bench.endpoint(sink.url + "/g")
    bench.server.delete(KEYS.endpoint(endpoint.id))
    bench.enqueue(endpoint, {})
    bench.run_until(lambda: bench.later(), "it is parked")
    bench.server.set(KEYS.endpoint(endpoint.id), endpoint.record)
    bench.server.zadd(KEYS.later, {bench.later()[0][0]: 0})
    assert bench.run_until_settled(1)[0]["outcome"] == "delivered"


def test_endpoint_once_known_stays_known_though_the_server_forgets(tmp_path: Path, sink: Sink) -> None:
    """After a restart of the server all were forgotten: what was parked for those not met since was not called back."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    try:
        bench = Bench(server.client, server.url, tmp_path)
        known = bench.endpoint(sink.url + "/known")
        bench.enqueue(known, {}, 1)
        bench.run_until_settled(1)
        server.kill()
        server.start()
        bench.enqueue(bench.endpoint(sink.url + "/new"), {}, 2)
        bench.run_until_settled(2)
        server.client.delete(KEYS.endpoint(known.id))
        bench.enqueue(known, {}, 3)
        assert [line["outcome"] for line in bench.run_until_settled(3)] == ["delivered"] * 3
        assert bench.later() == []
    finally:
        server.destroy()


def test_retry_goes_to_later_with_its_attempt(bench: Bench) -> None:
    endpoint = bench.endpoint(f"http://127.0.0.1:{free_port()}/", retry={"schedule": [30]})
    before_s = server_seconds(bench)
    bench.enqueue(endpoint, {})
    [line] = bench.run_until_settled(1)
    assert (line["outcome"], line["error"]) == ("retry", "connection_refused")
    [(item, due_ms)] = bench.later()
    assert [code for _, code in decode_item(item).attempts] == [ErrorClass.CONNECTION_REFUSED]
    assert before_s + 30 <= due_ms / 1000 <= server_seconds(bench) + 30


def test_name_without_an_address_is_a_dns_error_and_holds_up_nobody(bench: Bench, sink: Sink) -> None:
    bench.enqueue(bench.endpoint("http://no-such-name.invalid/"), {}, 1)
    bench.enqueue(bench.endpoint(f"http://localhost:{sink.port}/named"), {}, 2)
    lines = {line["host"]: line for line in bench.run_until_settled(2)}
    assert lines["no-such-name.invalid"]["error"] == "dns_error"
    assert "no-such-name.invalid" in lines["no-such-name.invalid"]["error_detail"]
    assert lines[f"localhost:{sink.port}"]["outcome"] == "delivered"


def test_name_that_leads_inside_is_blocked(server: redis.Redis, url: str, tmp_path: Path, sink: Sink) -> None:
    closed = Bench(server, url, tmp_path, "security.allow_networks=[]")
    closed.enqueue(closed.endpoint(f"http://localhost:{sink.port}/inside"), {})
    [line] = closed.run_until_settled(1)
    assert (line["outcome"], line["reason"], line["error"]) == ("dead", "blocked", "blocked")
    assert not [request for request in sink.received() if request["url"] == "/inside"]


def test_placeholder_in_the_host_has_a_lane_per_host(server: redis.Redis, url: str, tmp_path: Path, sink: Sink) -> None:
    bench = Bench(server, url, tmp_path, "template.allow_host=true")
    endpoint = bench.endpoint(f"http://{{h}}:{sink.port}/templated")
    for number, host in enumerate(["127.0.0.1", "localhost", "a b"]):
        bench.enqueue(endpoint, {"h": host}, number)
    outcomes = sorted((line["host"] or "", line["outcome"]) for line in bench.run_until_settled(3))
    assert outcomes == [("", "dead"), (f"127.0.0.1:{sink.port}", "delivered"), (f"localhost:{sink.port}", "delivered")]


def test_binary_and_odd_values_stop_nobody(bench: Bench, sink: Sink) -> None:
    endpoint = bench.endpoint(sink.url + "/odd?{k}", headers={"X": "é{k}"}, method="POST", body="form")
    for number, value in enumerate(["😀", "é" * 100, 2**200, 1e308, {"a": [None]}, "x" * 9000]):
        bench.enqueue(endpoint, {"k": value}, number)
    lines = bench.run_until_settled(6)
    assert sorted(line["outcome"] for line in lines) == ["dead"] + ["delivered"] * 5
    assert {line["error"] for line in lines if line["outcome"] == "dead"} == {"too_large"}


def test_outcomes_wait_while_redis_is_away_and_are_settled_later(
    server: redis.Redis, url: str, tmp_path: Path, sink: Sink
) -> None:
    bench = Bench(server, url, tmp_path, *PATIENT)
    with gated_target() as target:
        endpoint, answered = bench.endpoint(target.url + "/slow"), bench.endpoint(sink.url + "/answered")
        for number in range(20):
            bench.enqueue(endpoint, {}, number)
        bench.enqueue(answered, {}, 20)
        cells = bench.context.cells
        bench.run_until(lambda: cells[Cell.IN_FLIGHT] >= 4 and cells[Cell.DELIVERED], "one is answered, more in flight")
        bench.server.client_kill_filter(_type="normal", skipme=True)
        target.open()
        lines = bench.run_until_settled(21)
        assert target.received == 20
    assert [line["outcome"] for line in lines] == ["delivered"] * 21
    assert bench.server.hget(KEYS.stats, "delivered") == b"21"


def test_lost_lease_ends_the_worker_and_starts_nothing_more(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, *PATIENT)
    with gated_target() as target:
        endpoint = bench.endpoint(target.url + "/lost")
        for number in range(40):  # 4 in flight, the rest in the lane
            bench.enqueue(endpoint, {}, number)
        bench.run_until(lambda: bench.context.cells[Cell.IN_FLIGHT] == 4, "the host's first limit is in flight")
        bench.worker._shards[0].lease.wait()
        assert bench.worker._shards[0].lease.reclaim(WORKER, "death") == 40
        with pytest.raises(LeaseLostError):
            bench.run_until(lambda: False, "the lease is lost")
        target.open()
        bench.worker.drain(monotonic_ms() + 30_000, lambda: None, lambda: False)
        assert target.received == 4
    assert len(bench.log()) == 4, "what was under way has ended and is logged"
    assert bench.server.llen(KEYS.ready) == 40, "and all of it is given out again"


def test_drain_gives_back_what_was_not_started(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, *PATIENT)
    with gated_target() as target:
        endpoint = bench.endpoint(target.url + "/drain")
        for number in range(50):
            bench.enqueue(endpoint, {}, number)
        bench.run_until(lambda: bench.context.cells[Cell.IN_FLIGHT] == 4, "the host's first limit is in flight")
        target.open()
        bench.worker.drain(monotonic_ms() + 30_000, lambda: None, lambda: False)
    assert len(bench.log()) == 4
    back = bench.server.lrange(KEYS.ready, 0, -1)
    assert len(back) == 46
    assert {decode_item(item).reclaims for item in back} == {0}, "a clean stop leaves no mark"
    assert bench.server.zrange(KEYS.workers, 0, -1) == []


def test_noted_death_is_reclaimed_in_a_turn(bench: Bench, sink: Sink) -> None:
    endpoint = bench.endpoint(sink.url + "/reclaimed")
    item = endpoint.encode(((int(time.time() * 1000) - EPOCH_MS) << 22) + 5, {}, 0, None)
    bench.server.hset(KEYS.lease("n.7.dead"), mapping={"n": 1, "0": item})
    bench.server.zadd(KEYS.workers, {"n.7.dead": 0})
    bench.scoreboard.note_death("n.7.dead")
    [line] = bench.run_until_settled(1)
    assert line["outcome"] == "delivered"
    assert bench.context.cells[Cell.RECLAIMED] == 1


def test_flood_for_one_host_is_parked_and_another_host_is_served(
    server: redis.Redis, url: str, tmp_path: Path, sink: Sink
) -> None:
    bench = Bench(server, url, tmp_path, *PATIENT)
    with gated_target() as dead:
        flood, healthy = bench.endpoint(dead.url + "/"), bench.endpoint(sink.url + "/healthy")
        for number in range(2000):
            bench.enqueue(flood, {}, number)
        bench.enqueue(healthy, {}, 5000)
        bench.run_until(
            lambda: any(line["outcome"] == "delivered" for line in bench.log()), "the healthy one is served"
        )
        bench.run_until(lambda: bench.server.llen(KEYS.ready) == 0, "the flood is claimed")
        assert bench.context.cells[Cell.PARKED] > 1000
        due = {due_ms for _, due_ms in bench.later()}
        assert len(due) > 500, "they do not all come back at one instant"
        assert all(decode_item(item).attempts == [] for item, _ in bench.later()), "parking uses up no attempt"


def test_failing_host_is_left_alone_and_costs_no_attempts(
    bench: Bench, sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its breaker opens; what waits for it is parked as it was, and another host is served."""
    dead = bench.endpoint(f"http://127.0.0.1:{free_port()}/", retry={"schedule": [3600]})
    for number in range(100):
        bench.enqueue(dead, {}, number)
    bench.run_until(lambda: "breaker_opened" in capsys.readouterr().err, "the breaker opens")
    bench.run_until(lambda: not bench.worker._shards[0].lease.unsettled, "all of it is settled and logged")
    leases = [shard.lease for shard in bench.worker._shards]
    is_quiet = lambda: bench.context.cells[Cell.IN_FLIGHT] == 0 and not any(lease.unsettled for lease in leases)  # noqa: E731
    bench.run_until(is_quiet, "what was under way is logged and settled")
    tried = len(bench.log())
    for number in range(200, 230):
        bench.enqueue(dead, {}, number)
    well = bench.endpoint(sink.url + "/well")
    bench.enqueue(well, {}, 999)
    bench.run_until(lambda: any(line["outcome"] == "delivered" for line in bench.log()), "the other host is served")
    bench.run_until(lambda: bench.server.zcard(KEYS.later) == 130, "all of the dead host's wait")
    assert len(bench.log()) == tried + 1
    attempts = Counter(len(decode_item(item).attempts) for item in bench.server.zrange(KEYS.later, 0, -1))
    assert attempts == {1: tried, 0: 130 - tried}


def test_host_pauses_when_it_says_so(bench: Bench) -> None:
    def ask(client: socket.socket) -> None:
        read_request(client)
        client.sendall(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n")

    with raw_server(ask) as port:
        endpoint = bench.endpoint(f"http://127.0.0.1:{port}/")
        bench.enqueue(endpoint, {}, 1)
        bench.run_until(lambda: len(bench.log()) == 1, "it is told to wait")
        bench.enqueue(endpoint, {}, 2)
        bench.run_until(lambda: bench.server.zcard(KEYS.later) == 2, "the next is parked")
    assert len(bench.log()) == 1, "without an attempt"


def test_1500_slow_transfers_are_in_flight_in_one_worker(server: redis.Redis, url: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.fail(f"this machine allows {hard} descriptors: the test needs 8192 (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
    try:
        with gated_target() as slow:
            bench = Bench(server, url, tmp_path, "delivery.in_flight=1500", "delivery.per_host=1500", *PATIENT)
            endpoint = bench.endpoint(slow.url + "/slow")
            for number in range(1500):
                bench.enqueue(endpoint, {}, number % 1024 | (number // 1024) << 10)
            bench.run_until(lambda: bench.context.cells[Cell.IN_FLIGHT] == 4, "the first ones are")
            lane = bench.worker._lanes.get(slow.url.removeprefix("http://"))
            assert lane is not None
            lane.flow._set(1500.0)  # as if it had grown: nine rounds
            lane.limit = lane.flow.value
            bench.run_until(lambda: slow.received == 1500, "all are in flight at once")
            slow.open()
            lines = bench.run_until_settled(1500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {line["outcome"] for line in lines} == {"delivered"}
    assert len({line["id"] for line in lines}) == 1500


def test_parked_postbacks_are_called_back_when_their_host_is(bench: Bench, tmp_path: Path) -> None:
    """A probe says so; what was parked behind the breaker, half a minute and more ahead, does not wait for its time."""
    port = free_port()
    endpoint = bench.endpoint(f"http://127.0.0.1:{port}/", retry={"schedule": [3600]})  # what was tried stays away
    for number in range(300):
        bench.enqueue(endpoint, {}, number)
    bench.run_until(
        lambda: bench.server.zcard(KEYS.later) == 300 and not bench.worker._shards[0].lease.unsettled, "all wait"
    )
    tried = len(bench.log())
    assert tried < 50
    lane = bench.worker._lanes.get(f"127.0.0.1:{port}")
    assert lane is not None
    lane.breaker.open_until_ms = monotonic_ms()  # as if its time were over
    lane.set_gate()
    sink = Sink(tmp_path / "back", port=port)
    try:
        bench.enqueue(endpoint, {}, 999)
        bench.run_until(lambda: bench.server.hget(KEYS.stats, "delivered") == b"%d" % (301 - tried), "they come")
    finally:
        sink.stop()
    assert not [score for _, score in bench.later() if score % 1], "only those wait that have been tried"


def test_server_that_became_a_replica_is_lost_once_until_it_takes_writes_again(
    bench: Bench, sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes every new connection and refuses each claim: no coming and going in the log."""
    lease = bench.worker._shards[0].lease
    bench.run_until(lambda: bench.server.zcard(KEYS.workers) == 1, "it has claimed")
    bench.server.replicaof("127.0.0.1", free_port())
    try:
        before = lease.generation
        bench.run_until(lambda: lease.generation > before + 3, "it has connected again and again")
    finally:
        bench.server.replicaof("no", "one")
    bench.enqueue(bench.endpoint(sink.url + "/again"), {})
    bench.run_until_settled(1)
    output = capsys.readouterr().err
    told = [line for line in output.splitlines() if " redis_" in line]
    assert ["READONLY" in line for line in told if "lost" in line].count(True) == 1
    assert [line for line in told if "lost" not in line] == told[-1:] and " redis_found " in told[-1]
