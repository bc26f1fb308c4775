# SPDX-License-Identifier: MIT
"""The scoreboard: int64 cells in memory that the supervisor and all its children share.

It owns one anonymous shared mapping, made before the first fork. Every slot has a row of cells (`Cell`) and
one writer, the process that runs in the slot; anyone may read. An aligned store of 8 bytes is one
instruction on the machines we run on, so there is no lock. Counters belong to the slot and a successor goes
on from them; gauges and the heartbeat are cleared by the supervisor before each fork, while nobody runs there.

Behind the plain cells of a row stand the blocks of tally.py: attempts by class and method, histograms and the like.

Behind the rows is a ring with the names of dead incarnations, written by the supervisor alone: live delivery
workers read it and reclaim their leases (QUEUE.md "reclaim"). It does not talk to Redis and keeps nothing on disk.
"""

import mmap
import sys
import time
from enum import IntEnum

from postbackd.tally import CELLS_PER_SLOT, PLAIN_CELLS

CELL_BYTES = 8
RING_ENTRIES = 64
RING_KEPT = RING_ENTRIES - 1  # readable: the oldest entry may be in the middle of being overwritten
NAME_BYTES = 128  # one of length, then the name
SENDERS = 64  # of which the uses are counted, for rates that hold over all processes
NOTE_BYTES = 1024  # of which the first 8 say how many are in use
HEADER_BYTES = 64  # the death counter and the phase, which the supervisor writes, on a cache line of their own


class Cell(IntEnum):
    """The cells of one slot. Counters only grow; those from IN_FLIGHT on are gauges."""

    REQUESTS = 0  # HTTP requests begun by the app, whatever their answer; also proof that the loop moves
    REFUSED = 1  # answered with 4xx
    UNAVAILABLE = 2  # answered with 5xx
    ACCEPTED = 3  # postbacks acknowledged
    CLAIMED = 4
    ATTEMPTS = 5
    DELIVERED = 6
    RETRIED = 7
    DEAD = 8
    PARKED = 9
    RECLAIMED = 10
    REDIS_ERRORS = 11
    LOG_LINES_LOST = 12
    RESTARTS = 13  # written by the supervisor, while the slot is empty
    SPOOLED = 14  # postbacks acknowledged from the spool
    REPLAYED = 15  # postbacks of the spool that were enqueued
    UNSURE = 16  # requests spooled although Redis may have taken them: these may be delivered twice
    CONNECTIONS_CUT = 17  # by the guard, over one of the limits of [ingest]
    MISFRAMED = 18  # requests that bjoern took for one and that were not: 400 and the connection closed
    TOKENS_REFUSED = 19  # 401, 403
    RATE_LIMITED = 20  # 429
    IN_FLIGHT = 21
    WAITING = 22  # claimed and waiting in a lane
    HEARTBEAT_MS = 23  # monotonic; 0 = this incarnation has not said yet that it works
    PID = 24  # who runs here, or ran here last


class Phase(IntEnum):
    """What the daemon is doing, as its supervisor says."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2


FIRST_GAUGE = Cell.IN_FLIGHT


def monotonic_ms() -> int:
    """The clock of heartbeats and back-off: of this machine, stands still while it is suspended."""
    return time.monotonic_ns() // 1_000_000


class Scoreboard:
    """Rows of cells for `slots` slots, and the ring of the dead."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        rows_bytes = slots * CELLS_PER_SLOT * CELL_BYTES
        ring_end = HEADER_BYTES + rows_bytes + RING_ENTRIES * NAME_BYTES
        uses_end = ring_end + slots * SENDERS * CELL_BYTES
        self._mapping = mmap.mmap(-1, uses_end + NOTE_BYTES)
        whole = memoryview(self._mapping)
        self._death_count = whole[:CELL_BYTES].cast("q")
        self._phase = whole[CELL_BYTES : 2 * CELL_BYTES].cast("q")
        self._rows = whole[HEADER_BYTES : HEADER_BYTES + rows_bytes].cast("q")
        self._ring = whole[HEADER_BYTES + rows_bytes : ring_end]
        self._sender_uses = whole[ring_end:uses_end].cast("q")
        self._note = whole[uses_end:]

    def row(self, number: int) -> "memoryview[int]":
        """The cells of one slot, to be kept by its process: `row[Cell.DELIVERED] += n`."""
        if not 0 <= number < self.slots:
            raise IndexError(f"slot {number} of {self.slots}")
        start = number * CELLS_PER_SLOT
        return self._rows[start : start + CELLS_PER_SLOT]

    def clear_gauges(self, number: int) -> None:
        """Forget what the last incarnation was doing just then. Called by the supervisor before a fork."""
        row = self.row(number)
        for cell in range(FIRST_GAUGE, PLAIN_CELLS):
            row[cell] = 0

    def total(self, cell: Cell) -> int:
        """The sum of one cell over all slots."""
        return sum(self._rows[int(cell) :: CELLS_PER_SLOT])

    def sender_uses(self, number: int) -> "SenderUses":
        """The counts of requests by sender, to which the slot's process adds its own."""
        return SenderUses(self._sender_uses, number * SENDERS)

    def sums(self) -> list[int]:
        """Every cell summed over all slots, in the order of a row."""
        return [sum(self._rows[cell::CELLS_PER_SLOT]) for cell in range(CELLS_PER_SLOT)]

    @property
    def phase(self) -> Phase:
        return Phase(self._phase[0])

    def set_phase(self, phase: Phase) -> None:
        """Called by the supervisor alone."""
        self._phase[0] = phase

    @property
    def reload_refused(self) -> str:
        """Why the last reload was refused; empty since one succeeded, or where none was asked for."""
        length = int.from_bytes(self._note[:CELL_BYTES], sys.byteorder)
        return bytes(self._note[CELL_BYTES : CELL_BYTES + length]).decode(errors="replace")

    def set_reload_refused(self, error: str) -> None:
        """Called by the supervisor alone."""
        text = error.encode()[: NOTE_BYTES - CELL_BYTES]
        self._note[:CELL_BYTES] = bytes(CELL_BYTES)  # whoever reads meanwhile sees none
        self._note[CELL_BYTES : CELL_BYTES + len(text)] = text
        self._note[:CELL_BYTES] = len(text).to_bytes(CELL_BYTES, sys.byteorder)

    def note_death(self, worker: str) -> None:
        """Tell every live delivery worker that this incarnation is dead. Called by the supervisor alone."""
        name = worker.encode()
        if len(name) >= NAME_BYTES:
            raise ValueError(f"worker name of {len(name)} bytes, at most {NAME_BYTES - 1} fit")
        count = self._death_count[0]
        start = count % RING_ENTRIES * NAME_BYTES
        self._ring[start : start + 1 + len(name)] = bytes([len(name)]) + name
        self._death_count[0] = count + 1  # last: a reader that sees the count sees the name

    def deaths_since(self, seen: int) -> tuple[int, list[str]]:
        """What to pass next time, and the names noted since `seen` (the last 63 at most, oldest first).

        A new worker begins with 0: its own predecessor is in the ring, and to reclaim a lease again is harmless.
        Deaths that have fallen out of the ring are left to the lease's time-out.
        """
        while True:
            count = self._death_count[0]
            names = [self._name(index) for index in range(max(seen, count - RING_KEPT), count)]
            if self._death_count[0] == count:
                return count, names
            # A death was noted meanwhile and the next one may overwrite what was being read: read again.

    def _name(self, index: int) -> str:
        start = index % RING_ENTRIES * NAME_BYTES
        length = self._ring[start]
        return bytes(self._ring[start + 1 : start + 1 + length]).decode(errors="replace")


class SenderUses:
    """How often each sender was let in, by column: the sum over all slots, and one slot's own share to add to."""

    def __init__(self, cells: "memoryview[int]", own: int) -> None:
        self._cells = cells
        self._own = own

    def total(self, column: int) -> int:
        return sum(self._cells[column::SENDERS])

    def add(self, column: int) -> None:
        """Called by the slot's process alone."""
        self._cells[self._own + column] += 1
