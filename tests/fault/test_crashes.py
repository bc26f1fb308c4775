# SPDX-License-Identifier: MIT
"""Processes killed under load: every acknowledged postback is delivered, duplicates only where allowed."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.daemon import Daemon, Sink, http, running_daemon, running_sink, wait_until
from tests.support.load import Load
from tests.support.servers import Server

DRAIN_BOUND_S = 120


def received_ids(sink: Sink) -> Counter[str]:
    return Counter(request["url"].split("id=")[1].split("&")[0] for request in sink.received())


def wait_for_all(sink: Sink, ids: list[str]) -> Counter[str]:
    wanted = set(ids)
    wait_until(lambda: wanted <= set(received_ids(sink)), "every acknowledged id has arrived", DRAIN_BOUND_S)
    return received_ids(sink)


def kill_one(daemon: Daemon, role: str, pick: Callable[[list[int]], int] = min) -> int:
    pid = pick(daemon.children(role))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in daemon.children(role) and daemon.children(role), f"a new {role} worker runs")
    return pid


def queue_is_empty(daemon: Daemon) -> bool:
    status, answer = http("GET", daemon.url + "/ready")
    return status == 200 and answer["ready"]


def test_killed_delivery_worker_loses_nothing(tmp_path: Path) -> None:
    """Duplicates are no more than what the dead worker held: in flight, or sent and not settled."""
    with (
        running_sink(tmp_path / "sink", "--latency", "0.05") as sink,
        running_sink(tmp_path / "hanging", "--hang-rate", "1") as hanging,
        running_daemon(tmp_path / "daemon") as daemon,
    ):
        load = Load(daemon, sink)
        load.wait_for(1000)
        wait_until(lambda: len(sink.received()) > 100, "the worker is delivering")
        daemon.post({"endpoint": {"method": "GET", "url": hanging.url, "timeout": 60}, "data": {}})
        wait_until(hanging.received, "and holds one at least, whatever becomes of the load")
        kill_one(daemon, "deliver")
        load.wait_for(3000)
        ids = load.stop()
        counts = wait_for_all(sink, ids)
        doubled = sum(count - 1 for count in counts.values())
        assert doubled <= 256 + 512  # in flight, and outcomes of one turn
        reclaimed = [line for line in daemon.output.read_text().splitlines() if "lease_reclaimed" in line]
        assert ["why=death" in line for line in reclaimed] == [True], "given back at once, not after the time-out"


def test_killed_ingest_worker_loses_no_acknowledged_request(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon") as daemon:
        load = Load(daemon, sink)
        for goal in (500, 1000, 1500):
            load.wait_for(goal)
            kill_one(daemon, "ingest")
        load.wait_for(2000)
        ids = load.stop()
        counts = wait_for_all(sink, ids)
        assert max(counts.values()) == 1, "no delivery worker died, so nothing arrives twice"
        assert len(set(ids)) == len(ids), "no id was given out twice"


def test_sigterm_under_load_drains_and_a_restart_delivers_the_rest(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink", "--latency", "0.02") as sink, running_daemon(tmp_path / "daemon") as daemon:
        load = Load(daemon, sink)
        load.wait_for(1000)
        family = daemon.family()
        assert daemon.stop() == 0
        ids = load.stop()
        assert not [process for process in family if process.is_running()], "no process is left"
        daemon.start()
        counts = wait_for_all(sink, ids)
        assert max(counts.values()) == 1, "a clean stop settles what it delivered"


def test_second_sigterm_gives_back_what_is_in_flight(tmp_path: Path) -> None:
    """A drain that is cut short loses nothing, and the next start need not wait for the lease's time-out."""
    settings = ["delivery.drain_timeout=600", "delivery.timeout=60"]
    with (
        running_sink(tmp_path / "sink", "--hang-rate", "1") as sink,
        running_daemon(tmp_path / "daemon", settings) as daemon,
    ):
        endpoint = {"method": "GET", "url": sink.url + "/?id={@id}"}
        status, answer = daemon.post({"endpoint": endpoint, "data": [{}, {}]})
        assert status == 202
        wait_until(lambda: len(sink.received()) == 2, "both are in flight")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "drain_started" in daemon.output.read_text(), "the first signal has come")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(DRAIN_BOUND_S) == 0
        [line] = [line for line in daemon.output.read_text().splitlines() if "lease_given_back" in line]
        assert "postbacks=2" in line
        daemon.start()
        wait_until(lambda: received_ids(sink) == dict.fromkeys(answer["ids"], 2), "both are sent once more")


def test_full_queue_survives_a_restart_of_everything(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon", roles="ingest") as daemon:
        load = Load(daemon, sink, items=100)
        load.wait_for(20_000)
        ids = load.stop()
        assert daemon.stop() == 0
        assert sink.received() == []
        daemon.roles = "ingest,deliver"
        daemon.start()
        counts = wait_for_all(sink, ids)
        assert counts == Counter(ids)


def test_killed_supervisor_takes_its_children_with_it(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink", "--latency", "0.05") as sink, running_daemon(tmp_path / "daemon") as daemon:
        load = Load(daemon, sink)
        load.wait_for(1000)
        family = daemon.family()
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        ids = load.stop()
        wait_until(lambda: not [p for p in family if p.is_running()], "every child has ended")
        daemon.settings.append("queue.lease_timeout=10")
        daemon.start()
        wait_for_all(sink, ids)


def test_killed_queue_server_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """The embedded server fsyncs before each reply; it is started again, and everybody connects to it again."""
    with running_sink(tmp_path / "sink", "--latency", "0.02") as sink, running_daemon(tmp_path / "daemon") as daemon:
        load = Load(daemon, sink)
        for goal in (1000, 2000):
            load.wait_for(goal)
            [pid] = daemon.children("queue")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: daemon.children("queue") not in ([], [pid]), "a new server runs")
        load.wait_for(3000)
        ids = load.stop()
        wait_for_all(sink, ids)
        assert len(set(ids)) == len(ids), "no id was given out twice"
        assert not [line for line in daemon.output.read_text().splitlines() if "Traceback" in line]


def test_stopped_queue_server_is_bridged_by_the_spool(tmp_path: Path) -> None:
    """SIGSTOP: connections stay open and nothing answers. Only the first request of each process waits for that."""
    with running_sink(tmp_path / "sink", "--latency", "0.02") as sink, running_daemon(tmp_path / "daemon") as daemon:
        load = Load(daemon, sink)
        load.wait_for(500)
        [pid] = daemon.children("queue")
        os.kill(pid, signal.SIGSTOP)
        before = len(load.acknowledged)
        load.wait_for(before + 1500)
        assert list((daemon.data_dir / "spool").glob("*.spool"))
        os.kill(pid, signal.SIGCONT)
        ids = load.stop()
        counts = wait_for_all(sink, ids)
        assert load.refused == 0
        assert sum(counts.values()) - len(counts) <= 2 * 5, "a request per ingest process may be enqueued twice"
        wait_until(lambda: not list((daemon.data_dir / "spool").glob("*.spool")), "the spool is empty")
        wait_until(lambda: " spool_emptied" in daemon.output.read_text(), "so it is said")
        assert " spool_in_use " in daemon.output.read_text()
        assert "Traceback" not in daemon.output.read_text()


def test_outage_of_redis_loses_nothing_whoever_dies_meanwhile(tmp_path: Path) -> None:
    """Redis is killed; then an ingest worker, then the whole daemon, which starts again before Redis does."""
    server = Server("--appendonly", "yes", "--appendfsync", "always")
    try:
        with (
            running_sink(tmp_path / "sink") as sink,
            running_daemon(tmp_path / "daemon", [f"queue.url={server.url}", "queue.lease_timeout=10"]) as daemon,
        ):
            load = Load(daemon, sink)
            load.wait_for(500)
            server.kill()
            load.wait_for(1500)
            kill_one(daemon, "ingest")
            load.wait_for(2500)
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait()
            ids = load.stop()
            daemon.start()
            load = Load(daemon, sink)
            load.wait_for(1000)
            assert http("GET", daemon.url + "/ready")[0] == 200
            server.start()
            load.wait_for(2000)
            ids = ids + load.stop()
            assert len(set(ids)) == len(ids), "no id was given out twice"
            wait_for_all(sink, ids)
            wait_until(lambda: not list((daemon.data_dir / "spool").glob("*.spool")), "the spool is empty")
            assert "Traceback" not in daemon.output.read_text()
    finally:
        server.destroy()


def test_full_spool_refuses_and_recovers_by_itself(tmp_path: Path) -> None:
    server = Server("--appendonly", "yes")
    try:
        settings = [f"queue.url={server.url}", "spool.max_bytes=20000"]
        with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon", settings) as daemon:
            load = Load(daemon, sink)
            load.wait_for(100)
            server.kill()
            refusals: list[urllib.error.HTTPError] = []

            def is_refused() -> bool:
                body = json.dumps({"endpoint": {"method": "GET", "url": sink.url + "/?id={@id}"}, "data": {}}).encode()
                request = urllib.request.Request(daemon.url + "/i", body, {"Content-Type": "application/json"})
                try:
                    urllib.request.urlopen(request)
                except urllib.error.HTTPError as error:
                    refusals.append(error)
                return bool(refusals)

            wait_until(is_refused, "the spool is full")
            assert (refusals[0].code, refusals[0].headers["Retry-After"]) == (503, "5")
            assert json.load(refusals[0])["error"]["code"] == "spool_full"
            wait_until(lambda: http("GET", daemon.url + "/ready")[0] == 503, "every process says so")
            server.start()
            wait_until(lambda: http("GET", daemon.url + "/ready")[0] == 200, "it takes requests again")
            load.wait_for(len(load.acknowledged) + 500)
            wait_for_all(sink, load.stop())
    finally:
        server.destroy()
