# SPDX-License-Identifier: MIT
"""The admin process of a real daemon: what it tells, to whom, and that nothing makes it hang."""

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import POSTBACKD, Daemon, free_port, running_daemon, running_sink, wait_until
from tests.support.daemon import http as ask
from tests.support.servers import Server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has delivered three postbacks, and failed one for good."""
    folder = tmp_path_factory.mktemp("admin")
    refusing = ["--status", "410"]
    with (
        running_sink(folder / "sink") as sink,
        running_sink(folder / "refusing", *refusing) as refuses,
        running_daemon(folder / "daemon") as running,
    ):
        for target, items in ((sink, 3), (refuses, 1)):
            url = f"{target.url}/?k={{k}}"
            running.post({"endpoint": {"method": "GET", "url": url}, "data": [{"k": 1}] * items})
        wait_until(lambda: running.stats()["totals"]["attempts"] == 4, "four attempts are counted")
        yield running


def get(daemon: Daemon, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    return ask("GET", f"{daemon.admin_url}{path}", headers=headers)


def test_stats_tell_of_what_was_taken_and_delivered(daemon: Daemon) -> None:
    def places() -> tuple[int, ...]:
        queue = daemon.stats()["queue"]
        return tuple(queue[name] for name in ("ready", "leased", "later", "dead"))

    wait_until(lambda: places() == (0, 0, 0, 1), "the queue is looked at when all is settled")
    stats = daemon.stats()
    totals = stats["totals"]
    assert (totals["accepted"], totals["delivered"], totals["retried"], totals["dead"]) == (4, 3, 0, 1)
    assert (stats["state"], stats["ready"], stats["reasons"]) == ("running", True, [])
    assert totals["requests_by_code"]["202"] == 2
    assert totals["dead_by_reason"] == {"refused_status": 1}
    assert totals["attempts_by_class"] == {"ok": 3, "http_4xx": 1}
    queue = stats["queue"]
    assert queue["reachable"] and queue["error"] is None
    assert (queue["ready"], queue["leased"], queue["later"], queue["dead"]) == (0, 0, 0, 1)
    assert queue["oldest_ready_s"] is None and queue["used_memory_bytes"] > 0 and queue["server"].startswith("valkey ")
    assert stats["log"] == {"path": str(daemon.log_path), "lines_lost": 0}
    assert (stats["spool"]["bytes"], stats["spool"]["files"]) == (0, 0)


def test_stats_show_every_worker(daemon: Daemon) -> None:
    workers = daemon.stats()["workers"]
    assert sorted((worker["role"], worker["slot"]) for worker in workers) == [
        ("deliver", 0),
        ("ingest", 0),
        ("ingest", 1),
    ]
    assert all(worker["alive"] and worker["pid"] and worker["restarts"] == 0 for worker in workers)
    assert {worker["pid"] for worker in workers if worker["role"] == "ingest"} == set(daemon.children("ingest"))


def test_stats_show_the_last_failure_with_its_answer(daemon: Daemon) -> None:
    wait_until(lambda: daemon.stats()["failures"], "the log is looked at")
    [failure] = daemon.stats()["failures"]
    assert (failure["outcome"], failure["reason"], failure["response_code"]) == ("dead", "refused_status", 410)


def test_stats_show_hosts(daemon: Daemon) -> None:
    wait_until(lambda: sum(row["attempts"] for row in daemon.stats()["hosts"]) == 4, "hosts are published")
    rows = daemon.stats()["hosts"]
    assert sorted((row["attempts"], row["delivered"], row["dead"], row["breaker"]) for row in rows) == [
        (1, 0, 1, "closed"),
        (3, 3, 0, "closed"),
    ]


def test_cluster_lists_this_daemon_once(daemon: Daemon) -> None:
    [node] = daemon.stats()["cluster"]
    assert (node["state"], node["ready"], node["workers"]) == ("running", True, 3)
    assert node["node"] == daemon.stats()["node"]


def test_history_has_points_of_both_resolutions(daemon: Daemon) -> None:
    wait_until(lambda: len(get(daemon, "/history")[1]["points"]) > 1, "two points")
    for name, step_s in (("15m", 2), ("1h", 30), ("6h", 30)):
        status, history = get(daemon, f"/history?range={name}")
        assert (status, history["step_s"]) == (200, step_s)
        assert set(history["points"][0]) == {
            *("t", "in", "out", "retried", "dead", "p50", "p99", "ready", "later", "dead_total", "oldest_s"),
            *("spool_bytes", "in_flight"),
        }
    assert get(daemon, "/history?range=1y")[0] == 400


@pytest.mark.parametrize("path", ["/health", "/ready", "/stats", "/history"])
def test_head_is_answered_like_get_without_a_body(daemon: Daemon, path: str) -> None:
    assert ask("HEAD", f"{daemon.admin_url}{path}") == (200, "")


def test_errors_are_json(daemon: Daemon) -> None:
    for path, headers, status, code in (
        ("/nothing", {}, 404, "not_found"),
        ("/stats", {"Host": "evil.example"}, 421, "wrong_host"),
    ):
        found, answer = get(daemon, path, headers)
        assert (found, answer["error"]["code"]) == (status, code)
    status, answer = ask("POST", f"{daemon.admin_url}/stats", b"", {"X-Postbackd": "1"})
    assert (status, answer["error"]["code"]) == (405, "method_not_allowed")


def test_two_daemons_on_one_queue_see_each_other(tmp_path: Path, own_server: Server) -> None:
    settings = [f"queue.url={own_server.url}"]
    with running_daemon(tmp_path / "a", settings) as first:
        with running_daemon(tmp_path / "b", settings) as second:
            for daemon in (first, second):
                wait_until(lambda it=daemon: len(it.stats()["cluster"]) == 2, "both are listed")
            assert second.stop() == 0
        wait_until(lambda: len(first.stats()["cluster"]) == 1, "the one that stopped is gone")


def test_queue_that_stands_still_makes_nothing_hang(tmp_path: Path, own_server: Server) -> None:
    with running_daemon(tmp_path, [f"queue.url={own_server.url}"]) as daemon:
        wait_until(lambda: daemon.stats()["queue"]["reachable"], "the queue is seen")
        os.kill(own_server.process.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: not daemon.stats()["queue"]["reachable"], "the queue is missed")
            stats = daemon.stats()
            assert stats["queue"]["error"] and stats["ready"] is False
            status, ready = get(daemon, "/ready")
            assert status == 503 and any(reason.startswith("queue: ") for reason in ready["reasons"])
            assert get(daemon, "/health")[0] == 200
        finally:
            os.kill(own_server.process.pid, signal.SIGCONT)
        wait_until(lambda: get(daemon, "/ready")[0] == 200, "the queue is back")


def test_restarted_worker_is_shown_and_no_counter_goes_back(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon") as daemon:
        body = {"endpoint": {"method": "GET", "url": f"{sink.url}/"}, "data": [{}] * 5}
        daemon.post(body)
        wait_until(lambda: daemon.stats()["totals"]["delivered"] == 5, "five are delivered")
        [pid] = daemon.children("deliver")
        os.kill(pid, signal.SIGKILL)

        def successor() -> bool:
            worker = next(row for row in daemon.stats()["workers"] if row["role"] == "deliver")
            return worker["alive"] and worker["restarts"] == 1 and worker["pid"] != pid

        wait_until(successor, "the worker is replaced")
        assert daemon.stats()["totals"]["delivered"] >= 5  # those not settled yet are delivered again
        daemon.post(body)
        wait_until(lambda: daemon.stats()["totals"]["delivered"] >= 10, "the successor goes on counting")


def test_dead_admin_process_is_replaced_and_disturbs_nobody(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        [pid] = daemon.children("admin")
        others = daemon.children("ingest") + daemon.children("deliver")
        os.kill(pid, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return get(daemon, "/ready")[0] == 200 and daemon.children("admin") not in ([], [pid])
            except (OSError, http.client.HTTPException):
                return False

        wait_until(is_back, "another one answers")
        assert daemon.children("ingest") + daemon.children("deliver") == others
        assert daemon.stop() == 0


def test_history_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        wait_until(lambda: len(get(daemon, "/history")[1]["points"]) > 1, "two points")
        before = get(daemon, "/history")[1]["points"]
        assert daemon.stop() == 0
        daemon.start()
        after = get(daemon, "/history")[1]["points"]
        assert [point["t"] for point in after[: len(before)]] == [point["t"] for point in before]


def test_open_dashboard_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.admin_port)
        connection.request("GET", "/stats")
        assert json.loads(connection.getresponse().read())["version"]
        assert daemon.stop() == 0
        connection.close()


def start_that_fails(tmp_path: Path, *settings: str, code: int = 1) -> str:
    arguments = [part for setting in settings for part in ("--set", setting)]
    ended = subprocess.run(
        [*POSTBACKD, "run", "--set", f"data_dir={tmp_path / 'var'}", *arguments], capture_output=True, text=True
    )
    assert ended.returncode == code
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("postbackd: ")]
    return line


def test_admin_off_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    ports = [f"admin.port={free_port()}", f"ingest.port={free_port()}"]
    assert "set admin.token" in start_that_fails(tmp_path, "admin.host=0.0.0.0", *ports, code=2)


def test_taken_admin_port_is_named(tmp_path: Path, daemon: Daemon) -> None:
    port = daemon.admin_port
    line = start_that_fails(tmp_path, f"admin.port={port}", f"ingest.port={free_port()}")
    assert f"127.0.0.1:{port}" in line and "taken" in line and "admin.port" in line


def test_token_of_a_real_daemon_is_asked_for(tmp_path: Path) -> None:
    token = "a-token-of-the-admin-app"
    with running_daemon(tmp_path, [f"admin.token={token}"]) as daemon:
        assert get(daemon, "/stats")[0] == 401
        assert get(daemon, "/stats", {"Authorization": f"Bearer {token}"})[0] == 200
        assert get(daemon, "/health")[0] == 200
        assert token not in daemon.output.read_text()


def test_refused_reload_is_shown_until_one_succeeds(tmp_path: Path) -> None:
    config = tmp_path / "postbackd.toml"
    config.write_text("[delivery]\nper_host = 7\n")
    with running_daemon(tmp_path / "daemon", config=config) as daemon:
        assert daemon.stats()["reload_refused"] is None
        config.write_text("[delivery]\nper_hots = 8\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: daemon.stats()["reload_refused"], "it is refused")
        chosen = [part for setting in daemon.settings for part in ("--set", setting)]
        status = subprocess.run([*POSTBACKD, "status", *chosen], capture_output=True, text=True, timeout=60)
        told = " ".join(status.stdout.split())
        assert status.returncode == 0, "the daemon does its work"
        assert "reload REFUSED, the configuration before it goes on: delivery.per_hots: there is no" in told
        config.write_text("[delivery]\nper_host = 8\n")
        daemon.process.send_signal(signal.SIGHUP)

        def is_forgotten() -> bool:
            try:
                return daemon.stats()["reload_refused"] is None
            except (OSError, http.client.HTTPException):  # one admin process follows the other
                return False

        wait_until(is_forgotten, "the next one succeeds")
