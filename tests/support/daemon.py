# SPDX-License-Identifier: MIT
"""A real postbackd daemon and a real sink for process tests: free ports, own data_dir, nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.ports import free_port

START_BOUND_S = 120
STOP_BOUND_S = 120
POSTBACKD = [sys.executable, "-m", "postbackd.cli"]


def wait_until(condition: Callable[[], object], what: str, bound_s: float = START_BOUND_S) -> None:
    """Poll until the condition holds; fail with `what` past a bound generous enough for a loaded machine."""
    deadline_s = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not reached in {bound_s} s: {what}")
        time.sleep(0.02)


def http(method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """One request; its status and its JSON answer (or text)."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, payload = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, payload = error.code, error.read()
    try:
        return status, json.loads(payload)
    except ValueError:
        return status, payload.decode(errors="replace")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file of JSON lines; a last line still being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


class Sink:
    """`postbackd sink` on a free port, recording into a file."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.record = folder / "received.jsonl"
        self.port = port or free_port()
        self.process = subprocess.Popen(
            [*POSTBACKD, "sink", "--quiet", "--port", str(self.port), "--record", str(self.record), *options],
            stdout=(folder / "sink.out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: self._accepts() or self.process.poll() is not None, "the sink listens")
        if self.process.poll() is not None:
            raise AssertionError("the sink ended: " + (folder / "sink.out").read_text())

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def received(self) -> list[dict[str, Any]]:
        return read_json_lines(self.record)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(STOP_BOUND_S)


class Daemon:
    """`postbackd run` with its own data_dir; killed with everything it started when the test ends."""

    def __init__(
        self,
        folder: Path,
        settings: Sequence[str] = (),
        roles: str = "ingest,deliver,admin",
        config: Path | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = folder / "var"
        self.log_path = folder / "deliveries.jsonl"
        self.port = free_port()
        self.queue_port = free_port()
        self.admin_port = free_port()
        self.roles = roles
        self.settings = [
            f"data_dir={self.data_dir}",
            f"log.path={self.log_path}",
            f"ingest.port={self.port}",
            f"queue.port={self.queue_port}",
            f"admin.port={self.admin_port}",
            "ingest.workers=2",
            "delivery.workers=1",
            'security.allow_networks=["127.0.0.0/8"]',
            *settings,
        ]
        self.output = folder / "daemon.out"
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start the daemon and wait until it takes requests (or, without ingest, until its children run)."""
        self.process = subprocess.Popen(
            self.command(),
            pass_fds=self.inherited(),
            stdin=subprocess.DEVNULL,
            stdout=self.output.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_until(lambda: self._is_up() or self.process.poll() is not None, "the daemon is up")
        if self.process.poll() is not None:
            raise AssertionError("the daemon ended: " + self.output.read_text())

    def command(self) -> list[str]:
        """What is run."""
        arguments = [part for setting in self.settings for part in ("--set", setting)]
        if self.config:
            arguments += ["-c", str(self.config)]
        return [*POSTBACKD, "run", "--roles", self.roles, *arguments]

    def inherited(self) -> list[int]:
        """Descriptors that it is given beyond the usual three."""
        return []

    def _is_up(self) -> bool:
        if not all(self.children(role) for role in self.roles.split(",")):  # their state file comes behind the fork
            return False
        if "ingest" not in self.roles:
            return True
        # Each ingest process, not only the one that answers: without a number it could not go on when Redis is killed.
        if len(list((self.data_dir / "numbers").glob("*.num"))) < len(self.children("ingest")):
            return False
        try:
            return http("GET", f"{self.url}/ready")[0] == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def stats(self) -> dict[str, Any]:
        """What the admin app tells of this daemon."""
        status, answer = http("GET", f"{self.admin_url}/stats")
        assert status == 200, answer
        return dict(answer)

    def post(self, body: object) -> tuple[int, Any]:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http("POST", f"{self.url}/ingest.php", payload, {"Content-Type": "application/json"})

    def children(self, role: str) -> list[int]:
        """Pids of the running children of a role, from the state file that the supervisor keeps."""
        try:
            rows = json.loads((self.data_dir / "processes.json").read_text())
        except (OSError, ValueError):
            return []
        return [int(row["pid"]) for row in rows if row["role"] == role and psutil.pid_exists(int(row["pid"]))]

    def log(self) -> list[dict[str, Any]]:
        return read_json_lines(self.log_path)

    def delivered_ids(self) -> list[str]:
        return [line["id"] for line in self.log() if line["outcome"] == "delivered"]

    def family(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_BOUND_S)

    def destroy(self) -> None:
        """Whatever is left of it, at the end of a test."""
        family = self.family()
        for process in family:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(STOP_BOUND_S)
        psutil.wait_procs(family[1:], timeout=STOP_BOUND_S)


@contextmanager
def running_daemon(
    folder: Path, settings: Sequence[str] = (), roles: str = "ingest,deliver,admin", config: Path | None = None
) -> Iterator[Daemon]:
    """A daemon for the length of a with block; its output is shown when the block fails."""
    daemon = Daemon(folder, settings, roles, config)
    try:
        yield daemon
    except BaseException:
        print(daemon.output.read_text()[-8000:])
        raise
    finally:
        daemon.destroy()


@contextmanager
def running_sink(folder: Path, *options: str) -> Iterator[Sink]:
    """A sink for the length of a with block."""
    sink = Sink(folder, *options)
    try:
        yield sink
    finally:
        sink.stop()
