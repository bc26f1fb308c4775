# SPDX-License-Identifier: MIT
"""/metrics of a real daemon: accepted by promtool, true to what happened, and named as docs/metrics.md says."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon, free_port, running_daemon, running_sink, wait_until
from tests.support.daemon import http as ask
from tests.support.servers import Server

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
CONTRACT = {
    *("postbackd_ingest_requests_total", "postbackd_ingest_postbacks_total", "postbackd_deliveries_total"),
    *("postbackd_attempts_total", "postbackd_retries_total", "postbackd_dead_total"),
    *("postbackd_attempt_duration_seconds", "postbackd_delivery_lag_seconds", "postbackd_queue_depth"),
    *("postbackd_oldest_ready_seconds", "postbackd_inflight", "postbackd_worker_saturation_ratio"),
    *("postbackd_connections_total", "postbackd_breaker_state", "postbackd_leases_reclaimed_total"),
    *("postbackd_spool_bytes", "postbackd_redis_errors_total", "postbackd_build_info"),
}


def promtool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is missing: bash scripts/need.sh promtool:prometheus"
    return subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True)


def scrape(daemon: Daemon) -> str:
    status, text = ask("GET", f"{daemon.admin_url}/metrics")
    assert status == 200
    return str(text)


def value(text: str, name: str, **labels: str) -> float | None:
    """One sample's value."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that delivered five postbacks, gave up one, and has one to try again."""
    folder = tmp_path_factory.mktemp("metrics")
    refusing = ["--status", "410"]
    with (
        running_sink(folder / "sink") as sink,
        running_sink(folder / "refusing", *refusing) as refuses,
        running_daemon(folder / "daemon", ["retry.schedule=[3600]"]) as running,  # no second attempt meanwhile
    ):
        for url, items in ((sink.url, 5), (refuses.url, 1), (f"http://127.0.0.1:{free_port()}", 1)):
            running.post({"endpoint": {"method": "GET", "url": f"{url}/?k={{k}}"}, "data": [{"k": 1}] * items})
        running.post(b"no json")
        wait_until(lambda: value(scrape(running), "postbackd_attempts_total_sum") is None, "it answers")
        wait_until(lambda: running.stats()["totals"]["attempts"] == 7, "seven attempts are counted")
        wait_until(lambda: depths(scrape(running)) == [0, 0, 1, 1], "the queue is seen when all is settled")
        yield running


def depths(text: str) -> list[float | None]:
    """Of ready, leased, later and dead: of one look at the queue."""
    return [value(text, "postbackd_queue_depth", state=state) for state in ("ready", "leased", "later", "dead")]


def test_promtool_finds_nothing_to_say(daemon: Daemon) -> None:
    checked = promtool("check", "metrics", stdin=scrape(daemon))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_name_of_the_design_is_there_with_help_and_type(daemon: Daemon) -> None:
    text = scrape(daemon)
    for word in ("HELP", "TYPE"):
        assert set(re.findall(rf"^# {word} (\S+) ", text, re.MULTILINE)) >= CONTRACT, word


def test_values_are_what_happened(daemon: Daemon) -> None:
    text = scrape(daemon)
    for name, labels, expected in (
        ("postbackd_ingest_requests_total", {"code": "202"}, 3),
        ("postbackd_ingest_requests_total", {"code": "400"}, 1),
        ("postbackd_ingest_postbacks_total", {}, 7),
        ("postbackd_deliveries_total", {"outcome": "delivered"}, 5),
        ("postbackd_deliveries_total", {"outcome": "retry"}, 1),
        ("postbackd_deliveries_total", {"outcome": "dead"}, 1),
        ("postbackd_attempts_total", {"class": "ok", "method": "GET"}, 5),
        ("postbackd_attempts_total", {"class": "http_4xx", "method": "GET"}, 1),
        ("postbackd_attempts_total", {"class": "connection_refused", "method": "GET"}, 1),
        ("postbackd_attempts_total", {"class": "timeout", "method": "GET"}, 0),
        ("postbackd_retries_total", {}, 1),
        ("postbackd_dead_total", {"reason": "refused_status"}, 1),
        ("postbackd_dead_total", {"reason": "expired"}, 0),
        ("postbackd_attempt_duration_seconds_count", {}, 6),  # a refused connection takes no time
        ("postbackd_delivery_lag_seconds_count", {}, 7),
        ("postbackd_queue_depth", {"state": "dead"}, 1),
        ("postbackd_queue_depth", {"state": "ready"}, 0),
        ("postbackd_oldest_ready_seconds", {}, 0),
        ("postbackd_queue_up", {}, 1),
        ("postbackd_ready", {}, 1),
        ("postbackd_workers", {"role": "ingest"}, 2),
        ("postbackd_worker_restarts_total", {"role": "deliver"}, 0),
    ):
        assert value(text, name, **labels) == expected, (name, labels)
    reused = [value(text, "postbackd_connections_total", reused=word) for word in ("true", "false")]
    assert None not in reused and sum(filter(None, reused)) == 6


def test_hosts_have_series_of_their_own(daemon: Daemon) -> None:
    def attempts() -> list[float]:
        families = text_string_to_metric_families(scrape(daemon))
        samples = [sample for family in families for sample in family.samples]
        return sorted(it.value for it in samples if it.name == "postbackd_host_attempts_total")

    wait_until(lambda: attempts() == [0, 1, 1, 5], "three hosts and other")
    assert value(scrape(daemon), "postbackd_breaker_state", host="other") == 0


def test_histograms_are_cumulative_and_in_seconds(daemon: Daemon) -> None:
    for family in text_string_to_metric_families(scrape(daemon)):
        if family.type != "histogram":
            continue
        buckets = [(it.labels["le"], it.value) for it in family.samples if it.name.endswith("_bucket")]
        assert buckets[-1][0] == "+Inf"
        assert [float(bound) for bound, _ in buckets] == sorted(float(bound) for bound, _ in buckets)
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1][1] == next(it.value for it in family.samples if it.name.endswith("_count"))
        assert float(buckets[0][0]) < 0.01


def test_docs_list_every_metric_and_no_other(daemon: Daemon) -> None:
    told = set(re.findall(r"^# TYPE (\S+) ", scrape(daemon), re.MULTILINE))
    listed = re.findall(r"^\| `(postbackd_[a-z_]+)(?:\{[a-z_, ]+\})?` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(told)


def test_queue_that_is_away_has_no_depth(tmp_path: Path, own_server: Server) -> None:
    """Not the daemon's own server: that would be there again before the next look."""
    with running_daemon(tmp_path, [f"queue.url={own_server.url}"]) as daemon:
        wait_until(lambda: value(scrape(daemon), "postbackd_queue_up") == 1, "the queue is seen")
        assert "postbackd_queue_depth{" in scrape(daemon)
        own_server.kill()
        wait_until(lambda: value(scrape(daemon), "postbackd_queue_up") == 0, "the queue is missed")
        assert "postbackd_queue_depth{" not in scrape(daemon)
