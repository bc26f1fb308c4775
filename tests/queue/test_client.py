# SPDX-License-Identifier: MIT
"""The queue client against a real server: one round trip, lost answers, lost scripts, a server that goes away."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest
import redis

from postbackd.clock import Clock
from postbackd.codec import TRAIL_RECLAIM, accept_ms, trail_attempt
from postbackd.delivery.intake import MAX_MISSING, MISSING_PARK_MS
from postbackd.errors import (
    BootError,
    ConfigError,
    DurabilityTimeoutError,
    IdempotencyConflictError,
    LeaseLostError,
    QueueAwayError,
    QueueFullError,
    QueueUnavailableError,
    QueueUnsureError,
    RecordConflictError,
    ReplicasMissingError,
)
from postbackd.queue import enqueuer, link
from postbackd.queue.check import check_server, losses, persistence_of, refuse_unfit, replicas_of
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.idle_wait import IdleWait
from postbackd.queue.keys import Keys
from postbackd.queue.lease_client import Claim, Dead, Later, LeaseClient
from postbackd.queue.link import Link
from postbackd.queue.wire import Wire, mask
from postbackd.queue.worker_number import USABLE_MS, Kept, WorkerNumber
from postbackd.scoreboard import monotonic_ms
from postbackd.settings import Queue
from tests.support.daemon import free_port, wait_until
from tests.support.servers import Server, running_server

KEYS = Keys("pb")
EID = bytes(range(8))
RECORD = b"record"


class Count:
    """Counts the errors a client reports."""

    def __init__(self) -> None:
        self.errors = 0

    def __call__(self) -> None:
        self.errors += 1


def enqueuer_of(url: str, max_depth: int = 1000, **settings: object) -> Enqueuer:
    durability = Durability(Queue(url=url, **settings))
    link = Link(url, Clock(), Count(), prove=durability.prove, reply_timeout_s=60)
    link.on_away = link.come_back  # nobody else looks here whether it is back
    return Enqueuer(link, KEYS, max_depth, durability)


def worker_of(url: str, worker: str = "n.0.aa") -> LeaseClient:
    client = LeaseClient(url, KEYS, worker, 30_000, Clock(), Count())
    assert client.connect(monotonic_ms())
    return client


def claim(client: LeaseClient, wanted: int) -> Claim:
    assert client.send(wanted)
    while True:
        found = client.wait()
        if found is not None:
            return found
        assert client.is_connected, client.last_error


def kill_connections(server: redis.Redis) -> None:
    server.client_kill_filter(_type="normal", skipme=True)


def blocked(server: redis.Redis) -> bool:
    return any(client["cmd"] == "rpush" and "b" in client["flags"] for client in server.client_list())


def commands(server: redis.Redis, *names: str) -> int:
    stats = server.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


# Enqueue


def test_record_goes_out_once_and_then_requests_are_one_plain_command(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    assert subject.enqueue(EID, RECORD, [b"a", b"b"]) == 2
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert 2_591_000 < server.ttl(KEYS.endpoint(EID)) <= 2_592_000
    server.config_resetstat()
    assert subject.enqueue(EID, RECORD, [b"c"]) == 3
    assert (commands(server, "rpush"), commands(server, "evalsha")) == (1, 0)
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"b", b"c"]


def test_new_connection_stores_the_record_again(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    server.delete(KEYS.endpoint(EID))  # as a rollback would
    kill_connections(server)
    subject.enqueue(EID, RECORD, [b"b"])  # nothing could be sent on the old one: tried again on a new one
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"b"]


def test_record_that_is_gone_is_stored_again_while_postbacks_still_wait_for_it(
    server: redis.Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLUSHALL, or REPLICAOF an older copy and back, ends no connection: what came within the hour died without it."""
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    server.flushall()
    subject.enqueue(EID, RECORD, [b"b"])
    assert not server.exists(KEYS.endpoint(EID)), "nobody can know"
    now_ms = monotonic_ms()
    monkeypatch.setattr(enqueuer, "monotonic_ms", lambda: now_ms + MAX_MISSING * MISSING_PARK_MS // 2)
    subject.enqueue(EID, RECORD, [b"c"])
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert subject._link.generation == 1, "the connection is the same"


def test_command_without_an_answer_is_unsure_and_not_sent_twice(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    server.client_pause(60_000, all=False)  # writes are read and wait
    cut = threading.Thread(target=lambda: (wait_until(lambda: blocked(server), "it waits"), kill_connections(server)))
    cut.start()
    try:
        with pytest.raises(QueueUnsureError, match="closed the connection"):
            subject.enqueue(EID, RECORD, [b"b"])
    finally:
        cut.join()
        server.client_unpause()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a"]


def test_other_content_under_the_same_id_is_a_conflict_and_writes_nothing(server: redis.Redis, url: str) -> None:
    enqueuer_of(url).enqueue(EID, RECORD, [b"a"])
    with pytest.raises(RecordConflictError):
        enqueuer_of(url).enqueue(EID, b"other", [b"b"])
    assert server.llen(KEYS.ready) == 1


def test_full_server_is_said_to_be_full(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    server.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFullError, match="maxmemory"):
            subject.enqueue(EID, RECORD, [b"b"])
    finally:
        server.config_set("maxmemory", 0)
    assert subject.enqueue(EID, RECORD, [b"c"]) == 2


def test_ping_says_what_a_request_would_be_told(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    subject.ping()
    server.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFullError, match="maxmemory"):
            subject.ping()
    finally:
        server.config_set("maxmemory", 0)
    server.replicaof("127.0.0.1", free_port())
    try:
        with pytest.raises(QueueUnavailableError, match="READONLY"):
            subject.ping()
    finally:
        server.replicaof("no", "one")
    subject.ping()
    assert server.keys("*") == [], "asking leaves nothing behind"
    with pytest.raises(QueueFullError, match="0 of 1 replicas are connected"):
        enqueuer_of(url, durability="replica").ping()


def test_queue_over_its_depth_refuses_until_there_is_room(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url, max_depth=2)
    subject.enqueue(EID, RECORD, [b"a", b"b", b"c"])
    with pytest.raises(QueueFullError, match="max_depth"):
        subject.enqueue(EID, RECORD, [b"d"])
    assert server.llen(KEYS.ready) == 3
    server.ltrim(KEYS.ready, 0, 0)

    def is_taken() -> bool:
        try:
            subject.enqueue(EID, RECORD, [b"e"])
        except QueueFullError:
            return False
        return True

    wait_until(is_taken, "the depth is counted again")


def test_refused_command_is_certain_and_tried_once_more(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    server.set(KEYS.ready + b"x", 1)
    server.execute_command("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        server.config_resetstat()
        with pytest.raises(QueueUnavailableError, match="NOREPLICAS") as caught:
            subject.enqueue(EID, RECORD, [b"b"])
    finally:
        server.execute_command("CONFIG", "SET", "min-replicas-to-write", 0)
    assert not isinstance(caught.value, QueueUnsureError)
    assert subject.enqueue(EID, RECORD, [b"c"]) == 2


def test_absent_server_is_unavailable_at_once_and_in_one_line() -> None:
    port = free_port()
    with pytest.raises(QueueUnavailableError) as caught:
        enqueuer_of(f"redis://user:secret@127.0.0.1:{port}").enqueue(EID, RECORD, [b"a"])
    text = str(caught.value)
    assert "secret" not in text and "refused" in text and "\n" not in text


def test_idle_connection_that_was_closed_is_noticed_before_it_is_used(server: redis.Redis, url: str) -> None:
    wire = Wire(url, 5)
    assert not wire.has_gone()
    kill_connections(server)
    wait_until(wire.has_gone, "the close has arrived")


def test_answer_that_is_no_redis_reply_ends_the_connection(server: redis.Redis, url: str) -> None:
    """A proxy that speaks HTTP when its Redis is away: the connection was kept, and each request after it a 500."""
    subject, worker = enqueuer_of(url), worker_of(url)
    subject.enqueue(EID, RECORD, [b"a"])
    wire = subject._link._wire
    assert wire is not None
    wire._reader.feed(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")  # as if it had come
    with pytest.raises(QueueUnsureError, match="what answers is no Redis"):
        subject.enqueue(EID, RECORD, [b"b"])
    subject.enqueue(EID, RECORD, [b"c"])
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"b", b"c"]
    assert worker.send(1) and worker._wire is not None
    worker._wire._reader.feed(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    wait_until(lambda: worker.receive() is None and not worker.is_connected, "the same where nobody waits for it")
    assert "no Redis" in worker.last_error


def test_signals_do_not_put_off_the_time_out(server: redis.Redis, url: str) -> None:
    """Each made Python wait the whole time-out again: an ingest process hung for as long as Redis stood still."""
    wire = Wire(url, 1.5)
    alarms = 0

    def count_alarm(_signum: int, _frame: object) -> None:
        nonlocal alarms
        alarms += 1

    before = signal.signal(signal.SIGALRM, count_alarm)
    server.client_pause(60_000, all=False)
    signal.setitimer(signal.ITIMER_REAL, 1.2, 1.2)
    try:
        with pytest.raises(QueueUnsureError, match="timed out"):
            wire.call("SET", "k", "v")
        assert 1 <= alarms < 20, "it ended by its own time-out, not when the server went on"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        server.client_unpause()


def test_password_is_masked() -> None:
    assert mask("redis://:p@w@h:1/0") == "redis://:***@h:1/0"
    assert mask("unix:///a/b") == "unix:///a/b"


# Once

ONCE = bytes(16)


def once(
    subject: Enqueuer, body_hash: bytes = b"h", ids: bytes = b"12345678", elements: tuple[bytes, ...] = (b"a",)
) -> bytes:
    return subject.enqueue_once(ONCE, body_hash, ids, EID, RECORD, list(elements))


def test_key_enqueues_once_and_gives_the_first_ids_again(server: redis.Redis, url: str) -> None:
    first, second = enqueuer_of(url), enqueuer_of(url)
    assert once(first) == b"12345678"
    assert once(second, ids=b"abcdefgh", elements=(b"b",)) == b"12345678"
    assert server.lrange(KEYS.ready, 0, -1) == [b"a"]
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert 86_300 < server.ttl(KEYS.once(ONCE)) <= 86_400


def test_key_with_another_body_is_a_conflict(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    once(subject)
    with pytest.raises(IdempotencyConflictError):
        once(subject, body_hash=b"other")
    with pytest.raises(RecordConflictError):
        subject.enqueue_once(bytes(15) + b"x", b"h", b"12345678", EID, b"other record", [b"c"])
    assert server.llen(KEYS.ready) == 1
    assert server.get(KEYS.once(bytes(15) + b"x")) is None


def test_unsure_key_is_asked_again_and_enqueues_once(server: redis.Redis, url: str) -> None:
    """The connection is cut while the server holds the call back: it ran or not, the second call decides."""
    subject = enqueuer_of(url)
    once(subject, elements=(b"warm",))
    server.delete(KEYS.once(ONCE), KEYS.ready)
    server.client_pause(60_000, all=False)

    def cut() -> None:
        wait_until(lambda: any(c["cmd"] == "evalsha" and "b" in c["flags"] for c in server.client_list()), "it waits")
        kill_connections(server)
        server.client_unpause()

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        assert once(subject) == b"12345678"
    finally:
        thread.join()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a"]


def test_unsure_key_stays_unsure_although_the_second_call_is_certain(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url)
    once(subject, elements=(b"warm",))
    server.client_pause(60_000, all=False)

    def cut_and_refuse() -> None:
        wait_until(lambda: any(c["cmd"] == "evalsha" and "b" in c["flags"] for c in server.client_list()), "it waits")
        server.replicaof("127.0.0.1", free_port())
        kill_connections(server)
        server.client_unpause()

    thread = threading.Thread(target=cut_and_refuse)
    thread.start()
    try:
        with pytest.raises(QueueUnsureError):
            subject.enqueue_once(bytes(15) + b"y", b"h", b"12345678", EID, RECORD, [b"a"])
    finally:
        thread.join()
        server.replicaof("no", "one")


# Durability


def test_fsync_is_refused_unless_the_server_proves_it(server: redis.Redis, url: str) -> None:
    with pytest.raises(QueueUnavailableError, match="CONFIG SET appendonly yes"):
        enqueuer_of(url, durability="fsync").enqueue(EID, RECORD, [b"a"])
    assert server.llen(KEYS.ready) == 0
    with (
        running_server("--appendonly", "yes", "--appendfsync", "everysec") as (_, every_second),
        pytest.raises(QueueUnavailableError, match="CONFIG SET appendfsync always"),
    ):
        enqueuer_of(every_second, durability="fsync").enqueue(EID, RECORD, [b"a"])
    with running_server("--appendonly", "yes", "--appendfsync", "always") as (_, always):
        assert enqueuer_of(always, durability="fsync").enqueue(EID, RECORD, [b"b"]) == 1


def test_fsync_is_refused_where_rewrites_stop_it(server: redis.Redis) -> None:
    """With `no-appendfsync-on-rewrite yes` a server that rewrites its file made no fsync at all before its replies."""
    with running_server("--appendonly", "yes", "--appendfsync", "always") as (always, url):
        always.config_set("no-appendfsync-on-rewrite", "yes")
        with pytest.raises(QueueUnavailableError, match="CONFIG SET no-appendfsync-on-rewrite no, and"):
            enqueuer_of(url, durability="fsync").enqueue(EID, RECORD, [b"a"])
        assert persistence_of(url) == "no"
        always.config_set("no-appendfsync-on-rewrite", "no")
        assert enqueuer_of(url, durability="fsync").enqueue(EID, RECORD, [b"b"]) == 1
        assert persistence_of(url) == "always"


def test_fsync_is_refused_while_the_first_append_only_file_is_written() -> None:
    """CONFIG SET appendonly yes, as we advise: what is written before the file is whole does not survive a kill -9."""
    server = Server("--appendonly", "no", "--appendfsync", "always")
    try:
        server.client.set("before", 1)
        server.client.config_set("rdb-key-save-delay", 60_000_000)  # µs
        server.client.config_set("appendonly", "yes")
        with pytest.raises(QueueUnavailableError, match="aof_rewrite_in_progress"):
            enqueuer_of(server.url, durability="fsync").enqueue(EID, RECORD, [b"a"])
        assert server.client.llen(KEYS.ready) == 0
    finally:
        server.kill()
        server.destroy()


def test_fsync_is_looked_at_again_on_a_connection_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server("--appendonly", "yes", "--appendfsync", "always") as (server, url):
        subject = enqueuer_of(url, durability="fsync")
        subject.enqueue(EID, RECORD, [b"a"])
        server.config_set("appendfsync", "everysec")
        monkeypatch.setattr(link, "SYNC_EVERY_MS", -1)  # a minute later
        with pytest.raises(QueueUnavailableError, match="CONFIG SET appendfsync always"):
            subject.enqueue(EID, RECORD, [b"b"])
        assert server.lrange(KEYS.ready, 0, -1) == [b"a"]
        server.config_set("appendfsync", "always")
        assert subject.enqueue(EID, RECORD, [b"b"]) == 2


def test_replica_level_waits_and_never_acknowledges_what_the_replica_lacks(server: redis.Redis, url: str) -> None:
    subject = enqueuer_of(url, durability="replica", durability_timeout=0.2)
    with pytest.raises(DurabilityTimeoutError, match="0 of 1 replicas"):
        subject.enqueue(EID, RECORD, [b"a"])
    with running_server() as (replica, _):
        port = free_port()
        server.config_set("port", port)
        replica.replicaof("127.0.0.1", port)
        try:
            patient = enqueuer_of(url, durability="replica", durability_timeout=20)
            wait_until(lambda: server.info("replication")["connected_slaves"] == 1, "the replica is connected")
            patient.enqueue(EID, RECORD, [b"b"])
            patient.enqueue(EID, RECORD, [b"c"])  # the plain form
            assert replica.lrange(KEYS.ready, 0, -1)[-2:] == [b"b", b"c"], "acknowledged, so it is there"
            replica_pid = replica.info("server")["process_id"]
            os.kill(replica_pid, signal.SIGSTOP)
            try:
                with pytest.raises(DurabilityTimeoutError):
                    subject.enqueue(EID, RECORD, [b"d"])
            finally:
                os.kill(replica_pid, signal.SIGCONT)
            patient.enqueue(EID, RECORD, [b"e"])
        finally:
            server.config_set("port", 0)


def test_missing_replicas_cost_one_wait_and_then_nothing_is_written(server: redis.Redis, url: str) -> None:
    """A process takes its requests one after the other: sixteen would have waited sixteen times as long."""
    subject = enqueuer_of(url, durability="replica", durability_timeout=0.2)
    with pytest.raises(DurabilityTimeoutError):
        subject.enqueue(EID, RECORD, [b"a"])
    for _ in range(3):
        with pytest.raises(ReplicasMissingError, match="0 of 1 replicas are connected and answer"):
            subject.enqueue(EID, RECORD, [b"b"])
    with pytest.raises(ReplicasMissingError):
        subject.enqueue_once(bytes(16), b"hash", bytes(8), EID, RECORD, [b"b"])
    assert server.lrange(KEYS.ready, 0, -1) == [b"a"]
    with running_server() as (replica, _):
        port = free_port()
        server.config_set("port", port)
        replica.replicaof("127.0.0.1", port)
        try:
            wait_until(lambda: server.info("replication").get("slave0", {}).get("state") == "online", "it is in step")
            wait_until(lambda: is_enqueued(subject, b"c"), "as soon as one is connected")
        finally:
            server.config_set("port", 0)
    assert server.lrange(KEYS.ready, 0, -1)[-1] == b"c"


def is_enqueued(subject: Enqueuer, element: bytes) -> bool:
    try:
        subject.enqueue(EID, RECORD, [element])
    except DurabilityTimeoutError:  # in a fifth of a second
        return False
    return True


def test_replica_level_needs_a_url() -> None:
    with pytest.raises(ConfigError, match=r"queue\.url"):
        Durability(Queue(durability="replica"))


# Claim and settle


def test_claim_settle_and_their_counts(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, *[b"%d" % n for n in range(5)])
    client = worker_of(url)
    first = claim(client, 3)
    assert first.items == [(0, b"0"), (1, b"1"), (2, b"2")] and not first.came_short
    client.settle(0)
    client.settle(Later(1, 60_000, trail_attempt(1, 503)))
    client.settle(Dead(2, trail_attempt(1, 404), "refused_status", b"answer", None))
    server.config_resetstat()
    second = claim(client, 512)
    assert (second.items, second.settled, second.came_short) == ([(3, b"3"), (4, b"4")], 3, True)
    assert (client.held, client.unsettled) == (2, 0)
    assert commands(server, "evalsha") == 2
    [(item, _)] = server.zrange(KEYS.later, 0, -1, withscores=True)
    assert item == b"1" + trail_attempt(1, 503)
    [(_, dead)] = server.xrange(KEYS.dead)
    assert dead == {
        b"item": b"2" + trail_attempt(1, 404),
        b"record": b"",
        b"reason": b"refused_status",
        b"answer": b"answer",
    }


def test_dead_letters_keep_their_endpoints_records(server: redis.Redis, url: str) -> None:
    others = [bytes([n]) * 8 for n in range(3)]
    for number, endpoint_id in enumerate(others):
        server.set(KEYS.endpoint(endpoint_id), b"record%d" % number)
    server.rpush(KEYS.ready, *[b"i%d" % n for n in range(4)])
    client = worker_of(url)
    for token, _ in claim(client, 4).items:
        client.settle(Dead(token, b"", "poison", b"", others[token % 3]))
    claim(client, 0)
    assert [entry[b"record"] for _, entry in server.xrange(KEYS.dead)] == [
        b"record0",
        b"record1",
        b"record2",
        b"record0",
    ]


def test_lost_answer_of_a_claim_brings_the_same_items_again(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, b"a", b"b", b"c", b"d")
    client = worker_of(url)
    claim(client, 2)
    client.settle(0)
    client.send(1)
    wait_until(lambda: server.hlen(KEYS.lease("n.0.aa")) == 3, "settle and claim have run")  # n, 1, 2
    client._failed(QueueUnsureError("cut before the answer was read"))
    assert (client.is_connected, client.busy, client.unsettled) == (False, False, 1)
    wait_until(lambda: client.connect(monotonic_ms()), "connected again")
    assert claim(client, 1).items == [(2, b"c")]
    assert (client.unsettled, client.held) == (0, 2)
    assert server.hgetall(KEYS.lease("n.0.aa")) == {b"n": b"3", b"1": b"b", b"2": b"c"}
    assert claim(client, 1).items == [(3, b"d")]


def test_unsure_settle_is_sent_again_before_any_claim(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, b"a", b"b", b"c")
    client = worker_of(url)
    claim(client, 2)
    kill_connections(server)
    client.settle(0)
    client.send(1)
    wait_until(lambda: not client.is_connected or client.receive() is not None, "the exchange has failed")
    assert client.unsettled == 1 and not client.busy
    client.settle(1)
    wait_until(lambda: client.connect(monotonic_ms()), "connected again")
    assert claim(client, 1).items == [(2, b"c")]
    assert client.unsettled == 1  # the second outcome goes with the next exchange
    claim(client, 0)
    assert server.hgetall(KEYS.lease("n.0.aa")) == {b"n": b"3", b"2": b"c"}


def test_flushed_scripts_are_loaded_again(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, b"a", b"b")
    client = worker_of(url)
    claim(client, 1)
    server.script_flush()
    client.settle(0)
    assert claim(client, 1).items == [(1, b"b")]
    server.script_flush()
    assert client.reclaim("n.0.aa", "drain") == 1
    subject = enqueuer_of(url)
    subject.enqueue(EID, RECORD, [b"c"])
    server.script_flush()
    subject.enqueue(bytes(8), RECORD, [b"d"])
    assert server.lrange(KEYS.ready, 0, -1) == [b"b", b"c", b"d"]


def test_reclaimed_worker_is_told_that_its_lease_is_lost(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, b"a")
    client, other = worker_of(url), worker_of(url, "n.1.bb")
    claim(client, 1)
    assert other.reclaim("n.0.aa", "death") == 1
    client.settle(0)
    client.send(1)
    with pytest.raises(LeaseLostError):
        client.wait()
    assert claim(other, 1).items == [(0, b"a" + TRAIL_RECLAIM)]


def test_more_than_a_batch_of_outcomes_goes_in_several_exchanges(server: redis.Redis, url: str) -> None:
    server.rpush(KEYS.ready, *[b"%d" % n for n in range(1200)])
    client = worker_of(url)
    tokens = [token for _ in range(3) for token, _ in claim(client, 512).items]
    assert len(tokens) == 1200
    for token in tokens:
        client.settle(token)
    assert [claim(client, 0).settled for _ in range(3)] == [512, 512, 176]
    assert (client.held, server.hlen(KEYS.lease("n.0.aa"))) == (0, 1)


def test_records_are_fetched_and_missing_ones_are_none(server: redis.Redis, url: str) -> None:
    server.set(KEYS.endpoint(EID), RECORD)
    client = worker_of(url)
    assert client.endpoint_records([EID, bytes(8)]) == {EID: RECORD, bytes(8): None}


def test_absent_server_is_tried_again_after_a_pause(url: str) -> None:
    client = LeaseClient("unix:///nowhere/socket", KEYS, "n.0.aa", 30_000, Clock(), Count())
    assert not client.connect(1_000)
    assert "nowhere" in client.last_error
    assert not client.connect(1_001)
    assert not client.send(1)


# Idle wait


def test_idle_wait_ends_when_something_is_enqueued(server: redis.Redis, url: str) -> None:
    wait = IdleWait(url, KEYS)
    assert wait.arm(1000)
    server.rpush(KEYS.ready, b"a")
    wait_until(wait.receive, "the wait is over")
    assert (wait.is_armed, server.lrange(KEYS.wake, 0, -1)) == (False, [b"a"])
    assert claim(worker_of(url), 1).items == [(0, b"a")]


def test_idle_wait_ends_by_itself(server: redis.Redis, url: str) -> None:
    wait = IdleWait(url, KEYS)
    assert wait.arm(0)
    wait_until(wait.receive, "the time-out has come")


# Worker numbers


def number_of(url: str, folder: Path) -> WorkerNumber:
    clock = Clock()
    number = WorkerNumber(folder, KEYS, clock)
    number.renew(Link(url, clock, Count()))
    return number


def kept_in(folder: Path) -> list[Path]:
    return sorted((folder / "numbers").iterdir())


def test_two_processes_never_share_a_number(server: redis.Redis, url: str, tmp_path: Path) -> None:
    first, second = number_of(url, tmp_path), number_of(url, tmp_path)
    ids = {number.generator().next_ids(1)[0] >> 10 & 0xFFF for number in (first, second)}
    assert len(ids) == 2
    assert {key for key in server.keys("pb:num:*")} == {KEYS.number(number) for number in ids}


def test_successor_takes_the_number_again_also_without_redis(server: redis.Redis, url: str, tmp_path: Path) -> None:
    first = number_of(url, tmp_path)
    number = first.generator().next_ids(1)[0] >> 10 & 0xFFF
    os.close(first._file or 0)  # as the end of the process would
    away = number_of(f"redis://127.0.0.1:{free_port()}", tmp_path)
    assert away.generator().next_ids(1)[0] >> 10 & 0xFFF == number
    assert len(server.keys("pb:num:*")) == 1


def test_copy_of_a_folder_gives_no_number_twice(server: redis.Redis, url: str, tmp_path: Path) -> None:
    first = number_of(url, tmp_path / "a")
    os.close(first._file or 0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    numbers = [number_of(url, tmp_path / name) for name in ("a", "b")]
    ids = [number.generator().next_ids(1)[0] >> 10 & 0xFFF for number in numbers]
    assert ids[0] == first.generator().next_ids(1)[0] >> 10 & 0xFFF, "a successor takes it again"
    assert ids[1] != ids[0]
    for number in numbers:
        number.renew(Link(url, Clock(), Count()))
    assert [number.generator().next_ids(1)[0] >> 10 & 0xFFF for number in numbers] == ids, "both stay with theirs"


class AheadClock(Clock):
    """The clock of a process whose server is ahead of the one that the next process finds."""

    by_ms = 0

    def sync(self, server_ms: int) -> None:
        super().sync(server_ms + self.by_ms)


@pytest.mark.parametrize(("by_ms", "keeps_number"), [(0, True), (700, True), (10_000, False)])
@pytest.mark.parametrize("steps_back", [False, True])
def test_no_id_is_given_again_when_the_next_server_is_behind(
    server: redis.Redis, url: str, tmp_path: Path, by_ms: int, keeps_number: bool, steps_back: bool
) -> None:
    """A failover, and then a new process: its ids began ten seconds before its predecessor's last ones."""
    clock = AheadClock()
    clock.by_ms = by_ms
    first = WorkerNumber(tmp_path, KEYS, clock)
    first.renew(Link(url, clock, Count()))
    given = first.generator().next_ids(500)
    if steps_back:  # the predecessor has seen the next server, too, and renews its number there
        clock.by_ms = 0
        clock.sync(time.time_ns() // 1_000_000)
        first.renew(Link(url, clock, Count()))
        given += first.generator().next_ids(500)
    os.close(first._file or 0)  # as the end of the process would
    second = number_of(url, tmp_path)
    ids = second.generator().next_ids(500)
    numbers = {number >> 10 & 0xFFF for number in given + ids}
    assert len(numbers) == 1 + (not keeps_number)
    assert ids[0] > given[-1] or not keeps_number
    assert accept_ms(ids[0]) - time.time_ns() // 1_000_000 < 1500, "no ids of a time to come"
    assert len(kept_in(tmp_path)) == 1


@pytest.mark.parametrize("wrong_by_ms", [1, 100])
def test_successor_at_once_begins_after_what_the_file_may_be_wrong_by(
    server: redis.Redis, url: str, tmp_path: Path, wrong_by_ms: int
) -> None:
    stepped_ms, now_ms = 0, time.time_ns() // 1_000_000  # both clocks stand still: a ms that ticks between two looks
    clock = Clock(monotonic_ms=lambda: 0, wall_ms=lambda: now_ms - stepped_ms)  # would make a step of 100 one of 101
    first = WorkerNumber(tmp_path, KEYS, clock)
    first.renew(Link(url, clock, Count()))
    stepped_ms = wrong_by_ms  # of this machine's clock, too little for the file to be written again
    assert not first.is_due(monotonic_ms())
    given = first.generator().next_ids(500)
    os.close(first._file or 0)
    after = Clock(monotonic_ms=lambda: 0, wall_ms=lambda: now_ms - stepped_ms)
    second = WorkerNumber(tmp_path, KEYS, after)
    second.renew(Link(f"redis://127.0.0.1:{free_port()}", after, Count()))
    ids = second.generator().next_ids(500)
    assert ids[0] >> 10 & 0xFFF == given[0] >> 10 & 0xFFF
    assert ids[0] > given[-1]


def test_file_of_a_number_follows_the_clock_of_another_server(server: redis.Redis, url: str, tmp_path: Path) -> None:
    clock = AheadClock()
    subject = WorkerNumber(tmp_path, KEYS, clock)
    subject.renew(Link(url, clock, Count()))
    assert not subject.is_due(monotonic_ms())
    clock.by_ms = 500_000
    clock.sync(time.time_ns() // 1_000_000)
    assert subject.is_due(monotonic_ms()), "before its five minutes are over"
    subject.renew(Link(url, clock, Count()))
    assert not subject.is_due(monotonic_ms())
    [path] = kept_in(tmp_path)
    assert 490_000 < msgspec.json.decode(path.read_bytes(), type=Kept).ahead_ms < 510_000


def test_without_redis_and_without_a_file_there_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(QueueUnavailableError, match="worker number"):
        number_of(f"redis://127.0.0.1:{free_port()}", tmp_path).generator()


def test_full_server_gives_no_number_and_ends_nobody(server: redis.Redis, url: str, tmp_path: Path) -> None:
    server.config_set("maxmemory", 1)
    try:
        number = number_of(url, tmp_path)
    finally:
        server.config_set("maxmemory", 0)
    with pytest.raises(QueueUnavailableError, match="maxmemory"):
        number.generator()
    assert number.is_due(monotonic_ms()), "asked for again soon"
    number.renew(Link(url, Clock(), Count()))
    number.generator()


@pytest.mark.parametrize(("over_ms", "is_used"), [(0, True), (1, False)])
def test_number_unrenewed_for_six_days_is_not_used(tmp_path: Path, over_ms: int, is_used: bool) -> None:
    now_ms = 1_700_000_000_000
    clock = Clock(monotonic_ms=lambda: 0, wall_ms=lambda: now_ms)
    (tmp_path / "numbers").mkdir()
    kept = Kept(77, "owner", now_ms - USABLE_MS - over_ms)
    (tmp_path / "numbers" / "77.num").write_bytes(msgspec.json.encode(kept))
    absent = Link(f"redis://127.0.0.1:{free_port()}", clock, Count())
    subject = WorkerNumber(tmp_path, KEYS, clock)
    subject.renew(absent)
    if is_used:
        assert subject.generator().next_ids(1)[0] >> 10 & 0xFFF == 77
    else:
        with pytest.raises(QueueUnavailableError, match="worker number"):
            subject.generator()


def test_number_that_another_owns_is_given_up(server: redis.Redis, url: str, tmp_path: Path) -> None:
    first = number_of(url, tmp_path)
    number = first.generator().next_ids(1)[0] >> 10 & 0xFFF
    os.close(first._file or 0)
    server.set(KEYS.number(number), "someone else")
    other = number_of(url, tmp_path)
    assert other.generator().next_ids(1)[0] >> 10 & 0xFFF != number
    assert [path.name for path in kept_in(tmp_path)] != [f"{number}.num"]


# Check


def test_fit_server_is_only_warned_of_its_persistence(url: str) -> None:
    assert [finding.level for finding in check_server(url)] == ["ok", "ok", "warn"]
    assert len(refuse_unfit(url, 0, lambda: None)) == 1


def test_clock_far_from_the_servers_is_warned_of(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_ns = time.time_ns
    for shift_s, text in ((-100, "s ahead of"), (100, "s behind"), (50, None)):
        monkeypatch.setattr(time, "time_ns", lambda shift_s=shift_s: real_ns() + shift_s * 10**9)
        found = [finding.text for finding in check_server(url) if "clock" in finding.text]
        assert (len(found) == 1 and text in found[0]) if text else not found


def test_server_that_is_a_replica_for_a_while_counts_as_away(server: redis.Redis, url: str) -> None:
    server.replicaof("127.0.0.1", free_port())
    try:
        with pytest.raises(QueueAwayError, match="is a replica"):
            refuse_unfit(url, 0, lambda: None)
        assert refuse_unfit(url, 60, lambda: server.replicaof("no", "one") and None), "a failover ends"
    finally:
        server.replicaof("no", "one")


def test_full_server_is_warned_of(server: redis.Redis, url: str) -> None:
    server.config_set("maxmemory", 1)
    try:
        assert any("memory is full" in finding.text for finding in check_server(url))
    finally:
        server.config_set("maxmemory", 0)
    assert replicas_of(url) == 0


@pytest.mark.parametrize(
    ("persistence", "durability", "killed", "power_cut", "failover"),
    [
        ("always", "server", "nothing", "nothing", "what the replica lacked"),
        ("everysec", "server", "up to 2 s, if", "up to 2 s", "what the replica lacked"),
        ("unknown", "server", "up to 2 s, if", "up to 2 s", "what the replica lacked"),
        ("no", "server", "nothing: the system", "what the system had not written yet", "what the replica lacked"),
        (None, "server", "all since", "all since", "what the replica lacked"),
        ("everysec", "replica", "nothing, if", "nothing, if", "nothing, if"),
        (None, "replica", "nothing, if", "nothing, if", "nothing, if"),
        ("always", "replica", "nothing", "nothing", "nothing, if"),
    ],
)
def test_each_disaster_has_its_cost(
    persistence: str | None, durability: str, killed: str, power_cut: str, failover: str
) -> None:
    lines = losses(persistence, durability, has_failover=True)
    assert lines[2].startswith(f"queue server killed (-9): {killed}")
    assert lines[3].startswith(f"power cut of the queue server: {power_cut}")
    assert lines[4].startswith(f"failover to a replica: {failover}")
    assert len(losses(persistence, durability, has_failover=False)) == 4


def test_evicting_server_is_refused_with_the_way_to_mend_it(server: redis.Redis, url: str) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(BootError, match="CONFIG SET maxmemory-policy noeviction"):
            refuse_unfit(url, 0, lambda: None)
    finally:
        server.config_set("maxmemory-policy", "noeviction")


def test_absent_server_is_refused_in_one_line() -> None:
    port = free_port()
    with pytest.raises(BootError, match=f"127.0.0.1:{port}") as caught:
        refuse_unfit(f"redis://127.0.0.1:{port}", 0, lambda: None)
    assert "\n" not in str(caught.value)
