# SPDX-License-Identifier: MIT
"""The spool: files on a real disk, torn and damaged ones, and their replay into a real server."""

import errno
import os
from pathlib import Path

import pytest
import redis

from postbackd.clock import Clock
from postbackd.errors import QueueFullError, SpoolError
from postbackd.queue import shard_replay
from postbackd.queue import spool as spool_module
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.scripts import REPLAY_SPOOL
from postbackd.queue.shard_replay import ShardReplay
from postbackd.queue.spool import Spool
from postbackd.queue.spool_file import SpoolFile, SpoolReader
from postbackd.queue.spool_replay import SpoolReplay
from postbackd.queue.spooling import SpoolingQueue
from postbackd.queue.wire import Wire
from postbackd.queue.worker_number import WorkerNumber
from postbackd.scoreboard import Cell, Scoreboard
from postbackd.settings import Queue
from tests.support.daemon import free_port, wait_until
from tests.support.servers import running_server

KEYS = Keys("pb")
EID, OTHER = bytes(range(8)), bytes(range(8, 16))


def spool_in(folder: Path, max_bytes: int = 1_000_000) -> Spool:
    return Spool(folder / "spool", "node.0", max_bytes)


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*.spool"))


def abandon(spool: Spool) -> None:
    """As the end of its process would."""
    for file in spool.pending():
        file.close()


def read_all(file: SpoolFile) -> list[tuple[int, bytes, bytes, list[bytes]]]:
    reader = SpoolReader(file)
    found = []
    while (request := reader.next()) is not None:
        found.append(tuple(request))
    return found


# Files


def test_requests_are_read_back_in_order_with_their_records(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a", b"b"])])
    spool.append([(OTHER, b"another", [b"c"])])
    spool.append([(EID, b"record", [b"d" * 100_000])])
    [file] = spool.pending()
    expected = [
        (1, EID, b"record", [b"a", b"b"]),
        (2, OTHER, b"another", [b"c"]),
        (3, EID, b"record", [b"d" * 100_000]),
    ]
    assert read_all(file) == expected
    abandon(spool)
    [taken] = spool_in(tmp_path).take_over()
    assert read_all(taken) == expected
    assert taken.raw(0, taken.bytes).count(b"record") == 1, "an endpoint's record stands in a file once"


def test_file_in_use_is_not_taken(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])
    assert spool_in(tmp_path).take_over() == []
    abandon(spool)
    assert len(spool_in(tmp_path).take_over()) == 1


@pytest.mark.parametrize("cut", [1, 7, 8, 20])
def test_torn_end_is_cut_off_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int) -> None:
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])
    whole = spool.pending()[0].bytes
    spool.append([(EID, b"record", [b"b" * 30])])
    abandon(spool)
    [path] = files_in(tmp_path)
    with path.open("r+b") as file:
        file.truncate(whole + cut)
    [taken] = spool_in(tmp_path).take_over()
    assert [request[3] for request in read_all(taken)] == [[b"a"]]
    assert path.stat().st_size == whole
    assert f"cut_bytes={cut}" in capsys.readouterr().err


@pytest.mark.parametrize("junk", [b"\0" * 4096, os.urandom(4096)])
def test_end_full_of_other_bytes_is_cut_off(tmp_path: Path, junk: bytes) -> None:
    """What a power cut can leave of a record that was being written."""
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])
    abandon(spool)
    with files_in(tmp_path)[0].open("ab") as file:
        file.write(junk)
    [taken] = spool_in(tmp_path).take_over()
    assert (taken.count, len(read_all(taken))) == (1, 1)


def test_damage_in_the_middle_costs_that_request_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = spool_in(tmp_path)
    ends = []
    for element in (b"first", b"second", b"third"):
        spool.append([(EID, b"record", [element])])
        ends.append(spool.pending()[0].bytes)
    abandon(spool)
    [path] = files_in(tmp_path)
    data = bytearray(path.read_bytes())
    data[ends[1] - 1] ^= 1
    path.write_bytes(data)
    [taken] = spool_in(tmp_path).take_over()
    assert [request[3] for request in read_all(taken)] == [[b"first"], [], [b"third"]]
    [aside] = (tmp_path / "spool").glob("*.damaged")
    assert aside.read_bytes() == data[ends[0] : ends[1]]
    assert "spool_damaged" in capsys.readouterr().err


def test_full_spool_refuses_until_there_is_room(tmp_path: Path) -> None:
    spool, sibling = spool_in(tmp_path, 1000), spool_in(tmp_path, 1000)
    spool.append([(EID, b"record", [b"x" * 900])])
    sibling.append([(EID, b"record", [b"x" * 100])])
    for full in (spool, sibling):
        with pytest.raises(SpoolError, match=r"spool\.max_bytes = 1000"):
            wait_until(lambda full=full: full.append([(EID, b"record", [b"x"])]), "it is full")  # sizes are 0.2 s old
    for file in spool.pending():
        spool.forget(file)
        file.remove()
    wait_until(lambda: not is_full(spool), "there is room")


def is_full(spool: Spool) -> bool:
    try:
        spool.refuse_full()
    except SpoolError:
        return True
    return False


def test_file_is_not_used_again_after_a_failed_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(SpoolError, match="Input/output error"):
        spool.append([(EID, b"record", [b"b"])])
    monkeypatch.undo()
    wait_until(lambda: not is_full(spool), "the disk is tried again")
    spool.append([(EID, b"record", [b"c"])])
    assert [read_all(file) for file in spool.pending()] == [
        [(1, EID, b"record", [b"a"])],
        [(1, EID, b"record", [b"c"])],
    ]
    assert len(files_in(tmp_path)) == 2


def test_disk_that_stays_full_costs_no_files_and_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "REFUSE_MS", 0)
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])
    monkeypatch.setattr(os, "write", lambda _descriptor, _data: 0)
    for _ in range(10):
        with pytest.raises(SpoolError, match="is full"):
            spool.append([(EID, b"record", [b"b"])])
    monkeypatch.undo()
    assert [file.path for file in spool.pending()] == files_in(tmp_path)
    assert len(files_in(tmp_path)) == 1, "only that with a request"
    spool.append([(EID, b"record", [b"c"])])
    assert [read_all(file)[0][3] for file in spool.pending()] == [[b"a"], [b"c"]]


def test_full_disk_is_said_before_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path)
    monkeypatch.setattr(os, "write", lambda _descriptor, _data: 0)
    with pytest.raises(SpoolError):
        spool.append([(EID, b"record", [b"a"])])
    assert is_full(spool), "what /ready asks"


def test_full_disk_is_said_before_anything_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else /ready would say so of the process only that has just tried, and for a second."""
    monkeypatch.setattr(spool_module, "RECOUNT_MS", 0)
    spool = spool_in(tmp_path)
    assert not is_full(spool)
    monkeypatch.setattr(spool_module, "MIN_ROOM_BYTES", 2**62)
    with pytest.raises(SpoolError, match="is full: make room"):
        spool.append([(EID, b"record", [b"a"])])
    assert is_full(spool) and not files_in(tmp_path)
    monkeypatch.undo()
    wait_until(lambda: not is_full(spool), "there is room")


def test_file_that_cannot_be_read_keeps_nobody_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = spool_in(tmp_path)
    spool.append([(EID, b"record", [b"a"])])
    abandon(spool)
    (tmp_path / "spool" / "node.1.0000.spool").symlink_to(tmp_path / "spool")  # opening it fails
    taken = spool_in(tmp_path).take_over()
    assert [read_all(file)[0][3] for file in taken] == [[b"a"]]
    assert "spool_unreadable" in capsys.readouterr().err


def test_long_spool_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 300)
    spool = spool_in(tmp_path)
    for number in range(10):
        spool.append([(EID, b"record", [b"%100d" % number])])
    assert len(files_in(tmp_path)) == 4
    elements = [element for file in spool.pending() for request in read_all(file) for element in request[3]]
    assert elements == [b"%100d" % number for number in range(10)]


# Replay


class Process:
    """What an ingest process makes of its parts, without its thread."""

    def __init__(self, url: str, folder: Path, **settings: object) -> None:
        durability = Durability(Queue(url=url, **settings))
        clock = Clock()
        self.link, self.main_link = (
            Link(url, clock, lambda: None, prove=durability.prove, reply_timeout_s=60) for _ in range(2)
        )
        self.cells = Scoreboard(1).row(0)
        self.spool = spool_in(folder)
        self.numbers = WorkerNumber(folder, KEYS, clock)
        self.numbers.renew(self.link)
        shard = ShardReplay(self.spool, self.link, self.main_link, KEYS, durability, self.cells)
        self.replay = SpoolReplay(self.spool, [shard], self.numbers)
        self.queue = SpoolingQueue(Enqueuer(self.main_link, KEYS, 1000, durability), self.spool, self.cells)

    def turns_until_empty(self) -> None:
        wait_until(lambda: not self.replay.turn(), "the spool is replayed")


@pytest.fixture(autouse=True)
def confirm_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)


def test_script_takes_each_number_once_and_none_before_its_turn(server: redis.Redis, url: str) -> None:
    wire = Wire(url, 5)
    keys = (KEYS.ready, KEYS.spooled("s"), KEYS.endpoint(EID))

    def call(number: int, *elements: bytes, record: bytes = b"record") -> int:
        return int(REPLAY_SPOOL.call(wire, keys, (number, 100, 200, record, *elements)))

    assert call(2, b"too early") == 0
    assert server.keys("*") == []
    many = [b"%d" % number for number in range(2500)]
    assert call(1, *many) == 1
    assert server.lrange(KEYS.ready, 0, -1) == many
    assert call(1, b"again") == 1
    assert call(2, b"x") == 2
    assert (server.llen(KEYS.ready), server.get(KEYS.endpoint(EID))) == (2501, b"record")
    assert 90 < server.ttl(KEYS.spooled("s")) <= 100
    assert 190 < server.ttl(KEYS.endpoint(EID)) <= 200
    with pytest.raises(Exception, match="CONFLICT"):
        call(3, b"y", record=b"other")
    assert call(3) == 3, "a number without elements is passed over"
    assert server.llen(KEYS.ready) == 2501


def test_requests_are_spooled_while_redis_is_away_and_replayed_when_it_is_back(tmp_path: Path) -> None:
    with running_server("--appendonly", "yes") as (server, url):
        process = Process(url, tmp_path)
        process.queue.enqueue(EID, b"record", [b"direct"])
        server.execute_command("CONFIG", "SET", "min-replicas-to-write", 1)  # as READONLY: certainly not run
        for number in range(200):
            process.queue.enqueue(EID, b"record", [b"%d" % number, b"+"])
        assert process.replay.turn(), "still away"
        assert process.main_link.away
        assert server.lrange(KEYS.ready, 0, -1) == [b"direct"]
        server.execute_command("CONFIG", "SET", "min-replicas-to-write", 0)
        process.turns_until_empty()
        expected = [b"direct"] + [part for number in range(200) for part in (b"%d" % number, b"+")]
        assert server.lrange(KEYS.ready, 0, -1) == expected
        process.queue.enqueue(EID, b"record", [b"direct again"])
        assert server.lindex(KEYS.ready, -1) == b"direct again"
        assert files_in(tmp_path) == []
        assert [process.cells[cell] for cell in (Cell.SPOOLED, Cell.REPLAYED, Cell.UNSURE)] == [400, 400, 0]


def test_server_that_takes_no_writes_is_away_though_nothing_is_spooled(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    """A request with an Idempotency-Key found it so: a connection alone does not bring it back."""
    process = Process(url, tmp_path)
    process.main_link.lose(OSError("READONLY"))
    server.replicaof("127.0.0.1", free_port())
    try:
        assert process.replay.turn(), "it goes on looking"
        assert process.main_link.away
    finally:
        server.replicaof("no", "one")
    assert not process.replay.turn()
    assert process.main_link.away is None


def test_files_of_an_ended_process_are_replayed_by_another(server: redis.Redis, url: str, tmp_path: Path) -> None:
    gone = spool_in(tmp_path)
    gone.append([(EID, b"record", [b"a"])])
    gone.append([(EID, b"record", [b"b"])])
    abandon(gone)
    process = Process(url, tmp_path)
    process.turns_until_empty()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"b"]
    assert server.get(KEYS.endpoint(EID)) == b"record"
    assert files_in(tmp_path) == []


def test_half_replayed_file_goes_on_where_it_was(server: redis.Redis, url: str, tmp_path: Path) -> None:
    gone = spool_in(tmp_path)
    for number in range(100):
        gone.append([(EID, b"record", [b"%d" % number])])
    stream = gone.pending()[0].stream
    abandon(gone)
    keys = (KEYS.ready, KEYS.spooled(stream), KEYS.endpoint(EID))
    for number in range(70):  # what the dead process had replayed
        REPLAY_SPOOL.call(Wire(url, 5), keys, (number + 1, 100, 200, b"record", b"%d" % number))
    Process(url, tmp_path).turns_until_empty()
    assert server.lrange(KEYS.ready, 0, -1) == [b"%d" % number for number in range(100)]


def test_server_that_lost_its_last_writes_gets_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is kept until the server's append-only file has it: here it is rolled back before that."""
    monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 3_600_000)
    with running_server("--appendonly", "yes") as (server, url):
        gone = spool_in(tmp_path)
        for number in range(100):
            gone.append([(EID, b"record", [b"%d" % number])])
        abandon(gone)
        process = Process(url, tmp_path)
        assert process.replay.turn(), "not durable yet"
        assert server.llen(KEYS.ready) == 100
        server.flushall()
        monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)
        process.turns_until_empty()
        assert server.lrange(KEYS.ready, 0, -1) == [b"%d" % number for number in range(100)]
        assert server.get(KEYS.endpoint(EID)) == b"record"


def test_lost_scripts_are_loaded_again(server: redis.Redis, url: str, tmp_path: Path) -> None:
    process = Process(url, tmp_path)
    process.main_link.lose(OSError("away"))
    process.queue.enqueue(EID, b"record", [b"a"])
    process.turns_until_empty()
    server.script_flush()
    process.main_link.lose(OSError("away"))
    process.queue.enqueue(EID, b"record", [b"b"])
    process.turns_until_empty()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"b"]


def test_conflicting_record_is_set_aside_and_the_rest_goes_on(server: redis.Redis, url: str, tmp_path: Path) -> None:
    process = Process(url, tmp_path)
    process.main_link.lose(OSError("away"))
    process.queue.enqueue(EID, b"record", [b"a"])
    process.queue.enqueue(OTHER, b"record", [b"b"])
    process.queue.enqueue(EID, b"record", [b"c"])
    server.set(KEYS.endpoint(OTHER), b"other content")
    process.turns_until_empty()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a", b"c"]
    [aside] = (tmp_path / "spool").glob("*.damaged")
    assert b"b" in aside.read_bytes()


def test_full_server_keeps_the_spool_and_requests_are_told(server: redis.Redis, url: str, tmp_path: Path) -> None:
    process = Process(url, tmp_path)
    process.main_link.lose(OSError("away"))
    process.queue.enqueue(EID, b"record", [b"a"])
    server.config_set("maxmemory", 1)
    assert process.replay.turn(), "it waits"
    assert process.main_link.away is None
    with pytest.raises(QueueFullError):
        process.queue.enqueue(EID, b"record", [b"b"])
    server.config_set("maxmemory", 0)
    process.turns_until_empty()
    assert server.lrange(KEYS.ready, 0, -1) == [b"a"]


def test_replica_level_keeps_the_file_until_replicas_have_it(tmp_path: Path) -> None:
    with running_server() as (server, url):
        process = Process(url, tmp_path, durability="replica", durability_timeout=0.05)
        process.main_link.lose(OSError("away"))
        process.queue.enqueue(EID, b"record", [b"a"])
        for _ in range(3):
            assert process.replay.turn(), "no replica has it"
        assert server.llen(KEYS.ready) == 1
        assert len(files_in(tmp_path)) == 1
        path = server.connection_pool.connection_kwargs["path"]
        port = free_port()
        server.config_set("bind", "127.0.0.1")
        server.config_set("port", port)
        assert path
        with running_server("--replicaof", f"127.0.0.1 {port}"):
            process.turns_until_empty()
        assert files_in(tmp_path) == []
        assert server.llen(KEYS.ready) == 1


def test_replica_level_sends_a_file_again_to_a_master_that_never_saw_it(tmp_path: Path) -> None:
    """Enqueued at a new master without replicas, which is deposed in its turn: lost in 7 of 17 double failovers."""
    with running_server() as (server, url):
        process = Process(url, tmp_path, durability="replica", durability_timeout=0.05)
        process.main_link.lose(OSError("away"))
        process.queue.enqueue(EID, b"record", [b"a"])
        assert process.replay.turn(), "no replica has it"
        assert server.llen(KEYS.ready) == 1
        server.flushall()  # as the next master is, for which the replica has confirmed nothing
        port = free_port()
        server.config_set("bind", "127.0.0.1")
        server.config_set("port", port)
        with running_server("--replicaof", f"127.0.0.1 {port}") as (replica, _):
            process.turns_until_empty()
            assert files_in(tmp_path) == []
            assert replica.lrange(KEYS.ready, 0, -1) == [b"a"]


def test_server_level_keeps_the_file_when_its_server_is_master_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REPLICAOF ends no connection, and a replica tells what it had as a master; what it will have, its master says."""
    with running_server("--appendonly", "yes", "--appendfsync", "everysec") as (server, url):
        process = Process(url, tmp_path)
        process.main_link.lose(OSError("away"))
        process.queue.enqueue(EID, b"record", [b"a"])
        monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 60_000)
        assert process.replay.turn(), "enqueued, and perhaps not fsynced"
        monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)
        server.replicaof("127.0.0.1", free_port())
        for _ in range(3):
            assert process.replay.turn()
        server.replicaof("no", "one")
        process.turns_until_empty()
        assert (files_in(tmp_path), server.llen(KEYS.ready)) == ([], 1)


def test_number_is_said_again_to_a_server_that_may_have_lost_it(server: redis.Redis, url: str, tmp_path: Path) -> None:
    """Within five minutes another process could be given the same, and with it the same ids."""
    process = Process(url, tmp_path)
    process.queue.enqueue(EID, b"record", [b"a"])
    [number] = server.keys("pb:num:*")
    process.replay.turn()
    server.flushall()
    process.main_link.drop()  # as a restart without its data would
    process.queue.enqueue(EID, b"record", [b"b"])
    process.replay.turn()
    assert server.keys("pb:num:*") == [number]


def test_without_redis_nothing_waits_once_it_is_known_to_be_away(tmp_path: Path) -> None:
    process = Process(f"redis://127.0.0.1:{free_port()}", tmp_path)
    process.queue.enqueue(EID, b"record", [b"a"])
    process.queue.ping()
    errors_before = process.main_link.away
    for _ in range(50):
        process.queue.enqueue(EID, b"record", [b"b"])
    assert errors_before and process.cells[Cell.SPOOLED] == 51
    assert process.replay.turn(), "and it goes on looking"
