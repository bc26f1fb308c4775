# SPDX-License-Identifier: MIT
"""The delivery worker: one loop, claim → lanes → transfer → settle. The states of a claimed postback:

    claimed ── intake ──> in its host's lane ── turn ──> in flight ── result ──> settled (delivered, later or dead)
                  └─> parked or dead at once     └─> parked (more than its host can take)

`turn(now_ms)` does everything once and waits at most once, in `Transfers.poll`. Redis away stops nothing that is in
flight: outcomes wait, and are settled when it is back. Times here are monotonic; server time comes from the clock.
"""

import time
from collections.abc import Callable

from postbackd import oplog
from postbackd.clock import Clock
from postbackd.codec import ErrorClass
from postbackd.delivery.host_report import HostReport
from postbackd.delivery.intake import Intake
from postbackd.delivery.lane import Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.delivery.log import DeliveryLog
from postbackd.delivery.names import Failed, Names
from postbackd.delivery.outcome import ASKS_FOR_PAUSE, is_host_fault
from postbackd.delivery.pace import BATCH, Pace
from postbackd.delivery.recall import EVERY_MS as RECALL_EVERY_MS
from postbackd.delivery.recall import Recaller
from postbackd.delivery.recorder import Delivery, Recorder, no_transfer
from postbackd.delivery.transfer import Result, Transfers
from postbackd.errors import LeaseLostError, QueueUnavailableError
from postbackd.limits import worker_count
from postbackd.queue.idle_wait import IdleWait
from postbackd.queue.lease_client import MAX_HELD, Claim, LeaseClient
from postbackd.scoreboard import Cell, monotonic_ms
from postbackd.settings import Settings
from postbackd.template import Rendered
from postbackd.template_values import RenderError

LONGEST_TURN_MS = 1000
OVERFLOW_EVERY_MS = 100
PARK_ROOM = MAX_HELD - BATCH
CLAIM_WITHOUT_WAIT_MS = 500  # the idle wait cannot be armed: claim by the clock
SETTLE_PAUSE_MS = 100
LAST_CONNECT_MS = 2000  # at the drain: a lease that is not given back is reclaimed after its time-out


class DeliveryWorker:
    """One worker's parts and its loop."""

    def __init__(
        self,
        settings: Settings,
        cells: "memoryview[int]",
        clock: Clock,
        lease: LeaseClient,
        idle_wait: IdleWait,
        transfers: Transfers[Delivery],
        names: Names,
        resolver_descriptor: int,
        log: DeliveryLog,
        recorder: Recorder,
        intake: Intake,
        recaller: Recaller,
        take_deaths: Callable[[], list[str]],
        host_report: HostReport,
    ) -> None:
        self._settings = settings
        self._cells = cells
        self._clock = clock
        self._lease = lease
        self._idle_wait = idle_wait
        self._transfers = transfers
        self._names = names
        self._resolver_descriptor = resolver_descriptor
        self._log = log
        self._recorder = recorder
        self._intake = intake
        self._recaller = recaller
        self._take_deaths = take_deaths
        self._host_report = host_report
        self._in_flight_limit = settings.delivery.in_flight
        self._lanes: Lanes[Delivery] = Lanes(self._bounds, self._in_flight_limit)
        self._pace = Pace(self._in_flight_limit)
        self._watched: dict[str, int] = {}  # connection → the generation that is in the epoll
        self._to_reclaim: dict[str, str] = {}  # worker → why
        self._oldest_ms: int | None = None  # when the oldest unsettled outcome came
        self._overflowed_ms = 0
        self._is_empty = False  # the queue, as far as the last claim and the idle wait say
        self._look_again_ms = 0
        self._claims = True
        self._was_away = False
        transfers.watch(resolver_descriptor)

    def _bounds(self, host_key: str) -> Bounds:
        """A host's limits in this process; a configured rate is the daemon's, shared evenly by its workers."""
        host = self._settings.hosts.get(host_key)
        if host is None:
            return Bounds(self._settings.delivery.per_host)
        in_flight = self._settings.delivery.per_host if host.per_host is None else host.per_host
        if host.rate is None:
            return Bounds(in_flight)
        workers = worker_count(self._settings.delivery.workers, per_core=1)
        return Bounds(in_flight, host.rate / workers, (host.rate if host.burst is None else host.burst) / workers)

    def _attempt_failed(self, host_key: str, result: Result, is_dead: bool, now_ms: int) -> None:
        """What a failed attempt means for its host."""
        is_fault = is_host_fault(result.error, result.status)
        self._lanes.failed(host_key, now_ms, result.total_ms, is_fault=is_fault, is_dead=is_dead)
        if result.retry_after_s and result.status in ASKS_FOR_PAUSE:
            self._lanes.pause(host_key, result.retry_after_s * 1000, now_ms)

    # The loop

    def turn(self, now_ms: int) -> None:
        """Everything once. Raises LeaseLostError when the lease is not ours any more."""
        results = self._transfers.poll(self._wait_ms(now_ms))
        now_ms = monotonic_ms()
        if results:
            server_ms = self._clock.now_ms()
            for delivery, result in results:
                kind = self._recorder.attempt_ended(delivery, result, server_ms)
                assert delivery.rendered is not None
                host_key = delivery.rendered.host_key
                if kind == "delivered":
                    self._lanes.done(host_key, now_ms, result.total_ms)
                else:
                    self._attempt_failed(host_key, result, kind == "dead", now_ms)
            self._recorder.publish()
        self._pace.completed(len(results), now_ms)
        if self._resolver_descriptor in self._transfers.ready:
            for host_key in self._names.take_resolved():
                self._lanes.resume(host_key, now_ms)
        self._listen_to_queue(now_ms)
        if now_ms - self._overflowed_ms >= OVERFLOW_EVERY_MS:
            self._overflowed_ms = now_ms
            for delivery, delay_ms in self._lanes.overflow(now_ms):
                self._recorder.park_for_host(delivery, delay_ms, self._clock.now_ms())
        self._host_report.turn(self._lanes, now_ms)
        self._start_transfers(now_ms)
        self._talk_to_queue(now_ms)
        self._cells[Cell.IN_FLIGHT] = self._transfers.in_flight
        self._cells[Cell.WAITING] = self._lanes.waiting

    def _wait_ms(self, now_ms: int) -> int:
        """How long nothing needs to happen, should nothing come in."""
        if self._lease.unsettled and self._oldest_ms is None:
            self._oldest_ms = now_ms
        if self._lease.busy or not self._lease.is_connected:
            wait_ms = SETTLE_PAUSE_MS
        else:
            may_find = self._claims and not self._is_empty
            wait_ms = self._pace.next_ms(now_ms, self._open_items(), self._oldest_ms, may_find)
        if self._lanes.waiting:
            wait_ms = min(wait_ms, OVERFLOW_EVERY_MS)
        if self._lanes.wanting:
            wait_ms = min(wait_ms, RECALL_EVERY_MS)
        return min(wait_ms, LONGEST_TURN_MS)

    def _open_items(self) -> int:
        """Items held that have no outcome yet."""
        return self._lease.held - self._lease.unsettled

    # Transfers

    def _start_transfers(self, now_ms: int) -> None:
        server_ms = self._clock.now_ms()
        while self._transfers.in_flight < self._in_flight_limit:
            taken = self._lanes.take(now_ms)
            if taken is None:
                return
            self._start(taken[0], taken[1], server_ms, now_ms)

    def _start(self, host_key: str, delivery: Delivery, server_ms: int, now_ms: int) -> None:
        rendered = delivery.rendered or self._render(delivery, server_ms)
        if rendered is None:
            self._lanes.cancel(host_key, now_ms)
            return
        delivery.started_ms = server_ms
        endpoint = delivery.endpoint
        if endpoint.missing_key is not None:
            self._fail(host_key, delivery, ErrorClass.SIGNING_KEY_MISSING, endpoint.missing_key, server_ms, now_ms)
            return
        resolve = None
        if not endpoint.is_at_address:
            found = self._names.look_up(host_key, rendered.url.partition(":")[0], now_ms)
            if found is None:
                self._lanes.suspend(host_key, delivery, now_ms)
                return
            if isinstance(found, Failed):
                error = ErrorClass.BLOCKED if found.is_blocked else ErrorClass.DNS_ERROR
                self._fail(host_key, delivery, error, found.reason, server_ms, now_ms)
                return
            resolve = found.resolve
        profile = endpoint.constant_profile or endpoint.profile(rendered, delivery.item.postback_id, server_ms)
        self._transfers.start(delivery, profile, rendered.url, rendered.body, resolve)

    def _fail(
        self, host_key: str, delivery: Delivery, error: ErrorClass, detail: str, server_ms: int, now_ms: int
    ) -> None:
        """An attempt that ends before there is a transfer."""
        result = no_transfer(error, detail)
        kind = self._recorder.attempt_ended(delivery, result, server_ms)
        self._attempt_failed(host_key, result, kind == "dead", now_ms)

    def _render(self, delivery: Delivery, server_ms: int) -> Rendered | None:
        """Fill the template; a postback that cannot be rendered is given up."""
        item, compiled = delivery.item, delivery.endpoint.compiled
        assert compiled is not None
        try:
            delivery.rendered = rendered = compiled.render(item.values, item.postback_id, item.attempt, server_ms)
        except RenderError as error:
            self._recorder.gave_up(delivery, "render_error", error.error_class, str(error), server_ms)
            return None
        return rendered

    # The queue

    def _listen_to_queue(self, now_ms: int) -> None:
        ready = self._transfers.ready
        if self._idle_wait.is_armed and self._idle_wait.fileno() in ready and self._idle_wait.receive():
            self._is_empty = False
        if self._lease.busy and self._lease.fileno() in ready:
            claim = self._lease.receive()
            if claim is not None:
                self._take(claim, now_ms)
        if self._intake.waiting:
            deliveries: list[Delivery] = []
            self._intake.fetch(deliveries, self._clock.now_ms())
            self._add(deliveries, now_ms)

    def _take(self, claim: Claim, now_ms: int) -> None:
        self._cells[Cell.CLAIMED] += len(claim.items)
        if claim.expired_worker is not None:
            self._to_reclaim.setdefault(claim.expired_worker, "timeout")
        self._oldest_ms = now_ms if self._lease.unsettled else None
        if claim.recalled is not None:
            self._recaller.took(claim.recalled[0], claim.recalled[1:], now_ms)
        if claim.items:
            self._is_empty = False
            self._add(self._intake.accept(claim.items, self._clock.now_ms()), now_ms)
        elif claim.came_short:
            self._wait_for_work(claim.next_due_ms, now_ms)

    def _add(self, deliveries: list[Delivery], now_ms: int) -> None:
        for delivery in deliveries:
            compiled = delivery.endpoint.compiled
            assert compiled is not None
            host_key = compiled.host_key
            if not host_key:  # a placeholder in the host: only the rendered URL says whose lane it is
                rendered = self._render(delivery, self._clock.now_ms())
                if rendered is None:
                    continue
                host_key = rendered.host_key
            delay_ms = self._lanes.add(host_key, delivery, now_ms)
            if delay_ms is not None:
                self._recorder.park_for_host(delivery, delay_ms, self._clock.now_ms())

    def _wait_for_work(self, next_due_ms: int | None, now_ms: int) -> None:
        """The queue is empty: block on the server until something comes, or is due."""
        self._is_empty = True
        self._look_again_ms = now_ms + CLAIM_WITHOUT_WAIT_MS
        if self._idle_wait.is_armed or not self._claims:
            return
        wait_ms = LONGEST_TURN_MS if next_due_ms is None else next_due_ms
        if self._idle_wait.arm(wait_ms):
            self._watch("idle_wait", self._idle_wait.generation, self._idle_wait.fileno())

    def _talk_to_queue(self, now_ms: int) -> None:
        lease = self._lease
        for name in self._take_deaths():
            self._to_reclaim[name] = "death"
        if lease.unsettled and self._oldest_ms is None:
            self._oldest_ms = now_ms
        if lease.busy:
            lease.give_up_on_silence(now_ms)
            if self._log.waiting > BATCH:
                self._log.flush(now_ms)
            return
        if self._is_empty and not self._idle_wait.is_armed and now_ms >= self._look_again_ms:
            self._is_empty = False
        may_find = self._claims and not self._is_empty
        open_items = self._open_items()
        recall = self._recaller.next(self._lanes.wanting, now_ms) if self._claims and self._lanes.wanting else None
        if recall is not None:
            lease.recall(*recall)
        elif not self._pace.is_due(now_ms, open_items, lease.unsettled, self._oldest_ms, may_find):
            return
        self._log.flush(now_ms)
        self._cells[Cell.LOG_LINES_LOST] += self._log.take_lines_lost()
        if not self._connect(now_ms):
            return
        self._reclaim_others()
        wanted = self._pace.room(open_items) if self._claims and lease.held < PARK_ROOM else 0
        if lease.send(wanted, now_ms):
            self._pace.sent(now_ms)
            self._oldest_ms = None

    def _connect(self, now_ms: int) -> bool:
        lease = self._lease
        if lease.connect(now_ms):
            self._watch("lease", lease.generation, lease.fileno())
            if self._was_away:
                self._was_away = False
                oplog.info("redis_found", unsettled=lease.unsettled)
            return True
        if not self._was_away and lease.last_error:
            self._was_away = True
            oplog.warning(
                "redis_lost", error=lease.last_error, unsettled=lease.unsettled, in_flight=self._transfers.in_flight
            )
        return False

    def _watch(self, name: str, generation: int, descriptor: int) -> None:
        """Have a connection's descriptor in the epoll; that of the connection before it went with its close."""
        if self._watched.get(name) != generation:
            self._watched[name] = generation
            self._transfers.watch(descriptor)

    def _reclaim_others(self) -> None:
        """Give back the leases of workers that are dead or silent; what fails is tried again."""
        for worker, why in list(self._to_reclaim.items()):
            try:
                count = self._lease.reclaim(worker, why)
            except QueueUnavailableError:
                return
            del self._to_reclaim[worker]
            self._is_empty = False
            if count:
                self._cells[Cell.RECLAIMED] += 1
                oplog.warning("lease_reclaimed", worker=worker, why=why, postbacks=count)

    # The end

    def drain(self, deadline_ms: int, beat: Callable[[], None], *, gives_back: bool = True) -> None:
        """Start nothing more, let transfers end, settle, give back the rest. At a stop, and after a lost lease."""
        self._claims = False
        self._idle_wait.close()
        for _ in self._lanes.drop_waiting():
            continue  # still leased: given back below
        self._in_flight_limit = 0
        while (self._transfers.in_flight or self._lease.unsettled) and monotonic_ms() < deadline_ms:
            beat()
            try:
                self.turn(monotonic_ms())
            except LeaseLostError as error:
                if gives_back:
                    oplog.warning("lease_lost", detail=error)
                gives_back = False
                if not self._transfers.in_flight:
                    break
        self._log.flush(monotonic_ms())
        if gives_back:
            self._give_back()

    def _give_back(self) -> None:
        lease = self._lease
        if lease.busy:
            lease.wait()
        if not lease.held or not self._connect_at_last():
            return
        try:
            count = lease.reclaim(lease.worker, "drain")
        except QueueUnavailableError as error:
            oplog.warning("lease_not_given_back", error=error, hint="it is reclaimed after queue.lease_timeout")
            return
        if count:
            oplog.info("lease_given_back", postbacks=count)

    def _connect_at_last(self) -> bool:
        """Whether there is a connection for what is left to say, within a second or two."""
        deadline_ms = monotonic_ms() + LAST_CONNECT_MS
        while not self._lease.connect(monotonic_ms()):
            if monotonic_ms() > deadline_ms:
                return False
            time.sleep(0.02)
        return True
