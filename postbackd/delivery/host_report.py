# SPDX-License-Identifier: MIT
"""A worker's hosts on the host board: what its lanes counted, what state they are in, and what siblings say of theirs.

In: the worker's lanes, four times a second. Out: this slot's rows, of which this worker is the only writer, and to the
lanes the breakers and pauses that other workers of the machine have found. Hosts with much traffic, and those that are
shut, have rows; the others are summed up in row 0.
"""

from typing import Any

from postbackd.delivery.breaker import Hint, State
from postbackd.delivery.lane import Lane
from postbackd.delivery.lanes import Lanes
from postbackd.host_board import BUCKETS, ROWS, HostBoard, HostCell

PUBLISH_EVERY_MS = 250
DEAL_EVERY_MS = 2_000  # between looks at who deserves a row
SHUT_WEIGHT = 1e6  # a host that is shut is what siblings must hear of
FORGET_MS = 60_000  # a breaker that nobody uses stands in its row so long beyond its time
_SHARED = (HostCell.BREAKER, HostCell.GATE_UNTIL_MS, HostCell.OPENED_MS, HostCell.CLOSED_MS)


class HostReport:
    """One worker's writer of its slot, and reader of all of them."""

    def __init__(self, board: HostBoard, slot: int) -> None:
        self._board = board
        self._slot = slot
        self._rows = board.rows(slot)
        self._rows.take_over()
        self._free = [number for number in range(ROWS - 1, 0, -1) if not self._rows.name(number)]
        self._seen = [-1] * board.slots  # the count of changes up to which each slot has been read
        self._hints: list[dict[str, Hint]] = [{} for _ in range(board.slots)]
        self._published_ms = 0
        self._dealt_ms = 0

    def rate_cells(self, host: str) -> "tuple[memoryview[int], int]":
        """Where the workers of this machine keep a host's configured rate, and which slot of it is ours."""
        return self._board.rates.cells(host), self._slot

    def turn(self, lanes: Lanes[Any], now_ms: int) -> None:
        """Publish and read when it is time."""
        if now_ms - self._published_ms < PUBLISH_EVERY_MS:
            return
        self._published_ms = now_ms
        self._publish(lanes, now_ms)
        self._read_siblings(lanes, now_ms)

    def _publish(self, lanes: Lanes[Any], now_ms: int) -> None:
        rows, row_of = self._rows, self._rows.hosts
        if now_ms - self._dealt_ms >= DEAL_EVERY_MS:
            self._dealt_ms = now_ms
            self._deal(lanes)
        changes = other_in_flight = other_limit = 0
        for lane in lanes:
            number = row_of.get(lane.host_key, 0)
            if not number and self._free and rows.give(self._free[-1], lane.host_key):
                number = self._free.pop()
            row = rows.row(number)
            _count(row, lane)
            if number:
                changes += _show(row, lane)
            else:
                other_in_flight += lane.in_flight
                other_limit += lane.limit
        for host, number in row_of.items():
            if lanes.get(host) is None:
                _rest(rows.row(number), now_ms)
        other = rows.row(0)
        other[HostCell.IN_FLIGHT], other[HostCell.LIMIT] = other_in_flight, other_limit
        rows.publish(now_ms, changes)

    def _deal(self, lanes: Lanes[Any]) -> None:
        """Rows of hosts with little traffic go to hosts with much more."""
        rows = self._rows
        wanting = [lane for lane in lanes if lane.host_key not in rows.hosts]
        for lane in lanes:
            lane.traffic /= 2
        if not wanting or self._free:
            return
        owners = sorted((_weight(lanes.get(host)), host) for host in rows.hosts)
        wanting.sort(key=_weight, reverse=True)
        for lane, (weight, host) in zip(wanting, owners, strict=False):
            if _weight(lane) <= 2 * weight + 1:
                return
            rows.give(rows.hosts[host], lane.host_key)

    def _read_siblings(self, lanes: Lanes[Any], now_ms: int) -> None:
        lanes.hints = self._hints
        for slot in range(self._board.slots):
            rows = self._board.rows(slot)
            is_own = slot == self._slot
            if self._seen[slot] == rows.changes or (is_own and self._seen[slot] >= 0):
                continue  # of our own slot only what a predecessor left is news
            self._seen[slot] = rows.changes
            hints = self._hints[slot] = {name: hint for name, cells in rows.read() if (hint := _hint(cells))}
            for host, hint in hints.items():
                lanes.adopt(host, hint, now_ms)


def _count(row: "memoryview[int]", lane: Lane[Any]) -> None:
    """Add what the lane counted since the last time."""
    lane.fold_times()
    attempts = sum(lane.buckets)
    parked = lane.parked_count
    if not attempts and not parked:
        return
    lane.traffic += attempts + parked
    row[HostCell.ATTEMPTS] += attempts
    row[HostCell.DELIVERED] += attempts - lane.retried - lane.dead
    row[HostCell.RETRIED] += lane.retried
    row[HostCell.DEAD] += lane.dead
    row[HostCell.FAILURES] += lane.faults
    row[HostCell.PARKED] += parked
    lane.retried = lane.dead = lane.faults = lane.parked_count = 0
    if attempts:
        for bucket, count in enumerate(lane.buckets, HostCell.FIRST_BUCKET):
            if count:
                row[bucket] += count
        lane.buckets = [0] * BUCKETS


def _show(row: "memoryview[int]", lane: Lane[Any]) -> bool:
    """Write the lane's state; whether siblings should look."""
    breaker = lane.breaker
    until_ms = max(lane.pause_ms, breaker.open_until_ms if breaker.state is State.OPEN else 0)
    shared = (int(breaker.state), until_ms, breaker.opened_ms, breaker.closed_ms)
    changed = any(row[cell] != value for cell, value in zip(_SHARED, shared, strict=True))
    for cell, value in zip(_SHARED, shared, strict=True):
        row[cell] = value
    row[HostCell.OPEN_NEXT_MS] = breaker.open_next_ms
    row[HostCell.IN_FLIGHT] = lane.in_flight
    row[HostCell.LIMIT] = lane.limit
    row[HostCell.LAST_USED_MS] = lane.used_ms
    return changed


def _rest(row: "memoryview[int]", now_ms: int) -> None:
    """The host has no lane: nothing is in flight, and what its breaker was is forgotten after a while."""
    row[HostCell.IN_FLIGHT] = row[HostCell.LIMIT] = 0
    if row[HostCell.BREAKER] and row[HostCell.GATE_UNTIL_MS] + FORGET_MS < now_ms:
        row[HostCell.BREAKER] = State.CLOSED


def _weight(lane: Lane[Any] | None) -> float:
    if lane is None:
        return 0.0
    return lane.traffic + (SHUT_WEIGHT if lane.breaker.state is not State.CLOSED or lane.pause_ms else 0.0)


def _hint(cells: list[int]) -> Hint | None:
    state = State(cells[HostCell.BREAKER])
    hint = Hint(
        state,
        cells[HostCell.GATE_UNTIL_MS],
        cells[HostCell.OPENED_MS],
        cells[HostCell.CLOSED_MS],
        cells[HostCell.OPEN_NEXT_MS],
    )
    return hint if state or hint.until_ms or hint.closed_ms else None
