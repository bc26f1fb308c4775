# SPDX-License-Identifier: MIT
"""The real supervisor in a process of its own, with small workers: start, replace, drain, leave nothing behind."""

import json
import os
import resource
import signal
import socket
from pathlib import Path

import psutil
import pytest

from postbackd import __version__
from postbackd.data_dir import read_processes
from tests.support.daemon import wait_until
from tests.support.supervised import BOUND_S, EXTERNAL, SmallDaemon, small_daemons


@pytest.fixture
def start(tmp_path: Path):
    with small_daemons(tmp_path) as start:
        yield start


def test_it_starts_says_how_to_use_it_and_leaves_nothing_behind(start) -> None:
    daemon = start().wait_until_ready()
    wait_until(lambda: "kill " in daemon.output.read_text(), "it has said how to stop it")
    text = daemon.output.read_text()
    url = f"http://127.0.0.1:{daemon.port}/ingest.php"
    assert f"post to  {url}\n" in text
    assert f"kill {daemon.process.pid}\n" in text
    assert text.count("ready") == 1
    roles = ["supervisor", "queue", "ingest", "deliver"]
    assert [len(daemon.pids(role)) for role in roles] == [1, 1, 2, 2]
    assert daemon.ask() in daemon.pids("ingest")
    assert daemon.end() == 0
    assert daemon.survivors() == []
    assert read_processes(daemon.data_dir) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", daemon.port))
    assert "Traceback" not in daemon.errors.read_text()


def test_it_stops_ingest_first_then_delivery_then_the_queue(start) -> None:
    daemon = start().wait_until_ready()
    [queue] = daemon.pids("queue")
    assert daemon.end() == 0
    ends = [event for event in daemon.events() if event.endswith(("told", "ends"))]
    assert {event.split()[0] for event in ends[:4]} == {"ingest"}
    assert {event.split()[0] for event in ends[4:]} == {"deliver"}
    assert len(ends) == 8
    assert not psutil.pid_exists(queue)
    lines = daemon.errors.read_text().splitlines()
    assert [line.split()[2] for line in lines[-3:]] == ["worker_stopped", "queue_stopped", "stopped"]


def test_one_role_alone_runs(start) -> None:
    daemon = start(EXTERNAL, roles="deliver").wait_until_ready()
    assert "post to" not in daemon.output.read_text()
    assert [len(daemon.pids(role)) for role in ("ingest", "deliver", "queue")] == [0, 2, 0]
    assert daemon.end() == 0


def test_interrupt_from_the_terminal_drains_like_sigterm(start) -> None:
    daemon = start().wait_until_ready()
    with socket.create_connection(("127.0.0.1", daemon.port)):  # idle: bjoern alone would wait for it to close
        os.killpg(daemon.process.pid, signal.SIGINT)  # ^C goes to the whole foreground group
        assert daemon.process.wait(BOUND_S) == 0
    assert sorted(event for event in daemon.events() if event.endswith("ends")) == [
        "deliver 0 ends",
        "deliver 1 ends",
        "ingest 0 ends",
        "ingest 1 ends",
    ]
    assert daemon.survivors() == []


def test_signal_right_after_the_start_ends_it_cleanly(start) -> None:
    daemon = start(EXTERNAL)
    wait_until(lambda: (daemon.data_dir / "postbackd.pid").exists(), "it has begun")
    assert daemon.end() == 0
    assert "Traceback" not in daemon.errors.read_text()


def test_signal_in_a_finalizer_during_the_start_is_not_lost(start, tmp_path: Path) -> None:
    """Each import ends with a callback of a weak reference; a SIGTERM that came there left the daemon running."""
    (tmp_path / "stop_in_finalizer").touch()
    daemon = start(EXTERNAL)
    assert daemon.process.wait(BOUND_S) == 0
    assert "Exception ignored" in daemon.errors.read_text() and len(daemon.logged("drain_started")) == 1
    assert [event for event in daemon.events() if event.endswith("ends")], "as at any other stop"


def test_killed_delivery_worker_is_replaced_and_its_lease_is_told_of(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    killed, other = daemon.pids("deliver")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in daemon.pids("deliver") and len(daemon.pids("deliver")) == 2, "it is replaced")
    assert other in daemon.pids("deliver")
    wait_until(lambda: len([e for e in daemon.events() if "reclaims" in e]) == 2, "both workers learn of it")
    reclaims = [event.split() for event in daemon.events() if "reclaims" in event]
    assert {name.split(".")[-2] for *_, name in reclaims} == {"0"}
    [line] = daemon.logged("worker_died")
    assert f"role=deliver slot=0 worker_pid={killed}" in line


def test_killed_ingest_worker_is_replaced_on_the_same_socket(start) -> None:
    daemon = start(EXTERNAL, "ingest.workers=1").wait_until_ready()
    [killed] = daemon.pids("ingest")
    os.kill(killed, signal.SIGKILL)
    assert daemon.ask() != killed  # the socket was never closed: the connection waits for the successor
    assert not [event for event in daemon.events() if "reclaims" in event]


def test_killed_supervisor_takes_everything_with_it(start) -> None:
    daemon = start().wait_until_ready()
    daemon.signal(signal.SIGKILL)
    daemon.process.wait(BOUND_S)
    assert len(daemon.family) == 6
    assert daemon.survivors() == []


def test_dead_queue_server_is_started_again_at_the_same_address(start) -> None:
    daemon = start().wait_until_ready()
    [killed] = daemon.pids("queue")
    workers = daemon.pids("deliver") + daemon.pids("ingest")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(daemon.logged("queue_started")) == 2, "it is started again")
    assert 'how="killed by SIGKILL"' in daemon.logged("queue_died")[0]
    wait_until(lambda: daemon.pids("queue") not in ([], [killed]), "it is in processes.json")
    assert daemon.pids("deliver") + daemon.pids("ingest") == workers
    # A worker that starts now is told the same address.
    os.kill(daemon.pids("deliver")[0], signal.SIGKILL)
    wait_until(lambda: len([e for e in daemon.events() if "queue at" in e]) == 3, "a worker is replaced")
    assert len({event.split()[-1] for event in daemon.events() if "queue at" in event}) == 1
    assert daemon.end() == 0
    assert daemon.survivors() == []


def test_second_signal_cuts_the_drain_short(start, tmp_path: Path) -> None:
    (tmp_path / "ignore_term").touch()
    daemon = start(EXTERNAL, "delivery.drain_timeout=600").wait_until_ready()
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: len([e for e in daemon.events() if e.endswith("ignores")]) == 2, "delivery is told and stays")
    assert daemon.end() == 0
    assert daemon.survivors() == []
    assert "workers=2" in daemon.logged("drain_cut_short")[0]


def test_queue_server_that_dies_during_the_drain_is_started_again(start, tmp_path: Path) -> None:
    (tmp_path / "ignore_term").touch()
    daemon = start("delivery.drain_timeout=600").wait_until_ready()
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: len([e for e in daemon.events() if e.endswith("ignores")]) == 2, "delivery is told and stays")
    os.kill(daemon.pids("queue")[0], signal.SIGKILL)
    wait_until(lambda: len(daemon.logged("queue_started")) == 2, "it is started again")
    assert daemon.end() == 0
    assert daemon.survivors() == []


def test_worker_that_outlasts_the_drain_is_killed(start, tmp_path: Path) -> None:
    (tmp_path / "ignore_term").touch()
    daemon = start(EXTERNAL, "delivery.drain_timeout=0.1").wait_until_ready()
    assert daemon.end() == 0
    assert daemon.survivors() == []
    assert [line for line in daemon.logged("drain_overran") if "role=deliver workers=2" in line]


def test_worker_that_cannot_start_stops_everything_with_one_line(start, tmp_path: Path) -> None:
    (tmp_path / "fail_boot").touch()
    daemon = start()
    assert daemon.process.wait(BOUND_S) == 1
    assert daemon.errors.read_text().count("postbackd: cannot write the log: make its folder\n") == 1
    assert daemon.output.read_text() == ""
    assert "Traceback" not in daemon.errors.read_text()
    assert read_processes(daemon.data_dir) == []


def test_replacement_that_cannot_start_leaves_the_others_at_work(start, tmp_path: Path) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    (tmp_path / "fail_boot").touch()
    killed, other = daemon.pids("deliver")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(daemon.logged("worker_died")) >= 2, "the replacement fails")
    assert daemon.ask() in daemon.pids("ingest")
    assert other in daemon.pids("deliver")
    (tmp_path / "fail_boot").unlink()
    wait_until(lambda: len(daemon.pids("deliver")) == 2, "it recovers")
    assert "cannot write the log" in daemon.errors.read_text()


def test_reopening_logs_is_passed_on(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    daemon.signal(signal.SIGUSR1)
    wait_until(lambda: len([e for e in daemon.events() if e.endswith("reopens")]) == 2, "delivery reopens its logs")
    assert daemon.end() == 0


def test_taken_port_is_one_line_and_starts_nothing(start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        daemon = start(f"ingest.port={port}")
        assert daemon.process.wait(BOUND_S) == 3
    [line] = daemon.errors.read_text().splitlines()
    assert line.startswith(f"postbackd: cannot listen on 127.0.0.1:{port}: the port is taken")


def test_second_daemon_on_a_data_dir_is_refused(start) -> None:
    first = start(EXTERNAL).wait_until_ready()
    second = start(EXTERNAL)
    assert second.process.wait(BOUND_S) == 3
    assert f"in use by another postbackd (pid {first.process.pid})" in first.errors.read_text()
    assert len(first.pids("deliver")) == 2
    assert first.ask() in first.pids("ingest")


@pytest.mark.parametrize(
    ("setting", "needed"), [("ingest.max_connections=4096", 4224), ("delivery.in_flight=900", 4628)]
)
def test_too_few_descriptors_are_one_line(start, setting: str, needed: int) -> None:
    hard = needed - 1
    settings = ["ingest.max_connections=1", "delivery.in_flight=1", setting]
    daemon = start(EXTERNAL, *settings, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
    assert daemon.process.wait(BOUND_S) == 3
    [line] = daemon.errors.read_text().splitlines()
    assert f"{needed} descriptors are needed ({setting.split('=')[0]})" in line
    assert f"LimitNOFILE={needed}" in line


def test_soft_limit_is_raised_to_what_is_allowed(start) -> None:
    limits = (256, 4224)
    daemon = start(EXTERNAL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits)).wait_until_ready()
    for pid in [*daemon.pids("supervisor"), *daemon.pids("ingest"), *daemon.pids("deliver")]:
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (4224, 4224)


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "n"))
        channel.settimeout(BOUND_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
        daemon = start(EXTERNAL, env=environment)
        ready = f"READY=1\nSTATUS=postbackd {__version__}: ingest, deliver".encode()
        stopping = b"STOPPING=1\nSTATUS=draining"
        states = [channel.recv(100)]
        while states.count(b"WATCHDOG=1") < 3 or ready not in states:
            states.append(channel.recv(100))
        daemon.signal(signal.SIGTERM)
        while states[-1] != stopping:
            states.append(channel.recv(100))
    # The channel is closed by now: unread, it would be full after ten states and hold up a drain that takes longer.
    assert daemon.process.wait(BOUND_S) == 0
    assert set(states) == {ready, b"WATCHDOG=1", stopping}
    assert states.count(ready) == 1
    assert daemon.output.read_text() == "", "sentences are for people"


def test_delivery_workers_do_not_keep_the_ingest_port_open(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    inode = os.readlink(f"/proc/{daemon.process.pid}/fd/{_listening_fd(daemon)}")
    for pid in daemon.pids("deliver"):
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert inode not in links
    for pid in daemon.pids("ingest"):
        assert inode in [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


def _listening_fd(daemon: SmallDaemon) -> int:
    [listening] = [c for c in psutil.Process(daemon.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    return listening.fd


def test_operational_log_is_json_where_asked(start) -> None:
    daemon = start("log.format=json", "log.level=info").wait_until_ready()
    os.kill(daemon.pids("deliver")[0], signal.SIGKILL)
    wait_until(lambda: "worker_died" in daemon.errors.read_text(), "the death is said")
    assert daemon.end() == 0
    lines = [json.loads(line) for line in daemon.errors.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "starting" and events[-1] == "stopped" and {"ready", "worker_started"} <= set(events)
    [death] = [line for line in lines if line["event"] == "worker_died"]
    assert (death["level"], death["role"], death["slot"], death["how"]) == (
        "warning",
        "deliver",
        0,
        "killed by SIGKILL",
    )


def test_boot_failure_is_json_too(start, tmp_path: Path) -> None:
    (tmp_path / "fail_boot").touch()
    daemon = start("log.format=json")
    assert daemon.process.wait(BOUND_S) == 1
    lines = [json.loads(line) for line in daemon.errors.read_text().splitlines()]
    [text] = [line["text"] for line in lines if line["event"] == "message"]
    assert "cannot write the log" in text
