# SPDX-License-Identifier: MIT
"""A real Cluster of Valkeys, its nodes killable and stoppable, its slots movable."""

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.failover_parts.servers import wait_until
from bench.support import free_port
from postbackd.queue.cluster import SLOTS, slot_of
from postbackd.queue.embedded import find_server

PASSWORD = "s3cret"
NODE_TIMEOUT_MS = 1500


class ClusterNode:
    """One server."""

    def __init__(self, folder: Path, appendfsync: str) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._appendfsync = appendfsync
        self.port, self.bus_port = free_port(), free_port()
        self.client = redis.Redis(port=self.port, password=PASSWORD, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        self.process: subprocess.Popen[bytes]
        self.is_failed = False
        self.start()
        self.id = self.client.execute_command("CLUSTER", "MYID").decode()

    def start(self) -> None:
        """Start it on its own data and wait until it answers."""
        command = [find_server("auto"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--save", ""]
        command += ["--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no"]
        command += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        command += [
            "--appendonly",
            "yes",
            "--appendfsync",
            self._appendfsync,
            "--cluster-allow-replica-migration",
            "no",
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.client.ping, f"the node on port {self.port} answers")

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
        self.client.close()
        self.process.kill()
        self.process.wait()


class ClusterGroup:
    """So many masters with a replica each, or without; shard i is at master i mod masters."""

    def __init__(self, masters: int, *, replicas: bool, appendfsync: str = "everysec", shards: int = 16) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pbcluster"))
        count = masters * (2 if replicas else 1)
        self.nodes = [ClusterNode(self.folder / f"node{number}", appendfsync) for number in range(count)]
        first = self.nodes[0].client
        for node in self.nodes[1:]:
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        owners = [slot * masters // SLOTS for slot in range(SLOTS)]
        for shard in range(shards):
            owners[slot_of(b"%d" % shard)] = shard % masters
        for number, node in enumerate(self.nodes[:masters]):
            slots = [slot for slot, owner in enumerate(owners) if owner == number]
            node.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        wait_until(lambda: all(self._knows(node, count) for node in self.nodes), "the nodes know each other")
        for number, node in enumerate(self.nodes[masters:]):
            node.client.execute_command("CLUSTER", "REPLICATE", self.nodes[number].id)
        wait_until(lambda: all(map(self._is_well, self.nodes)), "the Cluster is well")

    def _fields(self, node: ClusterNode) -> dict[bytes, bytes]:
        text = node.client.execute_command("CLUSTER", "INFO")
        text = text.encode() if isinstance(text, str) else text
        return {name: value.strip() for name, _, value in (line.partition(b":") for line in text.splitlines()) if value}

    def _knows(self, node: ClusterNode, count: int) -> bool:
        return int(self._fields(node)[b"cluster_known_nodes"]) == count

    def _is_well(self, node: ClusterNode) -> bool:
        fields = self._fields(node)
        if fields[b"cluster_state"] != b"ok" or int(fields[b"cluster_slots_ok"]) != SLOTS:
            return False
        info = node.client.info("replication")
        return bool(info["role"] == "master" or info["master_link_status"] == "up")

    @property
    def url(self) -> str:
        """The queue.url of the group."""
        return f"cluster://:{PASSWORD}@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def owner(self, shard: int) -> ClusterNode:
        """The master that has a shard, as most nodes say."""
        slot, votes = slot_of(b"%d" % shard), []
        for node in self.nodes:
            if node.is_failed:
                continue
            with contextlib.suppress(redis.RedisError):
                for first, last, (_, port, *_rest), *_replicas in node.client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        votes.append(port)
        if not votes:
            raise redis.ConnectionError("no node answers")
        port = max(votes, key=votes.count)
        return next(node for node in self.nodes if node.port == port)

    def fail_over(self, shard: int, how: str) -> ClusterNode:
        """Do it to the master of a shard and wait for the next one; the one before."""
        before = self.owner(shard)
        before.fail(how)
        wait_until(lambda: self.owner(shard) is not before, "its replica has taken its place")
        return before

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        """The replica of a master."""
        for node in self.nodes:
            role = node.client.execute_command("ROLE")
            if role[0] == b"slave" and int(role[2]) == master.port:
                return node
        raise SystemExit(f"bench: the node on port {master.port} has no replica")

    def is_whole(self) -> bool:
        """Whether every node is up and every replica in step."""
        return all(map(self._is_well, self.nodes))

    def move(self, shard: int, to: ClusterNode) -> None:
        """Give a shard's slot to another master, key by key, as resharding tools do."""
        slot, source = slot_of(b"%d" % shard), self.owner(shard)
        to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            command = ["MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys]
            source.client.execute_command(*command)
        for node in (to, source, *(one for one in self.nodes if one not in (to, source) and one.is_master())):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def destroy(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster_group(masters: int, *, replicas: bool, appendfsync: str = "everysec") -> Iterator[ClusterGroup]:
    """A Cluster for the length of a with block."""
    group = ClusterGroup(masters, replicas=replicas, appendfsync=appendfsync)
    try:
        yield group
    finally:
        group.destroy()
