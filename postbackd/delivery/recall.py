# SPDX-License-Identifier: MIT
"""Parked postbacks are called back when their host has room before their time. Pure.

A lane parks what its host cannot take, far ahead where there is a mass of it, so that a million postbacks of a dead
host are claimed seldom. That the host is back, or faster than it was, its lane sees: it has room, and parked ones.
Then the later set is read through, a page with each exchange, and what is found of such hosts is due at once, as much
as each can take (queue/lua/recall.lua). A host is done with when a whole pass has found no more of it.

Several shards are read one after the other; a pass is through all of them.

Who parked a postback may have died since: in a worker's first minutes each host is looked for once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from postbackd.delivery.lane import Lane

PAGE = 500  # items looked at in one exchange: 0.3 ms of the server's time
EVERY_MS = 10
MAX_HOSTS = 32  # of one pass; the others have their turn in the next
MAX_IDS = 1024  # endpoints of one pass; of a host that has more, the next ones in the next pass
MAX_MOVED = 512  # of one host in one exchange


class Recall(NamedTuple):
    """What to ask the queue for."""

    cursor: bytes
    page: int
    hosts: list[tuple[int, Sequence[bytes]]]  # how many of each, and its endpoints


class Recaller:
    """One worker's pass through the later sets."""

    def __init__(self, ids_of: Callable[[str], Sequence[bytes]], shards: int = 1) -> None:
        """`ids_of` gives the endpoints of a host, by its key."""
        self._ids_of = ids_of
        self._shards = shards
        self.shard = 0  # that the next question is for
        self._left = 0  # shards of this pass, the present one included; 0: the next question begins a pass
        self._is_whole = True
        self._lanes: list[Lane[Any]] = []  # that this pass is for
        self._ids: list[Sequence[bytes]] = []  # their endpoints
        self._cut: Lane[Any] | None = None  # has more endpoints than a pass can name
        self._first_id = 0  # of its endpoints
        self._cursor = b""
        self._began_ms = 0
        self._asked_ms = 0
        self._turn = 0

    def next(self, wanting: Sequence[Lane[Any]], now_ms: int) -> Recall | None:
        """What to ask for with the next exchange. `wanting`: the lanes that have room, and perhaps parked ones."""
        if not wanting or now_ms - self._asked_ms < EVERY_MS:
            return None
        self._asked_ms = now_ms
        if not self._left or all(lane.recall_room <= 0 for lane in self._lanes):
            self._begin(wanting, now_ms)
        rooms = (max(0, min(lane.recall_room, MAX_MOVED)) for lane in self._lanes)
        return Recall(self._cursor, PAGE, list(zip(rooms, self._ids, strict=True)))

    def _begin(self, wanting: Sequence[Lane[Any]], now_ms: int) -> None:
        self._cursor = b""
        self._left, self._is_whole = self._shards, True
        self._began_ms = now_ms
        self._turn = (self._turn + len(self._lanes)) % len(wanting)
        self._lanes, self._ids, self._cut = [], [], None
        left = MAX_IDS
        for lane in [*wanting[self._turn :], *wanting[: self._turn]][:MAX_HOSTS]:
            ids = self._ids_of(lane.host_key)
            if len(ids) > left:
                if self._lanes:
                    break
                self._cut = lane
                self._first_id = (self._first_id + left) % len(ids)
                ids = [*ids[self._first_id :], *ids[: self._first_id]][:left]
            left -= len(ids)
            self._lanes.append(lane)
            self._ids.append(ids)

    def took(self, cursor: bytes, counts: Sequence[int], now_ms: int) -> None:
        """The answer: where to go on, and for each host how many were brought forward and how many seen beyond that."""
        for lane, moved, beyond in zip(self._lanes, counts[::2], counts[1::2], strict=True):
            lane.recall_room -= moved
            if moved or beyond:
                lane.recall_seen_ms = now_ms
        self._cursor = cursor
        if not cursor:
            self._go_on()

    def pass_over(self) -> None:
        """The present shard is away: the others have their turn, and no host is done with after this pass."""
        self._is_whole = False
        self._cursor = b""
        self._go_on()

    def _go_on(self) -> None:
        self.shard = (self.shard + 1) % self._shards
        self._left = max(self._left - 1, 0)
        if self._left == 0 and self._is_whole:
            for lane in self._lanes:
                if lane is not self._cut and max(lane.recall_seen_ms, lane.parked_ms) < self._began_ms:
                    lane.forget_parked()
