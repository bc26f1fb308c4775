# SPDX-License-Identifier: MIT
"""Enqueues what was spooled for one shard, once its server is back, and removes a file when its requests are in Redis
for good. Order, errors and the moment of removal: QUEUE.md, "replay from the spool". Called by the replay thread.
"""

import threading
import time

import hiredis

from postbackd import oplog
from postbackd.errors import PostbackdError, QueueFullError, QueueUnavailableError, RecordConflictError
from postbackd.queue.durability import FSYNC_AFTER_S, Durability, fsync_state
from postbackd.queue.enqueuer import RECORD_TTL_S
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.queue.scripts import REPLAY_SPOOL, is_noscript
from postbackd.queue.spool import Spool
from postbackd.queue.spool_file import SpooledRequest, SpoolFile, SpoolReader
from postbackd.queue.wire import Argument, Wire, error_of, parse_info
from postbackd.scoreboard import Cell, monotonic_ms

SPOOLED_TTL_S = 2_592_000  # 30 days
BATCH_REQUESTS = 64  # in one write; the script refuses each unless the one before it is in
BATCH_BYTES = 262_144
CONFIRM_AFTER_MS = int(FSYNC_AFTER_S * 1000)


class _Progress:
    """How far one file has been enqueued."""

    def __init__(self, file: SpoolFile) -> None:
        self.file = file
        self.reader = SpoolReader(file)
        self.done = 0  # the last request that Redis has
        self.ended_ms = 0  # when Redis had the last of all
        self.run_id = ""  # of the server that said so

    def go_to(self, done: int) -> None:
        """Redis has the file up to `done`: read on behind it."""
        if self.reader.number > done:
            self.reader.restart()
        while self.reader.number < done and self.reader.next() is not None:
            pass
        self.done = self.reader.number

    def batch(self) -> list[SpooledRequest]:
        """The requests to send next, none at the end of the file."""
        requests: list[SpooledRequest] = []
        size = 0
        while len(requests) < BATCH_REQUESTS and size < BATCH_BYTES and (request := self.reader.next()) is not None:
            requests.append(request)
            size += sum(map(len, request.elements))
        return requests


class ShardReplay:
    """Looks after one shard's part of the spool, with a connection of its own."""

    def __init__(
        self,
        spool: Spool,
        link: Link,
        main_link: Link,
        keys: Keys,
        durability: Durability,
        cells: "memoryview[int]",
        shards: int = 1,
    ) -> None:
        """`link` is the replay thread's own; `main_link` the one of requests, told when the server is back.

        A file of a shard that is no more, since `queue.shards` was more once, is enqueued at one that is.
        """
        self._spool = spool
        self.link = link
        self.main_link = main_link
        self._keys = keys
        self._shards = shards
        self._durability = durability
        self._cells = cells
        self._progress: dict[str, _Progress] = {}
        self._generation = 0
        self._run_id = ""
        self._subject = f"ingest: shard {keys.shard}"
        self._said: str | None = None  # the error last reported, None while Redis answers
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the present turn soon."""
        self._stopping.set()

    def _pending(self) -> list[SpoolFile]:
        return [file for file in self._spool.pending() if file.shard % self._shards == self._keys.shard]

    def turn(self, now_ms: int) -> bool:
        """Do what there is to do; whether there is more to do soon. `link` must not count as away."""
        if not (self._pending() or self.main_link.away):
            return False
        try:
            wire = self._wire(now_ms)
            if not self._pending():  # a connection proves nothing: a replica takes them and refuses every write
                wire.call("LPUSHX", self._keys.probe, b"")
            self._replay_all(wire)
            self._note_back()
        except QueueFullError as error:  # it answers, and has no room: requests are told so, the spool waits
            self._note_back()
            self._say(error)
        except QueueUnavailableError as error:
            self.link.drop()
            self._say(error)
            return True
        return bool(self._pending())

    def _wire(self, now_ms: int) -> Wire:
        wire = self.link.wire(now_ms)
        if self._generation != self.link.generation:
            self._generation = self.link.generation
            wire.call(*REPLAY_SPOOL.load_command())
            self._run_id = parse_info(wire.call("INFO", "server")).get("run_id", "")
        return wire

    def _note_back(self) -> None:
        """Requests may go to Redis directly again; they may pass those in the spool."""
        self.main_link.come_back()
        if self._said is not None:
            self._said = None
            if oplog.changed(self._subject, "back"):
                oplog.info("redis_back", shard=self._keys.shard, spool_bytes=self._spool.total_bytes())

    def _say(self, error: PostbackdError) -> None:
        if self._said != str(error):
            self._said = str(error)
            if oplog.changed(self._subject, error):
                hint = "requests are spooled and enqueued when it is back"
                oplog.warning("redis_away", shard=self._keys.shard, error=str(error), hint=hint)

    # One file after the other

    def _replay_all(self, wire: Wire) -> None:
        for file in self._pending():
            if self._stopping.is_set():
                return
            progress = self._progress.get(file.stream)
            if progress is None:
                progress = self._progress[file.stream] = _Progress(file)
            if self._enqueue_all(wire, progress) and self._is_durable(wire, progress):
                self._remove(progress)

    def _enqueue_all(self, wire: Wire, progress: _Progress) -> bool:
        """Bring the file into Redis; whether it is there as a whole and nothing more is appended to it."""
        progress.go_to(progress.done)
        while not self._stopping.is_set():
            requests = progress.batch()
            if not requests:
                return self._has_ended(progress)
            began_s = time.monotonic()
            done = self._enqueue(wire, progress, requests)
            progress.go_to(done)
            self._note_back()
            self._stopping.wait(time.monotonic() - began_s)  # as long again for the requests of now
        return False

    def _has_ended(self, progress: _Progress) -> bool:
        if not self._spool.seal(progress.file, progress.done):
            return False
        if not progress.ended_ms:
            progress.ended_ms = monotonic_ms()
            progress.run_id = self._run_id
        return True

    def _enqueue(self, wire: Wire, progress: _Progress, requests: list[SpooledRequest]) -> int:
        """Send a batch; the number up to which Redis has the file."""
        spooled = self._keys.spooled(progress.file.stream)
        wire.send(b"".join(REPLAY_SPOOL.packed(*self._call(spooled, request)) for request in requests))
        replies = [wire.read() for _ in requests]
        done = progress.done
        for request, reply in zip(requests, replies, strict=True):
            if is_noscript(reply):
                wire.call(*REPLAY_SPOOL.load_command())
                return done
            if isinstance(reply, hiredis.ReplyError):
                error = error_of(reply)
                if not isinstance(error, RecordConflictError):
                    raise error
                return self._pass_over(wire, progress, spooled, request)
            if reply == request.number:
                self._cells[Cell.REPLAYED] += len(request.elements)
            done = int(reply)
        return done

    def _call(self, spooled: bytes, request: SpooledRequest) -> tuple[tuple[bytes, ...], tuple[Argument, ...]]:
        keys = (self._keys.ready, spooled, self._keys.endpoint(request.endpoint_id))
        return keys, (request.number, SPOOLED_TTL_S, RECORD_TTL_S, request.record, *request.elements)

    def _pass_over(self, wire: Wire, progress: _Progress, spooled: bytes, request: SpooledRequest) -> int:
        """Its endpoint's digest is another endpoint's in Redis: a person must look at it, the rest goes on."""
        progress.file.set_aside(request.number, b"".join([request.record, *request.elements]))
        keys, arguments = self._call(spooled, request._replace(elements=[]))
        return int(REPLAY_SPOOL.call(wire, keys, arguments))

    def _remove(self, progress: _Progress) -> None:
        del self._progress[progress.file.stream]
        if self._spool.forget(progress.file):
            progress.file.remove()
        if progress.done:
            oplog.info("spool_replayed", stream=progress.file.stream, requests=progress.done)

    # Durable in Redis?

    def _is_durable(self, wire: Wire, progress: _Progress) -> bool:
        """Whether what Redis confirmed survives what the spool would have survived; False: ask again later."""
        if progress.done == 0 or self._durability.level == "fsync":
            return True
        # Another server may answer by now, or the same with older data: what it has of the file, it must say itself.
        if progress.run_id != self._run_id or not self._has(wire, progress):
            return self._again(progress)
        # A write on this connection: WAIT looks at the last one made on it, and a server deposed since refuses it.
        wire.call("EXPIRE", self._keys.spooled(progress.file.stream), SPOOLED_TTL_S)
        if self._durability.waits:
            return self._durability.is_enough(wire.call(*self._durability.wait_command))
        state = fsync_state(wire)
        if state == "none":
            return True
        return state == "done" and monotonic_ms() - progress.ended_ms >= CONFIRM_AFTER_MS

    def _has(self, wire: Wire, progress: _Progress) -> bool:
        """Whether the server that answers now has the file, as far as it was confirmed."""
        return int(wire.call("GET", self._keys.spooled(progress.file.stream)) or 0) >= progress.done

    def _again(self, progress: _Progress) -> bool:
        """Send the whole file once more: what is there is passed over, what the server lost is enqueued."""
        progress.go_to(0)
        progress.ended_ms = 0
        return False
