# SPDX-License-Identifier: MIT
"""SIGHUP on the real supervisor with small workers: judged, tried, taken up one by one, and said."""

import os
import signal
import socket
from pathlib import Path

import pytest

from postbackd import __version__
from tests.support.daemon import wait_until
from tests.support.supervised import BOUND_S, EXTERNAL, SmallDaemon, small_daemons


@pytest.fixture
def start(tmp_path: Path):
    with small_daemons(tmp_path) as start:
        yield start


def configure(daemon: SmallDaemon, text: str) -> None:
    (daemon.folder / "postbackd.toml").write_text(text)


def reload(daemon: SmallDaemon, event: str = "reload_done") -> str:
    """SIGHUP; the line that ends it."""
    before = len(daemon.logged(event))
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: len(daemon.logged(event)) > before, event)
    return daemon.logged(event)[-1]


def workers(daemon: SmallDaemon) -> list[int]:
    return daemon.pids("ingest") + daemon.pids("deliver")


def test_every_worker_is_replaced_after_its_successor_has_begun(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    before = workers(daemon)
    configure(daemon, "[delivery]\nper_host = 7\n")
    seen = len(daemon.events())
    reload(daemon)
    after = workers(daemon)
    assert len(after) == 4
    assert not set(before) & set(after)
    events = daemon.events()[seen:]
    for role in ("ingest", "deliver"):
        # One of a role at a time: slot 0's successor, slot 0's end, slot 1's successor, slot 1's end.
        own = [event.split(maxsplit=2)[1:] for event in events if event.startswith(role)]
        turns = [(slot, event) for slot, event in own if event in ("begins", "ends")]
        assert turns == [("0", "begins"), ("0", "ends"), ("1", "begins"), ("1", "ends")]
    assert [event for event in events if "per_host" in event] == ["deliver 0 per_host 7", "deliver 1 per_host 7"]
    assert not [event for event in events if event in ("ingest 0 told", "ingest 1 told")], "/ready goes on saying 200"
    assert "changed=delivery.per_host" in daemon.logged("reload_started")[0]
    assert "changed=delivery.per_host" in daemon.logged("reload_done")[0]
    assert daemon.ask() in after
    assert daemon.end() == 0
    assert daemon.survivors() == []


def test_form_of_the_operational_log_changes_everywhere(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    configure(daemon, '[log]\nformat = "json"\n')
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: '"event":"reload_done"' in daemon.errors.read_text().replace(" ", ""), "it says so as JSON")
    seen = len(daemon.errors.read_text())
    assert daemon.end() == 0
    assert [line for line in daemon.errors.read_text()[seen:].splitlines() if not line.startswith("{")] == []


def test_replaced_worker_that_dies_comes_back_with_the_new_settings(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    configure(daemon, "[delivery]\nper_host = 7\n")
    reload(daemon)
    seen = len(daemon.events())
    os.kill(daemon.pids("deliver")[0], signal.SIGKILL)
    wait_until(lambda: [e for e in daemon.events()[seen:] if "per_host" in e], "it is replaced")
    assert [e for e in daemon.events()[seen:] if "per_host" in e] == ["deliver 0 per_host 7"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[delivery\n", ["is not valid TOML", "postbackd.toml"]),
        ("[delivery]\nper_hots = 7\n", ["delivery.per_hots", "delivery.per_host"]),
        ('[queue]\nprefix = "other"\n[delivery]\nper_host = 7\n', ["only a restart can change queue.prefix:"]),
        ('[admin]\nport = 9\nhost = "::1"\n', ["only a restart can change admin.host, admin.port:"]),
        ("[ingest]\nmax_connections = 1000000000\n", ["descriptors are needed (ingest.max_connections)"]),
    ],
)
def test_configuration_that_cannot_be_taken_up_is_refused_and_named(start, text: str, words: list[str]) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    before = workers(daemon)
    configure(daemon, text)
    line = reload(daemon, "reload_refused")
    assert " ERROR " in line
    for word in [*words, "the configuration in force goes on"]:
        assert word in line
    assert workers(daemon) == before
    assert daemon.ask() in before
    configure(daemon, "[delivery]\nper_host = 7\n")
    reload(daemon)
    assert not set(workers(daemon)) & set(before)


def test_configuration_with_which_a_worker_cannot_start_is_refused(start, tmp_path: Path) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    before = workers(daemon)
    (tmp_path / "fail_boot").touch()
    line = reload(daemon, "reload_refused")
    assert "could not start with it" in line
    assert daemon.errors.read_text().count("postbackd: cannot write the log: make its folder\n") == 1
    wait_until(lambda: workers(daemon) == before, "only the workers from before are left")
    assert daemon.process.poll() is None
    (tmp_path / "fail_boot").unlink()
    reload(daemon)
    assert len(workers(daemon)) == 4
    assert not set(workers(daemon)) & set(before)


def test_number_of_workers_may_change_as_far_as_there_is_room(tmp_path: Path) -> None:
    with small_daemons(tmp_path) as start:
        text = "[ingest]\nworkers = %d\n[delivery]\nworkers = %d\n"
        (tmp_path / "postbackd.toml").write_text(text % (2, 2))
        daemon = start(EXTERNAL, overrides_workers=False).wait_until_ready()
        for counts in [(3, 4), (1, 1), (4, 2)]:
            configure(daemon, text % counts)
            reload(daemon)
            assert (len(daemon.pids("ingest")), len(daemon.pids("deliver"))) == counts
        configure(daemon, text % (4, 5))
        assert "only a restart can change delivery.workers beyond 4:" in reload(daemon, "reload_refused")
        assert daemon.end() == 0
        assert daemon.survivors() == []


def test_reloads_that_come_fast_end_with_the_last_configuration(start) -> None:
    daemon = start(EXTERNAL).wait_until_ready()
    before = workers(daemon)
    for per_host in range(1, 6):
        configure(daemon, f"[delivery]\nper_host = {per_host}\n")
        daemon.signal(signal.SIGHUP)
    wait_until(lambda: _all_have(daemon, "per_host 5", before), "the last configuration is everywhere")
    assert daemon.end() == 0
    assert daemon.survivors() == []


def _all_have(daemon: SmallDaemon, what: str, before: list[int]) -> bool:
    done = bool(daemon.logged("reload_done")) and not set(workers(daemon)) & set(before)
    return done and {e for e in daemon.events() if what in e} == {f"deliver 0 {what}", f"deliver 1 {what}"}


def test_worker_that_does_not_end_when_replaced_is_killed(start, tmp_path: Path) -> None:
    (tmp_path / "ignore_term").touch()
    daemon = start(EXTERNAL, "delivery.drain_timeout=0.1").wait_until_ready()
    before = daemon.pids("deliver")
    (tmp_path / "ignore_term").unlink()
    reload(daemon)
    assert len(daemon.logged("retired_worker_killed")) == 2
    assert not set(daemon.pids("deliver")) & set(before)


def test_stop_in_the_middle_of_a_reload_leaves_nothing_behind(start, tmp_path: Path) -> None:
    (tmp_path / "ignore_term").touch()
    daemon = start(EXTERNAL, "delivery.drain_timeout=600").wait_until_ready()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: [e for e in daemon.events() if e == "deliver 0 ignores"], "a predecessor is told and stays")
    wait_until(lambda: len(daemon.pids("deliver")) == 3, "its successor runs beside it")
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: daemon.logged("drain_started"), "it stops")
    assert daemon.end() == 0
    assert daemon.survivors() == []


def test_systemd_is_told_of_the_reload_and_of_its_end(start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "n"))
        channel.settimeout(BOUND_S)
        daemon = start(EXTERNAL, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "n")})
        works = f"READY=1\nSTATUS=postbackd {__version__}: ingest, deliver".encode()
        assert channel.recv(200) == works
        for text, refused in (("[delivery]\nper_host = 7\n", b""), ("[broken\n", b"; reload refused: ")):
            configure(daemon, text)
            daemon.signal(signal.SIGHUP)
            first, second = channel.recv(200).split(b"\n")
            assert first == b"RELOADING=1"
            assert second.startswith(b"MONOTONIC_USEC=")
            assert int(second.split(b"=")[1]) > 0
            last = channel.recv(500)
            assert last.startswith(works + refused) and (b"\n" not in last[len(works) :])
            assert refused or last == works
        assert len(daemon.logged("reload_done")) == len(daemon.logged("reload_refused")) == 1
