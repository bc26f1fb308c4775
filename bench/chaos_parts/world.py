# SPDX-License-Identifier: MIT
"""What chaos disturbs: Valkey behind a proxy, three sinks, the daemon with its data_dir on a small tmpfs."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import redis

from bench.support import free_port, sink_command, wait_for_port
from postbackd.data_dir import read_processes
from postbackd.queue.embedded import find_server

TMPFS_BYTES = 64 * 1024 * 1024
LEASE_TIMEOUT_S = 10
IN_FLIGHT = 128
BATCH = 512  # outcomes that a delivery worker may hold unsettled beside them
WAIT_BOUND_S = 120
ACKS = ("group", "commit")  # ways to commit, in turn at each start of the daemon
POSTBACKD = [sys.executable, "-m", "postbackd.cli"]
SINKS = (
    ["--latency", "0.005"],
    ["--fail-rate", "0.1", "--drop-rate", "0.03"],
    ["--latency", "0.05", "--hang-rate", "0.002"],
)
WAITING = """
local count = redis.call('LLEN', KEYS[1]) + redis.call('LLEN', KEYS[2]) + redis.call('ZCARD', KEYS[3])
for _, worker in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  count = count + math.max(redis.call('HLEN', ARGV[1] .. worker) - 1, 0)
end
return count
"""


class World:
    """The processes. Each can be killed and started again; `destroy` leaves nothing."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pbchaos"))
        self.data_dir = self.folder / "var"
        self.data_dir.mkdir(mode=0o700)
        self.log_path = self.folder / "deliveries.jsonl"
        self.output = self.folder / "daemon.out"
        self.sent = self.folder / "sent.jsonl"
        self.has_tmpfs = self._mount()
        self.port, self.proxy_port, self.redis_port = (free_port() for _ in range(3))
        self.sink_ports = [free_port() for _ in SINKS]
        self.redis = redis.Redis(port=self.redis_port, socket_timeout=10)
        self.sinks: list[subprocess.Popen[bytes] | None] = [None for _ in SINKS]
        self._starts = 0
        self.start_queue()
        self.proxy = subprocess.Popen(
            [sys.executable, "-m", "bench.chaos_parts.proxy", str(self.proxy_port), str(self.redis_port)],
            stdin=subprocess.PIPE,
        )
        wait_for_port(self.proxy_port)
        for number in range(len(SINKS)):
            self.start_sink(number)
        self.start_daemon()

    def _mount(self) -> bool:
        """A small file system of its own for data_dir, where that is allowed."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=0700", "tmpfs", str(self.data_dir)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    # Start

    def start_queue(self) -> None:
        """Start Valkey on its append-only file and wait until it has read it."""
        folder = self.folder / "queue"
        folder.mkdir(exist_ok=True)
        command = [find_server("auto"), "--bind", "127.0.0.1", "--port", str(self.redis_port), "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        with (self.folder / "queue.out").open("ab") as output:
            self.queue = subprocess.Popen(command, stdout=output, stderr=output)
        self.wait_until(self._queue_answers, "Valkey answers")

    def _queue_answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def start_sink(self, number: int) -> None:
        """Start one of the sinks; it appends to its record."""
        command = sink_command(self.sink_ports[number], "--record", str(self.record(number)))
        self.sinks[number] = subprocess.Popen([*command, *SINKS[number]], stdout=subprocess.DEVNULL)

    def record(self, number: int) -> Path:
        """What a sink records."""
        return self.folder / f"sink{number}.jsonl"

    @property
    def settings(self) -> list[str]:
        """The daemon's configuration, as `--set` takes it."""
        return [
            f"data_dir={self.data_dir}",
            f"log.path={self.log_path}",
            f"queue.url=redis://127.0.0.1:{self.proxy_port}",
            f"queue.lease_timeout={LEASE_TIMEOUT_S}",
            f"ingest.port={self.port}",
            "ingest.workers=4",
            "delivery.workers=2",
            f"delivery.in_flight={IN_FLIGHT}",
            "delivery.timeout=2",
            "delivery.connect_timeout=1",
            "delivery.drain_timeout=5",
            "retry.schedule=[0.5, 1, 2, 4]",
            "retry.max_attempts=25",
            "spool.max_bytes=33554432",
            'security.allow_networks=["127.0.0.0/8"]',
        ]

    def options(self) -> list[str]:
        """The configuration as arguments."""
        return [part for setting in self.settings for part in ("--set", setting)]

    def start_daemon(self) -> None:
        """Start postbackd; it may find Redis away."""
        with self.output.open("ab") as output:
            # Without the admin app: its port would be the default one, and somebody else's.
            command = [*POSTBACKD, "run", "--roles", "ingest,deliver", *self.options()]
            command += ["--set", f"ingest.ack={ACKS[self._starts % len(ACKS)]}"]
            self._starts += 1
            self.daemon = subprocess.Popen(command, stdout=output, stderr=output)

    # Look

    def pids(self, role: str) -> list[int]:
        """The running processes of a role."""
        with contextlib.suppress(OSError, ValueError):
            return [row["pid"] for row in read_processes(self.data_dir) if row["role"] == role]
        return []

    def waiting(self) -> int:
        """Postbacks that are not delivered yet, and the bytes of the spool: 0 when all is done.

        The spool first, then the queue in one step: read one after the other, what goes on from spool to ready or from
        a lease to later meanwhile is in neither, and what waits when the run ends counts as lost.
        """
        count = 0
        with contextlib.suppress(FileNotFoundError):
            count = sum(path.stat().st_size for path in (self.data_dir / "spool").glob("*.spool"))
        base = "pb:{0}:"
        keys = [base + name for name in ("ready", "wake", "later", "workers")]
        return count + int(self.redis.eval(WAITING, len(keys), *keys, base + "lease:"))

    def wait_until(self, condition: object, what: str, bound_s: float = WAIT_BOUND_S) -> None:
        """Poll until the condition holds."""
        assert callable(condition)
        deadline_s = time.monotonic() + bound_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"chaos: not reached in {bound_s:.0f} s: {what}")
            time.sleep(0.05)

    def order(self, text: str) -> None:
        """Tell the proxy how to behave."""
        assert self.proxy.stdin is not None
        self.proxy.stdin.write(text.encode() + b"\n")
        self.proxy.stdin.flush()

    def destroy(self) -> None:
        """End everything that was started here."""
        processes = [self.daemon, self.proxy, self.queue, *(sink for sink in self.sinks if sink)]
        family = [child for process in _alive(processes) for child in process.children(recursive=True)]
        for one in [*_alive(processes), *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        for process in processes:
            process.wait()
        psutil.wait_procs(family, timeout=10)
        if self.has_tmpfs:
            subprocess.run(["umount", str(self.data_dir)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _alive(processes: list[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    return [psutil.Process(process.pid) for process in processes if process.poll() is None]


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A world for the length of a with block."""
    made = World()
    try:
        yield made
    finally:
        made.destroy()


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Whether the process was there to get it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
