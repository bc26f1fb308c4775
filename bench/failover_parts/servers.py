# SPDX-License-Identifier: MIT
"""Real Valkeys that can be killed, stopped and cut off, alone or as a master with replicas and sentinels.

Each server stands behind a proxy (bench.chaos_parts.proxy) and announces the proxy's port, so that everybody reaches it
through the proxy alone: clients, replicas, sentinels. Cut off, it runs on and hears nothing, like a machine whose cable
was pulled; what was on its way comes through when the cable is back.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import redis

from bench.support import free_port, wait_for_port
from postbackd.queue.embedded import find_server

BOUND_S = 60
PASSWORD = "s3cret"
SERVICE = "postbacks"
DOWN_AFTER_MS = 1000
HOWS = ("kill", "stop", "cut")  # what can be done to a server


def wait_until(condition: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
    """Poll until the condition holds; a server that does not answer counts as no."""
    deadline_s = time.monotonic() + bound_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > deadline_s:
            raise SystemExit(f"bench: not reached in {bound_s:.0f} s: {what}")
        time.sleep(0.02)


class ProxiedServer:
    """One Valkey and its proxy. `client` goes past the proxy."""

    def __init__(self, folder: Path, options: Sequence[str], *, password: str = PASSWORD) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.real_port, self.port = free_port(), free_port()
        announced = ["--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(self.port)]
        self._options = [*options, *announced]
        self.client = redis.Redis(port=self.real_port, password=password or None, socket_timeout=5)
        self.process: subprocess.Popen[bytes]
        self.start()
        self.proxy = subprocess.Popen(
            [sys.executable, "-m", "bench.chaos_parts.proxy", str(self.port), str(self.real_port)],
            stdin=subprocess.PIPE,
        )
        wait_for_port(self.port)

    def start(self) -> None:
        """Start it on its own data and wait until it answers."""
        command = [find_server("auto"), "--bind", "127.0.0.1", "--port", str(self.real_port), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", *self._options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.client.ping, f"the server on port {self.real_port} answers")

    def fail(self, how: str) -> None:
        """kill -9, SIGSTOP, or cut off."""
        if how == "kill":
            self.process.kill()
            self.process.wait()
        elif how == "stop":
            self.process.send_signal(signal.SIGSTOP)
        else:
            self._order("stall")

    def mend(self, how: str) -> None:
        """Start it again, let it go on, or plug it in."""
        if how == "kill":
            self.start()
        elif how == "stop":
            self.process.send_signal(signal.SIGCONT)
        else:
            self._order("pass")

    def _order(self, text: str) -> None:
        assert self.proxy.stdin is not None
        self.proxy.stdin.write(text.encode() + b"\n")
        self.proxy.stdin.flush()

    def destroy(self) -> None:
        """End both, whatever state they are in."""
        self.client.close()
        for process in (self.process, self.proxy):
            process.kill()
            process.wait()


class SentinelGroup:
    """A master, its replicas and three sentinels."""

    def __init__(self, replicas: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pbgroup"))
        self.servers: list[ProxiedServer] = []
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self.sentinel_ports: list[int] = []
        for number in range(replicas + 1):
            self._add_server(number)
        master = self.servers[0]
        wait_until(lambda: master.client.info("replication")["connected_slaves"] == replicas, "replicas are connected")
        for number in range(3):
            self._add_sentinel(number)
        wait_until(self._is_known, "the sentinels know replicas and each other")

    def _add_server(self, number: int) -> None:
        options = ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        if self.servers:
            options += ["--replicaof", "127.0.0.1", str(self.servers[0].port)]
        self.servers.append(ProxiedServer(self.folder / f"server{number}", options))

    def _add_sentinel(self, number: int) -> None:
        port = free_port()
        path = self.folder / f"sentinel{number}.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f'dir "{self.folder}"',
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 6000",
        ]
        path.write_text("\n".join(lines) + "\n")
        with (self.folder / f"sentinel{number}.log").open("ab") as log:
            self._sentinels.append(
                subprocess.Popen([find_server("auto"), str(path), "--sentinel"], stdout=log, stderr=log)
            )
        self.sentinel_ports.append(port)
        wait_for_port(port)

    def _is_known(self) -> bool:
        for port in self.sentinel_ports:
            with contextlib.closing(redis.Redis(port=port)) as client:
                state = client.sentinel_master(SERVICE)
            if state["num-slaves"] != len(self.servers) - 1 or state["num-other-sentinels"] != 2:
                return False
        return True

    @property
    def url(self) -> str:
        """The queue.url of the group."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"sentinel://:{PASSWORD}@{places}/{SERVICE}"

    def master(self) -> ProxiedServer:
        """The server that most sentinels name."""
        votes = []
        for port in self.sentinel_ports:
            with contextlib.closing(redis.Redis(port=port, socket_timeout=2)) as client:
                votes.append(int(client.sentinel_get_master_addr_by_name(SERVICE)[1]))
        port = max(votes, key=votes.count)
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, how: str) -> ProxiedServer:
        """Do it to the master and wait for the next one; the one before."""
        before = self.master()
        before.fail(how)
        wait_until(lambda: self.master() is not before, "another master is named")
        return before

    def is_whole(self) -> bool:
        """Whether one server is master and all others are its replicas, in step."""
        master = self.master()
        info = master.client.info("replication")
        return info["role"] == "master" and info["connected_slaves"] == len(self.servers) - 1

    def destroy(self) -> None:
        """End everything."""
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def sentinel_group(replicas: int) -> Iterator[SentinelGroup]:
    """A group for the length of a with block."""
    group = SentinelGroup(replicas)
    try:
        yield group
    finally:
        group.destroy()
