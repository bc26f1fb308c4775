# SPDX-License-Identifier: MIT
"""What an acknowledgement waits for (QUEUE.md, "enqueue": Ack).

server    the reply: what the server's own append-only file gives
fsync     the reply of a server that fsyncs before each reply: `appendonly yes`, `appendfsync always` and
          `no-appendfsync-on-rewrite no`, looked at on every new connection and once a minute, since CONFIG SET changes
          them under it. (WAITAOF is not enough: under everysec it can answer before the fsync has ended.)
replica   WAIT behind the write, in the same packet: so many replicas have it
"""

import re
from collections.abc import Callable

from postbackd.errors import ConfigError, DurabilityTimeoutError, QueueUnavailableError, ReplicasMissingError
from postbackd.queue.wire import Wire, pack
from postbackd.settings import Queue

LONGEST_LAG_S = 2  # since a replica was heard of; they speak once a second


class Durability:
    """The configured level, as the enqueuer uses it."""

    def __init__(self, settings: Queue) -> None:
        if settings.durability == "replica" and not settings.url:
            raise ConfigError("queue.durability: replica needs a server with replicas: set queue.url")
        self.level = settings.durability
        self._replicas = settings.replicas
        self._timeout_ms = int(settings.durability_timeout * 1000)
        self.waits = settings.durability == "replica"
        self.wait_command = ("WAIT", settings.replicas, self._timeout_ms)
        self.packed_wait = pack(self.wait_command) if self.waits else b""

    @property
    def prove(self) -> Callable[[Wire], None]:
        """What is asked of every new connection."""
        return prove_fsync if self.level == "fsync" else lambda wire: None

    def is_enough(self, replicas: int) -> bool:
        """Whether WAIT's answer is as many as wanted."""
        return replicas >= self._replicas

    def judge_connected(self, wire: Wire) -> None:
        """Raise ReplicasMissingError when too few replicas are connected and answer, where they are waited for."""
        if not self.waits:
            return
        # A replica that was cut off stays connected for a minute; it confirms what it has once a second.
        lags = re.findall(rb"state=online,.*lag=(\d+)", wire.call("INFO", "replication"))
        count = sum(int(lag) <= LONGEST_LAG_S for lag in lags)
        if not self.is_enough(count):
            raise ReplicasMissingError(
                f"{count} of {self._replicas} replicas are connected and answer (queue.durability = replica)."
            )

    def judge(self, replicas: int) -> None:
        """WAIT's answer; raises DurabilityTimeoutError when it is too few."""
        if not self.is_enough(replicas):
            raise DurabilityTimeoutError(
                f"{replicas} of {self._replicas} replicas had it after {self._timeout_ms} ms "
                "(queue.durability_timeout)."
            )


def prove_fsync(wire: Wire) -> None:
    """Raise QueueUnavailableError unless the server's reply is the proof of an fsync."""
    wanted = {b"appendonly": b"yes", b"appendfsync": b"always", b"no-appendfsync-on-rewrite": b"no"}
    try:
        reply = wire.call("CONFIG", "GET", *wanted)
        persistence = wire.call("INFO", "persistence")
    except QueueUnavailableError as error:
        raise QueueUnavailableError(f"queue.durability = fsync cannot be verified here: {error}") from None
    found = dict(zip(reply[::2], reply[1::2], strict=True))
    wrong = [
        f"CONFIG SET {name.decode()} {value.decode()}" for name, value in wanted.items() if found.get(name) != value
    ]
    if wrong:
        raise QueueUnavailableError(
            "queue.durability = fsync needs a server with appendonly yes, appendfsync always and "
            f"no-appendfsync-on-rewrite no: {', '.join(wrong)}, and the same in its configuration."
        )
    # After CONFIG SET appendonly yes nothing of the new file counts until all that was there before is in it: a kill -9
    # in between cost every write since, each fsynced before its reply.
    if b"aof_rewrite_in_progress:1" in persistence and b"aof_current_size:0\r" in persistence:
        raise QueueUnavailableError(
            "queue.durability = fsync: the server is writing its first append-only file and has none until that is "
            "done: wait until INFO persistence says aof_rewrite_in_progress:0."
        )
