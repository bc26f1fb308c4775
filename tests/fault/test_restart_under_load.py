# SPDX-License-Identifier: MIT
"""An upgrade is a restart with the ingest socket held by somebody else: nobody is refused, nothing is lost."""

import os
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import POSTBACKD, Daemon, free_port, running_daemon, running_sink, wait_until
from tests.support.programs import need
from tests.support.steady_load import SteadyLoad, assert_nothing_went_wrong

BACKLOG = 512


class ActivatedDaemon(Daemon):
    """A daemon whose socket is this test's, handed over as systemd does it."""

    def __init__(self, folder: Path) -> None:
        self.held = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        super().__init__(folder)

    def start(self) -> None:
        self.port = self.held.getsockname()[1]
        super().start()

    def command(self) -> list[str]:
        # LISTEN_PID is the pid of the process that is to take the sockets, so it is set there: sh sets it and execs.
        script = f'exec 3<&{self.held.fileno()}; export LISTEN_FDS=1 LISTEN_FDNAMES=ingest LISTEN_PID=$$; exec "$@"'
        return ["bash", "-c", script, "bash", *super().command()]

    def inherited(self) -> list[int]:
        return [self.held.fileno()]


def test_restart_with_a_held_socket_refuses_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink", "--latency", "0.02") as sink, ExitStack() as cleanup:
        daemon = ActivatedDaemon(tmp_path / "daemon")
        cleanup.callback(daemon.destroy)
        cleanup.callback(daemon.held.close)
        load = SteadyLoad(daemon.port, sink.url)
        load.wait_for_more()
        for _ in range(2):
            assert daemon.stop() == 0
            daemon.start()
            load.wait_for_more()
        assert_nothing_went_wrong(load, sink)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output.read_text()


def test_without_a_held_socket_a_stopped_daemon_refuses(tmp_path: Path) -> None:
    """What the socket unit is for."""
    with running_daemon(tmp_path / "daemon") as daemon:
        assert daemon.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", daemon.port))


def test_socket_of_the_real_systemd_is_taken(tmp_path: Path) -> None:
    activate = need("systemd-socket-activate", "systemd")
    port = free_port()
    settings = [f"data_dir={tmp_path / 'var'}", f"queue.port={free_port()}", f"log.path={tmp_path / 'log'}"]
    settings += ["ingest.workers=1", f"ingest.port={free_port()}"]  # which is not used
    arguments = [part for setting in settings for part in ("--set", setting)]
    output = tmp_path / "out"
    process = subprocess.Popen(
        [activate, "-l", f"127.0.0.1:{port}", *POSTBACKD, "run", "--roles", "ingest", *arguments],
        stdout=output.open("wb"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        start_new_session=True,
    )
    try:
        wait_until(lambda: _listens(port), "the socket is there")
        # The first connection starts the daemon, and waits for it.
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        wait_until(lambda: f"http://127.0.0.1:{port}/ingest.php" in output.read_text(), "it says where to post")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    """By the kernel's table: to connect would start the daemon."""
    return any(line.split()[1].endswith(f":{port:04X}") for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
