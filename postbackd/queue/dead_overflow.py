# SPDX-License-Identifier: MIT
"""The overflow file: dead letters that the cap took out of Redis, whole, one JSON object a line.

    {"entry": "<id in the stream>", "died": "2026-…Z", "id": "<16 hex>", "reason": "…", "answer": {last log line},
     "item": "<base64>", "record": "<base64>", "shard": n (left out for 0)}

Written by the keeper (dead_keeper.py), read and given back by `postbackd dead … --overflow`. Both hold its lock.
"""

import base64
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from postbackd.clock import format_ms
from postbackd.queue.dead_letters import CALL_TIMEOUT_S, PAGE, DeadLetter, Filter, by_shard, letter_of
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import RECORD_TTL_S
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.scripts import RESTORE
from postbackd.queue.wire import Argument

NAME = "dead-overflow.jsonl"


class Line(msgspec.Struct):
    """One letter as the file keeps it; bytes are base64."""

    entry: str
    died: str
    id: str
    reason: str
    answer: msgspec.Raw
    item: bytes
    record: bytes
    shard: int = 0


@contextlib.contextmanager
def locked(path: Path, mode: str) -> Iterator[BinaryIO]:
    """The file, open and ours alone, though another may have put a new one in its place while we waited."""
    while True:
        with path.open(mode) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    yield file  # type: ignore[misc]
                    return


def append(path: Path, letters: list[DeadLetter]) -> None:
    """Write letters to the end of the file and fsync them: all of them, or an OSError and none."""
    data = b"".join(_line(letter) for letter in letters)
    with locked(path, "a+b") as file:
        end = os.fstat(file.fileno()).st_size
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":  # torn by a crash: the next letter is no part of it
            data = b"\n" + data
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise
        if end == 0:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _line(letter: DeadLetter) -> bytes:
    answer = msgspec.Raw(msgspec.json.encode(letter.line))
    entry, died = letter.entry_id.decode(), format_ms(letter.died_ms)
    item, record = base64.b64encode(letter.data), base64.b64encode(letter.record)
    line = {"entry": entry, "died": died, "id": letter.postback_id, "reason": letter.reason, "answer": answer}
    shard = {"shard": letter.shard} if letter.shard else {}
    return msgspec.json.encode({**line, "item": item.decode(), "record": record.decode(), **shard}) + b"\n"


_decode = msgspec.json.Decoder(Line).decode


def read_letter(line: bytes) -> DeadLetter | None:
    """The letter of a line; None for a line that is none (a crash while it was written)."""
    try:
        kept = _decode(line)
    except msgspec.DecodeError:
        return None
    answer = bytes(kept.answer)
    return letter_of(kept.entry.encode(), kept.item, kept.record, kept.reason, answer, kept.shard)


class OverflowLetters:
    """The letters of the file, to be listed and replayed as those of the stream (`DeadLetters`)."""

    def __init__(self, path: Path, url: str, prefix: str, shards: int, durability: Durability) -> None:
        self._path = path
        self._durability = durability
        self._shards = [(route_to(url).open(n, CALL_TIMEOUT_S), Keys(prefix, n)) for n in range(shards)]
        self._replayed: set[tuple[int, bytes]] = set()

    def now_ms(self) -> int:
        """The server's clock, by which they died."""
        return self._shards[0][0].server_ms()

    def count(self) -> int:
        """All of them."""
        try:
            with self._path.open("rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return 0

    def pages(self, wanted: Filter) -> Iterator[tuple[int, list[DeadLetter]]]:
        """Page after page: how many were looked at, and those that are meant."""
        try:
            with self._path.open("rb") as file:
                lines: list[bytes] = []
                for line in file:
                    lines.append(line)
                    if len(lines) == PAGE:
                        yield _page(lines, wanted)
                        lines = []
                yield _page(lines, wanted)
        except FileNotFoundError:
            return

    def replay(self, letters: list[DeadLetter]) -> int:
        """Give them back to ready, a page at most; how many went now. Twice does no harm."""
        count = sum(self._restore(shard, part) for shard, part in by_shard(letters, len(self._shards)))
        self._replayed |= {(letter.shard, letter.entry_id) for letter in letters}
        return count

    def _restore(self, shard: int, letters: list[DeadLetter]) -> int:
        wire, names = self._shards[shard]
        keys = [names.dead, names.ready, names.restored]
        arguments: list[Argument] = [RECORD_TTL_S]
        for letter in letters:
            number = 0
            if letter.item is not None and letter.record:
                key = names.endpoint(letter.item.endpoint_id)
                if key not in keys[3:]:
                    keys.append(key)
                number = keys.index(key, 3) - 2
            # Of a shard that is no more: its entry ids mean nothing in this one's stream, and two may be the same.
            is_own = letter.shard == shard
            mark = letter.entry_id if is_own else b"%d:%b" % (letter.shard, letter.entry_id)
            arguments += [letter.entry_id if is_own else b"", mark, letter.data, letter.record, number]
        return int(RESTORE.call(wire, keys, arguments))

    def finish(self) -> str | None:
        """Take what was replayed out of the file, once it is in Redis for good; else why it is still there.

        Left there it does no harm: it is not given back again. The connections are those that gave it back, so what
        answers on them is who has it.
        """
        if not self._replayed:
            return None
        for shard in {letter_shard % len(self._shards) for letter_shard, _ in self._replayed}:
            if fault := self._durability.wait_until_kept(self._shards[shard][0]):
                return fault
        draft = self._path.with_name(self._path.name + ".new")
        with locked(self._path, "rb") as file, draft.open("wb") as kept:
            for line in file:
                letter = read_letter(line)
                if letter is None or (letter.shard, letter.entry_id) not in self._replayed:
                    kept.write(line)
            kept.flush()
            os.fsync(kept.fileno())
            draft.replace(self._path)
        return None


def _page(lines: list[bytes], wanted: Filter) -> tuple[int, list[DeadLetter]]:
    letters = [letter for line in lines if (letter := read_letter(line)) is not None]
    since_ms = wanted.since_ms or 0
    return len(lines), [letter for letter in letters if letter.died_ms >= since_ms and wanted.matches(letter)]
