# SPDX-License-Identifier: MIT
"""The idle wait: block on the server instead of polling (QUEUE.md, "idle wait").

`BLMOVE ready wake LEFT RIGHT t` on a connection of its own, whose descriptor stands in the worker's epoll. What it
moves lies in wake, which belongs to nobody: whatever comes back, the worker claims.
"""

import hiredis

from postbackd.errors import QueueUnavailableError
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.wire import Wire, pack

LONGEST_MS = 1000
SHORTEST_MS = 10  # a time-out of 0 would wait for ever
ANSWER_MARGIN_S = 5.0


class IdleWait:
    """One blocking wait at a time."""

    def __init__(self, url: str, keys: Keys) -> None:
        self._url = url
        self._keys = keys
        self._wire: Wire | None = None
        self.is_armed = False
        self.generation = 0

    def fileno(self) -> int:
        return -1 if self._wire is None else self._wire.fileno()

    def arm(self, wait_ms: int) -> bool:
        """Begin to wait for at most `wait_ms`; False when that cannot be, and the caller claims by the clock."""
        try:
            if self._wire is None or not self._wire.is_open:
                self._wire = route_to(self._url).open(self._keys.shard, ANSWER_MARGIN_S)
                self.generation += 1
            timeout = f"{min(max(wait_ms, SHORTEST_MS), LONGEST_MS) / 1000:.3f}"
            self._wire.send(pack(("BLMOVE", self._keys.ready, self._keys.wake, "LEFT", "RIGHT", timeout)))
        except QueueUnavailableError:
            return False
        self.is_armed = True
        return True

    def receive(self) -> bool:
        """Whether the wait is over. An error reply and a broken connection end it too.

        But for a full memory an error means another server (READONLY, MOVED): the connection is not used again.
        """
        if self._wire is None:
            return True
        try:
            replies = self._wire.receive()
            if not replies:
                return False
            if isinstance(replies[0], hiredis.ReplyError) and not str(replies[0]).startswith("OOM"):
                self._wire.close()
        except QueueUnavailableError:
            pass  # the lease's own connection says what is wrong
        self.is_armed = False
        return True

    def close(self) -> None:
        self.is_armed = False
        if self._wire is not None:
            self._wire.close()
