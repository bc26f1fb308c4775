# SPDX-License-Identifier: MIT
"""One shard of the queue as a delivery worker sees it: its lease on it, its idle wait there, and when the two talk.

A worker has one of these for each shard, and one worker's name in all of them. At its home (slot mod shards) it blocks
while the shard is empty; where a daemon has fewer workers than there are shards, each of its workers waits at several,
so that every shard has somebody. At the others it looks once a second while they are empty, and claims as at home as
long as it finds something. A shard that is away holds up nothing of the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

from postbackd import oplog
from postbackd.delivery.intake import Intake
from postbackd.delivery.pace import BATCH, Pace
from postbackd.errors import LeaseLostError, QueueUnavailableError
from postbackd.queue.idle_wait import LONGEST_MS, SHORTEST_MS, IdleWait
from postbackd.queue.lease_client import MAX_HELD, Claim, LeaseClient, Outcome
from postbackd.scoreboard import Cell, monotonic_ms

PARK_ROOM = MAX_HELD - BATCH
CLAIM_WITHOUT_WAIT_MS = 500  # the idle wait cannot be armed: claim by the clock
ABROAD_MS = 900  # between looks at an empty shard where it does not wait; a claim a second is the heartbeat, too
SETTLE_PAUSE_MS = 100
LAST_CONNECT_MS = 2000  # at the drain: a lease that is not given back is reclaimed after its time-out
LAST_CONNECT_STEP_S = 0.02
TOKEN_BITS = 48  # of a token; above them the shard's number, so that a token says where it is settled
TOKEN_MASK = (1 << TOKEN_BITS) - 1


def waits_at(shard: int, slot: int, workers: int, shards: int) -> bool:
    """Whether the worker of a slot has an idle wait at a shard: at home, and at shards that would have nobody."""
    return shard == slot % shards or (workers < shards and shard % workers == slot)


def _at_least(wait_ms: int) -> int:
    return max(wait_ms, SHORTEST_MS)


class Shard:
    """A worker's dealings with one shard."""

    def __init__(
        self,
        number: int,
        lease: LeaseClient,
        idle_wait: IdleWait | None,
        intake: Intake,
        pace: Pace,
        cells: "memoryview[int]",
        watch: Callable[[int], None],
    ) -> None:
        """`idle_wait`: None where it does not wait. `watch` has a descriptor looked at by the worker's epoll."""
        self.number = number
        self._mark = number << TOKEN_BITS
        self.lease = lease
        self._idle_wait = idle_wait
        self.intake = intake
        self.pace = pace
        self._cells = cells
        self._watch = watch
        self._watched_lease = self._watched_wait = 0  # generations that are in the epoll
        self._to_reclaim: dict[str, str] = {}  # worker → why
        self._oldest_ms: int | None = None  # when the oldest unsettled outcome came
        self._is_empty = False  # as far as the last claim and the idle wait say
        self._look_again_ms: int | None = None  # by the clock, while it is empty; None: the idle wait's end will do
        self._wait_ends_ms = 0  # of the idle wait that is armed, at the latest
        self._lost_for: set[str] = set()  # the reasons said since the last answer; empty while Redis answers
        self.recalled: list[Any] | None = None  # what a recall has brought; the worker takes it
        self.claims = True
        self.is_lost = False  # the lease: others have what was in it

    # When

    def wait_ms(self, now_ms: int, open_items: int) -> int:
        """How long nothing needs to happen here, should nothing come in. `open_items` are those of all shards."""
        lease = self.lease
        if lease.unsettled and self._oldest_ms is None:
            self._oldest_ms = now_ms
        if lease.busy or not lease.is_connected:
            return SETTLE_PAUSE_MS
        wait_ms = self.pace.next_ms(now_ms, open_items, self._oldest_ms, self.claims and not self._is_empty)
        if self._is_empty and self._look_again_ms is not None:
            wait_ms = min(wait_ms, max(self._look_again_ms - now_ms, 0))
        return wait_ms

    def is_due(self, now_ms: int, open_items: int) -> bool:
        """Whether an exchange is due. Ends one whose answer does not come."""
        lease = self.lease
        if lease.unsettled and self._oldest_ms is None:
            self._oldest_ms = now_ms
        if lease.busy:
            lease.give_up_on_silence(now_ms)
            return False
        if self._is_empty and self._look_again_ms is not None and now_ms >= self._look_again_ms:
            self._is_empty = False
        may_find = self.claims and not self._is_empty
        return self.pace.is_due(now_ms, open_items, lease.unsettled, self._oldest_ms, may_find)

    # Out

    def talk(self, now_ms: int, open_items: int) -> None:
        """Reclaim what others left, settle, claim as much as there is room for. Only when due."""
        if not self._connect(now_ms):
            return
        self._reclaim_others()
        lease = self.lease
        wanted = self.pace.room(open_items) if self.claims and lease.held < PARK_ROOM else 0
        if lease.send(wanted, now_ms):
            self.pace.sent(now_ms)
            self._oldest_ms = None

    def _connect(self, now_ms: int) -> bool:
        lease = self.lease
        if lease.connect(now_ms):
            if self._watched_lease != lease.generation:
                self._watched_lease = lease.generation
                self._watch(lease.fileno())
            return True
        if lease.last_error and lease.last_error not in self._lost_for:
            self._note_lost(lease.last_error)
        return False

    def _note_lost(self, error: str) -> None:
        """One line when it is lost, and one for each other reason until a claim is answered again.

        A connection alone proves nothing: a server that has become a replica takes them and refuses every claim.
        """
        event = "redis_still_lost" if self._lost_for else "redis_lost"
        self._lost_for.add(error)
        if not oplog.changed(f"deliver: shard {self.number}", error):
            return
        in_flight = self._cells[Cell.IN_FLIGHT]
        oplog.warning(event, shard=self.number, error=error, unsettled=self.lease.unsettled, in_flight=in_flight)

    def _note_found(self, settled: int) -> None:
        if self._lost_for:
            self._lost_for.clear()
            if oplog.changed(f"deliver: shard {self.number}", "found"):
                oplog.info("redis_found", shard=self.number, unsettled=self.lease.unsettled + settled)

    def note_death(self, worker: str) -> None:
        """A worker of this machine has died: its lease here is given back with the next exchange."""
        self._to_reclaim[worker] = "death"

    def _reclaim_others(self) -> None:
        """Give back the leases of workers that are dead or silent; what fails is tried again."""
        for worker, why in list(self._to_reclaim.items()):
            try:
                count = self.lease.reclaim(worker, why)
            except QueueUnavailableError:
                return
            del self._to_reclaim[worker]
            self._is_empty = False
            if count:
                self._cells[Cell.RECLAIMED] += 1
                oplog.warning("lease_reclaimed", worker=worker, shard=self.number, why=why, postbacks=count)

    # In

    def listen(self, ready: Any, now_ms: int) -> Sequence[tuple[int, bytes]]:
        """What a claim has brought, with tokens that name the shard. Raises LeaseLostError."""
        wait = self._idle_wait
        if wait is not None and wait.is_armed and wait.fileno() in ready and wait.receive():
            self._is_empty = False
        lease = self.lease
        if not lease.busy or lease.fileno() not in ready:
            return ()
        try:
            claim = lease.receive()
        except LeaseLostError:
            self.is_lost = True
            raise
        return () if claim is None else self._take(claim, now_ms)

    def _take(self, claim: Claim, now_ms: int) -> Sequence[tuple[int, bytes]]:
        self._note_found(claim.settled)
        self._cells[Cell.CLAIMED] += len(claim.items)
        if claim.expired_worker is not None:
            self._to_reclaim.setdefault(claim.expired_worker, "timeout")
        self._oldest_ms = now_ms if self.lease.unsettled else None
        self.recalled = claim.recalled
        if claim.items:
            self._is_empty = False
            if self._idle_wait is None and claim.came_short:
                self._leave(claim.next_due_ms, now_ms)
        elif claim.came_short:
            self._wait_for_work(claim.next_due_ms, now_ms)
        mark = self._mark
        return [(token | mark, item) for token, item in claim.items] if mark else claim.items

    def _leave(self, next_due_ms: int | None, now_ms: int) -> None:
        """Nothing more here for now, and others wait at this shard; not for what this worker has put off here."""
        self._is_empty = True
        self._look_again_ms = now_ms + (ABROAD_MS if next_due_ms is None else min(ABROAD_MS, _at_least(next_due_ms)))

    def _wait_for_work(self, next_due_ms: int | None, now_ms: int) -> None:
        """The shard is empty: block on the server until something comes, or is due."""
        wait = self._idle_wait
        if wait is None:
            self._leave(next_due_ms, now_ms)
            return
        self._is_empty = True
        wait_ms = LONGEST_MS if next_due_ms is None else min(_at_least(next_due_ms), LONGEST_MS)
        if wait.is_armed:  # since before something was put off that is due sooner, perhaps: nothing can shorten it
            self._look_again_ms = now_ms + wait_ms if now_ms + wait_ms < self._wait_ends_ms else None
            return
        if not self.claims or not wait.arm(wait_ms):
            self._look_again_ms = now_ms + min(CLAIM_WITHOUT_WAIT_MS, wait_ms)
            return
        self._look_again_ms = None
        self._wait_ends_ms = now_ms + wait_ms
        if self._watched_wait != wait.generation:
            self._watched_wait = wait.generation
            self._watch(wait.fileno())

    # The end

    def stop_claiming(self) -> None:
        """Take nothing more: exchanges only settle from now on."""
        self.claims = False
        if self._idle_wait is not None:
            self._idle_wait.close()

    def give_back(self, sleep: Callable[[float], None]) -> None:
        """Return what is still leased, unless others have it already."""
        lease = self.lease
        if self.is_lost:
            return
        try:
            if lease.busy:
                lease.wait()
            if not lease.held or not self._connect_at_last(sleep):
                return
            count = lease.reclaim(lease.worker, "drain")
        except LeaseLostError as error:
            oplog.warning("lease_lost", shard=self.number, detail=error)
            return
        except QueueUnavailableError as error:
            oplog.warning("lease_not_given_back", error=error, hint="it is reclaimed after queue.lease_timeout")
            return
        if count:
            oplog.info("lease_given_back", shard=self.number, postbacks=count)

    def _connect_at_last(self, sleep: Callable[[float], None]) -> bool:
        """Whether there is a connection for what is left to say, within a second or two."""
        deadline_ms = monotonic_ms() + LAST_CONNECT_MS
        while not self.lease.connect(monotonic_ms()):
            if monotonic_ms() > deadline_ms:
                return False
            sleep(LAST_CONNECT_STEP_S)
        return True


class Settler:
    """Hands each outcome to the lease of the shard that its token names."""

    def __init__(self, leases: Sequence[LeaseClient]) -> None:
        self._settles = [lease.settle for lease in leases]

    def settle(self, outcome: Outcome) -> None:
        """Keep an outcome for its lease's next exchange."""
        if type(outcome) is int:
            self._settles[outcome >> TOKEN_BITS](outcome & TOKEN_MASK)
            return
        assert not isinstance(outcome, int)
        self._settles[outcome.token >> TOKEN_BITS](outcome._replace(token=outcome.token & TOKEN_MASK))
