# SPDX-License-Identifier: MIT
"""The queue as ingest sees it: Redis, or the spool while Redis is away (QUEUE.md, "enqueue", "spool")."""

from postbackd.errors import QueueUnavailableError, QueueUnsureError, SpoolError
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.spool import Spool
from postbackd.scoreboard import Cell


class SpoolingQueue:
    """Commits a request to Redis or, where that cannot be had, to the local disk."""

    def __init__(self, enqueuer: Enqueuer, spool: Spool, cells: "memoryview[int]") -> None:
        self._enqueuer = enqueuer
        self._spool = spool
        self._cells = cells

    def enqueue(self, endpoint_id: bytes, record: bytes, elements: list[bytes]) -> None:
        """Commit one request's postbacks.

        Raises QueueFullError, RecordConflictError, DurabilityTimeoutError as `Enqueuer.enqueue`; SpoolError, or
        QueueUnsureError where Redis may have them all the same.
        """
        try:
            self._enqueuer.enqueue(endpoint_id, record, elements)
        except QueueUnsureError as error:
            try:
                self._spool.append(endpoint_id, record, elements)
            except SpoolError as failure:
                raise QueueUnsureError(f"{error} It could not be spooled either: {failure}") from None
            self._cells[Cell.UNSURE] += 1
            self._cells[Cell.SPOOLED] += len(elements)
        except QueueUnavailableError:
            self._spool.append(endpoint_id, record, elements)
            self._cells[Cell.SPOOLED] += len(elements)

    def enqueue_once(
        self, key: bytes, body_hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        """As `Enqueuer.enqueue_once`: never the spool, or two processes would promise different ids for one key."""
        return self._enqueuer.enqueue_once(key, body_hash, ids, endpoint_id, record, elements)

    def ping(self) -> None:
        """Return when a request could be acknowledged now; raises QueueFullError or SpoolError."""
        try:
            self._enqueuer.ping()
        except QueueUnavailableError:
            self._spool.refuse_full()
