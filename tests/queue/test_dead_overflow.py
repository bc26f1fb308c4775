# SPDX-License-Identifier: MIT
"""The cap of the dead stream: what it moves to the overflow file, whole, and how that is given back."""

import errno
import json
import os
from pathlib import Path

import pytest
import redis

from postbackd.codec import decode_item
from postbackd.queue import durability
from postbackd.queue.dead_keeper import DeadKeeper
from postbackd.queue.dead_letters import DeadLetters, Filter
from postbackd.queue.dead_overflow import NAME, OverflowLetters
from postbackd.queue.durability import Durability
from postbackd.queue.wire import Wire
from postbackd.settings import Dead, Queue
from postbackd.tools.dead import as_object, replay_letters
from tests.queue.test_dead_letters import ALL, EID, KEYS, RECORD, die, ids
from tests.support.daemon import free_port, wait_until
from tests.support.servers import running_server

FOREVER_S = 10_000_000_000.0


def keeper(url: str, folder: Path, max_count: int = 1000, max_age: float = FOREVER_S) -> DeadKeeper:
    return DeadKeeper(url, KEYS, folder, Dead(max_count=max_count, max_age=max_age))


def overflow_of(folder: Path, url: str, **settings: object) -> OverflowLetters:
    return OverflowLetters(folder / NAME, url, "pb", 1, Durability(Queue(url=url, **settings)))


def test_oldest_beyond_the_count_move_whole(server: redis.Redis, url: str, tmp_path: Path) -> None:
    died = [die(server, number) for number in range(1203)]
    [(_, page), *_] = DeadLetters(url, "pb").pages(ALL)
    before = as_object(page[0])
    assert keeper(url, tmp_path, max_count=3).keep() == 1200
    assert ids(DeadLetters(url, "pb"), ALL) == died[1200:]
    subject = overflow_of(tmp_path, url)
    assert ids(subject, ALL) == died[:1200]
    assert subject.count() == 1200
    [(_, page), *_] = subject.pages(ALL)
    assert as_object(page[0]) == before, "whole: as it stood in the stream"
    assert server.hget(KEYS.stats, "overflowed") == b"1200"


def test_those_past_their_age_move_whatever_their_number(server: redis.Redis, url: str, tmp_path: Path) -> None:
    old = die(server, 1)  # 1.001 s after 1970
    item = server.xrange(KEYS.dead)[0][1][b"item"]
    server.xadd(KEYS.dead, {"item": item, "record": RECORD, "reason": "expired", "answer": b"{}"})
    assert keeper(url, tmp_path, max_age=3600).keep() == 1
    assert server.xlen(KEYS.dead) == 1
    assert ids(overflow_of(tmp_path, url), ALL) == [old]


def test_within_the_cap_nothing_moves_and_there_is_no_file(server: redis.Redis, url: str, tmp_path: Path) -> None:
    die(server, 1)
    assert keeper(url, tmp_path).keep() == 0
    assert list(tmp_path.iterdir()) == []
    assert overflow_of(tmp_path, url).count() == 0


def test_one_keeper_a_minute(server: redis.Redis, url: str, tmp_path: Path) -> None:
    for number in range(2):
        die(server, number)
    before_s = server.time()[0]
    assert keeper(url, tmp_path, max_count=1).keep() == 1
    after_s = server.time()[0]
    die(server, 2)
    assert keeper(url, tmp_path, max_count=1).keep() == 0
    assert before_s + 55 <= server.expiretime(KEYS.dead_turn) <= after_s + 56, "rounded up or down to seconds"


def test_full_disk_leaves_them_in_redis(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        die(server, number)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert keeper(url, tmp_path, max_count=1).keep() == 0
    assert server.xlen(KEYS.dead) == 2
    assert (tmp_path / NAME).read_bytes() == b"", "nothing half written"
    assert "No space left on device" in capsys.readouterr().err


def test_replay_gives_each_back_once_and_takes_it_out_of_the_file(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    died = [die(server, number) for number in range(4)]
    keeper(url, tmp_path, max_count=0 + 1).keep()
    subject = overflow_of(tmp_path, url)
    [(_, letters)] = subject.pages(ALL)
    assert subject.replay(letters[:2]) == 2  # and then it is interrupted
    assert replay_letters(overflow_of(tmp_path, url), Filter(), None, dry_run=False) == 0
    items = [decode_item(item) for item in server.lrange(KEYS.ready, 0, -1)]
    assert [f"{item.postback_id:016x}" for item in items] == died[:3], "each once"
    assert all(item.start_ms and not item.attempts for item in items)
    assert server.get(KEYS.endpoint(EID)) == RECORD
    assert (tmp_path / NAME).read_bytes() == b""
    assert server.xlen(KEYS.dead) == 1


def test_filtered_replay_leaves_the_others_in_the_file(server: redis.Redis, url: str, tmp_path: Path) -> None:
    kept, wanted = die(server, 1), die(server, 2, reason="expired")
    die(server, 3)
    keeper(url, tmp_path, max_count=1).keep()
    replay_letters(overflow_of(tmp_path, url), Filter(reason="expired"), None, dry_run=True)
    assert server.llen(KEYS.ready) == 0
    replay_letters(overflow_of(tmp_path, url), Filter(reason="expired"), None, dry_run=False)
    assert ids(overflow_of(tmp_path, url), ALL) == [kept]
    [item] = server.lrange(KEYS.ready, 0, -1)
    assert f"{decode_item(item).postback_id:016x}" == wanted


def test_letter_in_both_places_is_left_to_the_stream(server: redis.Redis, url: str, tmp_path: Path) -> None:
    """As after a crash between writing the file and deleting the entry."""
    for number in range(2):
        die(server, number)
    [(entry_id, fields)] = server.xrange(KEYS.dead, count=1)
    keeper(url, tmp_path, max_count=1).keep()
    server.delete(KEYS.dead)
    server.xadd(KEYS.dead, fields, id=entry_id)
    subject = overflow_of(tmp_path, url)
    [(_, letters)] = subject.pages(ALL)
    assert subject.replay(letters) == 0
    assert server.llen(KEYS.ready) == 0


def test_torn_line_is_passed_over(server: redis.Redis, url: str, tmp_path: Path) -> None:
    first = die(server, 1)
    die(server, 2)
    keeper(url, tmp_path, max_count=1).keep()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"entry": "7-0", "died"')
    subject = overflow_of(tmp_path, url)
    assert ids(subject, ALL) == [first]
    assert json.loads((tmp_path / NAME).read_bytes().splitlines()[0])["id"] == first


def test_letter_behind_a_torn_line_is_no_part_of_it(server: redis.Redis, url: str, tmp_path: Path) -> None:
    """Of a keeper that was killed while it wrote: what the next one moved stood on the same line, read by nobody."""
    died = [die(server, number) for number in range(2)]
    (tmp_path / NAME).write_bytes(b'{"entry": "7-0", "died"')
    assert keeper(url, tmp_path, max_count=1).keep() == 1
    assert ids(overflow_of(tmp_path, url), ALL) == died[:1]


def test_letters_stay_in_the_file_until_replicas_have_them(
    server: redis.Redis, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are nowhere else once they are out of it: what had them alone, a master without replicas, may be deposed."""
    died = [die(server, number) for number in range(3)]
    keeper(url, tmp_path, max_count=1).keep()
    settings = {"durability": "replica", "durability_timeout": 0.05}
    assert replay_letters(overflow_of(tmp_path, url, **settings), Filter(), None, dry_run=False) == 1
    assert "0 of 1 replicas have them" in capsys.readouterr().err
    assert ids(overflow_of(tmp_path, url), ALL) == died[:2]
    port = free_port()
    server.config_set("bind", "127.0.0.1")
    server.config_set("port", port)
    try:
        with running_server("--replicaof", f"127.0.0.1 {port}") as (replica, _):
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica is in step")
            settings["durability_timeout"] = 20
            assert replay_letters(overflow_of(tmp_path, url, **settings), Filter(), None, dry_run=False) == 0
            assert replica.llen(KEYS.ready) == 2, "each once"
    finally:
        server.config_set("port", 0)
    assert (tmp_path / NAME).read_bytes() == b""


def test_letters_stay_in_the_file_until_they_are_fsynced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At everysec a power cut of the server would take what is in no file any more."""
    monkeypatch.setattr(durability, "FSYNC_AFTER_S", 0.01)
    monkeypatch.setattr(durability, "LONGEST_FSYNC_S", 0)
    with running_server("--appendonly", "yes", "--appendfsync", "everysec") as (server, url):
        for number in range(2):
            die(server, number)
        keeper(url, tmp_path, max_count=1).keep()
        subject = overflow_of(tmp_path, url)
        for state, fault in (("pending", "look at its disk"), ("done", None)):
            monkeypatch.setattr(durability, "fsync_state", lambda _wire, state=state: state)
            for _, page in subject.pages(ALL):
                subject.replay(page)
            found = subject.finish()
            assert found is None if fault is None else fault in (found or "")
            assert subject.count() == (0 if fault is None else 1)


def test_states_of_an_append_only_file(server: redis.Redis, url: str) -> None:
    assert durability.fsync_state(Wire(url, 5)) == "none"
    with running_server("--appendonly", "yes", "--appendfsync", "everysec") as (_, every_second):
        wait_until(lambda: durability.fsync_state(Wire(every_second, 5)) == "done", "nothing is to be fsynced")
