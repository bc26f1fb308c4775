# SPDX-License-Identifier: MIT
"""Counts what one ingest process refuses, and says in the operational log when it begins and ends to answer 5xx.

One line a change, not one a request: begun with the first 5xx, ended with the first postback that is acknowledged when
the last 5xx is `CALM_MS` ago, so that a queue at its limit, which takes one and refuses the next, is one story.
"""

from collections.abc import Callable

from postbackd import oplog
from postbackd.errors import RequestError
from postbackd.scoreboard import Cell, monotonic_ms
from postbackd.tally import unavailable_cell

CALM_MS = 10_000


class RefusalCount:
    """Of one process."""

    def __init__(self, cells: "memoryview[int]", clock_ms: Callable[[], int] = monotonic_ms) -> None:
        """`cells` is the process' row of the scoreboard."""
        self._cells = cells
        self._clock_ms = clock_ms
        self._codes: dict[str, int] = {}  # that are answered at present, and when it was looked at last
        self._count = 0
        self._last_ms = 0

    @property
    def refuses(self) -> bool:
        """Whether it was said that requests are refused, and not yet that they are taken again."""
        return bool(self._codes)

    def add(self, refusal: RequestError) -> None:
        """A request was answered so."""
        if refusal.status < 500:
            if refusal.status == 429:
                self._cells[Cell.RATE_LIMITED] += 1
            self._cells[Cell.REFUSED] += 1
            return
        self._cells[Cell.UNAVAILABLE] += 1
        self._cells[unavailable_cell(refusal.code)] += 1
        self._count += 1
        now_ms = self._last_ms = self._clock_ms()
        code = refusal.code
        if code not in self._codes or now_ms - self._codes[code] >= CALM_MS:  # another process may have said its end
            self._codes[code] = now_ms
            if oplog.changed(f"refused {code}", "yes"):
                oplog.warning("ingest_refuses", code=code, error=refusal.message)

    def end(self) -> None:
        """A request was taken, while `refuses`."""
        if self._clock_ms() - self._last_ms < CALM_MS:
            return
        if any([oplog.changed(f"refused {code}", "no") for code in self._codes]):
            oplog.info("ingest_takes_again", codes=",".join(self._codes), refused=self._count)
        self._codes, self._count = {}, 0
