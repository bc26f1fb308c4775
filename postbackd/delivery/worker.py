# SPDX-License-Identifier: MIT
"""The delivery worker: one loop, claim → lanes → transfer → settle. The states of a claimed postback:

    claimed ── intake ──> in its host's lane ── turn ──> in flight ── result ──> settled (delivered, later or dead)
                  └─> parked or dead at once     └─> parked (more than its host can take)

`turn(now_ms)` does everything once and waits at most once, in `Transfers.poll`. Redis away stops nothing that is in
flight: outcomes wait, and are settled when it is back. Times here are monotonic; server time comes from the clock.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from postbackd import oplog
from postbackd.clock import Clock
from postbackd.codec import ErrorClass
from postbackd.delivery.host_report import HostReport
from postbackd.delivery.lane import Bounds
from postbackd.delivery.lanes import Lanes
from postbackd.delivery.log import DeliveryLog
from postbackd.delivery.names import Failed, Names
from postbackd.delivery.outcome import ASKS_FOR_PAUSE, is_host_fault
from postbackd.delivery.pace import BATCH
from postbackd.delivery.recall import EVERY_MS as RECALL_EVERY_MS
from postbackd.delivery.recall import Recaller
from postbackd.delivery.recorder import Delivery, Recorder, no_transfer
from postbackd.delivery.shard import Shard
from postbackd.delivery.transfer import Result, Transfers
from postbackd.errors import LeaseLostError
from postbackd.scoreboard import Cell, monotonic_ms
from postbackd.settings import Settings
from postbackd.template import Rendered
from postbackd.template_values import RenderError

LONGEST_TURN_MS = 1000
OVERFLOW_EVERY_MS = 100
PUBLISH_EVERY_MS = 50  # of the tally, at the latest; it also goes out with each settle


class DeliveryWorker:
    """One worker's parts and its loop."""

    def __init__(
        self,
        settings: Settings,
        cells: "memoryview[int]",
        clock: Clock,
        shards: Sequence[Shard],
        transfers: Transfers[Delivery],
        names: Names,
        resolver_descriptor: int,
        log: DeliveryLog,
        recorder: Recorder,
        recaller: Recaller,
        take_deaths: Callable[[], list[str]],
        host_report: HostReport,
    ) -> None:
        self._settings = settings
        self._cells = cells
        self._clock = clock
        self._shards = deque(shards)
        self._transfers = transfers
        self._names = names
        self._resolver_descriptor = resolver_descriptor
        self._log = log
        self._recorder = recorder
        self._recaller = recaller
        self._take_deaths = take_deaths
        self._host_report = host_report
        self._in_flight_limit = settings.delivery.in_flight
        self._lanes: Lanes[Delivery] = Lanes(self._bounds, self._in_flight_limit)
        self._overflowed_ms = 0
        self._published_ms = 0
        self._reclaimed = cells[Cell.RECLAIMED]
        self._lease_lost_said = False
        transfers.watch(resolver_descriptor)

    def _bounds(self, host_key: str) -> Bounds:
        """A host's limits in this process; a configured rate is the daemon's, which its workers keep together."""
        host = self._settings.hosts.get(host_key)
        if host is None:
            return Bounds(self._settings.delivery.per_host)
        in_flight = self._settings.delivery.per_host if host.per_host is None else host.per_host
        if host.rate is None:
            return Bounds(in_flight)
        cells, slot = self._host_report.rate_cells(host_key)
        return Bounds(in_flight, host.rate, host.rate if host.burst is None else host.burst, cells, slot)

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
        if now_ms - self._published_ms >= PUBLISH_EVERY_MS:
            self._publish(now_ms)
        for shard in self._shards:
            shard.pace.completed(len(results), now_ms)
        if self._resolver_descriptor in self._transfers.ready:
            for host_key in self._names.take_resolved():
                self._lanes.resume(host_key, now_ms)
        self._listen_to_queue(now_ms)
        if now_ms - self._overflowed_ms >= OVERFLOW_EVERY_MS:
            self._overflowed_ms = now_ms
            if self._cells[Cell.RECLAIMED] != self._reclaimed:
                self._reclaimed = self._cells[Cell.RECLAIMED]
                self._lanes.look_for_parked(now_ms)
            for delivery, delay_ms in self._lanes.overflow(now_ms):
                self._recorder.park_for_host(delivery, delay_ms, self._clock.now_ms())
        self._host_report.turn(self._lanes, now_ms)
        self._start_transfers(now_ms)
        self._talk_to_queue(now_ms)
        self._cells[Cell.IN_FLIGHT] = self._transfers.in_flight
        self._cells[Cell.WAITING] = self._lanes.waiting

    def _publish(self, now_ms: int) -> None:
        self._published_ms = now_ms
        self._recorder.publish()

    def _wait_ms(self, now_ms: int) -> int:
        """How long nothing needs to happen, should nothing come in."""
        open_items = self._open_items()
        wait_ms = min([shard.wait_ms(now_ms, open_items) for shard in self._shards])
        if self._lanes.waiting:
            wait_ms = min(wait_ms, OVERFLOW_EVERY_MS)
        if self._lanes.wanting:
            wait_ms = min(wait_ms, RECALL_EVERY_MS)
        if self._lanes.gates:
            wait_ms = min(wait_ms, max(self._lanes.gates[0][0] - now_ms, 0))
        return min(wait_ms, LONGEST_TURN_MS)

    def _open_items(self) -> int:
        """Items held or asked for that have no outcome yet; not those that slow hosts keep waiting: they cost others no
        claim."""
        return sum([shard.lease.open_items for shard in self._shards]) - self._lanes.held_up

    # Transfers

    def _start_transfers(self, now_ms: int) -> None:
        server_ms = self._clock.now_ms()
        if self._lanes.gates:
            self._lanes.open_gates(now_ms)
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
        for shard in self._shards:
            items = shard.listen(self._transfers.ready, now_ms)
            if shard.recalled is not None:
                self._recaller.took(shard.recalled[0], shard.recalled[1:], now_ms)
                shard.recalled = None
            if items:
                self._add(shard.intake.accept(items, self._clock.now_ms()), now_ms)
            if shard.intake.waiting:
                deliveries: list[Delivery] = []
                shard.intake.fetch(deliveries, self._clock.now_ms())
                self._add(deliveries, now_ms)

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

    def _talk_to_queue(self, now_ms: int) -> None:
        for name in self._take_deaths():
            for shard in self._shards:
                shard.note_death(name)
        for shard in self._shards:
            open_items = self._open_items()
            if not (shard.is_due(now_ms, open_items) or self._recalls_from(shard, now_ms)):
                continue
            self._log.flush(now_ms)  # before the settle: what is settled has its line
            self._publish(now_ms)
            self._cells[Cell.LOG_LINES_LOST] += self._log.take_lines_lost()
            shard.talk(now_ms, open_items)
        if self._log.waiting > BATCH:
            self._log.flush(now_ms)
        if len(self._shards) > 1:
            self._shards.rotate(1)  # or the first one with a backlog would always fill all the room there is

    def _recalls_from(self, shard: Shard, now_ms: int) -> bool:
        """Whether parked postbacks are called back with an exchange with this shard, which is not due otherwise."""
        if not self._lanes.wanting or self._recaller.shard != shard.number or not shard.claims or shard.lease.busy:
            return False
        if not shard.lease.is_connected:
            self._recaller.pass_over()
            return False
        recall = self._recaller.next(self._lanes.wanting, now_ms)
        if recall is None:
            return False
        shard.lease.recall(*recall)
        return True

    # The end

    def drain(self, deadline_ms: int, beat: Callable[[], None], must_hurry: Callable[[], bool]) -> None:
        """Start nothing more, let transfers end, settle, give back the rest. At a stop, and after a lost lease.

        `must_hurry` is asked each turn whether to wait for transfers no longer; what has an outcome is still settled.
        """
        for shard in self._shards:
            shard.stop_claiming()
        for _ in self._lanes.drop_waiting():
            continue  # still leased: given back below
        self._in_flight_limit = 0
        while monotonic_ms() < deadline_ms:
            if not self._unsettled() and (not self._transfers.in_flight or must_hurry()):
                break
            beat()
            try:
                self.turn(monotonic_ms())
            except LeaseLostError as error:
                if not self._lease_lost_said:
                    self._lease_lost_said = True
                    oplog.warning("lease_lost", detail=error)
        self._log.flush(monotonic_ms())
        self._recorder.publish()
        for shard in self._shards:
            shard.give_back(time.sleep)

    def _unsettled(self) -> int:
        """Outcomes that the server has not confirmed."""
        return sum(shard.lease.unsettled for shard in self._shards)
