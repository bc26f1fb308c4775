# SPDX-License-Identifier: MIT
"""The queue servers behind one address: a socket whose name leads to the master of now, as Sentinel's answer would."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.failover_parts.servers import PASSWORD, Server, options_of, wait_until

# A full sync takes 20 ms: what a master sends without a disk and a replica receives on one waits for the next second.
OPTIONS = {"repl-diskless-sync": "no", "repl-diskless-load": "swapdb", "hz": "100", "repl-ping-replica-period": "1"}
FSYNC_OPTIONS = {"appendfsync": "always"}


class Servers:
    """Two that take turns as master and replica at level replica, one that comes back at level fsync."""

    def __init__(self, folder: Path, servers: list[Server]) -> None:
        self._folder = folder
        self._servers = servers
        self._number = 0  # of the master
        self._socket = folder / "s"
        self._name(0)
        self.follow()

    @property
    def url(self) -> str:
        """The queue.url that leads to the master."""
        return f"unix://:{PASSWORD}@{self._socket}"

    @property
    def master(self) -> Server:
        return self._servers[self._number]

    @property
    def other(self) -> Server:
        return self._servers[1 - self._number]

    def promote(self) -> None:
        """The other one is master from now on, whatever the present one is or thinks."""
        self.other.client.replicaof("no", "one")
        self.name_other()

    def name_other(self) -> None:
        """Connections made from now on lead to the other one, which thinks that it is a master."""
        self._name(1 - self._number)

    def _name(self, number: int) -> None:
        new = self._folder / "new"
        new.symlink_to(self._servers[number].folder / "s")
        new.replace(self._socket)
        self._number = number

    def follow(self) -> None:
        """The other one, where there is one, becomes a replica of the master."""
        if len(self._servers) > 1:
            self.other.client.replicaof("127.0.0.1", self.master.real_port)

    def wait_until_in_step(self) -> None:
        """Return when the other one has all that was acknowledged: only then may it be promoted."""
        wait_until(
            lambda: self.other.client.info("replication")["master_link_status"] == "up", "the replica is in step"
        )


@contextlib.contextmanager
def running_servers(durability: str) -> Iterator[tuple[Servers, Path]]:
    """The servers for the length of a with block, and a folder that goes with them."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pbroll"))  # short: a socket path has 107 bytes
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        servers: list[Server] = []
        for name in "ab" if durability == "replica" else "a":
            settings = OPTIONS | (FSYNC_OPTIONS if durability == "fsync" else {})
            servers.append(Server(folder / name, options_of(settings)))
            stack.callback(servers[-1].destroy)
        yield Servers(folder, servers), folder
