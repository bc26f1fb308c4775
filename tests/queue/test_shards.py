# SPDX-License-Identifier: MIT
"""Several shards: requests spread over them, each whole at one; what is away or full is passed over."""

from pathlib import Path

import pytest
import redis

from postbackd.clock import Clock
from postbackd.codec import EPOCH_MS
from postbackd.endpoint import compile_endpoint
from postbackd.errors import QueueFullError, QueueUnavailableError, SpoolError
from postbackd.queue import shard_replay
from postbackd.queue.dead_keeper import DeadKeeper
from postbackd.queue.dead_letters import DeadLetters, Filter
from postbackd.queue.dead_overflow import NAME, OverflowLetters
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.find import Finder
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.shard_replay import ShardReplay
from postbackd.queue.spool import Spool
from postbackd.queue.spool_replay import SpoolReplay
from postbackd.queue.spooling import ShardedQueue, SpoolingQueue
from postbackd.queue.worker_number import WorkerNumber
from postbackd.scoreboard import Cell, Scoreboard
from postbackd.settings import Dead, Queue
from tests.support.daemon import free_port

EID, RECORD = bytes(8), b"record"
ALL = Filter()


class Ingest:
    """What an ingest process makes of its parts; a shard's link can be made to lead nowhere."""

    def __init__(self, url: str, folder: Path, shards: int, away: tuple[int, ...] = (), max_depth: int = 1000) -> None:
        clock, durability = Clock(), Durability(Queue(url=url))
        self.cells = Scoreboard(1).row(0)
        self.spool = Spool(folder / "spool", "node.0", 1_000_000)
        nowhere = f"redis://127.0.0.1:{free_port()}"
        self.links, replays, queues = [], [], []
        for shard in range(shards):
            place = nowhere if shard in away else url
            link, main_link = (Link(place, clock, lambda: None, shard=shard) for _ in range(2))
            keys = Keys("pb", shard)
            queues.append(
                SpoolingQueue(Enqueuer(main_link, keys, max_depth, durability), self.spool, self.cells, shard)
            )
            replays.append(ShardReplay(self.spool, link, main_link, keys, durability, self.cells, shards))
            self.links.append(main_link)
        self.queue = ShardedQueue(queues)
        numbers = WorkerNumber(folder, Keys("pb"), clock)
        self.replay = SpoolReplay(self.spool, replays, numbers)


def depths(server: redis.Redis, shards: int) -> list[int]:
    return [server.llen(Keys("pb", shard).ready) for shard in range(shards)]


def test_requests_are_spread_evenly_and_each_is_whole_at_one_shard(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    ingest = Ingest(url, tmp_path, 4)
    for number in range(40):
        ingest.queue.enqueue(EID, RECORD, [b"%da" % number, b"%db" % number])
    assert depths(server, 4) == [20] * 4
    for shard in range(4):
        keys = Keys("pb", shard)
        assert server.get(keys.endpoint(EID)) == RECORD, "where its elements are"
        items = server.lrange(keys.ready, 0, -1)
        assert [item[:-1] for item in items[::2]] == [item[:-1] for item in items[1::2]]


def test_shard_that_is_away_gets_nothing_new(server: redis.Redis, url: str, tmp_path: Path) -> None:
    ingest = Ingest(url, tmp_path, 3, away=(1,))
    for number in range(30):
        ingest.queue.enqueue(EID, RECORD, [b"%d" % number])
    spooled = [file.shard for file in ingest.spool.pending()]
    assert spooled == [1], "the request that found it away waits for it"
    assert ingest.cells[Cell.SPOOLED] == 1
    assert sum(depths(server, 3)) == 29 and depths(server, 3)[1] == 0
    ingest.queue.ping()


def test_all_away_spools_for_every_shard_and_each_gets_its_own(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)
    ingest = Ingest(url, tmp_path, 3, away=(0, 1, 2))
    for number in range(9):
        ingest.queue.enqueue(EID, RECORD, [b"%d" % number])
    assert sorted(file.shard for file in ingest.spool.pending()) == [0, 1, 2]
    for file in ingest.spool.pending():
        file.close()
    later = Ingest(url, tmp_path, 3)
    while later.replay.turn():
        continue
    assert depths(server, 3) == [3, 3, 3]
    assert not list((tmp_path / "spool").glob("*.spool"))


def test_spool_of_a_shard_that_is_no_more_goes_to_one_that_is(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)
    spool = Spool(tmp_path / "spool", "node.0", 1_000_000)
    spool.append([(EID, RECORD, [b"a"])], 5)
    spool.pending()[0].close()
    later = Ingest(url, tmp_path, 2)
    while later.replay.turn():
        continue
    assert depths(server, 2) == [0, 1]


def test_replay_of_one_shard_does_not_wait_for_another(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_replay, "CONFIRM_AFTER_MS", 0)
    spool = Spool(tmp_path / "spool", "node.0", 1_000_000)
    for shard in range(3):
        spool.append([(EID, RECORD, [b"a"])], shard)
    for file in spool.pending():
        file.close()
    later = Ingest(url, tmp_path, 3, away=(0,))
    assert later.replay.turn(), "one waits"
    later.replay.turn()
    assert depths(server, 3) == [0, 1, 1]
    assert [file.shard for file in later.spool.pending()] == [0]


def test_full_shard_is_passed_over_until_all_are_full(server: redis.Redis, url: str, tmp_path: Path) -> None:
    ingest = Ingest(url, tmp_path, 2, max_depth=5)
    server.rpush(Keys("pb", 0).ready, *[b"x"] * 10)
    for number in range(7):
        ingest.queue.enqueue(EID, RECORD, [b"%d" % number])
    assert depths(server, 2)[1] >= 6
    with pytest.raises(QueueFullError, match="max_depth"):
        for number in range(7):
            ingest.queue.enqueue(EID, RECORD, [b"%d" % number])
    assert ingest.cells[Cell.SPOOLED] == 0, "a full queue is not spooled"


def test_key_has_its_shard_and_no_other(server: redis.Redis, url: str, tmp_path: Path) -> None:
    ingest = Ingest(url, tmp_path, 4, away=(2,))
    for shard in (0, 1, 3):
        key = shard.to_bytes(8, "big") + bytes(8)
        for _ in range(3):
            assert ingest.queue.enqueue_once(key, b"h", b"idididid", EID, RECORD, [b"a"]) == b"idididid"
        assert server.get(Keys("pb", shard).once(key)) is not None
    with pytest.raises(QueueUnavailableError):
        ingest.queue.enqueue_once((6).to_bytes(8, "big") + bytes(8), b"h", b"idididid", EID, RECORD, [b"a"])
    assert depths(server, 4) == [1, 1, 0, 1]
    assert ingest.spool.pending() == [], "never spooled"


def test_ping_needs_one_that_can_take_a_request(tmp_path: Path) -> None:
    ingest = Ingest("unix:///nowhere", tmp_path, 2)
    ingest.queue.ping()  # the spool can
    ingest.spool._max_bytes = 0
    with pytest.raises(SpoolError):
        ingest.queue.ping()


# Dead letters, find


def element(number: int) -> tuple[bytes, bytes, bytes]:
    endpoint = compile_endpoint(
        b'{"method":"GET","url":"http://h/{k}"}', default="", unmatched="empty", allow_host=False, schemes=["http"]
    )
    return endpoint.id, endpoint.record, endpoint.encode((EPOCH_MS + number) << 22, {"k": number}, 0, None)


def die(server: redis.Redis, shard: int, number: int, died_ms: int) -> str:
    """A dead letter of a shard; the ids of entries may be the same in several shards."""
    _, record, item = element(number)
    fields = {"item": item, "record": record, "reason": "refused_status", "answer": b"{}"}
    server.xadd(Keys("pb", shard).dead, fields, id=f"{died_ms}-0")
    return f"{(EPOCH_MS + number) << 22:016x}"


def overflow_of(folder: Path, url: str, shards: int) -> OverflowLetters:
    return OverflowLetters(folder / NAME, url, "pb", shards, Durability(Queue()))


def listed(letters: DeadLetters | OverflowLetters) -> list[str]:
    return [letter.postback_id for _, page in letters.pages(ALL) for letter in page]


def test_dead_letters_of_all_shards_are_one_list_by_age(server: redis.Redis, url: str) -> None:
    ids = [die(server, number % 3, number, 1000 + number // 2) for number in range(12)]
    letters = DeadLetters(url, "pb", 3)
    assert letters.count() == 12
    found = [(letter.died_ms, letter.postback_id) for _, page in letters.pages(ALL) for letter in page]
    assert [died_ms for died_ms, _ in found] == sorted(died_ms for died_ms, _ in found)
    assert sorted(postback_id for _, postback_id in found) == sorted(ids)


def test_dead_letters_go_back_to_their_own_shards(server: redis.Redis, url: str) -> None:
    for number in range(6):
        die(server, number % 3, number, 1000 + number)
    letters = DeadLetters(url, "pb", 3)
    [(_, page)] = letters.pages(ALL)
    assert letters.replay(page) == 6
    assert (letters.count(), depths(server, 3)) == (0, [2, 2, 2])
    for shard in range(3):
        assert server.get(Keys("pb", shard).endpoint(element(0)[0])) == element(0)[1]


def test_overflow_remembers_the_shard(server: redis.Redis, url: str, tmp_path: Path) -> None:
    ids = [die(server, shard, shard, 1000) for shard in range(3)]  # the same entry id in each
    for shard in range(3):
        keeper = DeadKeeper(url, Keys("pb", shard), tmp_path, Dead(max_count=1, max_age=1), 3)
        assert keeper.keep() == 1
    letters = overflow_of(tmp_path, url, 3)
    assert sorted(listed(letters)) == sorted(ids)
    for _, page in letters.pages(ALL):
        assert letters.replay(page) == 3
        assert letters.replay(page) == 0, "twice does no harm"
    assert depths(server, 3) == [1, 1, 1]
    letters.finish()
    assert listed(letters) == []


def test_overflow_of_shards_that_are_no_more_is_given_back_whole(server: redis.Redis, url: str, tmp_path: Path) -> None:
    """Entries of several streams may have the same id: all but one were taken for given back, and out of the file."""
    ids = [die(server, shard, shard, 1000) for shard in range(3)]
    for shard in range(3):
        assert DeadKeeper(url, Keys("pb", shard), tmp_path, Dead(max_count=1, max_age=1), 3).keep() == 1
    server.delete(Keys("pb").dead)
    server.xadd(
        Keys("pb").dead, {"item": element(9)[2], "record": b"", "reason": "expired", "answer": b"{}"}, id="1000-0"
    )
    letters = overflow_of(tmp_path, url, 1)
    assert sorted(listed(letters)) == sorted(ids)
    for _, page in letters.pages(ALL):
        assert letters.replay(page) == 2, "that of shard 0 still stands in its stream, as far as its id tells"
        assert letters.replay(page) == 0, "twice does no harm"
    letters.finish()
    assert (depths(server, 1), listed(letters)) == ([2], [])


def test_postback_is_found_in_any_shard(server: redis.Redis, url: str) -> None:
    endpoint_id, record, item = element(7)
    server.rpush(Keys("pb", 2).ready, item)
    server.set(Keys("pb", 2).endpoint(endpoint_id), record)
    finder = Finder(url, "pb", 3)
    found = finder.find((EPOCH_MS + 7) << 22, lambda _count: None)
    assert found is not None and found.place == "ready"
    assert finder.record(endpoint_id) == record
    assert finder.waiting() == 1
