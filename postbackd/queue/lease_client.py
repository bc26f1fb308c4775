# SPDX-License-Identifier: MIT
"""A delivery worker's lease: claim items, settle their outcomes (QUEUE.md "claim", "settle", "reclaim").

One exchange at a time, without waiting: `send` puts a settle of at most 512 outcomes and a claim into one packet,
`receive` takes the answer when it is there. Outcomes are kept until the server has confirmed them: after a lost
answer the same settle goes out again, in front of a claim with the same base, and neither can do harm twice.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis

from postbackd.clock import Clock
from postbackd.errors import LeaseLostError, QueueUnavailableError, QueueUnsureError
from postbackd.queue.enqueuer import RECORD_TTL_S
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.scripts import CLAIM, RECALL, RECLAIM, SETTLE, is_noscript
from postbackd.queue.wire import Argument, Wire, error_of, pack

BATCH = 512  # items of a claim, outcomes of a settle
MAX_HELD = 8192 - BATCH
CALL_TIMEOUT_S = 5.0
SILENCE_MS = 5_000
RETRY_MS = 500
SCRIPTS = (CLAIM, SETTLE, RECLAIM, RECALL)
RETRY_SHARE = 4  # a try that took long is followed by a pause this many times as long: transfers go on meanwhile


class Later(NamedTuple):
    """To be tried again; an empty trail entry parks it without using up an attempt."""

    token: int
    delay_ms: float  # half a millisecond marks what may be recalled
    entry: bytes


class Dead(NamedTuple):
    """Given up; `answer` is the last answer as the dead letter keeps it."""

    token: int
    entry: bytes
    reason: str
    answer: bytes
    endpoint_id: bytes | None


Outcome = int | Later | Dead  # a token alone: delivered


class Claim(NamedTuple):
    """What one exchange brought."""

    items: list[tuple[int, bytes]]  # token, item
    next_due_ms: int | None
    expired_worker: str | None
    settled: int
    came_short: bool
    recalled: list[Any] | None = None  # lua/recall.lua's reply, where one was asked for


class Opening:
    """One try to connect, in a thread or at once; `error` says why there is no `wire` when it is done."""

    def __init__(self, work: Callable[[], Wire], in_background: bool) -> None:
        self._work = work
        self.wire: Wire | None = None
        self.error = QueueUnavailableError("")
        self.took_ms = 0
        self.is_done = False
        if in_background:
            threading.Thread(target=self._run, name="queue-connect", daemon=True).start()
        else:
            self._run()

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            self.wire = self._work()
        except QueueUnavailableError as error:
            self.error = error
        finally:
            self.took_ms = int((time.monotonic() - started_s) * 1000)
            self.is_done = True


class LeaseClient:
    """The lease of one incarnation of a worker."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        worker: str,
        lease_timeout_ms: int,
        clock: Clock,
        count_error: Callable[[], None],
        *,
        in_background: bool = False,
    ) -> None:
        """`in_background`: connect in a thread, so that a server that is away holds up nothing of the caller's."""
        self._url = url
        self._keys = keys
        self.worker = worker
        self._lease_timeout_ms = lease_timeout_ms
        self._clock = clock
        self._count_error = count_error
        self._claim_keys = (keys.ready, keys.wake, keys.later, keys.lease(worker), keys.workers, keys.clock)
        self._settle_keys = (keys.lease(worker), keys.later, keys.dead, keys.stats)
        self._wire: Wire | None = None
        self._in_background = in_background
        self._opening: Opening | None = None
        self._retry_at_ms = 0
        self._base = 0
        self._held = 0
        self._outcomes: deque[Outcome] = deque()
        self.settle = self._outcomes.append  # keeps an outcome for the next exchange
        self._sent: list[Outcome] = []  # in an exchange that is not confirmed yet
        self._wanted = 0
        self._recall = b""  # the call that goes with the next exchange, and is not sent again should that fail
        self._expected = 1  # replies of the running exchange
        self._sent_ms = 0
        self._replies: list[Any] | None = None  # of the running exchange; None: there is none
        self.generation = 0  # counts the connections: a new one has a new descriptor
        self.last_error = ""

    # What is held

    @property
    def unsettled(self) -> int:
        """Outcomes that the server has not confirmed."""
        return len(self._outcomes) + len(self._sent)

    @property
    def held(self) -> int:
        """Items of the lease, those with an outcome not yet confirmed included."""
        return self._held

    @property
    def open_items(self) -> int:
        """Items without an outcome, those that a claim under way may bring included."""
        asked = 0 if self._replies is None else self._wanted
        return self._held + asked - len(self._outcomes) - len(self._sent)

    @property
    def busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._replies is not None

    @property
    def is_connected(self) -> bool:
        return self._wire is not None and self._wire.is_open

    def fileno(self) -> int:
        return -1 if self._wire is None else self._wire.fileno()

    # The exchange

    def connect(self, now_ms: int) -> bool:
        """Whether there is a connection; makes one when it is time to try again. `now_ms` is monotonic."""
        if self.is_connected:
            return True
        opening = self._opening
        if opening is None:
            if now_ms < self._retry_at_ms:
                return False
            opening = self._opening = Opening(self._open, self._in_background)
        if not opening.is_done:
            return False
        self._opening = None
        if opening.wire is None:
            self._failed(opening.error)
            pause_ms = RETRY_MS if self._in_background else max(RETRY_MS, opening.took_ms * RETRY_SHARE)
            self._retry_at_ms = now_ms + pause_ms
            return False
        self._wire = opening.wire
        self._retry_at_ms = now_ms + RETRY_MS
        self.generation += 1
        self.last_error = ""
        return True

    def _open(self) -> Wire:
        wire = route_to(self._url).open(self._keys.shard, CALL_TIMEOUT_S)
        self._clock.sync(wire.server_ms())
        wire.pipeline([script.load_command() for script in SCRIPTS])
        return wire

    def send(self, wanted: int, now_ms: int = 0) -> bool:
        """Send what is to be settled and claim up to `wanted` items; whether it went out. Only when not busy."""
        wire = self._wire
        if wire is None or not wire.is_open:
            return False
        if not self._sent:
            outcomes = self._outcomes
            self._sent = [outcomes.popleft() for _ in range(min(BATCH, len(outcomes)))]
        self._wanted = wanted
        self._sent_ms = now_ms
        arguments = (self.worker, self._base, self._held - len(self._sent), wanted, self._lease_timeout_ms)
        packet = CLAIM.packed(self._claim_keys, arguments)
        if self._recall:
            packet = self._recall + packet
        if self._sent:
            packet = self._packed_settle(self._sent) + packet
        self._expected = 1 + bool(self._recall) + bool(self._sent)
        self._recall = b""
        self._replies = []
        try:
            wire.send(packet)
        except QueueUnavailableError as error:
            self._failed(error)
            return False
        return True

    def recall(self, cursor: bytes, page: int, hosts: Sequence[tuple[int, Sequence[bytes]]]) -> None:
        """With the next exchange bring parked items forward, of each host so many of its endpoints: lua/recall.lua."""
        arguments: list[Argument] = [cursor, page]
        for most, ids in hosts:
            arguments += [most, len(ids), *ids]
        self._recall = RECALL.packed((self._keys.later,), arguments)

    def give_up_on_silence(self, now_ms: int) -> None:
        """End an exchange whose answer does not come (a stopped server): a new connection asks again."""
        if self._replies is not None and now_ms - self._sent_ms > SILENCE_MS:
            self._failed(QueueUnsureError(f"no answer from Redis for {SILENCE_MS // 1000} s."))

    def receive(self) -> Claim | None:
        """The answer of the exchange when all of it is there, None when it is not. Raises LeaseLostError.

        A broken connection ends the exchange: `is_connected` is False then, and nothing is forgotten.
        """
        wire = self._wire
        if wire is None or self._replies is None:
            return None
        try:
            self._replies += wire.receive()
            if len(self._replies) < self._expected:
                return None
            return self._take(wire, self._replies)
        except QueueUnavailableError as error:
            self._failed(error)
            return None

    def wait(self) -> Claim | None:
        """The answer of the exchange, waiting for it: at the drain and in tests."""
        wire = self._wire
        if wire is None or self._replies is None:
            return None
        try:
            while len(self._replies) < self._expected:
                self._replies.append(wire.read())
            return self._take(wire, self._replies)
        except QueueUnavailableError as error:
            self._failed(error)
            return None

    def _take(self, wire: Wire, replies: list[Any]) -> Claim | None:
        if any(is_noscript(reply) for reply in replies):  # SCRIPT FLUSH: neither was run
            wire.pipeline([script.load_command() for script in SCRIPTS])
            self._replies = None
            self.send(self._wanted, self._sent_ms)
            return None
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise QueueUnavailableError(str(error_of(reply)))
        self._replies = None
        settled = 0
        recalled = replies[-2] if self._expected == 2 + bool(self._sent) else None
        if self._sent:
            settled = len(self._sent)
            self._held -= settled
            self._sent = []
        reply = replies[-1]
        if reply[0] != b"ok":
            raise LeaseLostError(
                f"the lease of {self.worker} was reclaimed, or the server went back in time: a new worker takes over"
            )
        _, base, items, next_due_ms, expired = reply
        self._base = base + len(items)
        self._held += len(items)
        came_short = len(items) < self._wanted
        return Claim(
            [(base + index, item) for index, item in enumerate(items) if item is not None],
            next_due_ms,
            None if expired is None else expired.decode(),
            settled,
            came_short,
            recalled,
        )

    def _packed_settle(self, outcomes: Sequence[Outcome]) -> bytes:
        acks: list[int] = []
        laters: list[Argument] = []
        deads: list[Argument] = []
        keys = [*self._settle_keys]
        for outcome in outcomes:
            if type(outcome) is int:
                acks.append(outcome)
            elif type(outcome) is Later:
                laters += outcome
            else:
                assert type(outcome) is Dead
                number = 0
                if outcome.endpoint_id is not None:
                    key = self._keys.endpoint(outcome.endpoint_id)
                    if key not in keys[4:]:
                        keys.append(key)
                    number = keys.index(key, 4) - 3
                deads += [outcome.token, outcome.entry, outcome.reason, outcome.answer, number]
        arguments = (RECORD_TTL_S, len(acks), *acks, len(laters) // 3, *laters, len(deads) // 5, *deads)
        return SETTLE.packed(keys, arguments)

    def _failed(self, error: QueueUnavailableError) -> None:
        self._count_error()
        self.last_error = str(error)
        self._replies = None
        if self._wire is not None:
            self._wire.close()

    # Calls that wait: rare, a fraction of a millisecond each

    def endpoint_records(self, ids: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """The stored records of endpoints, None for one that is gone; raises QueueUnavailableError. Not when busy."""
        replies = self._call(pack(("MGET", *(self._keys.endpoint(endpoint_id) for endpoint_id in ids))))
        return dict(zip(ids, replies, strict=True))

    def reclaim(self, worker: str, why: str) -> int:
        """Give a worker's lease back to ready: why = timeout, death or drain. How many items. Not when busy."""
        keys = (self._keys.lease(worker), self._keys.ready, self._keys.workers, self._keys.clock)
        return int(self._call(RECLAIM.packed(keys, (worker, why, self._lease_timeout_ms))))

    def _call(self, packed: bytes) -> Any:
        wire = self._wire
        if wire is None or not wire.is_open:
            raise QueueUnavailableError("There is no connection to Redis.")
        try:
            wire.send(packed)
            reply = wire.read()
            if is_noscript(reply):
                wire.call(*RECLAIM.load_command())
                wire.send(packed)
                reply = wire.read()
            if isinstance(reply, hiredis.ReplyError):
                raise QueueUnavailableError(str(error_of(reply)))
        except QueueUnavailableError as error:
            self._failed(error)
            raise
        return reply

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
