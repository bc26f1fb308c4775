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

    def __init__(
        self,
        url: str,
        clock: Clock,
        count_error: Callable[[], None],
        *,
        prove: Callable[[Wire], None] = lambda wire: None,
        reply_timeout_s: float = REPLY_TIMEOUT_S,
    ) -> None:
        """`prove` looks at each new connection and raises QueueUnavailableError where it must not be used."""
        self._url = url
        self._prove = prove
        self._reply_timeout_s = reply_timeout_s
        self._clock = clock
        self._count_error = count_error
        self._wire: Wire | None = None
        self._away_until_ms = 0
        self._away_error = ""
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
        if now_ms < self._away_until_ms:
            raise QueueUnavailableError(self._away_error)
        try:
            self._wire = wire = Wire(self._url, self._reply_timeout_s)
            self.generation += 1
            self._sync(wire, now_ms)
            self._prove(wire)
        except QueueUnavailableError as error:
            self._count_error()
            self._away_until_ms, self._away_error = monotonic_ms() + AWAY_MS, str(error)
            if self._wire is not None:
                self._wire.close()
            raise QueueUnavailableError(str(error)) from None  # whatever failed, nothing of a request was sent
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
