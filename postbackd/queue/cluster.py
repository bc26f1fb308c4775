# SPDX-License-Identifier: MIT
"""Connections to the nodes of a Cluster: each shard's keys share a hash tag and so a slot, and a slot has one master.

Who has a slot is asked (CLUSTER SLOTS, of any node that answers) by a thread twice a second, or for each connection
where there is no such thread, and the node is asked whether it agrees: MOVED is followed. MOVED, TRYAGAIN, ASK and
CLUSTERDOWN on a connection in use mean that the command was not run: its owner closes it and opens another. While a
slot is moved key by key its shard is away, since scripts touch several keys; the other shards go on. The thread cuts
each connection to a node that has lost its slot, as for Sentinel, that the others call failed, or that has fallen
silent: nothing else would tell of a master that is stopped or cut off.
"""

import binascii
import queue
import random
import threading
import time
import weakref
from collections.abc import Sequence

from postbackd import oplog
from postbackd.errors import QueueUnavailableError
from postbackd.queue.pulse import SILENT_S, Pulse
from postbackd.queue.set_up_anew import OlderEpochs
from postbackd.queue.wire import CONNECT_TIMEOUT_S, Wire
from postbackd.queue_url import Node, QueueUrl

SLOTS = 16_384
NODE_TIMEOUT_S = 0.5  # of each question to one node
WATCH_EVERY_S = 0.5
TELL_EVERY_S = 5.0  # all of the map, also where nothing seems to have changed
FRESH_S = 2.0  # how old the watch's last answer may be and still be used instead of asking
HOPS = 3  # redirections followed in one opening


def slot_of(hashed: bytes) -> int:
    """The slot of a key, or of what its hash tag holds."""
    return binascii.crc_hqx(hashed, 0) % SLOTS


class Map:
    """Who has which slot, as one node says; `epoch` tells newer from older."""

    def __init__(
        self,
        epoch: int,
        ranges: list[tuple[int, int, Node]],
        nodes: list[Node],
        failed: frozenset[Node] = frozenset(),
        is_ok: bool = True,
        marks: tuple[bytes, ...] = (),
    ) -> None:
        """`failed`: what most masters agree cannot be reached. `is_ok`: who says it is in touch with most of them."""
        self.epoch = epoch
        self.is_ok = is_ok
        self.marks = marks  # change when the rest does
        self._ranges = ranges
        self.nodes = nodes
        self.failed = failed

    def owner(self, slot: int) -> Node | None:
        """The master of a slot, None where it has none."""
        return next((node for first, last, node in self._ranges if first <= slot <= last), None)

    def masters(self) -> set[Node]:
        """All that have a slot."""
        return {node for _, _, node in self._ranges}


class ClusterRoute:
    """Connections to the masters of one Cluster."""

    def __init__(self, parts: QueueUrl) -> None:
        self._parts = parts
        self._nodes = list(parts.nodes)  # to be asked, the last that answered first
        random.shuffle(self._nodes)  # not all processes of all machines the same
        self._wires: weakref.WeakKeyDictionary[Wire, int] = weakref.WeakKeyDictionary()  # → slot
        self._lock = threading.Lock()  # of _wires
        self._epoch = 0
        self._older = OlderEpochs()
        self._kept: dict[Node, Wire] = {}  # the watch's own connection
        self._seen: Map | None = None  # what the watch was told last
        self._seen_s = 0.0  # when it was said to hold
        self._told_s = 0.0  # when all of it was told
        self._pulse = Pulse(self._connect)  # the watch's, too: without it nobody counts as silent
        self._in_use: set[Node] = set()
        self._is_watching = False

    def open(self, shard: int, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        """A connection to the master that has a shard; raises QueueUnavailableError."""
        return self._open(slot_of(b"%d" % shard), b"{%d}" % shard, timeout_s, connect_timeout_s)

    def open_for(self, key: bytes, timeout_s: float) -> Wire:
        """A connection to the master of a key without a hash tag."""
        return self._open(slot_of(key), key, timeout_s, CONNECT_TIMEOUT_S)

    def _open(self, slot: int, key: bytes, timeout_s: float, connect_timeout_s: float) -> Wire:
        is_fresh = time.monotonic() - self._seen_s < FRESH_S
        found = self._seen if self._seen is not None and is_fresh else self.look_up()
        node = found.owner(slot)
        if node is None:
            raise QueueUnavailableError(f"No node of the Cluster has slot {slot}: give it one.")
        if node in found.failed:
            raise QueueUnavailableError(f"{node}, which has slot {slot}, has failed, as the other nodes say.")
        for _ in range(HOPS):
            if node in self._pulse.silent:
                raise QueueUnavailableError(f"{node}, which has slot {slot}, has not answered for {SILENT_S:g} s.")
            wire = Wire(self._parts.server_url(node), timeout_s, connect_timeout_s)
            try:
                wire.call("EXISTS", key)
            except QueueUnavailableError as error:
                moved = _moved_to(str(error), node)
                if moved is not None:
                    wire.close()
                    node = moved
                    continue
                if "NOPERM" not in str(error):  # its ACL allows our own keys only: the first command will tell
                    wire.close()
                    raise
            wire.node = node
            with self._lock:
                self._wires[wire] = slot
            return wire
        raise QueueUnavailableError(f"The nodes of the Cluster do not agree who has slot {slot}: try again.")

    def owner(self, shard: int) -> Node | None:
        """The master that has a shard, as the nodes say; raises QueueUnavailableError."""
        return self.look_up().owner(slot_of(b"%d" % shard))

    def standbys(self) -> list[Node]:
        """The nodes that have no slot and may get one, as they say: for `check`."""
        found = self.look_up()
        return sorted(set(found.nodes) - found.masters())

    def open_node(self, node: Node, timeout_s: float) -> Wire:
        """A connection to one node, whatever its role."""
        return Wire(self._parts.server_url(node), timeout_s, timeout_s)

    def look_up(self, kept: dict[Node, Wire] | None = None) -> Map:
        """The map of a node that answers; raises QueueUnavailableError when none does.

        That of one which is cut off from most masters counts only where no other answers: it does not hear who has
        taken the place of whom. `kept` are connections to be used again.
        """
        first, *others = self._nodes
        answers = self._ask_all([first], kept)
        if not any(isinstance(found, Map) and self._believes(found) for _, found in answers):
            answers += self._ask_all(others, None)
        told = [found.epoch for _, found in answers if isinstance(found, Map) and found.is_ok]
        epoch = self._older.to_believe(told, self._epoch, len(self._nodes), time.monotonic())
        self._epoch = self._epoch if epoch is None else epoch
        last, cut_off = "", None
        for node, found in answers:
            if not isinstance(found, Map):
                last = str(found)
            elif found.epoch < self._epoch:  # it was away for a while, and has not heard yet
                last = f"{node} has not heard of the latest changes."
            elif not found.is_ok:
                cut_off = cut_off or found
            else:
                self._epoch = found.epoch
                known = [one for one in (*self._nodes, *found.nodes) if one != node]
                self._nodes = [node, *dict.fromkeys(known)]
                return found
        if cut_off is None:
            raise QueueUnavailableError(f"No node of the Cluster answers: {last}")
        return cut_off

    def _believes(self, found: Map) -> bool:
        return found.is_ok and found.epoch >= self._epoch

    def _ask_all(self, nodes: Sequence[Node], kept: dict[Node, Wire] | None) -> list[tuple[Node, Map | Exception]]:
        """What each says, until one is believed: at once where there are several, since silent ones take their time."""
        answers: queue.SimpleQueue[tuple[Node, Map | Exception]] = queue.SimpleQueue()

        def ask(node: Node) -> None:
            try:
                answers.put((node, self._ask_node(node, kept)))
            except Exception as error:  # the top of a thread; the caller waits for every answer
                answers.put((node, error))

        if len(nodes) == 1:
            ask(nodes[0])
        else:
            for node in nodes:
                threading.Thread(target=ask, args=(node,), name="cluster-ask", daemon=True).start()
        found = []
        for _ in nodes:
            found.append(answers.get())
            answer = found[-1][1]
            if isinstance(answer, Map) and self._believes(answer):
                break
        return found

    def _ask_node(self, node: Node, kept: dict[Node, Wire] | None) -> Map:
        wire = None if kept is None else kept.pop(node, None)
        if wire is None or not wire.is_open:
            wire = self._connect(node)
        try:
            found = self._ask(wire, node)
        except QueueUnavailableError:
            wire.close()
            raise
        if kept is None:
            wire.close()
        else:
            kept[node] = wire
        return found

    def _connect(self, node: Node) -> Wire:
        return self.open_node(node, NODE_TIMEOUT_S)

    def _ask(self, wire: Wire, asked: Node) -> Map:
        info, slots, table = wire.pipeline([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")])
        fields = _fields(info)
        gone = {line.split()[0] for line in table.splitlines() if b"fail" in line.split()[2].split(b",")}
        ranges: list[tuple[int, int, Node]] = []
        nodes: list[Node] = []
        failed: set[Node] = set()
        for first, last, *members in slots:
            found = [_node(member, asked) for member in members]
            ranges.append((first, last, found[0]))
            nodes += found
            failed |= {node for node, member in zip(found, members, strict=True) if member[2] in gone}
        epoch, is_ok = int(fields.get(b"cluster_current_epoch", 0)), fields.get(b"cluster_state") == b"ok"
        return Map(epoch, ranges, nodes, frozenset(failed), is_ok, _marks(info))

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
        self._cut_silent()  # first: what follows may wait for a node that does not answer
        if not self._is_as_before():
            self._seen = self.look_up(self._kept)
            self._told_s = time.monotonic()
        self._seen_s = time.monotonic()
        assert self._seen is not None
        self._cut_moved(self._seen)

    def _is_as_before(self) -> bool:
        """Whether the node that told last says that nothing has changed: a tenth of the work, for it and for us."""
        wire = self._kept.get(self._nodes[0])
        if wire is None or not wire.is_open or self._seen is None or time.monotonic() - self._told_s > TELL_EVERY_S:
            return False
        try:
            return self._seen.is_ok and _marks(wire.call("CLUSTER", "INFO")) == self._seen.marks
        except QueueUnavailableError:
            wire.close()
            self._nodes = [*self._nodes[1:], self._nodes[0]]  # the next one is asked first
            return False

    def _cut_moved(self, found: Map) -> None:
        for node in list(self._kept)[:-1]:  # the last is the one that was asked just now
            self._kept.pop(node).close()
        for wire, slot in self._open_wires():
            owner = found.owner(slot)
            if owner is None or (owner == wire.node and owner not in found.failed):
                continue
            wire.cut()
            if owner in found.failed:
                if oplog.changed(f"node {owner}", "failed"):
                    oplog.warning("node_failed", node=owner, hint="as most nodes say; nobody has its slots yet")
            elif oplog.changed(f"slot {slot}", owner):
                oplog.warning("slot_moved", slot=slot, was=wire.node, is_now=owner)

    def _cut_silent(self) -> None:
        wires = self._open_wires()
        self._in_use |= {wire.node for wire, _ in wires if wire.node is not None}
        self._in_use.intersection_update(self._nodes)
        self._pulse.look(self._in_use)
        for wire, _ in wires:
            if wire.node in self._pulse.silent:
                wire.cut()

    def _open_wires(self) -> list[tuple[Wire, int]]:
        with self._lock:
            return [(wire, slot) for wire, slot in self._wires.items() if wire.is_open]


def _fields(info: bytes) -> dict[bytes, bytes]:
    """CLUSTER INFO taken apart."""
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def _marks(info: bytes) -> tuple[bytes, ...]:
    """What of CLUSTER INFO changes when a slot gets another owner or a node fails."""
    fields = _fields(info)
    names = (b"cluster_state", b"cluster_current_epoch", b"cluster_slots_assigned", b"cluster_slots_fail")
    return tuple(fields.get(name, b"") for name in names)


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
