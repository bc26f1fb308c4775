# SPDX-License-Identifier: MIT
"""The rate board: what the delivery workers of one machine tell each other of the hosts with a configured rate.

It owns anonymous shared mappings, made in the supervisor before the workers fork that use them: one for the hosts of
the start, one more for those that a reload adds. A host has a line of cells for each delivery slot, with one writer,
the worker that runs in the slot; anyone may read. So there is no lock (delivery/pacer.py says why that suffices). A
successor goes on from its predecessor's cells. Times are this machine's monotonic clock.
"""

import mmap
from collections.abc import Iterable

CELLS = 8  # of a slot: a cache line of its own
CELL_BYTES = 8
# The cells of one slot of one host; plain numbers, since adding to an IntEnum takes ten times as long:
STARTED = 0  # transfers, since ever
FULL_NS = 1  # when the bucket will be full again, as this worker saw it last …
SEEN = 2  # … and how many starts of all slots that counts
NEXT_PARK_US = 3  # where this worker's last parked postback stands on the host's clock


class RateBoard:
    """The cells of all hosts with a rate."""

    def __init__(self, slots: int) -> None:
        self._slots = max(slots, 1)
        self._cells: dict[str, memoryview[int]] = {}

    def assign(self, hosts: Iterable[str]) -> None:
        """Room for these hosts, in the supervisor before the fork; those that have some keep it."""
        new = [host for host in hosts if host not in self._cells]
        if not new:
            return
        size = self._slots * CELLS
        cells = memoryview(mmap.mmap(-1, len(new) * size * CELL_BYTES)).cast("q")
        for place, host in enumerate(new):
            self._cells[host] = cells[place * size : (place + 1) * size]

    def cells(self, host: str) -> "memoryview[int]":
        """The cells of a host, slot after slot. One that was not assigned gets some that only this process sees."""
        self.assign([host])
        return self._cells[host]
