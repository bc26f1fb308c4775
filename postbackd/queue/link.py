# SPDX-License-Identifier: MIT
"""An ingest process' way to the queue server: one connection, made when needed, with the clock kept in step.

A failed try is remembered for half a second: until then callers get its error at once, so that requests do not
queue up behind connect time-outs.
"""

from collections.abc import Callable

from postbackd.clock import Clock
from postbackd.errors import QueueUnavailableError
from postbackd.queue.wire import Wire
from postbackd.scoreboard import monotonic_ms

REPLY_TIMEOUT_S = 5.0
AWAY_MS = 500
SYNC_EVERY_MS = 60_000
IDLE_MS = 1000  # a connection unused this long is looked at before it is used


class Link:
    """A connection that is there when the server is."""

    def __init__(self, url: str, clock: Clock, count_error: Callable[[], None]) -> None:
        self._url = url
        self._clock = clock
        self._count_error = count_error
        self._wire: Wire | None = None
        self._away: tuple[int, QueueUnavailableError] | None = None
        self._synced_ms = 0
        self._used_ms = 0
        self.generation = 0  # counts the connections: what was known of an older one is void

    def wire(self, now_ms: int) -> Wire:
        """The open connection; raises QueueUnavailableError. `now_ms` is monotonic."""
        wire = self._wire
        if wire is not None and wire.is_open:
            if now_ms - self._used_ms <= IDLE_MS or not wire.has_gone():
                self._used_ms = now_ms
                if now_ms - self._synced_ms > SYNC_EVERY_MS:
                    self._sync(wire, now_ms)
                return wire
            wire.close()
        return self._connect(now_ms)

    def _connect(self, now_ms: int) -> Wire:
        if self._away is not None:
            until_ms, error = self._away
            if now_ms < until_ms:
                raise error
        try:
            self._wire = wire = Wire(self._url, REPLY_TIMEOUT_S)
            self.generation += 1
            self._sync(wire, now_ms)
        except QueueUnavailableError as error:
            self._count_error()
            certain = QueueUnavailableError(str(error))  # whatever failed, nothing of a request was sent
            self._away = (monotonic_ms() + AWAY_MS, certain)
            raise certain from None
        self._away = None
        self._used_ms = now_ms
        return wire

    def _sync(self, wire: Wire, now_ms: int) -> None:
        self._synced_ms = now_ms
        self._clock.sync(wire.server_ms())

    def drop(self) -> None:
        """Close the connection: its last answer did not come, or made no sense."""
        self._count_error()
        if self._wire is not None:
            self._wire.close()
