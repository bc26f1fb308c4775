# SPDX-License-Identifier: MIT
"""A way to the queue server: one connection, made when needed, with the clock kept in step.

After a failure the server counts as away: callers get that error at once, so that requests do not queue up behind
time-outs. Whoever finds it answering (the replay thread of an ingest process) says `come_back`.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from postbackd.clock import Clock
from postbackd.errors import QueueUnavailableError
from postbackd.queue.cluster import ClusterRoute
from postbackd.queue.route import route_to
from postbackd.queue.wire import Argument, Wire
from postbackd.scoreboard import monotonic_ms

REPLY_TIMEOUT_S = 5.0
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
        shard: int = 0,
    ) -> None:
        """`prove` looks at each new connection, and once a minute at one in use, and raises QueueUnavailableError where
        it must not be used."""
        self._url = url
        self.shard = shard
        self._prove = prove
        self._reply_timeout_s = reply_timeout_s
        self._clock = clock
        self._count_error = count_error
        self._wire: Wire | None = None
        self._synced_ms = 0
        self._used_ms = 0
        self.away: str | None = None  # why, while the server counts as away
        self.on_away: Callable[[], None] = lambda: None
        self.generation = 0  # counts the connections: what was known of an older one is void

    def wire(self, now_ms: int) -> Wire:
        """The open connection; raises QueueUnavailableError. `now_ms` is monotonic."""
        wire = self._wire
        if wire is not None and wire.is_open:
            if now_ms - self._used_ms <= IDLE_MS or not wire.has_gone():
                self._used_ms = now_ms
                if now_ms - self._synced_ms > SYNC_EVERY_MS:
                    self._sync(wire, now_ms)
                    self._prove(wire)  # CONFIG SET changes a server under its connections
                return wire
            wire.close()
        return self._connect(now_ms)

    def _connect(self, now_ms: int) -> Wire:
        if self.away is not None:
            raise QueueUnavailableError(self.away)
        try:
            self._wire = wire = route_to(self._url).open(self.shard, self._reply_timeout_s)
            self.generation += 1
            self._sync(wire, now_ms)
            self._prove(wire)
        except QueueUnavailableError as error:
            self.lose(error)
            raise QueueUnavailableError(str(error)) from None  # whatever failed, nothing of a request was sent
        self._used_ms = now_ms
        return wire

    def _sync(self, wire: Wire, now_ms: int) -> None:
        self._synced_ms = now_ms
        self._clock.sync(wire.server_ms())

    def call_for(self, key: bytes, *command: Argument) -> Any:
        """One command on a key outside every shard, and its reply; raises QueueUnavailableError.

        In a Cluster such a key has a node of its own: a connection for this call alone, since such calls are rare.
        """
        route = route_to(self._url)
        if not isinstance(route, ClusterRoute):
            return self.wire(monotonic_ms()).call(*command)
        with contextlib.closing(route.open_for(key, self._reply_timeout_s)) as wire:
            self._clock.sync(wire.server_ms())
            return wire.call(*command)

    def drop(self) -> None:
        """Close the connection: its last answer did not come, or made no sense. The next use makes a new one."""
        self._count_error()
        if self._wire is not None:
            self._wire.close()

    def lose(self, error: Exception) -> None:
        """Close the connection and count the server as away."""
        self.drop()
        self.away = str(error)
        self.on_away()

    def come_back(self) -> None:
        """Whatever was wrong may be over: the next use connects again."""
        self.away = None
