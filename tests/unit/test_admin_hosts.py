# SPDX-License-Identifier: MIT
"""Hosts for /stats: rates from differences, the busy ones first, the rest summed up and nothing lost."""

from postbackd.admin.hosts import SHOWN, rows
from postbackd.host_board import BUCKETS, OTHER, HostFigures


def host(name: str, attempts: int, **more: int) -> HostFigures:
    buckets = [0] * BUCKETS
    buckets[10] = attempts
    return HostFigures(host=name, attempts=attempts, delivered=attempts, buckets=buckets, **more)


def test_rates_and_percentiles_are_those_since_before() -> None:
    now = [host("a", 150, in_flight=3, limit=32), host(OTHER, 0)]
    now[0].delivered = 140
    [row] = rows(now, {"a": host("a", 100)}, 10.0, 0)
    assert (row["attempts"], row["attempts_per_s"], row["success_ratio"]) == (150, 5.0, 0.8)
    assert (row["in_flight"], row["limit"], row["breaker"], row["paused_s"]) == (3, 32, "closed", 0.0)
    assert row["p50_ms"] is not None and row["p50_ms"] < row["p99_ms"]


def test_host_without_recent_traffic_has_no_ratio() -> None:
    [row] = rows([host("a", 100), host(OTHER, 0)], {"a": host("a", 100)}, 10.0, 0)
    assert (row["success_ratio"], row["p50_ms"], row["attempts_per_s"]) == (None, None, 0.0)


def test_breaker_and_pause_are_shown() -> None:
    [row] = rows([host("a", 1, breaker=2, gate_until_ms=12_500), host(OTHER, 0)], {}, 10.0, 10_000)
    assert (row["breaker"], row["paused_s"]) == ("open", 2.5)


def test_busy_hosts_come_first_and_the_rest_is_other() -> None:
    now = [host(f"h{number:02}", number) for number in range(1, SHOWN + 11)]
    now.append(host(OTHER, 1000))
    found = rows(now, {}, 10.0, 0)
    assert [row["host"] for row in found[:2]] == ["h60", "h59"]
    assert len(found) == SHOWN + 1 and found[-1]["host"] == OTHER
    assert sum(row["attempts"] for row in found) == sum(figures.attempts for figures in now)


def test_row_that_moved_to_other_gives_no_negative_rate() -> None:
    [row, other] = rows([host("a", 5), host(OTHER, 100)], {"a": host("a", 100)}, 10.0, 0)
    assert (row["attempts_per_s"], other["attempts"]) == (0.0, 100)
