# SPDX-License-Identifier: MIT
"""Group commit (`ingest.ack = "group"`): requests that arrive together share one round trip to Redis, or one fsync.

bjoern runs one request after the other, and commits one after the other therefore; the next requests wait in their
sockets meanwhile. Here each is only checked and encoded, its answer is held back (server/held.py), and when all that
have arrived are through, one commit is made for all. Each is answered for itself and after the commit, as without.

Some are answered at once, and those before them are committed with them: what cannot be held (a client that closes its
connection or speaks HTTP/1.0) and what makes the commit large enough. What has a commit of its own (NDJSON, an
Idempotency-Key) passes those that wait.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from postbackd.errors import PostbackdError
from postbackd.ingest import Environ, IngestDoor
from postbackd.ndjson import Prepared
from postbackd.queue.enqueuer import QueuedRequest
from postbackd.refusal import Answer

MOST_HELD = 400  # ids in an answer that may be held, 19 bytes each: what any socket's buffer takes
MOST_ELEMENTS = 10_000  # of one commit: bounds the time until the first of them is answered
# Of one commit, elements and records; three times as much until it is sent. 300 bodies of 900 kB, sent as 1 kB of gzip
# each, took 460 MB before there was a limit.
MOST_BYTES = 4 << 20


class GroupQueue(Protocol):
    """What takes the commit: `queue.spooling.SpoolingQueue`."""

    def enqueue_group(self, requests: Sequence[QueuedRequest]) -> list[PostbackdError | None]:
        """Commit several requests; what became of each."""


class HeldConnection(Protocol):
    """A connection whose answer comes later: `server.held.Held`."""

    def wait_for(self, find_answer: Callable[[], Answer], start_response: Any) -> Iterable[bytes]:
        """What the app returns."""


class _Waiting:
    """A request that is not committed yet, or its answer once it is."""

    __slots__ = ("answer", "prepared")

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.answer: Answer | None = None


class GroupCommit:
    """The requests of one process that wait for the next commit."""

    def __init__(
        self,
        door: IngestDoor,
        queue: GroupQueue,
        hold: Callable[[Environ, Any], HeldConnection | None],
        count: Callable[[str], None],
    ) -> None:
        """`hold` takes a connection from bjoern, `count` is told the status line of every answer."""
        self._door = door
        self._queue = queue
        self._hold = hold
        self._count = count
        self._waiting: list[_Waiting] = []
        self._elements = 0
        self._bytes = 0

    def respond(self, env: Environ, start_response: Any) -> Iterable[bytes]:
        """One POST, as a WSGI app."""
        if _commits_by_itself(env):
            return self._answer_now(start_response, self._door.answer(env))
        try:
            waiting = _Waiting(self._door.prepare(env))
        except Exception as error:  # the top of the request, as in IngestDoor.answer
            return self._answer_now(start_response, self._door.refused(error))
        self._waiting.append(waiting)
        elements = waiting.prepared.elements
        self._elements += len(elements)
        self._bytes += len(waiting.prepared.endpoint.record) + sum(map(len, elements))
        held = None
        if len(elements) <= MOST_HELD and self._elements <= MOST_ELEMENTS and self._bytes <= MOST_BYTES:
            held = self._hold(env, start_response)
        if held is None:
            return self._answer_now(start_response, self._answer_of(waiting))
        return held.wait_for(lambda: self._counted_answer_of(waiting), start_response)

    def _answer_now(self, start_response: Any, answer: Answer) -> list[bytes]:
        status, headers, body = answer
        start_response(status, headers)
        self._count(status)
        return [body]

    def _counted_answer_of(self, waiting: _Waiting) -> Answer:
        answer = self._answer_of(waiting)
        self._count(answer[0])
        return answer

    def _answer_of(self, waiting: _Waiting) -> Answer:
        if waiting.answer is None:
            self._commit()
            assert waiting.answer is not None
        return waiting.answer

    def _commit(self) -> None:
        """Commit whatever waits, and find the answers."""
        lot, self._waiting, self._elements, self._bytes = self._waiting, [], 0, 0
        requests = [QueuedRequest(w.prepared.endpoint.id, w.prepared.endpoint.record, w.prepared.elements) for w in lot]
        results: Sequence[Exception | None]
        try:
            results = self._queue.enqueue_group(requests)
        except Exception as error:  # a fault of ours: each is to be answered all the same
            results = [error] * len(lot)
        for waiting, result in zip(lot, results, strict=True):
            if result is None:
                body = self._door.accepted(waiting.prepared.ids)
                headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
                waiting.answer = ("202 Accepted", headers, body)
            else:
                waiting.answer = self._door.refused(result)
            del waiting.prepared  # its connection may be held some time more


def _commits_by_itself(env: Environ) -> bool:
    return "HTTP_IDEMPOTENCY_KEY" in env or "ndjson" in env.get("CONTENT_TYPE", "").lower()
