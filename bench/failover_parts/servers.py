# SPDX-License-Identifier: MIT
"""Real Valkeys that can be killed, stopped and cut off. What watches them: sentinels.py; Clusters: cluster.py."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.failover_parts.network import LOOPBACK, Machine
from bench.support import free_port, wait_for_port
from postbackd.queue.embedded import find_server

BOUND_S = 120
PASSWORD = "s3cret"
# A user of postbackd's own, with what it needs and no more (docs/operations.md).
USER = "postbackd"
USER_PASSWORD = "p@ss/word"
USER_RULES = "~pb:* +@read +@write +@scripting +@connection -@dangerous +wait +time +info +role +config|get"
CLUSTER_RULES = "~{*} +cluster|info +cluster|slots +cluster|nodes"


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


class Tls(NamedTuple):
    """A certificate for 127.0.0.1, for servers and for clients, and a server's binary that speaks TLS."""

    folder: Path
    binary: str

    def make(self) -> "Tls":
        """Make the files: an authority and one certificate that it has signed."""
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        (self.folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        request = ["req", *new_key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=server"]
        signing = ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        for command in (
            ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority"],
            request,
            [*signing, "-days", "2", "-extfile", "names", "-out", "certificate.pem"],
        ):
            subprocess.run(["openssl", *command], cwd=self.folder, check=True, capture_output=True)
        return self

    @property
    def files(self) -> dict[str, str]:
        """By the names of a server's options; clients must show theirs, too."""
        names = {"tls-cert-file": "certificate.pem", "tls-key-file": "key.pem", "tls-ca-cert-file": "ca.pem"}
        return {option: str(self.folder / name) for option, name in names.items()}

    @property
    def query(self) -> str:
        """What a queue.url says behind its question mark."""
        files = self.files
        return (
            f"ssl_ca_certs={files['tls-ca-cert-file']}&ssl_certfile={files['tls-cert-file']}"
            f"&ssl_keyfile={files['tls-key-file']}"
        )


def options_of(settings: dict[str, str]) -> list[str]:
    """Settings as a command line has them."""
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


class Server:
    """One server on a machine. `client` comes through a socket in its folder, which no cut of the network reaches."""

    def __init__(
        self, folder: Path, options: Sequence[str], *, machine: Machine = LOOPBACK, tls: Tls | None = None
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self.machine = machine
        self._tls = tls
        self._options = list(options)
        self.real_port = free_port()
        self.client = redis.Redis(
            unix_socket_path=str(folder / "s"), password=PASSWORD, socket_timeout=5, retry=Retry(NoBackoff(), 0)
        )
        self.process: subprocess.Popen[bytes]
        self.is_failed = False
        self.start()

    def start(self) -> None:
        """Start it on its own data and wait until it answers."""
        port = str(self.real_port)
        settings = {"bind": self.machine.address, "port": port, "unixsocket": str(self.folder / "s")}
        settings |= {"dir": str(self.folder), "save": "", "appendonly": "yes", "repl-diskless-sync-delay": "0"}
        settings |= {"requirepass": PASSWORD, "masterauth": PASSWORD, "maxmemory-policy": "noeviction"}
        if self._tls:
            settings |= {"port": "0", "tls-port": port, "tls-replication": "yes", **self._tls.files}
        binary = self._tls.binary if self._tls else find_server("auto")
        command = [*self.machine.prefix, binary, *options_of(settings), *self._options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.client.ping, f"the server in {self.folder} answers")

    def fail(self, how: str) -> None:
        """kill -9 or SIGSTOP."""
        self.is_failed = True
        self.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        if how == "kill":
            self.process.wait()

    def mend(self, how: str) -> None:
        """Start it again, or let it go on."""
        self.is_failed = False
        if how == "kill":
            self.start()
        else:
            self.process.send_signal(signal.SIGCONT)

    def is_master(self) -> bool:
        return bool(self.client.execute_command("ROLE")[0] == b"master")

    def destroy(self) -> None:
        """End it, whatever state it is in."""
        self.client.close()
        self.process.kill()
        self.process.wait()


class ProxiedServer(Server):
    """A server behind a proxy, which can cut it off where there are no namespaces. `client` goes past the proxy."""

    def __init__(self, folder: Path, options: Sequence[str], *, tls: Tls | None = None) -> None:
        self.port = free_port()
        announced = ["--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(self.port)]
        super().__init__(folder, [*options, *announced], tls=tls)
        self.proxy = subprocess.Popen(
            [sys.executable, "-m", "bench.chaos_parts.proxy", str(self.port), str(self.real_port)],
            stdin=subprocess.PIPE,
        )
        wait_for_port(self.port)

    def fail(self, how: str) -> None:
        """kill -9, SIGSTOP, or cut off."""
        if how == "cut":
            self._order("stall")
        else:
            super().fail(how)

    def mend(self, how: str) -> None:
        """Start it again, let it go on, or plug it in."""
        if how == "cut":
            self._order("pass")
        else:
            super().mend(how)

    def _order(self, text: str) -> None:
        assert self.proxy.stdin is not None
        self.proxy.stdin.write(text.encode() + b"\n")
        self.proxy.stdin.flush()

    def destroy(self) -> None:
        """End both, whatever state they are in."""
        super().destroy()
        self.proxy.kill()
        self.proxy.wait()
