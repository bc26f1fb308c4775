# SPDX-License-Identifier: MIT
"""tests/support/small_daemon.py from outside: started, watched, ended."""

import http.client
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

from postbackd.data_dir import read_processes
from tests.support.daemon import free_port, wait_until

BOUND_S = 60
REPOSITORY = Path(__file__).parents[2]
EXTERNAL = "queue.url=redis://127.0.0.1:1"  # nobody connects: the workers are small, the supervisor never does


class SmallDaemon:
    """tests/support/small_daemon.py with two workers of each role."""

    def __init__(
        self,
        folder: Path,
        *settings: str,
        roles: str = "ingest,deliver",
        overrides_workers: bool = True,
        **options: object,
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "var"
        self.port = free_port()
        self.output, self.errors = folder / "out", folder / "err"
        overrides = [
            f"data_dir={self.data_dir}",
            f"ingest.port={self.port}",
            f"queue.port={free_port()}",
            *(["ingest.workers=2", "delivery.workers=2"] if overrides_workers else []),
            *settings,
        ]
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.small_daemon", str(folder), roles, *overrides],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                **options,  # type: ignore[call-overload]
            )
        self.family: set[psutil.Process] = set()

    def wait_until_ready(self) -> "SmallDaemon":
        wait_until(lambda: self._is_ready() or self.process.poll() is not None, "it is ready")
        assert self.process.poll() is None, self.errors.read_text()
        self.pids("supervisor")
        return self

    def _is_ready(self) -> bool:
        """As its log says, in either form: the sentences on standard output are for people at a terminal."""
        text = self.errors.read_text()
        return " INFO ready " in text or '"event": "ready"' in text

    def pids(self, role: str) -> list[int]:
        rows = read_processes(self.data_dir)
        for row in rows:
            with suppress(psutil.NoSuchProcess):  # ended since, or just now
                self.family.add(psutil.Process(row["pid"]))
        return [row["pid"] for row in rows if row["role"] == role]

    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    def logged(self, event: str) -> list[str]:
        return [line for line in self.errors.read_text().splitlines() if f" {event} " in line]

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def ask(self) -> int:
        """The pid of the worker that answers a request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND_S)) as connection:
            connection.request("POST", "/", b"{}")
            return int(connection.getresponse().read())

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(BOUND_S)

    def survivors(self) -> list[psutil.Process]:
        return [process for process in psutil.wait_procs(self.family, timeout=BOUND_S)[1]]

    def destroy(self) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)


@contextmanager
def small_daemons(folder: Path) -> Iterator[Callable[..., SmallDaemon]]:
    """Starts as many as are asked for, and shows what they said when they are gone."""
    started: list[SmallDaemon] = []

    def start(*settings: str, **options) -> SmallDaemon:
        started.append(SmallDaemon(folder, *settings, **options))
        return started[-1]

    try:
        yield start
    finally:
        for daemon in started:
            daemon.destroy()
            print(daemon.errors.read_text())
