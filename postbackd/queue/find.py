# SPDX-License-Identifier: MIT
"""Where is one postback? Looks through every place of the queue; read-only, page after page.

The places of QUEUE.md: ready and wake, a worker's lease, later, dead. Items are found by the bytes of their id, so
ready and later are read as a whole: some 100 ms per 100,000 waiting postbacks.
"""

import struct
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from postbackd.codec import CodecError, Item, accept_ms, decode_item
from postbackd.errors import QueueUnavailableError
from postbackd.queue.dead_letters import DeadLetter, letter_of_entry
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.wire import Wire

PAGE = 2000
ID_MARK = b"\xcf"  # msgpack's uint64
PARKED = 0.5  # of a millisecond, in the due time of what its host could not take; see lua/recall.lua
CALL_TIMEOUT_S = 30.0


class Found(NamedTuple):
    """An item and where it is: ready, leased, later or dead."""

    place: str
    item: Item
    due_ms: int | None = None  # of later
    is_parked: bool = False  # later until its host has room, or sooner; else at its own time
    worker: str | None = None  # of leased
    letter: DeadLetter | None = None  # of dead


class Finder:
    """Looks for one postback in all shards of a queue. One that is away is passed over, and said if need be."""

    def __init__(self, url: str, prefix: str, shards: int = 1) -> None:
        """Connect; raises QueueUnavailableError when no shard can be looked through."""
        self._shards: list[_ShardFinder] = []
        self._away: QueueUnavailableError | None = None
        for shard in range(shards):
            try:
                self._shards.append(_ShardFinder(route_to(url).open(shard, CALL_TIMEOUT_S), Keys(prefix, shard)))
            except QueueUnavailableError as error:
                self._away = error
        if self._away is not None and not self._shards:
            raise self._away

    def close(self) -> None:
        for shard in self._shards:
            shard.wire.close()

    def waiting(self) -> int:
        """How many items there are to look through; raises QueueUnavailableError."""
        return sum(shard.waiting() for shard in self._shards)

    def find(self, postback_id: int, advance: Callable[[int], None]) -> Found | None:
        """The postback, or None; raises QueueUnavailableError when it may be where nobody could look."""
        for shard in self._shards:
            found = shard.find(postback_id, advance)
            if found is not None:
                return found
        if self._away is not None:
            raise self._away
        return None

    def places(self, postback_ids: Iterable[int], advance: Callable[[int], None]) -> dict[int, str]:
        """Where those of them are that are anywhere, all in one pass; one that is in no place is not in the answer.
        Raises QueueUnavailableError when it may be where nobody could look."""
        wanted, found = set(postback_ids), dict[int, str]()
        for shard in self._shards:
            for _ in range(2):  # as `find`
                if wanted := wanted - found.keys():
                    shard.places(wanted, found, advance)
        if wanted - found.keys() and self._away is not None:
            raise self._away
        return found

    def record(self, endpoint_id: bytes) -> bytes | None:
        """The stored record of an endpoint; raises QueueUnavailableError."""
        for shard in self._shards:
            reply: bytes | None = shard.wire.call("GET", shard.keys.endpoint(endpoint_id))
            if reply is not None:
                return reply
        return None


class _ShardFinder:
    """Looks through one shard; every method raises QueueUnavailableError."""

    def __init__(self, wire: Wire, keys: Keys) -> None:
        self.wire = wire
        self.keys = keys

    def waiting(self) -> int:
        return int(self.wire.call("LLEN", self.keys.ready)) + int(self.wire.call("ZCARD", self.keys.later))

    def find(self, postback_id: int, advance: Callable[[int], None]) -> Found | None:
        """Looked for twice, since it may move from a place not read yet to one read before."""
        for _ in range(2):
            for place in (self._dead, self._leased, self._later, self._ready):
                found = place(postback_id, advance)
                if found is not None:
                    return found
        return None

    def places(self, wanted: set[int], found: dict[int, str], advance: Callable[[int], None]) -> None:
        """Add the places of those that are here to `found`."""
        for letter in self._letters(min(wanted)):
            if letter.item is not None and letter.item.postback_id in wanted:
                found[letter.item.postback_id] = "dead"
        for place, items in (("leased", self._lease_items()), ("later", self._later_items(advance))):
            _note(items, place, wanted, found)
        for key in (self.keys.wake, self.keys.ready):
            for page in self._pages(key):
                _note(page, "ready", wanted, found)
                advance(len(page))

    def _letters(self, oldest: int) -> Iterator[DeadLetter]:
        """Those that cannot have died before this id was accepted."""
        start = b"%d" % accept_ms(oldest)
        while entries := self.wire.call("XRANGE", self.keys.dead, start, "+", "COUNT", PAGE):
            for entry_id, fields in entries:
                yield letter_of_entry(entry_id, fields, self.keys.shard)
            start = b"(" + entries[-1][0]

    def _lease_items(self) -> Iterator[bytes]:
        for worker in self.wire.call("ZRANGE", self.keys.workers, 0, -1):
            yield from self.wire.call("HVALS", self.keys.lease(worker.decode()))

    def _later_items(self, advance: Callable[[int], None]) -> Iterator[bytes]:
        cursor = b"0"
        while True:
            cursor, pairs = self.wire.call("ZSCAN", self.keys.later, cursor, "COUNT", PAGE)
            yield from pairs[::2]
            advance(len(pairs) // 2)
            if cursor == b"0":
                return

    def _dead(self, postback_id: int, _advance: Callable[[int], None]) -> Found | None:
        for letter in self._letters(postback_id):
            if letter.item is not None and letter.item.postback_id == postback_id:
                return Found("dead", letter.item, letter=letter)
        return None

    def _leased(self, postback_id: int, _advance: Callable[[int], None]) -> Found | None:
        for worker in self.wire.call("ZRANGE", self.keys.workers, 0, -1):
            for item in self.wire.call("HVALS", self.keys.lease(worker.decode())):
                if (decoded := _match(item, postback_id)) is not None:
                    return Found("leased", decoded, worker=worker.decode())
        return None

    def _later(self, postback_id: int, advance: Callable[[int], None]) -> Found | None:
        cursor = b"0"
        while True:
            cursor, pairs = self.wire.call("ZSCAN", self.keys.later, cursor, "COUNT", PAGE)
            for item, due_ms in zip(pairs[::2], pairs[1::2], strict=True):
                if (decoded := _match(item, postback_id)) is not None:
                    due = float(due_ms)
                    return Found("later", decoded, due_ms=int(due), is_parked=due % 1 == PARKED)
            advance(len(pairs) // 2)
            if cursor == b"0":
                return None

    def _ready(self, postback_id: int, advance: Callable[[int], None]) -> Found | None:
        for key in (self.keys.wake, self.keys.ready):
            for page in self._pages(key):
                for item in page:
                    if (decoded := _match(item, postback_id)) is not None:
                        return Found("ready", decoded)
                advance(len(page))
        return None

    def _pages(self, key: bytes) -> Iterator[list[bytes]]:
        """From the right end, since items leave on the left: none that stays is skipped."""
        last = -1
        while page := self.wire.call("LRANGE", key, last - PAGE + 1, last):
            yield page
            if len(page) < PAGE:
                return
            last -= PAGE


def id_bytes(postback_id: int) -> bytes:
    """How an element holds its id: msgpack's uint64."""
    return ID_MARK + struct.pack(">Q", postback_id)


def ids_in(data: bytes, wanted: Container[int]) -> Iterator[int]:
    """Those ids of `wanted` whose bytes are in there, as an element holds them."""
    at = data.find(ID_MARK)
    while at >= 0:
        number = int.from_bytes(data[at + 1 : at + 9], "big")
        if number in wanted:
            yield number
        at = data.find(ID_MARK, at + 1)


def _note(items: Iterable[bytes], place: str, wanted: set[int], found: dict[int, str]) -> None:
    """Only an item that has such bytes is decoded, since most are others."""
    for item in items:
        for number in ids_in(item, wanted):
            if _match(item, number) is not None:
                found[number] = place


def _match(item: bytes, postback_id: int) -> Item | None:
    if id_bytes(postback_id) not in item:
        return None
    try:
        decoded = decode_item(item)
    except CodecError:
        return None
    return decoded if decoded.postback_id == postback_id else None
