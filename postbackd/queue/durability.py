# SPDX-License-Identifier: MIT
"""What an acknowledgement waits for (QUEUE.md, "enqueue": Ack).

server    the reply: what the server's own append-only file gives
fsync     the reply of a server that fsyncs before each reply: `appendonly yes`, `appendfsync always` and
          `no-appendfsync-on-rewrite no`, looked at on every new connection and once a minute, since CONFIG SET changes
          them under it. (WAITAOF is not enough: under everysec it can answer before the fsync has ended.)
replica   WAIT behind the write, in the same packet: so many replicas have it
"""

import re
import time
from collections.abc import Callable
from typing import Literal

from postbackd.errors import ConfigError, DurabilityTimeoutError, QueueUnavailableError, ReplicasMissingError
from postbackd.queue.wire import Wire, pack, parse_info
from postbackd.settings import Queue

FSYNC_AFTER_S = 2.0  # after a reply: an fsync that ran when it came has ended by then, or INFO shows it
LONGEST_FSYNC_S = 20.0
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

    def wait_until_kept(self, wire: Wire) -> str | None:
        """Wait until what this connection wrote last is as safe as an acknowledged request; why it is not.

        For what is to be deleted elsewhere. Where no reply is the proof, it is there after the next fsync.
        """
        if self.waits:
            count = wire.call(*self.wait_command)
            return None if self.is_enough(count) else f"{count} of {self._replicas} replicas have them."
        try:
            prove_fsync(wire)
            return None
        except QueueUnavailableError as error:
            if self.level == "fsync":
                return str(error)
        deadline_s = time.monotonic() + LONGEST_FSYNC_S
        while fsync_state(wire) != "none":
            time.sleep(FSYNC_AFTER_S)
            if fsync_state(wire) == "done":
                break
            if time.monotonic() > deadline_s:
                return "the server does not fsync its append-only file: look at its disk."
        return None


def fsync_state(wire: Wire) -> Literal["none", "pending", "done"]:
    """Of the append-only file: there is none; an fsync is under way, or it cannot be written; neither."""
    found = parse_info(wire.call("INFO", "persistence"))
    if found.get("aof_enabled") != "1":
        return "none"
    is_done = found.get("aof_pending_bio_fsync") == "0" and found.get("aof_last_write_status") == "ok"
    return "done" if is_done else "pending"


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
