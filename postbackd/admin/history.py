# SPDX-License-Identifier: MIT
"""What was, in memory at two resolutions: 2 s for 15 minutes, 30 s for 6 hours. Pure: points are passed in.

A coarse point is made of the fine ones of its 30 s: rates are averaged, percentiles and gauges are the worst of them,
since a spike must not vanish in the longer view.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

STEP_S = 2
COARSE_STEP_S = 30
FINE_POINTS = 15 * 60 // STEP_S
COARSE_POINTS = 6 * 3600 // COARSE_STEP_S
RANGES_S = {"15m": 900, "1h": 3600, "6h": 21600}


class Point(msgspec.Struct, frozen=True, rename={"in_": "in"}):
    """One point in time; rates are per second over its step."""

    t: float  # Unix time at its end
    in_: float = 0.0
    out: float = 0.0
    retried: float = 0.0
    dead: float = 0.0
    p50: float | None = None  # ms of attempts
    p99: float | None = None
    ready: int = 0
    later: int = 0
    dead_total: int = 0
    oldest_s: float | None = None
    spool_bytes: int = 0
    in_flight: int = 0


class History:
    """Both resolutions."""

    def __init__(self) -> None:
        self._fine: deque[Point] = deque(maxlen=FINE_POINTS)
        self._coarse: deque[Point] = deque(maxlen=COARSE_POINTS)
        self._gathered: list[Point] = []

    def add(self, point: Point) -> None:
        """The next fine point."""
        if self._gathered and point.t // COARSE_STEP_S != self._gathered[0].t // COARSE_STEP_S:
            self._coarse.append(merge(self._gathered))
            self._gathered = []
        self._gathered.append(point)
        self._fine.append(point)

    def pack(self) -> bytes:
        """All of it, for `unpack` in a successor."""
        return msgspec.msgpack.encode((list(self._fine), list(self._coarse), self._gathered))

    def unpack(self, data: bytes, now: float) -> None:
        """Go on from what a predecessor packed, as far as it is not too old; raises msgspec.DecodeError."""
        parts = msgspec.msgpack.decode(data, type=tuple[list[Point], list[Point], list[Point]])
        fine, coarse, self._gathered = ([point for point in part if point.t <= now] for part in parts)
        self._fine.extend(point for point in fine if point.t > now - FINE_POINTS * STEP_S)
        self._coarse.extend(point for point in coarse if point.t > now - COARSE_POINTS * COARSE_STEP_S)

    def points(self, range_name: str) -> tuple[int, list[Point]]:
        """Step in seconds and points of a range, oldest first; raises KeyError for an unknown one."""
        length_s = RANGES_S[range_name]
        if not self._fine:
            return (STEP_S if length_s <= FINE_POINTS * STEP_S else COARSE_STEP_S), []
        since = self._fine[-1].t - length_s
        if length_s <= FINE_POINTS * STEP_S:
            return STEP_S, [point for point in self._fine if point.t > since]
        now = [merge(self._gathered)] if self._gathered else []
        return COARSE_STEP_S, [point for point in [*self._coarse, *now] if point.t > since]


def merge(points: Sequence[Point]) -> Point:
    """One point of several, the last of which gives its time and what only grows."""
    last = points[-1]

    def mean(name: str) -> float:
        return float(sum(getattr(point, name) for point in points)) / len(points)

    def worst(name: str) -> float | None:
        return max((value for point in points if (value := getattr(point, name)) is not None), default=None)

    return Point(
        t=last.t,
        in_=mean("in_"),
        out=mean("out"),
        retried=mean("retried"),
        dead=mean("dead"),
        p50=worst("p50"),
        p99=worst("p99"),
        ready=max(point.ready for point in points),
        later=last.later,
        dead_total=last.dead_total,
        oldest_s=worst("oldest_s"),
        spool_bytes=max(point.spool_bytes for point in points),
        in_flight=max(point.in_flight for point in points),
    )
