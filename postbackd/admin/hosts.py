# SPDX-License-Identifier: MIT
"""Hosts as /stats shows them: the 50 with most traffic of late, then "other", which is all the rest. Pure.

The host board gives totals; rates and percentiles come from the difference to what it gave some seconds ago.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from postbackd.host_board import OTHER, HostFigures, quantile_ms

SHOWN = 50
BREAKERS = ("closed", "half_open", "open")


def rows(
    now: Sequence[HostFigures], before: Mapping[str, HostFigures], passed_s: float, now_ms: int
) -> list[dict[str, Any]]:
    """`hosts` of /stats. `now_ms` is monotonic."""
    found = [_row(figures, before.get(figures.host), passed_s, now_ms) for figures in now if figures.host != OTHER]
    found.sort(key=lambda row: (-row["attempts_per_s"], row["breaker"] == "closed", -row["attempts"], row["host"]))
    rest = [figures for figures in now if figures.host in {OTHER, *(row["host"] for row in found[SHOWN:])}]
    earlier = [before[figures.host] for figures in rest if figures.host in before]
    other = _row(_sum(rest), _sum(earlier), passed_s, now_ms)
    return [*found[:SHOWN], *([other] if other["attempts"] else [])]


def _row(now: HostFigures, before: HostFigures | None, passed_s: float, now_ms: int) -> dict[str, Any]:
    past = before or HostFigures(host=now.host)
    attempts = max(now.attempts - past.attempts, 0)  # a row given to another host has moved into "other"
    delivered = max(now.delivered - past.delivered, 0)
    buckets = [max(count - old, 0) for count, old in zip(now.buckets, past.buckets, strict=True)]
    return {
        "host": now.host,
        "attempts": now.attempts,
        "delivered": now.delivered,
        "retried": now.retried,
        "dead": now.dead,
        "attempts_per_s": round(attempts / passed_s, 2) if passed_s > 0 else 0.0,
        "success_ratio": round(min(delivered / attempts, 1.0), 4) if attempts else None,
        "p50_ms": _rounded(quantile_ms(buckets, 0.5)),
        "p99_ms": _rounded(quantile_ms(buckets, 0.99)),
        "in_flight": now.in_flight,
        "limit": now.limit,
        "breaker": BREAKERS[now.breaker],
        "paused_s": round(max(now.gate_until_ms - now_ms, 0) / 1000, 1),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _sum(hosts: Sequence[HostFigures]) -> HostFigures:
    """Several hosts as one: their sums, and closed whatever one of them is."""
    total = HostFigures(host=OTHER)
    for host in hosts:
        for name in ("attempts", "delivered", "retried", "dead", "in_flight", "limit"):
            setattr(total, name, getattr(total, name) + getattr(host, name))
        total.buckets = [one + more for one, more in zip(total.buckets, host.buckets, strict=True)]
    return total
