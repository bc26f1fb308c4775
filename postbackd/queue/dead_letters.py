# SPDX-License-Identifier: MIT
"""Dead letters: read them, give them back to ready, or purge them (QUEUE.md, "replay from dead").

For the command line: one connection, page after page, oldest first. An entry keeps the item with its whole trail, the
endpoint record, the reason, and the last answer, which is the line of the delivery log.
"""

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from postbackd.codec import CodecError, Item, accept_ms, decode_item, format_id, parse_id
from postbackd.queue.enqueuer import RECORD_TTL_S
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.scripts import REPLAY
from postbackd.queue.wire import Wire
from postbackd.url import is_same_host

PAGE = 500
CALL_TIMEOUT_S = 30.0
SKEW_MS = 3_600_000  # more than the clock of ids and the server's may differ


class DeadLetter(NamedTuple):
    """One entry of the stream."""

    entry_id: bytes
    died_ms: int
    reason: str
    line: dict[str, Any]  # the last line of the delivery log
    item: Item | None  # None where the bytes are no item
    record: bytes
    data: bytes  # the item's bytes
    shard: int = 0

    @property
    def postback_id(self) -> str:
        """The id as users know it; empty where the bytes are no item."""
        return "" if self.item is None else format_id(self.item.postback_id)

    @property
    def endpoint(self) -> str:
        """The endpoint's digest, 16 hex."""
        return "" if self.item is None else self.item.endpoint_id.hex()

    @property
    def accepted_ms(self) -> int | None:
        """When ingest took it."""
        return None if self.item is None else accept_ms(self.item.postback_id)

    @property
    def attempts(self) -> list[tuple[int, int]]:
        """When each attempt ended, and its code: the answer's status or, below 100, an ErrorClass."""
        return [] if self.item is None else list(self.item.attempts)


class Filter(msgspec.Struct, frozen=True):
    """Which dead letters are meant; what is None does not matter."""

    host: str | None = None
    endpoint: str | None = None
    reason: str | None = None
    postback_id: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def from_ms(self) -> int | None:
        """No letter that is meant died before; None: who knows. One of an id cannot have died before its acceptance."""
        if self.postback_id is None:
            return self.since_ms
        return max(accept_ms(parse_id(self.postback_id)) - SKEW_MS, self.since_ms or 0)

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a dead letter is meant."""
        return (
            (self.host is None or is_same_host(self.host, str(letter.line.get("host"))))
            and (self.endpoint is None or letter.endpoint == self.endpoint)
            and (self.reason is None or letter.reason == self.reason)
            and (self.postback_id is None or letter.postback_id == self.postback_id)
            and (self.until_ms is None or letter.died_ms < self.until_ms)
        )


class DeadLetters:
    """The dead streams of one queue, one a shard. Every method raises QueueUnavailableError."""

    def __init__(self, url: str, prefix: str, shards: int = 1) -> None:
        self._shards = [_Shard(route_to(url).open(n, CALL_TIMEOUT_S), Keys(prefix, n)) for n in range(shards)]

    def close(self) -> None:
        for shard in self._shards:
            shard.wire.close()

    def now_ms(self) -> int:
        """The server's clock, by which they died."""
        return self._shards[0].wire.server_ms()

    def count(self) -> int:
        """All of them."""
        return sum(int(shard.wire.call("XLEN", shard.keys.dead)) for shard in self._shards)

    def pages(self, wanted: Filter) -> Iterator[tuple[int, list[DeadLetter]]]:
        """Page after page: how many were looked at, and those that are meant. Entries may go meanwhile."""
        start = b"-" if wanted.from_ms is None else b"%d" % wanted.from_ms
        letters = heapq.merge(*(shard.letters(start) for shard in self._shards), key=lambda letter: letter.died_ms)
        while page := list(itertools.islice(letters, PAGE)):
            yield len(page), [letter for letter in page if wanted.matches(letter)]

    def replay(self, letters: list[DeadLetter]) -> int:
        """Give them back to ready, a page at most; how many were still dead. Twice does no harm."""
        return sum(self._shards[shard].replay(part) for shard, part in by_shard(letters, len(self._shards)))

    def finish(self) -> str | None:
        """Nothing is left to do once all pages are replayed: each moved within Redis."""
        return None

    def purge(self, letters: list[DeadLetter]) -> int:
        """Delete them for ever, counted in the queue's stats; how many were still there."""
        return sum(self._shards[shard].purge(part) for shard, part in by_shard(letters, len(self._shards)))


class _Shard(NamedTuple):
    """One stream and the way to it."""

    wire: Wire
    keys: Keys

    def letters(self, start: bytes) -> Iterator[DeadLetter]:
        """All of them, oldest first, read page by page."""
        while True:
            entries = self.wire.call("XRANGE", self.keys.dead, start, "+", "COUNT", PAGE)
            for entry_id, fields in entries:
                yield letter_of_entry(entry_id, fields, self.keys.shard)
            if len(entries) < PAGE:
                return
            start = b"(" + entries[-1][0]

    def replay(self, letters: list[DeadLetter]) -> int:
        keys = [self.keys.dead, self.keys.ready]
        arguments: list[bytes | int] = [RECORD_TTL_S]
        for letter in letters:
            number = 0
            if letter.item is not None and letter.record:
                key = self.keys.endpoint(letter.item.endpoint_id)
                if key not in keys[2:]:
                    keys.append(key)
                number = keys.index(key, 2) - 1
            arguments += [letter.entry_id, number]
        return int(REPLAY.call(self.wire, keys, arguments))

    def purge(self, letters: list[DeadLetter]) -> int:
        count = int(self.wire.call("XDEL", self.keys.dead, *(letter.entry_id for letter in letters)))
        self.wire.call("HINCRBY", self.keys.stats, "purged", count)
        return count


def by_shard(letters: list[DeadLetter], shards: int) -> Iterator[tuple[int, list[DeadLetter]]]:
    """The letters of each shard that has some; those of a shard that is no more count for one that is."""
    for shard in range(shards):
        if part := [letter for letter in letters if letter.shard % shards == shard]:
            yield shard, part


def letter_of_entry(entry_id: bytes, fields: list[bytes], shard: int = 0) -> DeadLetter:
    """The letter of an entry of the stream, as XRANGE replies it."""
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    reason = values[b"reason"].decode()
    return letter_of(entry_id, values[b"item"], values[b"record"], reason, values[b"answer"], shard)


def letter_of(entry_id: bytes, data: bytes, record: bytes, reason: str, answer: bytes, shard: int = 0) -> DeadLetter:
    """A letter of its parts."""
    try:
        item: Item | None = decode_item(data)
    except CodecError:
        item = None
    try:
        line = msgspec.json.decode(answer)
    except msgspec.DecodeError:  # cut at its limit of bytes
        line = {}
    return DeadLetter(entry_id, int(entry_id.partition(b"-")[0]), reason, line, item, record, data, shard)
