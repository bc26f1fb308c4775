# SPDX-License-Identifier: MIT
"""A real Cluster of Valkeys, its nodes killable, stoppable and cut off, its slots movable."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import redis

from bench.failover_parts.network import LOOPBACK, Machine, Network, network
from bench.failover_parts.servers import (
    CLUSTER_RULES,
    PASSWORD,
    USER,
    USER_PASSWORD,
    USER_RULES,
    Server,
    Tls,
    options_of,
    wait_until,
)
from bench.support import free_port
from postbackd.queue.cluster import SLOTS, slot_of

NODE_TIMEOUT_MS = 1500
CUTS = ("unplug", "part", "side")  # what a network can do to a master: as in sentinels.py


class ClusterNode(Server):
    """One server."""

    def __init__(self, folder: Path, appendfsync: str, machine: Machine, tls: Tls | None, node_timeout_ms: int) -> None:
        self.bus_port = free_port()
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": str(node_timeout_ms),
            "cluster-require-full-coverage": "no",
            "cluster-allow-replica-migration": "no",
            "appendfsync": appendfsync,
        }
        if tls:
            settings["tls-cluster"] = "yes"
        super().__init__(folder, options_of(settings), machine=machine, tls=tls)
        self.port = self.real_port
        self.id = self.client.execute_command("CLUSTER", "MYID").decode()


class ClusterGroup:
    """So many masters with a replica each, or without; shard i is at master i mod masters."""

    def __init__(
        self,
        masters: int,
        *,
        replicas: bool,
        appendfsync: str = "everysec",
        shards: int = 16,
        net: Network | None = None,
        tls: Tls | None = None,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pbcluster"))
        self.net = net
        self._tls = tls
        self._has_user = False
        count = masters * (2 if replicas else 1)
        machines = net.machines if net else [LOOPBACK] * count
        self.nodes = [
            ClusterNode(self.folder / f"node{number}", appendfsync, machine, tls, node_timeout_ms)
            for number, machine in enumerate(machines)
        ]
        owners = [slot * masters // SLOTS for slot in range(SLOTS)]
        for shard in range(shards):
            owners[slot_of(b"%d" % shard)] = shard % masters
        for number, node in enumerate(self.nodes[:masters]):
            slots = [slot for slot, owner in enumerate(owners) if owner == number]
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        wait_until(self._have_met, "the nodes know each other")
        for number, node in enumerate(self.nodes[masters:]):
            node.client.execute_command("CLUSTER", "REPLICATE", self.nodes[number].id)
        wait_until(lambda: self.is_whole() and len(set(map(self._view, self.nodes))) == 1, "the Cluster is well")

    def _fields(self, node: ClusterNode) -> dict[bytes, bytes]:
        text = node.client.execute_command("CLUSTER", "INFO")
        text = text.encode() if isinstance(text, str) else text
        return {name: value.strip() for name, _, value in (line.partition(b":") for line in text.splitlines()) if value}

    def _have_met(self) -> bool:
        """Whether all know each other. A handshake that takes longer than the node timeout is given up and must be
        asked for again."""
        first = self.nodes[0].client
        known = str(first.execute_command("CLUSTER", "NODES"))
        for node in self.nodes[1:]:
            if node.id not in known:
                first.execute_command("CLUSTER", "MEET", node.machine.address, node.port, node.bus_port)
        return all(int(self._fields(node)[b"cluster_known_nodes"]) == len(self.nodes) for node in self.nodes)

    def _view(self, node: ClusterNode) -> frozenset[tuple[str, ...]]:
        """Who is what, with which epoch and slots, as one node knows it. Where they do not agree a replica gets no
        votes, and after a refused failover on order it asks for none before four node timeouts are over."""
        lines = node.client.execute_command("CLUSTER", "NODES").decode().splitlines()
        words = [line.split() for line in lines]  # id address flags master ping pong epoch link slots…
        return frozenset((id_, flags.removeprefix("myself,"), master, epoch, *slots)
                         for id_, _, flags, master, _, _, epoch, _, *slots in words)  # fmt: skip

    def _is_well(self, node: ClusterNode) -> bool:
        fields = self._fields(node)
        if fields[b"cluster_state"] != b"ok" or int(fields[b"cluster_slots_ok"]) != SLOTS:
            return False
        info = node.client.info("replication")
        return bool(info["role"] == "master" or info["master_link_status"] == "up")

    def add_users(self) -> None:
        """A user for postbackd, with what it needs and no more, on each node."""
        self._has_user = True
        rules = [*USER_RULES.split(), *CLUSTER_RULES.split()]
        for node in self.nodes:
            node.client.execute_command("ACL", "SETUSER", USER, "on", f">{USER_PASSWORD}", *rules)

    @property
    def url(self) -> str:
        """The queue.url of the group."""
        user = f"{USER}:{quote(USER_PASSWORD, safe='')}" if self._has_user else f":{PASSWORD}"
        behind = f"?{self._tls.query}" if self._tls else ""
        places = ",".join(f"{node.machine.address}:{node.port}" for node in self.nodes)
        return f"cluster{'s' if self._tls else ''}://{user}@{places}{behind}"

    def owner(self, shard: int) -> ClusterNode:
        """The master that has a shard, as most nodes say."""
        slot, votes = slot_of(b"%d" % shard), []
        for node in self.nodes:
            if node.is_failed:
                continue
            with contextlib.suppress(redis.RedisError):
                for first, last, (_, _, name, *_rest), *_replicas in node.client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        votes.append(name.decode())
        if not votes:
            raise redis.ConnectionError("no node answers")
        name = max(votes, key=votes.count)
        return next(node for node in self.nodes if node.id == name)

    def fail_over(self, shard: int, how: str) -> ClusterNode:
        """Do it to the master of a shard and wait for the next one; the one before. Cuts: see Network.cut_off."""
        before = self.owner(shard)
        if how in CUTS:
            assert self.net is not None
            self.net.cut_off(before.machine, how)
        else:
            before.fail(how)
        wait_until(lambda: self.owner(shard) is not before, "its replica has taken its place")
        return before

    def mend(self, before: ClusterNode, how: str) -> None:
        """Undo it."""
        if how in CUTS:
            assert self.net is not None
            self.net.mend()
        else:
            before.mend(how)

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
            command = ["MIGRATE", to.machine.address, to.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys]
            source.client.execute_command(*command)
        for node in (to, source, *(one for one in self.nodes if one not in (to, source) and one.is_master())):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def destroy(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def cluster_group(
    masters: int,
    *,
    replicas: bool,
    appendfsync: str = "everysec",
    apart: bool = False,
    tls: Tls | None = None,
    node_timeout_ms: int = NODE_TIMEOUT_MS,
) -> Iterator[ClusterGroup]:
    """A Cluster for the length of a with block; `apart`: on machines of its own. With a short node timeout a machine
    that stands still for a moment means a failover that nobody ordered."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(masters * (2 if replicas else 1))) if apart else None
        group = ClusterGroup(
            masters, replicas=replicas, appendfsync=appendfsync, net=net, tls=tls, node_timeout_ms=node_timeout_ms
        )
        stack.callback(group.destroy)
        yield group
