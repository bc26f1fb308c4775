# SPDX-License-Identifier: MIT
"""What stands in a summed row of the scoreboard, by name. Pure.

Everything here takes `sums`, the cells of a row summed over all slots, or the difference of two of them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from postbackd import tally
from postbackd.codec import ErrorClass
from postbackd.scoreboard import Cell

CLASS_NAMES = {0: "ok", **{int(error): error.name.lower() for error in ErrorClass}}
OTHER = "other"
PLAIN = (
    *("requests", "accepted", "spooled", "unsure", "replayed", "attempts", "delivered", "retried", "dead", "parked"),
    *("reclaimed", "redis_errors"),
)


class Histogram(NamedTuple):
    """Counts by bucket, the last one beyond all bounds."""

    bounds: Sequence[float]
    buckets: Sequence[int]

    def quantile(self, share: float) -> float | None:
        """The value that a share of what was counted stayed under."""
        return tally.quantile(self.bounds, self.buckets, share)


def by_code(sums: Sequence[int]) -> dict[str, int]:
    """Answers of ingest by HTTP code."""
    return _block(sums, tally.CODES_AT, [str(code) for code in tally.CODES])


def by_reason(sums: Sequence[int]) -> dict[str, int]:
    """Dead letters by reason."""
    return _block(sums, tally.REASONS_AT, tally.REASONS)


def by_error(sums: Sequence[int]) -> dict[str, int]:
    """Requests that ingest answered 5xx, by error code."""
    return _block(sums, tally.UNAVAILABLE_AT, tally.UNAVAILABLE)


def _block(sums: Sequence[int], start: int, names: Sequence[str]) -> dict[str, int]:
    return {name: count for name, count in zip([*names, OTHER], sums[start:], strict=False) if count}


def by_class_and_method(sums: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Attempts: class, method, count."""
    for number, name in CLASS_NAMES.items():
        start = tally.ATTEMPTS_AT + number * tally.METHOD_STEP
        for method, count in _block(sums, start, tally.METHODS).items():
            yield name, method, count


def by_class(sums: Sequence[int]) -> dict[str, int]:
    """Attempts by class."""
    found: dict[str, int] = {}
    for name, _, count in by_class_and_method(sums):
        found[name] = found.get(name, 0) + count
    return found


def durations(sums: Sequence[int]) -> Histogram:
    """Of attempts with a connection, in ms."""
    return Histogram(tally.DURATION_BOUNDS_MS, sums[tally.DURATIONS_AT : tally.DURATION_SUM_AT])


def lags(sums: Sequence[int]) -> Histogram:
    """From when a postback was due to its first attempt, in ms."""
    return Histogram(tally.LAG_BOUNDS_MS, sums[tally.LAGS_AT : tally.LAG_SUM_AT])


def totals(sums: Sequence[int]) -> dict[str, object]:
    """`totals` of /stats."""
    return {
        **{name: sums[Cell[name.upper()]] for name in PLAIN},
        "requests_by_code": by_code(sums),
        "refused_by_error": by_error(sums),
        "dead_by_reason": by_reason(sums),
        "attempts_by_class": by_class(sums),
    }
