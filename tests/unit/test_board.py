# SPDX-License-Identifier: MIT
"""Figures for a person, and the tables of status and top made of them."""

import io
from typing import Any

import pytest
from rich.console import Console, ConsoleDimensions

from postbackd.tools.board import (
    _queue,
    cluster_table,
    headline,
    host_table,
    is_in_trouble,
    sorted_hosts,
    summary,
    worker_table,
)
from postbackd.tools.figures import count, ms, percent, rate, resample, size, span, sparkline
from postbackd.tools.plain_text import printable
from postbackd.tools.top import View


def host(name: str, **figures: Any) -> dict[str, Any]:
    return {
        "host": name, "attempts": 10, "delivered": 9, "retried": 1, "dead": 0,
        "attempts_per_s": 1.0, "success_ratio": 1.0, "p50_ms": 5.0, "p99_ms": 50.0,
        "in_flight": 1, "limit": 32, "breaker": "closed", "paused_s": 0.0, **figures,
    }  # fmt: skip


def stats(**figures: Any) -> dict[str, Any]:
    worker = {"role": "deliver", "slot": 0, "pid": 7, "alive": True, "restarts": 0, "heartbeat_age_s": 0.1}
    daemon = {"node": "a", "version": "1", "state": "running", "ready": True, "seen_ms_ago": 0, "in_per_s": 1.5}
    return {
        "version": "1", "node": "node7", "data_dir": "/x/var", "uptime_s": 90.0,
        "state": "running", "ready": True, "reasons": [],
        "queue": {"reachable": True, "error": None, "ready": 1234, "leased": 3, "later": 4, "dead": 0,
                  "oldest_ready_s": 0.5, "used_memory_bytes": 2048, "server": "valkey 9"},
        "totals": {"dead_by_reason": {}},
        "spool": {"bytes": 0, "max_bytes": 1 << 30, "files": 0}, "log": {"path": "x", "lines_lost": 0},
        "now": {"in_per_s": 1.0, "out_per_s": 2.0, "attempts_per_s": 2.0, "retried_per_s": 0.0, "dead_per_s": 0.0,
                "success_ratio": 0.997, "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
                "lag_ms": {"p50": None, "p99": None}, "in_flight": 5, "saturation": 0.1},
        "workers": [{**worker, "in_flight": 5, "waiting": 6}], "hosts": [host("a.example"), host("b.example")],
        "cluster": [{**daemon, "out_per_s": 1.0, "in_flight": 2, "spool_bytes": 0, "workers": 3}] * 2, **figures,
    }  # fmt: skip


def shown(*renderables: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(*renderables, sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (count(None), "-"),
        (count(1234567), "1,234,567"),
        (rate(99.94), "99.9"),
        (rate(100.4), "100"),
        (ms(9.99), "10.0 ms"),
        (ms(10), "10 ms"),
        (ms(9_999), "9999 ms"),
        (ms(10_000), "10.0 s"),
        (percent(1), "100 %"),
        (percent(0.99999), "99.9 %"),
        (percent(0), "0.0 %"),
        (percent(None), "-"),
        (size(1023), "1023 B"),
        (size(1024), "1.0 KiB"),
        (size(100 * 1024), "100 KiB"),
        (size(3 << 40), "3.0 TiB"),
        (span(9.94), "9.9 s"),
        (span(59.9), "59 s"),
        (span(60), "1 min 0 s"),
        (span(600), "10 min"),
        (span(3600), "1 h 0 min"),
        (span(90_000), "1 d 1 h"),
        (sparkline([0, 1, 4, 8], 3), "▂▅█"),
        (sparkline([], 5), ""),
        (str(resample([1, 2, 3, 4, 5], 3)), "[1.0, 2.5, 4.5]"),
        (str(resample([1, 2], 5)), "[1.0, 2.0]"),
        (str(resample([], 5)), "[]"),
        (printable("a\x1b[31m\n\x9b"), "a\\x1b[31m\\n\\x9b"),
    ],
)
def test_figure(figure: str, expected: str) -> None:
    assert figure == expected


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, False),
        ({"success_ratio": None}, False),
        ({"success_ratio": 0.99}, False),
        ({"success_ratio": 0.989}, True),
        ({"breaker": "half_open"}, True),
        ({"paused_s": 0.1}, True),
    ],
)
def test_trouble(figures: dict[str, Any], expected: bool) -> None:
    assert is_in_trouble(host("a", **figures)) is expected


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("trouble", ["open", "failing", "busy", "slow", "other"]),
        ("rate", ["busy", "failing", "open", "slow", "other"]),
        ("p99", ["slow", "failing", "open", "busy", "other"]),
        ("in flight", ["slow", "busy", "failing", "open", "other"]),
    ],
)
def test_hosts_are_sorted_with_the_rest_last(sort: str, expected: list[str]) -> None:
    hosts = [
        host("other", attempts_per_s=99, in_flight=999, p99_ms=9e9),
        host("busy", attempts_per_s=50, p99_ms=1, in_flight=5),
        host("slow", attempts_per_s=1, p99_ms=900, in_flight=32),
        host("failing", attempts_per_s=9, success_ratio=0.1),
        host("open", attempts_per_s=2, success_ratio=None, breaker="open", paused_s=20, p99_ms=49, in_flight=0),
    ]
    assert [one["host"] for one in sorted_hosts(hosts, sort)] == expected


def test_what_is_wrong_is_said_in_words() -> None:
    wrong = stats(ready=False, reasons=["queue: refused"], spool={"bytes": 2048, "max_bytes": 4096, "files": 1})
    wrong["queue"].update(reachable=False, error="refused")
    wrong["log"]["lines_lost"] = 3
    wrong["totals"]["dead_by_reason"] = {"expired": 1234, "poison": 1}
    wrong["workers"][0].update(alive=False, pid=None)
    told = shown(headline(wrong), summary(wrong, "127.0.0.1:8081"), worker_table(wrong["workers"]))
    for words in (
        "NOT READY: queue: refused",
        "AWAY: refused",
        "IN USE: 2.0 KiB of 4.0 KiB",
        "3 lines LOST",
        "1,234 expired   1 poison   since the start",
        "DOWN",
        "deliver 0 of 1",
    ):
        assert words in told, words
    told = shown(host_table([host("bad\x1b[2J.example", breaker="open", paused_s=12, success_ratio=0.0), host("a")]))
    assert "! bad\\x1b[2J.example" in told and "OPEN, probe in 12 s" in told and "0.0 %" in told
    assert "no host was tried yet" in shown(host_table([]))


def test_well_daemon_is_told_in_figures() -> None:
    told = shown(headline(stats()), summary(stats(), "127.0.0.1:8081"))
    for words in (
        "up 1 min 30 s, running, ready",
        "daemon   127.0.0.1:8081, data_dir /x/var",
        "1,234 ready (oldest 0.5 s)",
        "99.7 % of attempts",
        "deliver 1 of 1",
    ):
        assert words in told, words


def test_machines_are_summed_up() -> None:
    assert shown(cluster_table(stats()["cluster"])).splitlines()[-1].split() == [
        "all",
        "2",
        "3.0",
        "2.0",
        "4",
        "0",
        "B",
        "6",
    ]


@pytest.mark.parametrize(("width", "height"), [(200, 60), (80, 24), (60, 14), (20, 5)])
def test_top_fits_whatever_terminal(width: int, height: int) -> None:
    view = View("127.0.0.1:8081")
    view.stats = stats(hosts=[host(f"{number}.example") for number in range(100)])
    view.points = [{"in": float(number), "out": None} for number in range(50)]
    told = shown(view.render(ConsoleDimensions(width, height), 0.0), width=width)
    assert "0.example" in told or width < 60
    if height >= 24:
        assert len(told.splitlines()) <= height


def test_top_obeys_its_keys() -> None:
    view = View("127.0.0.1:8081")
    view.stats = stats(hosts=[host(f"{number:02}.example") for number in range(60)])
    assert not view.press("s") and view.sort == "rate"
    assert not view.press("page down") and view.first == 10
    assert not view.press("up") and view.first == 9
    for _ in range(9):
        view.press("page down")
    told = shown(view.render(ConsoleDimensions(120, 40), 0.0))
    assert "of 60" in told and view.first + 10 < 60, "not beyond the last"
    assert view.press("q")


def test_top_says_when_another_daemon_answers() -> None:
    view = View("127.0.0.1:8081")
    view.stats, view.stranger = stats(hosts=[host(f"{number}.example") for number in range(100)]), "another one " * 20
    told = shown(view.render(ConsoleDimensions(80, 30), 0.0), width=80)
    assert "another one" in told and len(told.splitlines()) <= 30


def test_top_says_that_what_it_shows_is_old() -> None:
    view = View("127.0.0.1:8081")
    view.stats, view.error, view.answered_s = stats(), "no daemon runs", 10.0
    assert "NO ANSWER for 5.0 s, what follows is old: no daemon runs" in shown(
        view.render(ConsoleDimensions(160, 40), 15.0)
    )


def test_shards_that_are_away_are_told_beside_what_the_others_hold() -> None:
    queue = {**stats()["queue"], "shards_away": 2, "error": "10.0.0.1:7000 has not answered for 2 s."}
    text = shown(_queue(queue))
    assert text.startswith("2 SHARDS AWAY (10.0.0.1:7000 has not answered for 2 s.)   1,234 ready")
    assert "AWAY" not in shown(_queue({**queue, "shards_away": 0}))
