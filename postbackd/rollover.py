# SPDX-License-Identifier: MIT
"""The workers of one pool replaced one by one, each by a successor that works before its predecessor stops.

    trial     the first successor starts with the new main; one that dies ends the rollover, nothing has changed.
    rolling   index by index: the successor has beaten → its predecessor drains → the next.

So there are never fewer workers than configured. A successor that dies after the trial is started again with its
back-off, like any worker; its predecessor works until then.
"""

from collections import deque

from postbackd.worker_pool import Place, WorkerMain, WorkerPool


class Rollover:
    """One pool on its way to a new main and number of workers; `turn` it often."""

    def __init__(self, pool: WorkerPool, main: WorkerMain, count: int, drain_limit_ms: int) -> None:
        self.pool = pool
        self._main = main
        self._count = count
        self._drain_limit_ms = drain_limit_ms
        self._indexes = deque(range(max(count, pool.top_index() + 1)))
        self._is_trial = True
        self._successor: Place | None = None
        self._leaving: list[Place] | None = None

    def trial_is_up(self) -> bool:
        return self._successor is not None and self.pool.has_beaten(self._successor)

    def trial_has_failed(self) -> bool:
        return self._is_trial and self._successor is not None and not self.pool.has(self._successor)

    def commit(self) -> None:
        """The new main is the pool's from here on."""
        self._is_trial = False
        self.pool.adopt(self._main)

    def abandon(self, now_ms: int) -> None:
        """Leave things as they are; a successor that has not begun to work goes."""
        successor = self._successor
        if successor is not None and (self._is_trial or len(self.pool.holders(successor.slot.index)) > 1):
            self.pool.retire(successor, now_ms + self._drain_limit_ms)

    def is_over(self) -> bool:
        return not self._indexes

    def turn(self, now_ms: int) -> None:
        """As far as it goes without waiting."""
        while self._indexes and self._step(self._indexes[0], now_ms):
            self._indexes.popleft()
            self._successor, self._leaving = None, None

    def _step(self, index: int, now_ms: int) -> bool:
        """Whether this index is done."""
        if index < self._count and self._successor is None:
            self._successor = self.pool.add(index, self._main, now_ms, is_trial=self._is_trial)
            return False  # it may have beaten by now, but is not in processes.json before the next turn
        if index < self._count and not self.trial_is_up():
            return False
        if self._is_trial:
            return False
        if self._leaving is None:
            self._leaving = [place for place in self.pool.holders(index) if place is not self._successor]
            for place in self._leaving:
                self.pool.retire(place, now_ms + self._drain_limit_ms)
        return not any(self.pool.has(place) for place in self._leaving)
