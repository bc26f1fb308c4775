# SPDX-License-Identifier: MIT
"""The queue client of an ingest process, put together as ingest does it, its replay thread's turns called by hand."""

import os
from pathlib import Path

from postbackd.clock import Clock
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.shard_replay import ShardReplay
from postbackd.queue.spool import Spool
from postbackd.queue.spool_replay import SpoolReplay
from postbackd.queue.spooling import SpoolingQueue
from postbackd.queue.worker_number import WorkerNumber
from postbackd.scoreboard import Scoreboard
from postbackd.settings import Queue

KEYS = Keys("pb")
DURABILITY_TIMEOUT_S = 0.01  # a replica of this machine that is there needs less
SPOOL_BYTES = 100_000_000
MAX_DEPTH = 1_000_000_000


class Ingest:
    """One process. Its `turn` is what its replay thread would do."""

    def __init__(self, url: str, data_dir: Path, level: str) -> None:
        settings = {"url": url, "durability": level, "durability_timeout": DURABILITY_TIMEOUT_S}
        durability = Durability(Queue(**settings))  # type: ignore[arg-type]
        clock = Clock()
        self._link, self._main = (Link(url, clock, lambda: None, prove=durability.prove) for _ in range(2))
        self._spool = Spool(data_dir / "spool", "node.0", SPOOL_BYTES)
        self._numbers = WorkerNumber(data_dir, KEYS, clock)
        cells = Scoreboard(1).row(0)
        shard = ShardReplay(self._spool, self._link, self._main, KEYS, durability, cells)
        self.turn = SpoolReplay(self._spool, [shard], self._numbers).turn
        self.queue = SpoolingQueue(Enqueuer(self._main, KEYS, MAX_DEPTH, durability), self._spool, cells)

    def lose(self) -> None:
        """The next requests find the server away, until a turn has found it again."""
        self._main.lose(OSError("away"))

    def die(self) -> None:
        """As kill -9: connections, locks and what was in memory are gone, files stay for the next process."""
        for file in self._spool.pending():
            file.close()
        if self._numbers._file is not None:  # the kernel lets go of this lock; a living process never does
            os.close(self._numbers._file)
        for link in (self._link, self._main):
            link.drop()
