# SPDX-License-Identifier: MIT
"""/profile of a real daemon: every process by psutil, and stacks sampled inside a worker that works."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from tests.support.daemon import Daemon, running_daemon, running_sink, wait_until
from tests.support.daemon import http as ask

SPEEDSCOPE = {
    "type": "object",
    "required": ["$schema", "shared", "profiles"],
    "properties": {
        "shared": {"required": ["frames"], "properties": {"frames": {"items": {"required": ["name"]}}}},
        "profiles": {
            "minItems": 1,
            "items": {
                "required": ["type", "name", "unit", "startValue", "endValue", "samples", "weights"],
                "properties": {
                    "type": {"const": "sampled"},
                    "unit": {"enum": ["none", "nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"]},
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon under a steady load of small requests."""
    folder = tmp_path_factory.mktemp("profile")
    stop = threading.Event()
    with running_sink(folder / "sink") as sink, running_daemon(folder / "daemon") as running:
        endpoint = {"method": "GET", "url": f"{sink.url}/?k={{k}}"}
        body = json.dumps({"endpoint": endpoint, "data": [{"k": 1}] * 20}).encode()

        def load() -> None:
            while not stop.is_set():
                running.post(body)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            wait_until(lambda: running.stats()["totals"]["delivered"] > 0, "it delivers")
            yield running
        finally:
            stop.set()
            thread.join()


def get(daemon: Daemon, path: str) -> tuple[int, Any]:
    return ask("GET", f"{daemon.admin_url}{path}")


def test_every_process_is_listed_with_its_figures(daemon: Daemon) -> None:
    def cpu_is_known() -> bool:
        return any(row["cpu_percent"] > 0 for row in get(daemon, "/profile")[1]["processes"])

    wait_until(cpu_is_known, "CPU was looked at twice")
    rows = get(daemon, "/profile")[1]["processes"]
    assert sorted(row["role"] for row in rows) == ["admin", "deliver", "ingest", "ingest", "queue", "supervisor"]
    pids = {row["pid"] for row in rows}
    wait_until(lambda: pids == {process.pid for process in daemon.family()}, "nothing but these runs")
    for row in rows:
        assert set(row) == {
            *("role", "pid", "slot", "cpu_percent", "rss_bytes", "uss_bytes", "fds", "threads", "connections"),
            *("ctx_switches", "io"),
        }
        assert row["rss_bytes"] > 0 and row["uss_bytes"] > 0 and row["fds"] > 0 and row["threads"] > 0
        assert row["rss_bytes"] == pytest.approx(psutil.Process(row["pid"]).memory_info().rss, rel=0.5)
    assert {row["slot"] for row in rows if row["role"] == "ingest"} == {0, 1}


@pytest.mark.parametrize(("worker", "frame"), [("deliver.0", "DeliveryWorker.turn"), ("ingest.0", "serve")])
def test_stacks_of_a_worker_at_work(daemon: Daemon, worker: str, frame: str) -> None:
    status, asked = get(daemon, f"/profile/cpu?worker={worker}&seconds=1.5")
    assert (status, asked["status"]) == (202, "running")
    wait_until(lambda: get(daemon, asked["result"])[0] == 200, "the profile is there")
    lines = str(get(daemon, asked["result"])[1]).splitlines()
    stacks = dict(line.rsplit(" ", 1) for line in lines)
    assert any(frame in stack for stack in stacks)
    assert all((int(count) > 0 and stack.startswith("postbackd/")) or "/" in stack for stack, count in stacks.items())
    status, scope = get(daemon, f"{asked['result']}?format=speedscope")
    jsonschema.validate(scope, SPEEDSCOPE)
    frames = len(scope["shared"]["frames"])
    for profile in scope["profiles"]:
        assert len(profile["samples"]) == len(profile["weights"]) == len(stacks)
        assert all(0 <= index < frames for sample in profile["samples"] for index in sample)
        assert sum(profile["weights"]) == profile["endValue"]


def test_worker_that_is_sampled_is_not_sampled_twice(daemon: Daemon) -> None:
    assert get(daemon, "/profile/cpu?worker=ingest.1&seconds=60")[0] == 202
    status, answer = get(daemon, "/profile/cpu?worker=ingest.1&seconds=0.1")
    assert (status, answer["error"]["code"]) == (409, "profile_running")


def test_second_profile_is_another_one_and_the_worker_goes_on(daemon: Daemon) -> None:
    [pid] = daemon.children("deliver")
    for _ in range(2):
        status, asked = get(daemon, f"/profile/cpu?worker={pid}&seconds=0.2")
        assert status == 202
        wait_until(lambda path=asked["result"]: get(daemon, path)[0] == 200, "the profile is there")
        status, result = get(daemon, f"{asked['result']}?format=json")
        assert (result["role"], result["slot"], result["pid"]) == ("deliver", 0, pid)
        assert result["samples"] > 0
    before = daemon.stats()["totals"]["delivered"]
    wait_until(lambda: daemon.stats()["totals"]["delivered"] > before, "it still delivers")
    assert daemon.children("deliver") == [pid]


def test_idle_worker_can_be_sampled(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        for worker in ("deliver", "ingest.1", "admin"):
            status, asked = get(daemon, f"/profile/cpu?worker={worker}&seconds=0.5")
            assert status == 202
            wait_until(lambda path=asked["result"]: get(daemon, path)[0] == 200, "the profile is there")
            assert get(daemon, f"{asked['result']}?format=json")[1]["stacks"]
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/profile/cpu?worker=deliver.9&seconds=1", 404, "worker_unknown"),
        ("/profile/cpu?worker=supervisor&seconds=1", 404, "worker_unknown"),
        ("/profile/cpu?seconds=1", 400, "worker_unknown"),
        ("/profile/cpu?worker=deliver.0&seconds=61", 400, "invalid_seconds"),
        ("/profile/cpu?worker=deliver.0&seconds=0", 400, "invalid_seconds"),
        ("/profile/cpu?worker=deliver.0&seconds=nan", 400, "invalid_seconds"),
        ("/profile/cpu?worker=deliver.0&seconds=soon", 400, "invalid_seconds"),
        ("/profile/cpu/0123456789abcdef", 404, "profile_unknown"),
        ("/profile/cpu/..%2f..%2fpassword", 404, None),
        ("/profile/cpu/0123456789abcdef?format=svg", 400, "invalid_format"),
    ],
)
def test_what_cannot_be_profiled_is_refused(daemon: Daemon, path: str, status: int, code: str | None) -> None:
    found, answer = get(daemon, path)
    assert found == status and (code is None or answer["error"]["code"] == code)


def test_worker_killed_while_it_is_sampled_leaves_a_clear_answer(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        _, asked = get(daemon, "/profile/cpu?worker=deliver.0&seconds=0.5")
        psutil.Process(daemon.children("deliver")[0]).kill()
        wait_until(lambda: get(daemon, asked["result"])[0] in (200, 410), "it is given up")
