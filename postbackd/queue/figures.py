# SPDX-License-Identifier: MIT
"""The queue in figures, for people and monitoring: how much is in each state, how old the oldest is, who shares it.

Read by the admin process alone, every few seconds, on a connection of its own and in two packets. The states are
counted one after the other while items move, so a sum may be off by what moved meanwhile.
"""

from collections.abc import Sequence

import msgspec

from postbackd.codec import CodecError, decode_item
from postbackd.errors import QueueUnavailableError
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.wire import Wire, parse_info

TIMEOUT_S = 2.0
NODES_TTL_S = 3600
FORGET_NODE_MS = 60_000  # a daemon that said nothing for so long has stopped without a word


class QueueFigures(msgspec.Struct, frozen=True):
    """One look at the queue, all shards together."""

    reachable: bool = False
    error: str | None = "not looked at yet"
    ready: int = 0
    leased: int = 0
    later: int = 0
    dead: int = 0
    oldest_ready_s: float | None = None
    used_memory_bytes: int = 0
    max_memory_bytes: int = 0  # what it may use before it refuses writes; 0 = no limit
    shards_full: int = 0  # those that refuse writes since they are at that limit
    server: str = ""
    shards_away: int = 0  # those that are not in the sums; `error` says why the first of them is not


class NodeSnapshot(msgspec.Struct, frozen=True):
    """What a daemon tells the others that share its queue."""

    id: str
    seen_ms: int  # server time
    node: str
    in_per_s: float
    out_per_s: float
    in_flight: int
    spool_bytes: int
    workers: int
    version: str
    state: str
    ready: bool


_decode_node = msgspec.json.Decoder(NodeSnapshot).decode


class FigureReader:
    """A connection that only looks, and tells the others about us."""

    def __init__(self, url: str, keys: Sequence[Keys]) -> None:
        """`keys` are those of every shard; what daemons tell each other stands in the first."""
        self._route = route_to(url)
        self._keys = keys
        self._wires: dict[int, Wire] = {}  # by shard
        self._server = ""
        self.server_ms = 0  # at the last read

    def read(self) -> QueueFigures:
        """The figures of now; of several shards those that answer, and `error` names the others. Raises
        QueueUnavailableError within a few seconds where none does."""
        figures = QueueFigures(reachable=True, error=None)
        away: list[QueueUnavailableError] = []
        for keys in self._keys:
            try:
                figures = _sum(figures, self._read_shard(self._wire(keys.shard), keys))
            except QueueUnavailableError as error:
                away.append(error)
        if len(away) == len(self._keys):
            raise away[0]
        if not away:
            return figures
        return msgspec.structs.replace(figures, error=str(away[0]), shards_away=len(away))

    def _read_shard(self, wire: Wire, keys: Keys) -> QueueFigures:
        (seconds, micros), info, ready, wake, later, dead, head, workers = wire.pipeline(
            [
                ("TIME",),
                ("INFO", "memory"),
                ("LLEN", keys.ready),
                ("LLEN", keys.wake),
                ("ZCARD", keys.later),
                ("XLEN", keys.dead),
                ("LINDEX", keys.ready, 0),
                ("ZRANGE", keys.workers, 0, -1),
            ]
        )
        self.server_ms = int(seconds) * 1000 + int(micros) // 1000
        # Every field of a lease but `n` is an item.
        leases = wire.pipeline([("HLEN", keys.lease(name.decode())) for name in workers]) if workers else []
        memory = parse_info(info)
        used, limit = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        return QueueFigures(
            ready=ready + wake,
            leased=sum(max(count - 1, 0) for count in leases),
            later=later,
            dead=dead,
            oldest_ready_s=self._age_s(head),
            used_memory_bytes=used,
            max_memory_bytes=limit,
            shards_full=int(bool(limit) and used - int(memory.get("mem_not_counted_for_evict", 0)) > limit),
            server=self._server,
        )

    def _wire(self, shard: int) -> Wire:
        wire = self._wires.get(shard)
        if wire is None or not wire.is_open:
            self._wires[shard] = wire = self._route.open(shard, TIMEOUT_S)
            info = parse_info(wire.call("INFO", "server"))
            valkey = info.get("valkey_version", "")
            self._server = f"valkey {valkey}" if valkey else f"redis {info.get('redis_version', '')}"
        return wire

    def _age_s(self, head: bytes | None) -> float | None:
        """How long the item at the head of ready has been due."""
        if head is None:
            return None
        try:
            return max(self.server_ms - decode_item(head).due_from_ms, 0) / 1000
        except CodecError:
            return None

    def exchange(self, own: NodeSnapshot) -> list[NodeSnapshot]:
        """Tell the others about us, and read what they told: every daemon heard of lately, this one too."""
        wire, key = self._wire(self._keys[0].shard), self._keys[0].nodes
        replies = wire.pipeline(
            [("HSET", key, own.id, msgspec.json.encode(own)), ("EXPIRE", key, NODES_TTL_S), ("HGETALL", key)]
        )
        fields: list[bytes] = replies[2]
        found, gone = [], []
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            try:
                snapshot = _decode_node(value)
            except msgspec.DecodeError:  # of another version
                continue
            if own.seen_ms - snapshot.seen_ms > FORGET_NODE_MS:
                gone.append(name)
            else:
                found.append(snapshot)
        if gone:
            wire.call("HDEL", key, *gone)
        return sorted(found, key=lambda snapshot: (snapshot.node, snapshot.id))

    def leave(self, node_id: str) -> None:
        """This daemon stops: the others need not wait until it is forgotten."""
        try:
            self._wire(self._keys[0].shard).call("HDEL", self._keys[0].nodes, node_id)
        except QueueUnavailableError:
            return  # forgotten after a minute


def _sum(one: QueueFigures, other: QueueFigures) -> QueueFigures:
    """Two shards together; memory is that of the fuller server."""
    ages = [age for age in (one.oldest_ready_s, other.oldest_ready_s) if age is not None]
    return QueueFigures(
        reachable=True,
        error=None,
        ready=one.ready + other.ready,
        leased=one.leased + other.leased,
        later=one.later + other.later,
        dead=one.dead + other.dead,
        oldest_ready_s=max(ages, default=None),
        used_memory_bytes=max(one.used_memory_bytes, other.used_memory_bytes),
        max_memory_bytes=max(one.max_memory_bytes, other.max_memory_bytes),
        shards_full=one.shards_full + other.shards_full,
        server=other.server,
    )
