# SPDX-License-Identifier: MIT
"""The names of every key, in one place. All keys of a shard share the hash tag {N}, for Cluster.

ready, wake   list    items, oldest left; wake is what an idle wait moved, claimed before ready
later         zset    item → due ms (server time)
lease         hash    token → item, and field n = the next token; one per worker
workers       zset    worker → lease clock at its last claim
clock         hash    at = server ms, ms = lease clock
ep            str     endpoint record, TTL 30 d from its last use
once          str     msgpack [body hash, ids] of a request with an Idempotency-Key, TTL 24 h
spooled       str     last request of a spool file that was enqueued, TTL 30 d
dead_turn     str     one delivery worker of all keeps the dead within their cap, TTL 55 s
nodes         hash    daemon → JSON snapshot of it for the others (node, rates, state), TTL 1 h; shard 0 only
restored      hash    entries of an overflow file that were given back, TTL 30 d
dead          stream  dead letters;  stats  hash  counters
probe         none    never there: a write to it tells whether the server takes writes
num           str     the ingest process that owns a worker number of the ids (no tag: touched by no script)
"""


class Keys:
    """The keys of one shard, as bytes."""

    def __init__(self, prefix: str, shard: int = 0) -> None:
        self._prefix = prefix
        self.shard = shard
        self._base = f"{prefix}:{{{shard}}}:"
        self.ready = self._key("ready")
        self.wake = self._key("wake")
        self.later = self._key("later")
        self.workers = self._key("workers")
        self.clock = self._key("clock")
        self.dead = self._key("dead")
        self.dead_turn = self._key("dead_turn")
        self.nodes = self._key("nodes")
        self.restored = self._key("restored")
        self.stats = self._key("stats")
        self.probe = self._key("probe")

    def _key(self, name: str) -> bytes:
        return (self._base + name).encode()

    def lease(self, worker: str) -> bytes:
        """The lease of `<node>.<slot>.<16 hex>`."""
        return self._key(f"lease:{worker}")

    def endpoint(self, endpoint_id: bytes) -> bytes:
        """The record stored under an 8-byte digest."""
        return self._key(f"ep:{endpoint_id.hex()}")

    def once(self, digest: bytes) -> bytes:
        """What the first request with an Idempotency-Key was, by the digest of its sender and key."""
        return self._key(f"once:{digest.hex()}")

    def spooled(self, stream: str) -> bytes:
        """How far a spool file has been enqueued."""
        return self._key(f"spooled:{stream}")

    def number(self, number: int) -> bytes:
        """The owner of a worker number."""
        return f"{self._prefix}:num:{number}".encode()
