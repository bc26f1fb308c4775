# SPDX-License-Identifier: MIT
"""A pacer: the configured rate of one host, kept by all delivery workers of a machine together. Pure.

A token bucket that lives in shared cells (rate_board.py). Each worker counts its own starts in a cell of its own, and
before a start looks at the sum over all slots: what the others started is taken from the bucket as if it were its own.
So one worker alone has the whole rate, several have what they take, and one that dies or falls silent takes nothing
any more; nobody has to give anything back.

The bucket's level is kept as the time at which it will be full again. Each worker publishes it with the sum that it
counts. For whoever looks later, starts beyond that sum count as if they came now, so every published level errs on the
empty side, and the fullest of them is the best. Two workers that look at the same moment may both take the last token:
at most one too many for each further worker, and the next ones wait for it, since every start is counted.
"""

import math

from postbackd.rate_board import CELL_BYTES, CELLS, FULL_NS, NEXT_PARK_US, SEEN, STARTED

NS = 1_000_000_000
FAR = 1 << 62  # what a cell can hold, whatever rate is configured: 146 years


class Pacer:
    """One host's bucket, and the clock of its parked postbacks, as the worker of one slot sees them."""

    __slots__ = ("_cells", "_interval_ns", "_most_ns", "_own", "_slack_ns", "next_ms", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, cells: "memoryview[int] | None" = None, slot: int = 0) -> None:
        """`cells`: the host's, of all slots; None: nobody shares it."""
        self.rate_per_s = rate_per_s
        self.next_ms = 0  # when the next start is due, after a refusal
        self._interval_ns = max(round(min(NS / rate_per_s, FAR >> 8)), 1)
        burst = max(burst, 1.0)
        self._slack_ns = round((burst - 1) * self._interval_ns)  # so far from full, one token is left
        self._cells = memoryview(bytearray(CELLS * CELL_BYTES)).cast("q") if cells is None else cells
        # As far as an empty bucket and one too many of each worker go: beyond it is what a lower rate has left.
        self._most_ns = round(min((burst + len(self._cells) // CELLS) * self._interval_ns, FAR))
        self._own = slot * CELLS

    def spend(self, now_ms: int) -> bool:
        """Take a token for a transfer that starts now; False: none is left, and `next_ms` says when one is."""
        now_ns = now_ms * 1_000_000
        cells, own = self._cells, self._own
        total = sum(cells[STARTED::CELLS])
        full_ns = self._full_ns(total, now_ns)
        if full_ns - now_ns > self._slack_ns:
            self.next_ms = math.ceil((full_ns - self._slack_ns) / 1_000_000)
            self._publish(full_ns, total)  # or the others' starts would count as if they came now for ever
            return False
        cells[own + STARTED] += 1
        self._publish(full_ns + self._interval_ns, total + 1)
        return True

    def _publish(self, full_ns: int, total: int) -> None:
        self._cells[self._own + FULL_NS] = full_ns  # before SEEN: half read, it errs on the empty side
        self._cells[self._own + SEEN] = total

    def give_back(self) -> None:
        """The transfer did not start after all."""
        cells, own = self._cells, self._own
        cells[own + STARTED] -= 1
        cells[own + SEEN] -= 1
        cells[own + FULL_NS] -= self._interval_ns

    def _full_ns(self, total: int, now_ns: int) -> int:
        """When the bucket will be full: by the fullest of what the workers have published."""
        cells, own, interval_ns = self._cells, self._own, self._interval_ns
        if cells[own + SEEN] == total:  # nobody else has started any since
            full_ns = max(cells[own + FULL_NS], now_ns)
        else:
            full_ns = min(
                max(cells[slot + FULL_NS], now_ns) + (total - seen) * interval_ns
                for slot, seen in zip(range(0, len(cells), CELLS), cells[SEEN::CELLS].tolist(), strict=True)
            )
        return min(full_ns, now_ns + self._most_ns)

    def next_park_ms(self) -> float:
        """Where on the host's clock the last parked postback of all workers stands."""
        return max(self._cells[NEXT_PARK_US::CELLS]) / 1000

    def parked(self, due_ms: float) -> None:
        """One more stands there."""
        self._cells[self._own + NEXT_PARK_US] = round(min(due_ms * 1000, FAR))
