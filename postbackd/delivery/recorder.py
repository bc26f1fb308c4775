# SPDX-License-Identifier: MIT
"""What ended is recorded: a line for the delivery log, an outcome for the lease, counters for the scoreboard.

The line is added before the outcome, and the worker flushes the log before it settles: what is settled has its line.
"""

import random
from collections.abc import Callable

import msgspec

from postbackd.codec import ErrorClass, Item, trail_attempt
from postbackd.delivery.endpoints import Endpoint
from postbackd.delivery.log import NULL, DeliveryLog, TimeText, format_line
from postbackd.delivery.outcome import RetryPolicy
from postbackd.delivery.transfer import Result
from postbackd.queue.lease_client import Dead, Later, LeaseClient
from postbackd.scoreboard import Cell
from postbackd.template import Rendered

ANSWER_BYTES = 16_384  # of a dead letter's last answer, which is its log line
# As plain integers: reading them off the enum costs 0.05 µs each.
_ATTEMPTS, _DELIVERED, _RETRIED = int(Cell.ATTEMPTS), int(Cell.DELIVERED), int(Cell.RETRIED)


class Delivery(msgspec.Struct):
    """A claimed postback on its way: what a lane holds and a transfer carries."""

    token: int
    item: Item
    endpoint: Endpoint
    rendered: Rendered | None = None
    started_ms: int = 0


def no_transfer(error: ErrorClass, detail: str) -> Result:
    """The result of an attempt that never got as far as a connection."""
    return Result(error, detail, None, b"", False, None, False, 0.0, 0.0)


class Recorder:
    """The one place where postbacks end, wait or go back."""

    def __init__(
        self,
        log: DeliveryLog,
        lease: LeaseClient,
        policy: RetryPolicy,
        cells: "memoryview[int]",
        place: str,
        body_bytes: int,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._lease = lease
        self._policy = policy
        self._cells = cells
        self._place = place.encode()
        self._body_bytes = body_bytes
        self._chance = chance
        self._times = TimeText()
        self._later_times = TimeText()

    def attempt_ended(self, delivery: Delivery, result: Result, now_ms: int) -> None:
        """An attempt was made and this came of it. `now_ms` is server time."""
        self._cells[_ATTEMPTS] += 1
        status = result.status
        if result.error is None and status is not None and 200 <= status < 300:
            self._cells[_DELIVERED] += 1
            self._log.add(self._line(delivery, result, b"delivered", None, None, NULL))
            self._lease.settle(delivery.token)
            return
        self._failed(delivery, result, now_ms)

    def _failed(self, delivery: Delivery, result: Result, now_ms: int) -> None:
        item, compiled = delivery.item, delivery.endpoint.compiled
        assert compiled is not None
        outcome = self._policy.decide(
            compiled.record, item, result.error, result.status, result.retry_after_s, now_ms, self._chance()
        )
        next_at = NULL
        if outcome.kind == "retry":
            next_at = b'"%b"' % self._later_times.format(now_ms + outcome.delay_ms)
        line = self._line(delivery, result, outcome.kind.encode(), outcome.reason, outcome.error, next_at)
        self._log.add(line)
        entry = trail_attempt(now_ms, outcome.code)
        if outcome.kind == "retry":
            self._cells[_RETRIED] += 1
            self._lease.settle(Later(delivery.token, outcome.delay_ms, entry))
        else:
            self._dead(delivery.token, entry, outcome.reason or "", line, item.endpoint_id)

    def _line(
        self,
        delivery: Delivery,
        result: Result,
        outcome: bytes,
        reason: str | None,
        error: ErrorClass | None,
        next_attempt_at: bytes,
    ) -> bytes:
        item, endpoint, rendered = delivery.item, delivery.endpoint, delivery.rendered
        assert rendered is not None
        return format_line(
            self._times.format(delivery.started_ms),
            b'"%016x"' % item.postback_id,
            item.attempt,
            outcome,
            reason,
            endpoint.method_json,
            endpoint.host_json or b'"%b"' % rendered.host_key.encode(),
            rendered.url,
            result,
            self._body_bytes,
            None if error is None else error.name.lower(),
            result.error_detail,
            next_attempt_at,
            endpoint.id_json,
            self._place,
        )

    def gave_up(self, delivery: Delivery, reason: str, error: ErrorClass, detail: str, now_ms: int) -> None:
        """Dead without another attempt: expired, or nothing that can be rendered."""
        self._give_up(delivery.token, delivery.item, delivery.endpoint, reason, error, detail, now_ms)

    def unusable(self, token: int, item: Item | None, reason: str, detail: str, now_ms: int) -> None:
        """Dead since there is no endpoint to send it to, or since its bytes are no item (then `item` is None)."""
        error = ErrorClass.RENDER_ERROR if reason == "render_error" else None
        self._give_up(token, item, None, reason, error, detail, now_ms)

    def _give_up(
        self,
        token: int,
        item: Item | None,
        endpoint: Endpoint | None,
        reason: str,
        error: ErrorClass | None,
        detail: str,
        now_ms: int,
    ) -> None:
        line = format_line(
            self._times.format(now_ms),
            NULL if item is None else b'"%016x"' % item.postback_id,
            0 if item is None else len(item.attempts),
            b"dead",
            reason,
            NULL if endpoint is None else endpoint.method_json,
            NULL if endpoint is None else endpoint.host_json or NULL,
            None,
            None,
            0,
            None if error is None else error.name.lower(),
            detail,
            NULL,
            NULL if item is None else b'"%b"' % item.endpoint_id.hex().encode(),
            self._place,
        )
        self._log.add(line)
        entry = b"" if error is None else trail_attempt(now_ms, int(error))
        self._dead(token, entry, reason, line, None if item is None else item.endpoint_id)

    def park(self, token: int, delay_ms: int, entry: bytes = b"") -> None:
        """Back to the later set; without an entry no attempt is used up."""
        self._cells[Cell.PARKED] += 1
        self._lease.settle(Later(token, delay_ms, entry))

    def _dead(self, token: int, entry: bytes, reason: str, line: bytes, endpoint_id: bytes | None) -> None:
        self._cells[Cell.DEAD] += 1
        self._lease.settle(Dead(token, entry, reason, line[:ANSWER_BYTES], endpoint_id))
