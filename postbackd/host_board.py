# SPDX-License-Identifier: MIT
"""The host board: what each delivery worker knows of its hosts, in memory that all processes of the daemon share.

It owns one anonymous shared mapping, made before the first fork. Every delivery slot has ROWS rows and one writer, the
worker that runs in the slot (delivery/host_report.py); anyone may read. A row is a host's name and int64 cells:
counters that only grow, and the host's state now. Row 0 is "other": it sums up the hosts that have no row, and what
those counted whose row was given to another. So over all rows no counter ever goes back.

There is no lock. The slot's sequence is odd while rows change hands, and a reader that saw it odd or changed reads
again. Counters belong to the slot and a successor goes on from them. Times are this machine's monotonic ms.
"""

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import IntEnum

import msgspec

from postbackd.rate_board import RateBoard
from postbackd.scoreboard import monotonic_ms

ROWS = 64  # of a slot; 50 hosts are shown
NAME_BYTES = 256  # one of length, then the name; a longer one stays in row 0
OTHER = "other"
STALE_MS = 10_000  # a slot whose worker has not published for so long: its transfers are no more
TRIES = 5  # of a reader, against a writer in the middle of it (or stopped there)

# Five buckets a decade: a quantile read off them is right to a quarter of itself.
BOUNDS_MS = tuple(round(10 ** (step / 5), 2) for step in range(-3, 25))  # 0.25, 0.4, 0.63, 1 … 63,096 ms
BUCKETS = len(BOUNDS_MS) + 1  # the last one: beyond all bounds


class HostCell(IntEnum):
    """The cells of a row. Those below IN_FLIGHT are counters, the histogram of attempts' times in their middle."""

    ATTEMPTS = 0
    DELIVERED = 1
    RETRIED = 2
    DEAD = 3
    FAILURES = 4  # attempts that failed by the host's fault: what its breaker counts
    PARKED = 5
    FIRST_BUCKET = 6
    IN_FLIGHT = 6 + BUCKETS
    LIMIT = IN_FLIGHT + 1  # transfers that may be in flight to it now
    BREAKER = IN_FLIGHT + 2  # 0 closed, 1 half open, 2 open
    GATE_UNTIL_MS = IN_FLIGHT + 3  # by its breaker or its Retry-After nothing starts before
    OPENED_MS = IN_FLIGHT + 4  # when this worker's breaker opened last
    CLOSED_MS = IN_FLIGHT + 5  # when a probe of this worker closed it last
    OPEN_NEXT_MS = IN_FLIGHT + 6  # how long the breaker opens the next time
    LAST_USED_MS = IN_FLIGHT + 7


COUNTERS = int(HostCell.IN_FLIGHT)
CELL_BYTES = 8
CELLS_PER_ROW = 48
HEADER_CELLS = 8  # of a slot, a cache line of its own
SEQUENCE, CHANGES, BEAT_MS = range(3)  # CHANGES counts what happened to breakers and pauses: siblings look then
ROW_CELLS_BYTES = CELLS_PER_ROW * CELL_BYTES
SLOT_BYTES = HEADER_CELLS * CELL_BYTES + ROWS * (ROW_CELLS_BYTES + NAME_BYTES)


def bucket_of(took_ms: float) -> int:
    """Which bucket of the histogram an attempt of this time counts in."""
    return bisect_left(BOUNDS_MS, took_ms)


class HostFigures(msgspec.Struct, kw_only=True):
    """One host over all delivery workers: counters, and its state now."""

    host: str
    attempts: int = 0
    delivered: int = 0
    retried: int = 0
    dead: int = 0
    failures: int = 0
    parked: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)
    in_flight: int = 0
    limit: int = 0
    breaker: int = 0  # 0 closed, 1 half open, 2 open: the worst that any worker has
    gate_until_ms: int = 0  # nothing starts before, by breaker or pause; 0 or past: nothing holds it up
    last_used_ms: int = 0

    def quantile_ms(self, share: float) -> float | None:
        """The time that a share of all its attempts stayed under; see `quantile_ms` for a difference of two reads."""
        return quantile_ms(self.buckets, share)


def quantile_ms(buckets: Sequence[int], share: float) -> float | None:
    """The time that a share of the attempts counted here stayed under, by straight line within a bucket."""
    rank = sum(buckets) * share
    if rank <= 0:
        return None
    for index, count in enumerate(buckets):
        if count and rank <= count:
            low_ms = BOUNDS_MS[index - 1] if index else 0.0
            high_ms = BOUNDS_MS[min(index, len(BOUNDS_MS) - 1)]
            return low_ms + (high_ms - low_ms) * rank / count
        rank -= count
    return BOUNDS_MS[-1]


class HostRows:
    """The rows of one slot, as its only writer sees them."""

    def __init__(self, memory: memoryview) -> None:
        self._header = memory[: HEADER_CELLS * CELL_BYTES].cast("q")
        cells_end = HEADER_CELLS * CELL_BYTES + ROWS * ROW_CELLS_BYTES
        self._cells = memory[HEADER_CELLS * CELL_BYTES : cells_end].cast("q")
        self._names = memory[cells_end:]
        self.hosts: dict[str, int] = {}  # host → its row

    def take_over(self) -> None:
        """At a worker's start: its predecessor's hosts and counters are kept, its transfers are no more."""
        self._header[SEQUENCE] += self._header[SEQUENCE] % 2  # it died in the middle of a change
        self.hosts = {}
        for number in range(1, ROWS):
            if name := self.name(number):
                self.hosts[name] = number
        for number in range(ROWS):
            self.row(number)[HostCell.IN_FLIGHT] = 0

    def row(self, number: int) -> "memoryview[int]":
        """The cells of one row: `row[HostCell.DELIVERED] += n`."""
        return self._cells[number * CELLS_PER_ROW : (number + 1) * CELLS_PER_ROW]

    def name(self, number: int) -> str:
        """The host of a row; empty: the row is free."""
        start = number * NAME_BYTES
        length = self._names[start]
        return bytes(self._names[start + 1 : start + 1 + length]).decode(errors="replace")

    def give(self, number: int, host: str) -> bool:
        """Give a row to a host, what it counted goes to row 0; False when the host can have none."""
        name = host.encode()
        if len(name) >= NAME_BYTES or host == OTHER:
            return False
        row, other = self.row(number), self.row(0)
        folded = [before + more for before, more in zip(other[:COUNTERS], row[:COUNTERS], strict=True)]
        old = self.name(number)
        self._header[SEQUENCE] += 1
        for cell, value in enumerate(folded):
            other[cell] = value
        for cell in range(CELLS_PER_ROW):
            row[cell] = 0
        start = number * NAME_BYTES
        self._names[start : start + 1 + len(name)] = bytes([len(name)]) + name
        self._header[SEQUENCE] += 1
        self.hosts.pop(old, None)
        self.hosts[host] = number
        return True

    def publish(self, now_ms: int, changes: int) -> None:
        """The rows are up to date as of now; `changes`: how many breakers and pauses changed since the last time."""
        if changes:
            self._header[CHANGES] += changes
        self._header[BEAT_MS] = now_ms

    @property
    def changes(self) -> int:
        """Counts what happened to this slot's breakers and pauses."""
        return self._header[CHANGES]

    @property
    def beat_ms(self) -> int:
        """When its worker published last."""
        return self._header[BEAT_MS]

    def read(self) -> Iterator[tuple[str, list[int]]]:
        """Every row in use, row 0 as "other"; for readers, who may see a write in progress between two rows."""
        found: list[tuple[str, list[int]]] = []
        for _ in range(TRIES):
            sequence = self._header[SEQUENCE]
            found = [(self.name(number) if number else OTHER, self.row(number).tolist()) for number in range(ROWS)]
            if sequence % 2 == 0 and sequence == self._header[SEQUENCE]:
                break
        return ((name, cells) for name, cells in found if name)


class HostBoard:
    """The rows of all delivery slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.rates = RateBoard(slots)
        self._mapping = mmap.mmap(-1, max(slots, 1) * SLOT_BYTES)
        whole = memoryview(self._mapping)
        self._rows = [HostRows(whole[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]) for slot in range(slots)]

    def rows(self, slot: int) -> HostRows:
        """One slot's rows: to write for its worker, to read for everybody else."""
        return self._rows[slot]

    def hosts(self, now_ms: int | None = None) -> list[HostFigures]:
        """Every host summed over the slots, the busiest first, "other" last. Never goes back but in its states."""
        now_ms = monotonic_ms() if now_ms is None else now_ms
        found: dict[str, HostFigures] = {}
        for rows in self._rows:
            is_alive = now_ms - rows.beat_ms <= STALE_MS
            for name, cells in rows.read():
                figures = found.get(name)
                if figures is None:
                    figures = found[name] = HostFigures(host=name)
                _add(figures, cells, is_alive, now_ms)
        other = found.pop(OTHER, HostFigures(host=OTHER))
        return [*sorted(found.values(), key=lambda figures: -figures.attempts), other]


def _add(figures: HostFigures, cells: Sequence[int], is_alive: bool, now_ms: int) -> None:
    figures.attempts += cells[HostCell.ATTEMPTS]
    figures.delivered += cells[HostCell.DELIVERED]
    figures.retried += cells[HostCell.RETRIED]
    figures.dead += cells[HostCell.DEAD]
    figures.failures += cells[HostCell.FAILURES]
    figures.parked += cells[HostCell.PARKED]
    for bucket in range(BUCKETS):
        figures.buckets[bucket] += cells[HostCell.FIRST_BUCKET + bucket]
    figures.last_used_ms = max(figures.last_used_ms, cells[HostCell.LAST_USED_MS])
    if is_alive or cells[HostCell.GATE_UNTIL_MS] > now_ms:
        figures.breaker = max(figures.breaker, cells[HostCell.BREAKER])
        figures.gate_until_ms = max(figures.gate_until_ms, cells[HostCell.GATE_UNTIL_MS])
    if is_alive:
        figures.in_flight += cells[HostCell.IN_FLIGHT]
        figures.limit += cells[HostCell.LIMIT]
