# SPDX-License-Identifier: MIT
"""The cap of the dead stream: what it moves to the overflow file, whole, and how that is given back."""

import errno
import json
import os
from pathlib import Path

import pytest
import redis

from postbackd.codec import decode_item
from postbackd.queue.dead_keeper import DeadKeeper
from postbackd.queue.dead_letters import DeadLetters, Filter
from postbackd.queue.dead_overflow import NAME, OverflowLetters
from postbackd.settings import Dead
from postbackd.tools.dead import as_object, replay_letters
from tests.queue.test_dead_letters import ALL, EID, KEYS, RECORD, die, ids

FOREVER_S = 10_000_000_000.0


def keeper(url: str, folder: Path, max_count: int = 1000, max_age: float = FOREVER_S) -> DeadKeeper:
    return DeadKeeper(url, KEYS, folder, Dead(max_count=max_count, max_age=max_age))


def overflow_of(folder: Path, url: str) -> OverflowLetters:
    return OverflowLetters(folder / NAME, url, "pb")


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
    assert keeper(url, tmp_path, max_count=1).keep() == 1
    die(server, 2)
    assert keeper(url, tmp_path, max_count=1).keep() == 0
    assert 50 < server.ttl(KEYS.dead_turn) <= 55


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
