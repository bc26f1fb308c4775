# SPDX-License-Identifier: MIT
"""What the benchmarks share: pinned processes, their CPU from /proc, a queue server, a target, wrk, tables."""

import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis
from rich.console import Console
from rich.table import Table

from bench.ports import free_port
from postbackd.queue.embedded import find_server

MEASURED_CORE = 0
OTHER_CORE = (os.cpu_count() or 1) - 1
START_BOUND_S = 120
SAMPLE_DATA = [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}]
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def sample_endpoint(port: int) -> dict[str, str]:
    """The sample's endpoint, on this machine."""
    return {"method": "GET", "url": f"http://127.0.0.1:{port}/data?key={{key}}&value={{value}}&foo={{bar}}"}


def need(program: str, package: str) -> str:
    """The path of a program, or a line that says how to install it."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    if path is None:
        raise SystemExit(f"bench: {program} is missing; install it with: apt-get install {package}")
    return path


def pin_to_other_core() -> None:
    """Keep this process, a client, off the core that is measured."""
    os.sched_setaffinity(0, {OTHER_CORE})


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + START_BOUND_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline_s:
            raise SystemExit(f"bench: nothing listens on port {port} after {START_BOUND_S} s")
        time.sleep(0.02)


def sink_command(port: int, *options: str) -> list[str]:
    """How our own sink is started, without its lines for a reader."""
    return [sys.executable, "-m", "postbackd.cli", "sink", "--quiet", "--port", str(port), *options]


@contextmanager
def process(core: int | None, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to a core (None: to none), ended (with its children) when the block ends."""
    cores = set(range(os.cpu_count() or 1)) if core is None else {core}
    started = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, cores), **options)
    try:
        yield started
    finally:
        family = []
        if started.poll() is None:
            family = psutil.Process(started.pid).children(recursive=True)
            started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        for child in psutil.wait_procs(family, timeout=5)[1]:
            child.kill()


class QueueServer:
    """A Valkey on a unix socket with its append-only file, on the other core; may be killed and started again."""

    def __init__(self, appendfsync: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pbbench"))
        self._appendfsync = appendfsync
        self.url = f"unix://{self._folder / 's'}"
        self.client = redis.Redis(unix_socket_path=str(self._folder / "s"))
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [find_server("auto"), "--port", "0", "--unixsocket", str(self._folder / "s")]
        command += ["--dir", str(self._folder), "--save", "", "--appendonly", "yes", "--appendfsync", self._appendfsync]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {OTHER_CORE})
        )
        deadline_s = time.monotonic() + START_BOUND_S
        while True:
            try:
                self.client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def destroy(self) -> None:
        """End it and remove its files."""
        self.client.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def queue_server(appendfsync: str) -> Iterator[tuple[str, redis.Redis]]:
    """A queue server for the length of a with block; its url and a client."""
    server = QueueServer(appendfsync)
    try:
        yield server.url, server.client
    finally:
        server.destroy()


@contextmanager
def daemon(url: str, core: int | None, roles: str, settings: Sequence[str]) -> Iterator["Daemon"]:
    """A postbackd pinned to a core, or to none."""
    folder = Path(tempfile.mkdtemp(prefix="pbbench"))
    port = free_port()
    chosen = [
        f"data_dir={folder}",
        f"log.path={folder}/deliveries.jsonl",
        f"queue.url={url}",
        f"ingest.port={port}",
        'security.allow_networks=["127.0.0.0/8"]',
        *settings,
    ]
    command = [sys.executable, "-m", "postbackd.cli", "run", "--roles", roles]
    command += [part for setting in chosen for part in ("--set", setting)]
    output = (folder / "output").open("wb")
    try:
        with process(core, command, stdout=output, stderr=output) as started:
            yield Daemon(folder, port, started)
    finally:
        output.close()
        shutil.rmtree(folder, ignore_errors=True)


NGINX_CONF = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }}
}}
"""


@contextmanager
def nginx_target(core: int | None) -> Iterator[int]:
    """An nginx that answers 200 to everything; its port."""
    binary = need("nginx", "nginx-light")
    folder = Path(tempfile.mkdtemp(prefix="pbbench"))
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX_CONF.format(folder=folder, port=port))
    try:
        with process(core, [binary, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]):
            wait_for_port(port)
            yield port
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Daemon:
    """A running postbackd and its processes."""

    def __init__(self, folder: Path, port: int, started: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.folder = folder
        self._started = started
        deadline_s = time.monotonic() + START_BOUND_S
        while b"postbackd is ready" not in (folder / "output").read_bytes():
            if started.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit("bench: the daemon did not start: " + (folder / "output").read_text())
            time.sleep(0.02)

    def end(self) -> None:
        """Stop it before its block ends."""
        self._started.terminate()
        self._started.wait()

    def pids(self, role: str) -> list[int]:
        rows = json.loads((self.folder / "processes.json").read_text())
        return [int(row["pid"]) for row in rows if row["role"] == role]

    def cpu_s(self, role: str) -> float:
        return sum(map(cpu_s, self.pids(role)))

    def rss_bytes(self, role: str) -> int:
        return max(psutil.Process(pid).memory_info().rss for pid in self.pids(role))


def cpu_s(pid: int) -> float:
    """User and system time of a process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", re.MULTILINE)
_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def wrk(port: int, path: str, body: bytes, connections: int, seconds: int) -> dict[str, float]:
    """Load from the other core: requests/s, p50 and p99 in ms. Answers that are no 2xx end the bench."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n')
        script.write(f"wrk.body = [==[{body.decode()}]==]\n")
        script.flush()
        command = [need("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", script.name]
        command.append(f"http://127.0.0.1:{port}{path}")
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {OTHER_CORE}),
        ).stdout
    if "Non-2xx" in found:
        raise SystemExit("bench: some requests were refused:\n" + found)
    figures = {f"p{rank}_ms": float(value) * _UNITS_MS[unit] for rank, value, unit in _LATENCY.findall(found)}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", found)
    requests = re.search(r"(\d+) requests in", found)
    assert rate and requests, found
    return {"per_s": float(rate.group(1)), "requests": int(requests.group(1)), **figures}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Median, and lowest to highest: the noise of the machine."""
    return f"{median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


def machine() -> dict[str, object]:
    """Where it ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "measured_core": MEASURED_CORE,
        "other_core": OTHER_CORE,
    }


def report(title: str, rows: Sequence[tuple[str, str]], figures: dict[str, Any], as_json: bool) -> None:
    """A table, or one JSON object."""
    if as_json:
        print(json.dumps({"bench": title, "machine": machine(), **figures}))
        return
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), style="dim")
