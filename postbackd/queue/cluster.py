# SPDX-License-Identifier: MIT
"""Connections to the nodes of a Cluster: each shard's keys share a hash tag and so a slot, and a slot has one master.

Who has a slot is asked anew for each connection (CLUSTER SLOTS, of any node that answers), and the node is asked
whether it agrees: MOVED is followed. MOVED, TRYAGAIN, ASK and CLUSTERDOWN on a connection in use mean that the command
was not run: its owner closes it and opens another. While a slot is moved key by key its shard is away, since scripts
touch several keys; the other shards go on. A thread asks twice a second and cuts each connection to a node that has
lost its slot, as for Sentinel, or that the others call failed: nothing else would tell of a master that is stopped.
"""

import binascii
import contextlib
import threading
import time
import weakref

from postbackd import oplog
from postbackd.errors import QueueUnavailableError
from postbackd.queue.wire import CONNECT_TIMEOUT_S, Wire
from postbackd.queue_url import Node, QueueUrl

SLOTS = 16_384
NODE_TIMEOUT_S = 0.5  # of each question to one node
WATCH_EVERY_S = 0.5
HOPS = 3  # redirections followed in one opening


def slot_of(hashed: bytes) -> int:
    """The slot of a key, or of what its hash tag holds."""
    return binascii.crc_hqx(hashed, 0) % SLOTS


class Map:
    """Who has which slot, as one node says; `epoch` tells newer from older."""

    def __init__(
        self, epoch: int, ranges: list[tuple[int, int, Node]], nodes: list[Node], failed: frozenset[Node] = frozenset()
    ) -> None:
        """`failed`: what most masters agree cannot be reached."""
        self.epoch = epoch
        self._ranges = ranges
        self.nodes = nodes
        self.failed = failed

    def owner(self, slot: int) -> Node | None:
        """The master of a slot, None where it has none."""
        return next((node for first, last, node in self._ranges if first <= slot <= last), None)


class ClusterRoute:
    """Connections to the masters of one Cluster."""

    def __init__(self, parts: QueueUrl) -> None:
        self._parts = parts
        self._nodes = list(parts.nodes)  # to be asked, the last that answered first
        self._wires: weakref.WeakKeyDictionary[Wire, int] = weakref.WeakKeyDictionary()  # → slot
        self._lock = threading.Lock()  # of _wires
        self._epoch = 0
        self._is_watching = False

    def open(self, shard: int, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        """A connection to the master that has a shard; raises QueueUnavailableError."""
        return self._open(slot_of(b"%d" % shard), b"{%d}" % shard, timeout_s, connect_timeout_s)

    def open_for(self, key: bytes, timeout_s: float) -> Wire:
        """A connection to the master of a key without a hash tag."""
        return self._open(slot_of(key), key, timeout_s, CONNECT_TIMEOUT_S)

    def _open(self, slot: int, key: bytes, timeout_s: float, connect_timeout_s: float) -> Wire:
        found = self.look_up()
        node = found.owner(slot)
        if node is None:
            raise QueueUnavailableError(f"No node of the Cluster has slot {slot}: give it one.")
        if node in found.failed:
            raise QueueUnavailableError(f"{node}, which has slot {slot}, has failed, as the other nodes say.")
        for _ in range(HOPS):
            wire = Wire(node.url(self._parts.credentials), timeout_s, connect_timeout_s)
            try:
                wire.call("EXISTS", key)
            except QueueUnavailableError as error:
                wire.close()
                moved = _moved_to(str(error), node)
                if moved is None:
                    raise
                node = moved
                continue
            wire.node = node
            with self._lock:
                self._wires[wire] = slot
            return wire
        raise QueueUnavailableError(f"The nodes of the Cluster do not agree who has slot {slot}: try again.")

    def owner(self, shard: int) -> Node | None:
        """The master that has a shard, as the nodes say; raises QueueUnavailableError."""
        return self.look_up().owner(slot_of(b"%d" % shard))

    def look_up(self) -> Map:
        """The map of a node that answers; raises QueueUnavailableError when none does."""
        last = ""
        for node in list(self._nodes):
            try:
                with contextlib.closing(Wire(self._url(node), NODE_TIMEOUT_S, NODE_TIMEOUT_S)) as wire:
                    found = self._ask(wire, node)
            except QueueUnavailableError as error:
                last = str(error)
                continue
            if found.epoch < self._epoch:  # it was away for a while, and has not heard yet
                last = f"{node} has not heard of the latest changes."
                continue
            self._epoch = found.epoch
            others = [one for one in (*self._nodes, *found.nodes) if one != node]
            self._nodes = [node, *dict.fromkeys(others)]
            return found
        raise QueueUnavailableError(f"No node of the Cluster answers: {last}")

    def _url(self, node: Node) -> str:
        return node.url(self._parts.credentials)

    def _ask(self, wire: Wire, asked: Node) -> Map:
        info, slots, table = wire.pipeline([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")])
        fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
        gone = {line.split()[0] for line in table.splitlines() if b"fail" in line.split()[2].split(b",")}
        ranges: list[tuple[int, int, Node]] = []
        nodes: list[Node] = []
        failed: set[Node] = set()
        for first, last, *members in slots:
            found = [_node(member, asked) for member in members]
            ranges.append((first, last, found[0]))
            nodes += found
            failed |= {node for node, member in zip(found, members, strict=True) if member[2] in gone}
        return Map(int(fields.get(b"cluster_current_epoch", 0)), ranges, nodes, frozenset(failed))

    # The watch

    def watch(self) -> None:
        """Begin to ask twice a second."""
        if not self._is_watching:
            self._is_watching = True
            threading.Thread(target=self._watch, name="cluster-watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except QueueUnavailableError:
                pass  # whoever uses the queue says so
            except Exception as error:  # the top of the thread: without it no stopped master would be left
                oplog.error("cluster_watch_failed", error=repr(error))
            time.sleep(WATCH_EVERY_S)

    def look(self) -> None:
        """Ask once, and cut what leads to a node that has lost its slot, or has failed."""
        found = self.look_up()
        with self._lock:
            stale = [
                (wire, owner)
                for wire, slot in self._wires.items()
                if wire.is_open and (owner := found.owner(slot)) is not None
                if owner != wire.node or owner in found.failed
            ]
        for wire, owner in stale:
            oplog.warning("slot_moved" if owner != wire.node else "node_failed", was=wire.node, is_now=owner)
            wire.cut()


def _node(member: list[bytes | int | None], asked: Node) -> Node:
    """A node of CLUSTER SLOTS' reply; without a name of its own it is where we asked."""
    host, port = member[0], member[1]
    assert isinstance(port, int)
    return Node(asked.host if host in (None, b"", b"?") or not isinstance(host, bytes) else host.decode(), port)


def _moved_to(text: str, asked: Node) -> Node | None:
    """Where an error says that the slot is: `MOVED 3999 127.0.0.1:6381`."""
    words = text.rstrip(".").split()
    if "MOVED" not in words:
        return None
    host, _, port = words[words.index("MOVED") + 2].rpartition(":")
    return Node(host.removeprefix("[").removesuffix("]") or asked.host, int(port))
