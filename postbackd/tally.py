# SPDX-License-Identifier: MIT
"""What is counted beyond a worker's plain cells: attempts by class and method, deaths by reason, answers by HTTP code
and those of 5xx by error code, connections, and how long things took. Where each stands in a row of the scoreboard, and
a delivery worker's own tally, which goes there many times a second: a cell in shared memory costs 0.1 µs each time, one
of a list a third. Pure.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
REASONS = (
    *("attempts_exhausted", "refused_status", "expired", "blocked"),
    *("render_error", "poison", "endpoint_missing", "unexpected_body"),
)
UNAVAILABLE = (
    *("queue_full", "spool_full", "queue_unavailable", "queue_unsure", "durability_timeout"),
    "internal_error",
)  # error codes of ingest's 5xx
CODES = (200, 202, 304, 400, 401, 403, 404, 405, 406, 409, 411, 413, 415, 417, 422, 429, 500, 503)
DURATION_BOUNDS_MS = (
    *(0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 750.0),
    *(1000.0, 1500.0, 2000.0, 3000.0, 5000.0, 7500.0, 10_000.0, 15_000.0, 30_000.0, 60_000.0),
)  # floats all of them: compared with an int, a float takes three times as long
LAG_BOUNDS_MS = (
    *(1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000),
    *(10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000, 21_600_000, 86_400_000, 172_800_000),
)

# The row: 32 plain cells (scoreboard.Cell), then these blocks. Each is followed by a cell for what has no place in it.
METHOD_STEP = 8  # cells of a class
CLASSES = 24  # 0 is ok, the others are numbers of codec.ErrorClass
PLAIN_CELLS = 32
ATTEMPTS_AT = PLAIN_CELLS
REASONS_AT = ATTEMPTS_AT + CLASSES * METHOD_STEP
CODES_AT = REASONS_AT + len(REASONS) + 1
NEW_CONNECTIONS_AT = CODES_AT + len(CODES) + 1
REUSED_CONNECTIONS_AT = NEW_CONNECTIONS_AT + 1
DURATIONS_AT = REUSED_CONNECTIONS_AT + 1  # buckets, the last one beyond all bounds, then the sum in µs
DURATION_SUM_AT = DURATIONS_AT + len(DURATION_BOUNDS_MS) + 1
LAGS_AT = DURATION_SUM_AT + 1
LAG_SUM_AT = LAGS_AT + len(LAG_BOUNDS_MS) + 1  # in ms
UNAVAILABLE_AT = LAG_SUM_AT + 1
END_AT = UNAVAILABLE_AT + len(UNAVAILABLE) + 1
CELLS_PER_SLOT = (END_AT + 7) // 8 * 8  # whole cache lines: neighbours do not slow each other down

_REASON_CELLS = {reason: REASONS_AT + index for index, reason in enumerate(REASONS)}
_CODE_CELLS = {code: CODES_AT + index for index, code in enumerate(CODES)}
_UNAVAILABLE_CELLS = {code: UNAVAILABLE_AT + index for index, code in enumerate(UNAVAILABLE)}
_METHOD_INDEXES = {method: index for index, method in enumerate(METHODS)}


def method_index(method: str) -> int:
    """A method's place within a class."""
    return _METHOD_INDEXES.get(method, len(METHODS))


def reason_cell(reason: str) -> int:
    """The cell of a death's reason."""
    return _REASON_CELLS.get(reason, REASONS_AT + len(REASONS))


def code_cell(code: int) -> int:
    """The cell of an HTTP code that ingest answered."""
    return _CODE_CELLS.get(code, CODES_AT + len(CODES))


def unavailable_cell(error_code: str) -> int:
    """The cell of the error code of a 5xx that ingest answered."""
    return _UNAVAILABLE_CELLS.get(error_code, UNAVAILABLE_AT + len(UNAVAILABLE))


class CodeCounter:
    """Counts ingest's answers by their status line, as `202 Accepted`: 0.15 µs."""

    def __init__(self, cells: "memoryview[int]") -> None:
        self._cells = cells
        self._places: dict[str, int] = {}  # status line → cell

    def __call__(self, status: str) -> None:
        place = self._places.get(status)
        if place is None:
            place = self._places[status] = code_cell(int(status[:3]))
        self._cells[place] += 1


class Tally:
    """A delivery worker's attempts that are not in the scoreboard yet."""

    def __init__(self, cells: "memoryview[int]", attempts_cell: int, delivered_cell: int) -> None:
        """`cells` is the worker's row; the two plain cells are kept in step with the attempts counted here."""
        self._cells = cells
        self._attempts_cell = attempts_cell
        self._delivered_cell = delivered_cell
        self._clear()

    def _clear(self) -> None:
        self._attempts = [0] * (CLASSES * METHOD_STEP)
        self._durations: list[float] = [0] * (len(DURATION_BOUNDS_MS) + 2)
        self._lags = [0] * (len(LAG_BOUNDS_MS) + 2)
        self._new_connections = 0

    def attempt(self, class_and_method: int, total_ms: float | None, reused: bool, lag_ms: int) -> None:
        """Count an attempt that has ended: 0.5 µs, all of it.

        `class_and_method`: class x METHOD_STEP + method, class 0 being a delivery. `total_ms` is None where there was
        no connection, `lag_ms` below 0 for another attempt than the first.
        """
        self._attempts[class_and_method] += 1
        if total_ms is not None:
            durations = self._durations
            durations[bisect_left(DURATION_BOUNDS_MS, total_ms)] += 1
            durations[-1] += total_ms
            if not reused:
                self._new_connections += 1
        if lag_ms >= 0:
            lags = self._lags
            lags[bisect_left(LAG_BOUNDS_MS, lag_ms)] += 1
            lags[-1] += lag_ms

    def publish(self) -> None:
        """Add everything to the scoreboard: 10 µs, so not for every attempt."""
        cells, attempts = self._cells, self._attempts
        total = sum(attempts)
        if not total:
            return
        cells[self._attempts_cell] += total
        cells[self._delivered_cell] += sum(attempts[:METHOD_STEP])
        _add(cells, ATTEMPTS_AT, attempts)
        durations = [int(count) for count in self._durations]
        durations[-1] = int(self._durations[-1] * 1000)
        cells[NEW_CONNECTIONS_AT] += self._new_connections
        cells[REUSED_CONNECTIONS_AT] += sum(durations[:-1]) - self._new_connections
        _add(cells, DURATIONS_AT, durations)
        _add(cells, LAGS_AT, self._lags)
        self._clear()


def _add(cells: "memoryview[int]", start: int, counts: Sequence[int]) -> None:
    for cell, count in enumerate(counts, start):
        if count:
            cells[cell] += count


def quantile(bounds: Sequence[float], buckets: Sequence[int], share: float) -> float | None:
    """The value that a share of what was counted stayed under, by a straight line within its bucket; None of nothing.

    Beyond the last bound nothing is known but that: the bound is returned.
    """
    totals = list(accumulate(buckets))
    if not totals or totals[-1] <= 0:
        return None
    rank = totals[-1] * share
    index = bisect_left(totals, rank)
    if index >= len(bounds):
        return float(bounds[-1])
    low = bounds[index - 1] if index else 0.0
    before = totals[index - 1] if index else 0
    return round(low + (bounds[index] - low) * (rank - before) / (totals[index] - before), 3)
