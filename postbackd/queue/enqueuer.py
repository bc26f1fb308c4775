# SPDX-License-Identifier: MIT
"""Enqueue: one request's postbacks in one round trip (QUEUE.md, "enqueue").

The plain form, RPUSH, where this connection is known to have stored the endpoint's record a short while ago; the full
form, enqueue.lua, otherwise. What is known belongs to the connection and is forgotten with it: a server that goes back
in time by a restart or a failover closes it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis

from postbackd.errors import (
    DurabilityTimeoutError,
    IdempotencyConflictError,
    PostbackdError,
    QueueFullError,
    QueueUnavailableError,
    QueueUnsureError,
)
from postbackd.queue.durability import Durability
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.scripts import ENQUEUE, ENQUEUE_ONCE, is_noscript
from postbackd.queue.wire import Wire, error_of, pack
from postbackd.scoreboard import monotonic_ms

RECORD_TTL_S = 2_592_000  # 30 days
ONCE_TTL_S = 86_400  # 24 hours
# FLUSHALL, DEL and REPLICAOF an older copy end no connection: shorter than a delivery worker waits for a record that is
# missing (10 minutes), so that an endpoint in use is whole again before its postbacks die of it.
KNOWN_FOR_MS = 240_000
MAX_KNOWN = 65_536  # endpoints; beyond it all are forgotten and stored once more
RECOUNT_MS = 1000
COMMAND_ELEMENTS = 1000  # of one RPUSH that several requests share; larger ones save nothing and hold up others


class QueuedRequest(NamedTuple):
    """What of a request goes to the queue."""

    endpoint_id: bytes
    record: bytes
    elements: list[bytes]


def enqueue_each(
    enqueue: Callable[[bytes, bytes, list[bytes]], object],
    requests: Sequence[QueuedRequest],
    places: Sequence[int],
    results: list[PostbackdError | None],
) -> None:
    """Enqueue some requests of a group one by one, and put what becomes of each into its place."""
    for place in places:
        try:
            enqueue(*requests[place])
            results[place] = None
        except PostbackdError as error:
            results[place] = error


class Enqueuer:
    """The queue as an ingest process sees it."""

    def __init__(self, link: Link, keys: Keys, max_depth: int, durability: Durability) -> None:
        self._link = link
        self._durability = durability
        self._keys = keys
        self._max_depth = max_depth
        self._known: dict[bytes, int] = {}
        self._generation = 0
        self._depth = 0
        self._counted_ms = 0
        self._is_short = False  # of replicas, when the last write was to wait for them
        self._replicas = 0  # that had the last write, where the durability waits for them

    @property
    def is_away(self) -> bool:
        """Whether the server is known to be away."""
        return self._link.away is not None

    def enqueue(self, endpoint_id: bytes, record: bytes, elements: list[bytes]) -> int:
        """Commit the postbacks of one request; the depth of ready behind it.

        Raises QueueUnavailableError (certainly not enqueued), QueueUnsureError (perhaps), QueueFullError,
        RecordConflictError, DurabilityTimeoutError (enqueued, not yet as durable as wanted). Certain failures get one
        more try at once, on a new connection.
        """
        now_ms = monotonic_ms()
        try:
            return self._enqueue(self._wire(now_ms), endpoint_id, record, elements, now_ms)
        except QueueUnsureError as error:
            self._link.lose(error)
            raise
        except QueueUnavailableError:
            self._link.drop()
        try:
            return self._enqueue(self._wire(now_ms), endpoint_id, record, elements, now_ms)
        except QueueUnavailableError as error:
            self._link.lose(error)
            raise

    def enqueue_group(self, requests: Sequence[QueuedRequest]) -> list[PostbackdError | None]:
        """Commit several requests in one round trip: for each None, or the error that `enqueue` would have raised.

        Requests that this way leaves undone for certain (a lost script, a refused command, no connection) are enqueued
        one by one, with all that `enqueue` does about it.
        """
        now_ms = monotonic_ms()
        try:
            results = self._enqueue_together(self._wire(now_ms), requests, now_ms)
        except QueueUnsureError as error:
            self._link.lose(error)
            return [error] * len(requests)
        except (QueueUnavailableError, QueueFullError) as error:  # nothing was sent
            results = [error] * len(requests)
        undone = [
            place for place, error in enumerate(results) if error and not isinstance(error, DurabilityTimeoutError)
        ]
        enqueue_each(self.enqueue, requests, undone, results)
        return results

    def _enqueue_together(
        self, wire: Wire, requests: Sequence[QueuedRequest], now_ms: int
    ) -> list[PostbackdError | None]:
        """What became of each. A broken exchange is a QueueUnsureError for all of them."""
        commands = self._commands_for(requests, now_ms)
        try:
            wire.send(b"".join([packed for packed, _ in commands]) + self._durability.packed_wait)
        except QueueUnavailableError as error:  # of several commands the first ones may have gone out whole
            raise QueueUnsureError(str(error)) from None
        replies = [wire.read() for _ in commands]
        short: PostbackdError | None = None
        if self._durability.waits:
            self._read_replicas(wire)
            try:
                self._judge()
            except DurabilityTimeoutError as error:
                short = error
        results: list[PostbackdError | None] = [short] * len(requests)
        for reply, (_, places) in zip(replies, commands, strict=True):
            if not isinstance(reply, hiredis.ReplyError):
                self._depth = reply
                continue
            for place in places:
                self._known.pop(requests[place].endpoint_id, None)
                results[place] = error_of(reply)
        return results

    def _commands_for(self, requests: Sequence[QueuedRequest], now_ms: int) -> list[tuple[bytes, list[int]]]:
        """Packed commands, each with the places of the requests that it enqueues whole."""
        commands: list[tuple[bytes, list[int]]] = []
        plain: list[bytes] = []
        places: list[int] = []
        new: dict[tuple[bytes, bytes], list[int]] = {}
        known = self._known
        for place, (endpoint_id, record, elements) in enumerate(requests):
            if now_ms - known.get(endpoint_id, -KNOWN_FOR_MS) >= KNOWN_FOR_MS:
                new.setdefault((endpoint_id, record), []).append(place)
                continue
            if plain and len(plain) + len(elements) > COMMAND_ELEMENTS:
                commands.append((pack(("RPUSH", self._keys.ready, *plain)), places))
                plain, places = [], []
            plain += elements
            places.append(place)
        if plain:
            commands.append((pack(("RPUSH", self._keys.ready, *plain)), places))
        for (endpoint_id, record), of_endpoint in new.items():
            keys = (self._keys.ready, self._keys.endpoint(endpoint_id))
            elements = [element for place in of_endpoint for element in requests[place].elements]
            commands.append((ENQUEUE.packed(keys, (RECORD_TTL_S, record, *elements)), of_endpoint))
            self._note_known(endpoint_id, now_ms)
        return commands

    def enqueue_once(
        self, key: bytes, body_hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        """Commit a request with an Idempotency-Key, unless it was before: the ids that are queued, 8 bytes each.

        `key` is the digest of sender and key. Decided in one step with the enqueue. Unsure: the same call once more,
        which finds the first one's ids where that one ran. Raises as `enqueue`, and IdempotencyConflictError.
        """
        keys = (self._keys.once(key), self._keys.ready, self._keys.endpoint(endpoint_id))
        packed = ENQUEUE_ONCE.packed(keys, (body_hash, ids, ONCE_TTL_S, RECORD_TTL_S, record, *elements))
        try:
            reply = self._call_once(packed)
        except QueueUnavailableError as first:
            self._link.drop()
            try:
                reply = self._call_once(packed)
            except (QueueUnavailableError, QueueFullError) as error:
                if isinstance(error, QueueUnavailableError):
                    self._link.lose(error)
                if isinstance(first, QueueUnsureError):  # it may have run, whatever became of the second
                    raise first from None
                raise
        if reply[0] == b"differs":
            raise IdempotencyConflictError("the key came before with another body")
        self._judge()
        if reply[0] == b"new":
            self._depth = reply[2]
        found: bytes = reply[1]
        return found

    def _call_once(self, packed: bytes) -> Any:
        wire = self._wire(monotonic_ms())
        reply = self._exchange(wire, packed)
        if is_noscript(reply):
            wire.call(*ENQUEUE_ONCE.load_command())
            reply = self._exchange(wire, packed)
        if isinstance(reply, hiredis.ReplyError):
            raise error_of(reply)
        return reply

    def _wire(self, now_ms: int) -> Wire:
        """The connection, ready for a request: nothing of the request was sent if this fails."""
        try:
            return self._prepared_wire(now_ms)
        except QueueUnsureError as error:
            raise QueueUnavailableError(str(error)) from None

    def _prepared_wire(self, now_ms: int) -> Wire:
        wire = self._link.wire(now_ms)
        if self._link.generation != self._generation:
            self._generation = self._link.generation
            self._known.clear()
            self._is_short = False
        if self._is_short:
            # Each would wait the whole time-out, one after the other, and be told only behind the last.
            self._durability.judge_connected(wire)
        if self._depth > self._max_depth:
            self._recount(wire, now_ms)
        return wire

    def _recount(self, wire: Wire, now_ms: int) -> None:
        """While refusing: look once a second whether there is room again."""
        if now_ms - self._counted_ms >= RECOUNT_MS:
            self._counted_ms = now_ms
            self._depth = wire.call("LLEN", self._keys.ready)
        if self._depth > self._max_depth:
            raise QueueFullError(f"it holds {self._depth} postbacks, over queue.max_depth = {self._max_depth}.")

    def _enqueue(self, wire: Wire, endpoint_id: bytes, record: bytes, elements: list[bytes], now_ms: int) -> int:
        if now_ms - self._known.get(endpoint_id, -KNOWN_FOR_MS) < KNOWN_FOR_MS:
            reply = self._exchange(wire, pack(("RPUSH", self._keys.ready, *elements)))
        else:
            keys = (self._keys.ready, self._keys.endpoint(endpoint_id))
            packed = ENQUEUE.packed(keys, (RECORD_TTL_S, record, *elements))
            reply = self._exchange(wire, packed)
            if is_noscript(reply):
                wire.call(*ENQUEUE.load_command())
                reply = self._exchange(wire, packed)
            self._note_known(endpoint_id, now_ms)
        if isinstance(reply, hiredis.ReplyError):
            self._known.pop(endpoint_id, None)
            raise error_of(reply)
        depth: int = reply
        self._depth = depth
        self._judge()
        return depth

    def _note_known(self, endpoint_id: bytes, now_ms: int) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[endpoint_id] = now_ms

    def _judge(self) -> None:
        """Raise DurabilityTimeoutError when too few replicas had the last write."""
        if self._durability.waits:
            self._is_short = not self._durability.is_enough(self._replicas)
            self._durability.judge(self._replicas)

    def _exchange(self, wire: Wire, packed: bytes) -> Any:
        """One write and its reply, with the wait for replicas behind it in the same packet."""
        wire.send(packed + self._durability.packed_wait)
        reply = wire.read()
        if self._durability.waits:
            self._read_replicas(wire)
        return reply

    def _read_replicas(self, wire: Wire) -> None:
        waited = wire.read()
        self._replicas = waited if isinstance(waited, int) else 0

    def ping(self) -> None:
        """Return when a request could be acknowledged now; raises QueueUnavailableError or QueueFullError.

        Asked with a write that changes nothing, since no list is there: a server out of memory and a read-only one
        answer PING all the same. At level replica also whether enough of them are connected.
        """
        now_ms = monotonic_ms()
        try:
            wire = self._wire(now_ms)
            wire.call("LPUSHX", self._keys.probe, b"")
            self._durability.judge_connected(wire)
        except QueueUnavailableError as error:
            self._link.lose(error)
            raise
