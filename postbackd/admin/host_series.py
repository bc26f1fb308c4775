# SPDX-License-Identifier: MIT
"""Counters per host that a monitoring system can take: bounded in number, and none ever goes back. Pure.

The host board gives its rows to the hosts with most traffic and sums up the rest as "other"; a series that moved
between the two would look like a restart. So what grew since the last look is added to series kept here: a shown host's
own, or that of "other". A host that has to make room loses its series, and begins anew at 0 should it come back.
"""

from collections.abc import Sequence

import msgspec

from postbackd.host_board import OTHER, HostFigures

SHOWN = 50
DECAY = 0.95  # of a host's weight per look: half after 14
SHUT_WEIGHT = 1e6  # a host whose breaker is open is what must be seen

_COUNTERS = ("attempts", "delivered", "retried", "dead")


class Series(msgspec.Struct):
    """What one series counts, and its host's state."""

    attempts: int = 0
    delivered: int = 0
    retried: int = 0
    dead: int = 0
    breaker: int = 0
    in_flight: int = 0


class HostSeries:
    """The shown hosts, and "other"."""

    def __init__(self) -> None:
        self.shown: dict[str, Series] = {}
        self.other = Series()
        self._seen: dict[str, HostFigures] = {}
        self._weights: dict[str, float] = {}

    def take(self, hosts: Sequence[HostFigures]) -> None:
        """The next look at the board."""
        now = {figures.host: figures for figures in hosts}
        board_other = now.pop(OTHER, HostFigures(host=OTHER))
        grown, moved = self._growth(now)
        self._choose(now, grown)
        self.other.breaker = self.other.in_flight = 0
        for host, figures in now.items():
            series = self.shown.get(host, self.other)
            _add(series, grown[host])
            if series is not self.other:
                series.breaker, series.in_flight = figures.breaker, figures.in_flight
            else:
                series.in_flight += figures.in_flight
        self.other.in_flight += board_other.in_flight
        grown_elsewhere = _difference(board_other, self._seen.get(OTHER))
        _add(self.other, [max(count - gone, 0) for count, gone in zip(grown_elsewhere, moved, strict=True)])
        self._seen = {**now, OTHER: board_other}

    def _growth(self, now: dict[str, HostFigures]) -> tuple[dict[str, list[int]], list[int]]:
        """By how much each host's counters grew, and how much went over to the board's "other": a row that is given to
        another host takes what it counted there, so what is missing here is more there."""
        grown: dict[str, list[int]] = {}
        moved = [0] * len(_COUNTERS)
        for host in {**now, **self._seen}:
            if host == OTHER:
                continue
            difference = _difference(now.get(host, HostFigures(host=host)), self._seen.get(host))
            grown[host] = [max(count, 0) for count in difference]
            moved = [sum_ + max(-count, 0) for sum_, count in zip(moved, difference, strict=True)]
        return grown, moved

    def _choose(self, now: dict[str, HostFigures], grown: dict[str, list[int]]) -> None:
        """Who is shown: a host that has much more traffic takes the place of the one with the least."""
        old = self._weights
        self._weights = {
            host: old.get(host, 0.0) * DECAY + grown[host][0] + (SHUT_WEIGHT if figures.breaker else 0.0)
            for host, figures in now.items()
        }
        for host in sorted(now, key=lambda host: -self._weights[host]):
            if host in self.shown:
                continue
            if len(self.shown) >= SHOWN:
                least = min(self.shown, key=lambda host: self._weights.get(host, 0.0))
                if self._weights[host] <= 2 * self._weights.get(least, 0.0) + 1:
                    return
                del self.shown[least]
            self.shown[host] = Series()


def _difference(now: HostFigures, before: HostFigures | None) -> list[int]:
    past = before or HostFigures(host=now.host)
    return [getattr(now, name) - getattr(past, name) for name in _COUNTERS]


def _add(series: Series, grown: Sequence[int]) -> None:
    for name, count in zip(_COUNTERS, grown, strict=True):
        setattr(series, name, getattr(series, name) + count)
