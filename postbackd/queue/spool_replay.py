# SPDX-License-Identifier: MIT
"""The replay thread of an ingest process: the spool goes to Redis when that is back, file by file, shard by shard.

A thread, since bjoern calls nothing while no request comes. It finds out when Redis is back for the whole process,
takes over the files of processes that have ended, and renews the worker number. What happens to a file is in
shard_replay.py.
"""

import threading
from collections.abc import Sequence

from postbackd import oplog
from postbackd.queue.shard_replay import ShardReplay
from postbackd.queue.spool import Spool
from postbackd.queue.worker_number import WorkerNumber
from postbackd.scoreboard import monotonic_ms

BUSY_PAUSE_S = 0.5
IDLE_PAUSE_S = 60.0
TAKE_OVER_EVERY_MS = 60_000
JOIN_S = 2.0


class SpoolReplay:
    """The thread and its turns; `turn` may be called without the thread, too."""

    def __init__(self, spool: Spool, shards: Sequence[ShardReplay], numbers: WorkerNumber) -> None:
        self._spool = spool
        self._shards = shards
        self._numbers = numbers
        self._took_over_ms = -TAKE_OVER_EVERY_MS
        self._was_in_use = False
        self._renewed_on = self._connections()
        self._wake_up = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-replay", daemon=True)
        spool.on_append = self._wake_up.set
        for shard in shards:
            shard.main_link.on_away = self._wake_up.set

    def start(self) -> None:
        """Begin to look after the spool."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present exchange; the files stay for the next start."""
        self._stopping.set()
        for shard in self._shards:
            shard.stop()
        self._wake_up.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake_up.clear()
            try:
                is_busy = self.turn()
            except Exception as error:  # the top of the thread: it must not end, or the spool is never replayed
                oplog.error("spool_replay_failed", error=repr(error), hint=f"tried again in {BUSY_PAUSE_S} s")
                is_busy = True
            if is_busy:  # not woken up by each request that is spooled meanwhile
                self._stopping.wait(BUSY_PAUSE_S)
            else:
                self._wake_up.wait(IDLE_PAUSE_S)

    def turn(self) -> bool:
        """Do what there is to do; whether there is more to do soon. A shard that is away holds up no other."""
        now_ms = monotonic_ms()
        if now_ms - self._took_over_ms >= TAKE_OVER_EVERY_MS:
            self._took_over_ms = now_ms
            for file in self._spool.take_over():
                oplog.info("spool_taken_over", file=str(file.path), requests=file.count)
        self._note_spool()
        for shard in self._shards:
            shard.link.come_back()
        is_busy = any([shard.turn(now_ms) for shard in self._shards])
        # A server that was left and found again may have lost who has the number: said before another process asks.
        if self._numbers.is_due(now_ms) or self._renewed_on != self._connections():
            self._numbers.renew(self._shards[0].link)
            self._renewed_on = self._connections()
            is_busy |= self._numbers.is_due(now_ms)
        return is_busy

    def _connections(self) -> int:
        """Grows with each connection to the first shard's server."""
        return self._shards[0].link.generation + self._shards[0].main_link.generation

    def _note_spool(self) -> None:
        in_use = bool(self._spool.pending())
        if in_use and not self._was_in_use and oplog.changed("spool", "in use"):
            oplog.warning("spool_in_use", bytes=self._spool.total_bytes(), hint="replayed when Redis takes it")
        if self._was_in_use and not in_use and not self._spool.total_bytes() and oplog.changed("spool", "empty"):
            oplog.info("spool_emptied")  # by all processes: the last one says so
        self._was_in_use = in_use
