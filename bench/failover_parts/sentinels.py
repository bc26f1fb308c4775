# SPDX-License-Identifier: MIT
"""A master, its replicas, and three sentinels that watch them; on one machine behind proxies, or on machines each."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from bench.failover_parts.network import LOOPBACK, Machine, Network, network
from bench.failover_parts.servers import (
    PASSWORD,
    USER,
    USER_PASSWORD,
    USER_RULES,
    ProxiedServer,
    Server,
    Tls,
    wait_until,
)
from bench.support import free_port
from postbackd.queue.embedded import find_server

SERVICE = "postbacks"
DOWN_AFTER_MS = 1000  # from a fault until the next master is named
CALM_MS = 60_000  # before and after: a machine that stands still for a moment is no failover that nobody ordered
SENTINELS = 3
HOWS = ("kill", "stop", "cut")  # what can be done to a server on this machine
AGAIN = "again"  # killed, and the next master is deposed at once
CUTS = ("unplug", "part", "side")  # and on a network: see Network.cut_off
WATCHER, WATCHER_PASSWORD = "watcher", "w@tch"


class Sentinel:
    """One sentinel; `client` comes through a socket in its folder."""

    def __init__(self, folder: Path, master: Server, machine: Machine, tls: Tls | None) -> None:
        folder.mkdir()
        self.machine = machine
        self.port = free_port()
        lines = [
            f"port {self.port}",
            f"bind {machine.address}",
            f"unixsocket {folder}/s",
            f'dir "{folder}"',
            f"sentinel monitor {SERVICE} {master.machine.address} {port_of(master)} 2",
            f"sentinel auth-pass {SERVICE} {PASSWORD}",
            f"sentinel down-after-milliseconds {SERVICE} {CALM_MS}",
            f"sentinel failover-timeout {SERVICE} 6000",
        ]
        if tls:
            lines[0] = f"port 0\ntls-port {self.port}\ntls-replication yes"
            lines += [f"{name} {value}" for name, value in tls.files.items()]
        (folder / "conf").write_text("\n".join(lines) + "\n")
        binary = tls.binary if tls else find_server("auto")
        with (folder / "log").open("ab") as log:
            command = [*machine.prefix, binary, str(folder / "conf"), "--sentinel"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = redis.Redis(unix_socket_path=str(folder / "s"), socket_timeout=2)
        wait_until(self.client.ping, f"the sentinel in {folder} answers")

    def destroy(self) -> None:
        """End it."""
        self.client.close()
        self.process.kill()
        self.process.wait()


def port_of(server: Server) -> int:
    """Where others reach it."""
    return server.port if isinstance(server, ProxiedServer) else server.real_port


class SentinelGroup:
    """The servers and their sentinels."""

    def __init__(self, replicas: int, *, net: Network | None = None, tls: Tls | None = None) -> None:
        """On a network each machine has a server, and the first three a sentinel beside it."""
        self.folder = Path(tempfile.mkdtemp(prefix="pbgroup"))
        self.net = net
        self._tls = tls
        self._has_user = False
        self.servers: list[Server] = []
        for number in range(replicas + 1):
            self._add_server(number)
        master = self.servers[0]
        wait_until(lambda: master.client.info("replication")["connected_slaves"] == replicas, "replicas are connected")
        machines = net.machines if net else [LOOPBACK] * SENTINELS
        self.sentinels = [
            Sentinel(self.folder / f"sentinel{number}", master, machine, tls)
            for number, machine in enumerate(machines[:SENTINELS])
        ]
        wait_until(self._is_known, "the sentinels know replicas and each other")

    def _add_server(self, number: int) -> None:
        folder, options = self.folder / f"server{number}", []
        if self.servers:
            first = self.servers[0]
            options = ["--replicaof", first.machine.address, str(port_of(first))]
        if self.net:
            self.servers.append(Server(folder, options, machine=self.net.machines[number]))
        else:
            self.servers.append(ProxiedServer(folder, options, tls=self._tls))

    def _is_known(self) -> bool:
        for sentinel in self.sentinels:
            state = sentinel.client.sentinel_master(SERVICE)
            if state["num-slaves"] != len(self.servers) - 1 or state["num-other-sentinels"] != SENTINELS - 1:
                return False
        return True

    def add_users(self) -> None:
        """A user for postbackd at the servers, and one of its own at the sentinels, each with what it needs."""
        self._has_user = True
        for server in self.servers:
            server.client.execute_command("ACL", "SETUSER", USER, "on", f">{USER_PASSWORD}", *USER_RULES.split())
        for sentinel in self.sentinels:
            rules = ["on", f">{WATCHER_PASSWORD}", "+ping", "+sentinel|get-master-addr-by-name", "+sentinel|master"]
            sentinel.client.execute_command("ACL", "SETUSER", WATCHER, *rules, "+sentinel|replicas")

    @property
    def url(self) -> str:
        """The queue.url of the group."""
        places = ",".join(f"{sentinel.machine.address}:{sentinel.port}" for sentinel in self.sentinels)
        user, options = f":{PASSWORD}", []
        if self._has_user:
            user = f"{USER}:{quote(USER_PASSWORD, safe='')}"
            options.append(f"sentinel_username={WATCHER}&sentinel_password={quote(WATCHER_PASSWORD, safe='')}")
        if self._tls:
            options.append(self._tls.query)
        behind = f"?{'&'.join(options)}" if options else ""
        return f"sentinel{'s' if self._tls else ''}://{user}@{places}/{SERVICE}{behind}"

    def master(self) -> Server:
        """The server that most sentinels name."""
        votes = [int(sentinel.client.sentinel_get_master_addr_by_name(SERVICE)[1]) for sentinel in self.sentinels]
        port = max(votes, key=votes.count)
        return next(server for server in self.servers if port_of(server) == port)

    def fail_over(self, how: str) -> Server:
        """Do it to the master and wait for the next one; the one before. Cuts: see Network.cut_off."""
        before = self.master()
        self._down_after(DOWN_AFTER_MS)
        if how in CUTS:
            assert self.net is not None
            self.net.cut_off(before.machine, how)
        else:
            before.fail("kill" if how == AGAIN else how)
        wait_until(lambda: self.master() is not before, "another master is named")
        self._down_after(CALM_MS)
        if how == AGAIN:
            self._depose(self.master())
        return before

    def _down_after(self, silent_ms: int) -> None:
        for sentinel in self.sentinels:
            sentinel.client.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", silent_ms)

    def hand_over(self) -> None:
        """A failover on order: both servers live, and know their new roles when it is done."""
        self._depose(self.master())
        wait_until(self.is_whole, "the roles are changed")

    def _depose(self, master: Server) -> None:
        """Have the sentinels name another, though this one is well, as they do on a machine that stands still."""
        client = self.sentinels[0].client

        def is_ordered() -> bool:  # refused until the failover before has ended and the replica is seen to follow
            client.execute_command("SENTINEL", "FAILOVER", SERVICE)
            return True

        wait_until(is_ordered, "the sentinels begin another failover")
        wait_until(lambda: self.master() is not master, "another master is named")

    def mend(self, before: Server, how: str) -> None:
        """Undo it."""
        if how in CUTS:
            assert self.net is not None
            self.net.mend()
        else:
            before.mend("kill" if how == AGAIN else how)

    def is_whole(self) -> bool:
        """Whether one server is master and all others are its replicas, in step."""
        info = self.master().client.info("replication")
        return info["role"] == "master" and info["connected_slaves"] == len(self.servers) - 1

    def destroy(self) -> None:
        """End everything."""
        for one in (*self.sentinels, *self.servers):
            one.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def sentinel_group(replicas: int, *, apart: bool = False, tls: Tls | None = None) -> Iterator[SentinelGroup]:
    """A group for the length of a with block; `apart`: on machines of its own."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(replicas + 1)) if apart else None
        group = SentinelGroup(replicas, net=net, tls=tls)
        stack.callback(group.destroy)
        yield group
