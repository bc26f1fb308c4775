# SPDX-License-Identifier: MIT
"""What ingest refused in the last minute for a fault of ours, and whether that is everything it was asked. Pure."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from postbackd.admin.history import STEP_S

KEPT_S = 60
JUDGED_S = 10  # before the last request: nothing taken and something refused there = nothing is taken
ONE_REQUEST = "internal_error"  # a fault of ours too, but of one request and no other


class _Look(NamedTuple):
    at_s: float  # monotonic
    refused: Mapping[str, int]  # since the start, by error code
    taken: int


class Refusals:
    """The counters of ingest as they were at each look of the last minute."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=KEPT_S // STEP_S + 1)

    def begin(self, at_s: float, started_s: float) -> None:
        """The daemon started at `started_s` (both monotonic): if that is within the minute, nothing was counted before,
        and what is counted by the first look belongs to the minute too."""
        if at_s - started_s < KEPT_S:
            self.take(started_s, {}, 0)

    def take(self, at_s: float, refused: Mapping[str, int], taken: int) -> None:
        """Called every `STEP_S` with the counters of that moment."""
        self._looks.append(_Look(at_s, dict(refused), taken))

    def by_error(self) -> dict[str, int]:
        """Requests answered 5xx in the last minute, by error code."""
        return _grown(self._looks[0], self._looks[-1]) if self._looks else {}

    def all_refused(self) -> str | None:
        """How many were refused and why, as `12 x queue_full`, where nothing is taken any more; else None.

        Judged by the last requests there were, so that a pause between two tries of a sender changes nothing; after a
        minute without any nothing is known."""
        looks = list(self._looks)
        for last in range(len(looks) - 1, 0, -1):
            if looks[last].taken != looks[last - 1].taken:
                return None
            if _judged(looks[last - 1], looks[last]):
                break
        else:
            return None
        first = next(look for look in looks if look.at_s > looks[last].at_s - JUDGED_S - STEP_S)
        if first.taken != looks[last].taken:
            return None
        return ", ".join(f"{count} x {code}" for code, count in self.by_error().items())


def _judged(before: _Look, after: _Look) -> dict[str, int]:
    return {code: count for code, count in _grown(before, after).items() if code != ONE_REQUEST}


def _grown(before: _Look, after: _Look) -> dict[str, int]:
    grown = {code: count - before.refused.get(code, 0) for code, count in after.refused.items()}
    return {code: count for code, count in grown.items() if count > 0}
