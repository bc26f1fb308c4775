# SPDX-License-Identifier: MIT
"""Several requests in one round trip, against a real server: what becomes of each, and of all when it breaks."""

import threading
from pathlib import Path

import pytest
import redis

from postbackd.clock import Clock
from postbackd.errors import (
    DurabilityTimeoutError,
    QueueFullError,
    QueueUnsureError,
    RecordConflictError,
    ReplicasMissingError,
    SpoolError,
)
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import COMMAND_ELEMENTS, Enqueuer, QueuedRequest
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.scripts import ENQUEUE
from postbackd.queue.spool import Spool
from postbackd.queue.spool_file import SpoolFile, SpoolReader
from postbackd.queue.spooling import ShardedQueue, SpoolingQueue
from postbackd.scoreboard import Cell, Scoreboard
from postbackd.settings import Queue
from tests.support.daemon import wait_until
from tests.support.servers import running_server

KEYS = Keys("pb")
FIRST, SECOND = bytes(range(8)), bytes(range(8, 16))


def of(endpoint_id: bytes, *elements: bytes, record: bytes = b"record") -> QueuedRequest:
    return QueuedRequest(endpoint_id, record, list(elements))


class Process:
    """The queue of an ingest process; its server counts as back at once."""

    def __init__(self, url: str, folder: Path, max_depth: int = 100_000, keys: Keys = KEYS, **settings: object) -> None:
        durability = Durability(Queue(url=url, **settings))
        link = Link(url, Clock(), lambda: None, prove=durability.prove, reply_timeout_s=60)
        link.on_away = link.come_back
        self.cells = Scoreboard(1).row(0)
        self.spool = Spool(folder / "spool", "n.0", 1_000_000)
        self.enqueuer = Enqueuer(link, keys, max_depth, durability)
        self.queue = SpoolingQueue(self.enqueuer, self.spool, self.cells)


def spooled(process: Process) -> list[tuple[int, bytes, bytes, list[bytes]]]:
    """Everything in the spool's files, as a process that takes them over would read it."""
    found = []
    for file in process.spool.pending():
        assert isinstance(file, SpoolFile)
        reader = SpoolReader(file)
        while request := reader.next():
            found.append((request.number, request.endpoint_id, request.record, request.elements))
    return found


def calls(server: redis.Redis, name: str) -> int:
    return int(server.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"])


def test_all_go_in_one_command_and_in_their_order(server: redis.Redis, url: str, tmp_path: Path) -> None:
    queue = Process(url, tmp_path).queue
    assert queue.enqueue_group([of(FIRST, b"a"), of(SECOND, b"b", record=b"other"), of(FIRST, b"c")]) == [None] * 3
    assert (server.get(KEYS.endpoint(FIRST)), server.get(KEYS.endpoint(SECOND))) == (b"record", b"other")
    assert sorted(server.lrange(KEYS.ready, 0, -1)) == [b"a", b"b", b"c"]
    server.delete(KEYS.ready)
    server.config_resetstat()
    assert (
        queue.enqueue_group([of(FIRST, b"d", b"e"), of(SECOND, b"f", record=b"other"), of(FIRST, b"g")]) == [None] * 3
    )
    assert (calls(server, "rpush"), calls(server, "evalsha")) == (1, 0)
    assert server.lrange(KEYS.ready, 0, -1) == [b"d", b"e", b"f", b"g"]


def test_many_elements_go_in_several_commands_and_no_request_is_cut(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    queue = Process(url, tmp_path).queue
    queue.enqueue_group([of(FIRST, b"known")])
    server.config_resetstat()
    requests = [of(FIRST, *[b"%d.%d" % (number, item) for item in range(600)]) for number in range(3)]
    assert COMMAND_ELEMENTS < 1200
    assert queue.enqueue_group(requests) == [None] * 3
    assert calls(server, "rpush") == 3
    assert server.lrange(KEYS.ready, 1, -1) == [element for request in requests for element in request.elements]


def test_lost_scripts_are_loaded_again(server: redis.Redis, url: str, tmp_path: Path) -> None:
    queue = Process(url, tmp_path).queue
    server.script_flush()
    assert queue.enqueue_group([of(FIRST, b"a"), of(SECOND, b"b"), of(FIRST, b"c")]) == [None] * 3
    assert sorted(server.lrange(KEYS.ready, 0, -1)) == [b"a", b"b", b"c"]


def test_conflict_of_one_leaves_the_others_alone(server: redis.Redis, url: str, tmp_path: Path) -> None:
    server.set(KEYS.endpoint(SECOND), b"another content")
    results = Process(url, tmp_path).queue.enqueue_group([of(FIRST, b"a"), of(SECOND, b"b"), of(FIRST, b"c")])
    assert [type(result) for result in results] == [type(None), RecordConflictError, type(None)]
    assert sorted(server.lrange(KEYS.ready, 0, -1)) == [b"a", b"c"]


def test_full_server_refuses_each_and_nothing_is_spooled(server: redis.Redis, url: str, tmp_path: Path) -> None:
    process = Process(url, tmp_path)
    process.queue.enqueue_group([of(FIRST, b"a")])
    server.config_set("maxmemory", 1)
    try:
        results = process.queue.enqueue_group([of(FIRST, b"b"), of(SECOND, b"c")])
    finally:
        server.config_set("maxmemory", 0)
    assert [type(result) for result in results] == [QueueFullError] * 2
    assert (server.lrange(KEYS.ready, 0, -1), spooled(process)) == ([b"a"], [])


def test_queue_over_its_depth_refuses_each(server: redis.Redis, url: str, tmp_path: Path) -> None:
    queue = Process(url, tmp_path, max_depth=1).queue
    assert queue.enqueue_group([of(FIRST, b"a"), of(FIRST, b"b")]) == [None] * 2
    results = queue.enqueue_group([of(FIRST, b"c"), of(FIRST, b"d")])
    assert [type(result) for result in results] == [QueueFullError] * 2
    assert server.llen(KEYS.ready) == 2


def test_absent_server_means_the_spool_with_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsyncs = 0

    def count_fsync(descriptor: int) -> None:
        nonlocal fsyncs
        fsyncs += 1

    with running_server() as (server, url):
        process = Process(url, tmp_path)
        process.queue.enqueue_group([of(FIRST, b"a")])
        server.execute_command("CONFIG", "SET", "min-replicas-to-write", 1)  # as READONLY: certainly not run
        process.queue.enqueue_group([of(FIRST, b"b")])
        monkeypatch.setattr("os.fdatasync", count_fsync)
        requests = [of(FIRST, b"c"), of(SECOND, b"d", b"e", record=b"other"), of(SECOND, b"f", record=b"other")]
        assert process.queue.enqueue_group(requests) == [None] * 3
        assert server.lrange(KEYS.ready, 0, -1) == [b"a"]
    assert fsyncs == 1
    assert spooled(process) == [
        (1, FIRST, b"record", [b"b"]),
        (2, FIRST, b"record", [b"c"]),
        (3, SECOND, b"other", [b"d", b"e"]),
        (4, SECOND, b"other", [b"f"]),
    ]
    assert (process.cells[Cell.SPOOLED], process.cells[Cell.UNSURE]) == (5, 0)


def test_answer_that_is_lost_makes_all_unsure_and_all_are_spooled(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    process = Process(url, tmp_path)
    process.queue.enqueue_group([of(FIRST, b"a")])
    server.client_pause(60_000, all=False)  # writes are read and wait

    def cut() -> None:
        wait_until(lambda: any(c["cmd"] == "rpush" and "b" in c["flags"] for c in server.client_list()), "it waits")
        server.client_kill_filter(_type="normal", skipme=True)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        assert process.queue.enqueue_group([of(FIRST, b"b"), of(FIRST, b"c")]) == [None] * 2
    finally:
        cutter.join()
        server.client_unpause()
    assert [elements for *_, elements in spooled(process)] == [[b"b"], [b"c"]]
    assert (process.cells[Cell.SPOOLED], process.cells[Cell.UNSURE]) == (2, 2)


def test_unsure_and_no_room_in_the_spool_is_told_as_both(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(url, tmp_path)

    def lose(requests: list[QueuedRequest]) -> list[QueueUnsureError]:
        return [QueueUnsureError("no answer from Redis: timed out.") for _ in requests]

    def refuse(requests: list[QueuedRequest], shard: int) -> None:
        raise SpoolError("the disk is full.")

    monkeypatch.setattr(process.enqueuer, "enqueue_group", lose)
    monkeypatch.setattr(process.spool, "append", refuse)
    [result] = process.queue.enqueue_group([of(FIRST, b"a")])
    assert isinstance(result, QueueUnsureError)
    assert str(result) == "no answer from Redis: timed out. It could not be spooled either: the disk is full."


def test_too_few_replicas_means_no_acknowledgement_for_any(server: redis.Redis, url: str, tmp_path: Path) -> None:
    server.execute_command(*ENQUEUE.load_command())
    process = Process(url, tmp_path, durability="replica", durability_timeout=0.01)
    results = process.queue.enqueue_group([of(FIRST, b"a"), of(SECOND, b"b")])
    assert [type(result) for result in results] == [DurabilityTimeoutError] * 2
    results = process.queue.enqueue_group([of(FIRST, b"c"), of(SECOND, b"d")])
    assert [type(result) for result in results] == [ReplicasMissingError] * 2
    assert sorted(server.lrange(KEYS.ready, 0, -1)) == [b"a", b"b"], "once each: they may still be delivered"
    assert spooled(process) == []


def test_shard_without_room_passes_its_requests_on(server: redis.Redis, url: str, tmp_path: Path) -> None:
    full, other = (Process(url, tmp_path, depth, Keys("pb", shard)) for shard, depth in ((0, 1), (1, 100)))
    full.queue.enqueue_group([of(FIRST, b"a"), of(FIRST, b"b")])
    queue = ShardedQueue([full.queue, other.queue])
    for number in range(4):
        assert queue.enqueue_group([of(FIRST, b"%d" % number), of(SECOND, b"+")]) == [None] * 2
    assert server.llen(Keys("pb", 0).ready) == 2
    assert server.llen(Keys("pb", 1).ready) == 8
