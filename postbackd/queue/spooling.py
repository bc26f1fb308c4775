# SPDX-License-Identifier: MIT
"""The queue as ingest sees it: Redis, or the spool while Redis is away (QUEUE.md, "enqueue", "spool")."""

import random
from collections.abc import Sequence

from postbackd.errors import PostbackdError, QueueFullError, QueueUnavailableError, QueueUnsureError, SpoolError
from postbackd.queue.enqueuer import Enqueuer, QueuedRequest, enqueue_each
from postbackd.queue.spool import Spool
from postbackd.scoreboard import Cell


class SpoolingQueue:
    """Commits a request to Redis or, where that cannot be had, to the local disk."""

    def __init__(self, enqueuer: Enqueuer, spool: Spool, cells: "memoryview[int]", shard: int = 0) -> None:
        self._enqueuer = enqueuer
        self._shard = shard
        self._spool = spool
        self._cells = cells

    def enqueue(self, endpoint_id: bytes, record: bytes, elements: list[bytes]) -> None:
        """Commit one request's postbacks.

        Raises QueueFullError, RecordConflictError, DurabilityTimeoutError as `Enqueuer.enqueue`; SpoolError, or
        QueueUnsureError where Redis may have them all the same.
        """
        try:
            self._enqueuer.enqueue(endpoint_id, record, elements)
        except QueueUnavailableError as error:
            failure = self._keep([QueuedRequest(endpoint_id, record, elements)], [error])[0]
            if failure is not None:
                raise failure from None

    def enqueue_group(self, requests: Sequence[QueuedRequest]) -> list[PostbackdError | None]:
        """Commit several requests in one round trip, or one fsync: for each None, or what `enqueue` would raise."""
        results = self._enqueuer.enqueue_group(requests)
        away = [(place, error) for place, error in enumerate(results) if isinstance(error, QueueUnavailableError)]
        if away:
            kept = self._keep([requests[place] for place, _ in away], [error for _, error in away])
            for (place, _), failure in zip(away, kept, strict=True):
                results[place] = failure
        return results

    def _keep(
        self, requests: Sequence[QueuedRequest], errors: Sequence[QueueUnavailableError]
    ) -> list[PostbackdError | None]:
        """Spool requests that Redis did not take, for these reasons; what each is to be told."""
        try:
            self._spool.append(requests, self._shard)
        except SpoolError as failure:
            return [_unsure_and_unspooled(error, failure) for error in errors]
        self._cells[Cell.UNSURE] += sum(isinstance(error, QueueUnsureError) for error in errors)
        self._cells[Cell.SPOOLED] += sum(len(request.elements) for request in requests)
        return [None] * len(requests)

    def enqueue_once(
        self, key: bytes, body_hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        """As `Enqueuer.enqueue_once`: never the spool, or two processes would promise different ids for one key."""
        return self._enqueuer.enqueue_once(key, body_hash, ids, endpoint_id, record, elements)

    @property
    def is_away(self) -> bool:
        """Whether Redis is known to be away: a request would be spooled."""
        return self._enqueuer.is_away

    def ping(self) -> None:
        """Return when a request could be acknowledged now; raises QueueFullError or SpoolError."""
        try:
            self._enqueuer.ping()
        except QueueUnavailableError:
            self._spool.refuse_full()


def _unsure_and_unspooled(error: QueueUnavailableError, failure: SpoolError) -> PostbackdError:
    if isinstance(error, QueueUnsureError):
        return QueueUnsureError(f"{error} It could not be spooled either: {failure}")
    return failure


class ShardedQueue:
    """Several shards, each as a SpoolingQueue: a request goes to one of them, whole.

    The next in turn among those that are not away and have room; all away: the next in turn spools it. One with an
    Idempotency-Key goes where its key says, whatever is away: another shard does not know the key.
    """

    def __init__(self, shards: Sequence[SpoolingQueue]) -> None:
        self._shards = list(shards)
        self._turn = random.randrange(len(shards))

    def enqueue(self, endpoint_id: bytes, record: bytes, elements: list[bytes]) -> None:
        """Commit one request's postbacks to one shard; raises as `SpoolingQueue.enqueue`."""
        shards = self._shards
        first = self._turn = (self._turn + 1) % len(shards)
        full: QueueFullError | None = None
        for shard in shards[first:] + shards[:first]:
            if not shard.is_away:
                try:
                    return shard.enqueue(endpoint_id, record, elements)
                except QueueFullError as error:  # for certain not enqueued there
                    full = error
        if full is not None:
            raise full
        return shards[first].enqueue(endpoint_id, record, elements)

    def enqueue_group(self, requests: Sequence[QueuedRequest]) -> list[PostbackdError | None]:
        """Commit several requests to one shard; those it has no room for one by one, wherever there is."""
        shards = self._shards
        first = self._turn = (self._turn + 1) % len(shards)
        in_turn = shards[first:] + shards[:first]
        results = next((shard for shard in in_turn if not shard.is_away), in_turn[0]).enqueue_group(requests)
        full = [place for place, error in enumerate(results) if isinstance(error, QueueFullError)]
        enqueue_each(self.enqueue, requests, full, results)
        return results

    def enqueue_once(
        self, key: bytes, body_hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        """As `SpoolingQueue.enqueue_once`, at the shard that the key belongs to."""
        shard = self._shards[int.from_bytes(key[:8], "big") % len(self._shards)]
        return shard.enqueue_once(key, body_hash, ids, endpoint_id, record, elements)

    def ping(self) -> None:
        """Return when a request could be acknowledged by one of them; raises what the last one says."""
        for number, shard in enumerate(self._shards, 1):
            try:
                return shard.ping()
            except (QueueFullError, SpoolError):
                if number == len(self._shards):
                    raise
