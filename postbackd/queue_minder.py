# SPDX-License-Identifier: MIT
"""The embedded queue server as a child of the supervisor: started first, started again when it dies, stopped last."""

import os
from pathlib import Path

from postbackd import oplog
from postbackd.backoff import Backoff
from postbackd.errors import BootError
from postbackd.forked import describe_exit
from postbackd.queue.embedded import EmbeddedServer
from postbackd.queue.left_behind import left_behind, what_to_do
from postbackd.scoreboard import monotonic_ms

STOP_S = 30.0


def say_left_behind(url: str, data_dir: Path) -> None:
    """At the start: postbacks of an embedded queue that `queue.url` has replaced are delivered by nobody."""
    if folder := left_behind(url, data_dir):
        why = "queue.url names another server, and nobody delivers what lies there"
        oplog.error("queue_left_behind", path=folder, why=why, hint=what_to_do(folder))


class QueueMinder:
    """Minds one server; the supervisor reaps, and calls with the time."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._is_up = False
        self._backoff = Backoff()
        self._started_ms = 0
        self.due_ms: int | None = None  # when to start it again

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._server.pid if self._is_up else None

    def start(self) -> str:
        """Start it and return its url; raises BootError."""
        self._started_ms = monotonic_ms()
        url = self._server.start()
        self._is_up = True
        oplog.info("queue_started", queue_pid=self._server.pid)
        return url

    def died(self, ended: os.waitid_result) -> None:
        """It ended by itself and has not been waited for."""
        now_ms = monotonic_ms()
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        delay_ms = self._backoff.delay_ms(now_ms - self._started_ms, now_ms)
        oplog.error("queue_died", how=describe_exit(code), restart_in=f"{delay_ms / 1000:g}s")
        self._server.stop(0)  # takes its exit status
        self._is_up = False
        self.due_ms = now_ms + delay_ms

    def turn(self, now_ms: int) -> None:
        """Start it again when that is due.

        Workers reconnect by themselves; until then ingest spools and deliveries wait to be settled. During the
        drain too: what is delivered then has still to be settled.
        """
        if self.due_ms is None or now_ms < self.due_ms:
            return
        self.due_ms = None
        try:
            self.start()
        except BootError as error:
            after_ms = monotonic_ms()
            delay_ms = self._backoff.delay_ms(0, after_ms)
            self.due_ms = after_ms + delay_ms
            oplog.error("queue_start_failed", error=error, again_in=f"{delay_ms / 1000:g}s")

    def stop(self) -> None:
        """End it; it writes everything first."""
        self._server.stop(STOP_S)
        oplog.info("queue_stopped")
