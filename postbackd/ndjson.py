# SPDX-License-Identifier: MIT
"""NDJSON: one request a line, one answer a line in the same order. No I/O of its own.

Each line is all or nothing. Lines in a row that name the same endpoint are committed in one round trip: one RPUSH,
which the server runs whole or not at all, so each 202 is as true as a single request's. A line that got no commit
(503), or no room in its sender's rate (429), ends the matter: the rest is answered 503 or 429 untried, so that a
client can send it again from there.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from postbackd.codec import format_id
from postbackd.errors import RequestError
from postbackd.refusal import refusal_of

BATCH_ELEMENTS = 1000  # as many as a request may have: larger batches save nothing and hold up others
NOT_TRIED = RequestError(503, "not_tried", "A line before got a 503: nothing of this one was queued; send it again.")


class Prepared(msgspec.Struct):
    """A request that is checked and encoded, not committed."""

    endpoint: Any
    ids: list[int]
    elements: list[bytes]


class _Batch:
    """Prepared lines of one endpoint, and where their answers belong."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Prepared]] = []
        self.elements: list[bytes] = []

    def fits(self, prepared: Prepared) -> bool:
        if not self.lines:
            return True
        if len(self.elements) + len(prepared.elements) > BATCH_ELEMENTS:
            return False
        return bool(self.lines[0][1].endpoint.id == prepared.endpoint.id)

    def add(self, place: int, prepared: Prepared) -> None:
        self.lines.append((place, prepared))
        self.elements += prepared.elements


class Lines:
    """The answers to one NDJSON body as they come about."""

    def __init__(self, prepare: Callable[[bytes], Prepared], enqueue: Callable[[Any, list[bytes]], None]) -> None:
        """`prepare` raises what a request would be refused for; `enqueue` commits elements of one endpoint."""
        self._prepare = prepare
        self._enqueue = enqueue
        self._answers: list[bytes] = []
        self._batch = _Batch()
        self._ended: bytes | None = None  # the answer to all further lines
        self.accepted = 0
        self.failure: RequestError | None = None  # the first 5xx of a line, which the 200 does not show

    def take(self, body: bytes) -> bytes:
        """All answers, one a line; blank lines have none. Raises RequestError where there is no line at all."""
        for line in body.split(b"\n"):
            if line and not line.isspace():
                self._take_line(line)
        self._commit()
        if not self._answers:
            raise RequestError(400, "empty_body", "The body is empty: send one JSON request a line.")
        return b"".join(self._answers)

    def _take_line(self, line: bytes) -> None:
        if self._ended is not None:
            self._answers.append(self._ended)
            return
        try:
            prepared = self._prepare(line)
        except Exception as error:
            refusal = self._refusal(error)
            self._answers.append(_error_line(refusal))
            if refusal.status in (429, 503):
                place = len(self._answers) - 1
                self._commit()  # what came before; if that fails, this line is one of the untried
                if self._ended is None:
                    self._end(place, refusal if refusal.status == 429 else NOT_TRIED)
            return
        if not self._batch.fits(prepared):
            self._commit()
        if self._ended is not None:
            self._answers.append(self._ended)
            return
        self._batch.add(len(self._answers), prepared)
        self._answers.append(b"")

    def _commit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if not batch.lines:
            return
        try:
            self._enqueue(batch.lines[0][1].endpoint, batch.elements)
        except Exception as error:
            refusal = self._refusal(error)
            for place, _ in batch.lines:
                self._answers[place] = _error_line(refusal)
            if refusal.status == 503:
                self._end(batch.lines[-1][0], NOT_TRIED)
                self._untry_between(batch)
            return
        for place, prepared in batch.lines:
            ids = '","'.join(map(format_id, prepared.ids)).encode()
            self._answers[place] = b'{"status":202,"accepted":%d,"ids":["%b"]}\n' % (len(prepared.ids), ids)
        self.accepted += len(batch.elements)

    def _refusal(self, error: Exception) -> RequestError:
        refusal = refusal_of(error)
        if refusal.status >= 500 and self.failure is None:
            self.failure = refusal
        return refusal

    def _end(self, place: int, refusal: RequestError) -> None:
        """Answer everything behind this place alike, whatever it was answered already."""
        self._ended = _error_line(refusal)
        for later in range(place + 1, len(self._answers)):
            self._answers[later] = self._ended

    def _untry_between(self, batch: _Batch) -> None:
        """Lines refused for themselves between those that got a 503 come behind a 503 too."""
        places = {place for place, _ in batch.lines}
        for place in range(batch.lines[0][0], batch.lines[-1][0]):
            if place not in places and self._ended is not None:
                self._answers[place] = self._ended


def _error_line(refusal: RequestError) -> bytes:
    return msgspec.json.encode({"status": refusal.status, "error": refusal.payload()}) + b"\n"
