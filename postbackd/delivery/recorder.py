# SPDX-License-Identifier: MIT
"""What ended is recorded: a line for the delivery log, an outcome for the lease, counters for the scoreboard.

The line is added before the outcome, and the worker flushes the log before it settles: what is settled has its line.
"""

import random
from collections.abc import Callable

from postbackd.codec import ErrorClass, Item, format_id, trail_attempt
from postbackd.delivery.log import (
    NO_TIMINGS_JSON,
    BinaryLine,
    DeliveryLog,
    Line,
    TimeText,
    encode_line,
    log_body,
    timings_json,
)
from postbackd.delivery.outcome import Outcome, RetryPolicy
from postbackd.delivery.transfer import NO_TIMINGS, Result
from postbackd.queue.lease_client import Ack, Dead, Later, LeaseClient
from postbackd.scoreboard import Cell
from postbackd.template import CompiledEndpoint, Rendered

ANSWER_BYTES = 16_384  # of a dead letter's last answer


class Delivery:
    """A claimed postback on its way: what a lane holds and a transfer carries."""

    __slots__ = ("endpoint", "endpoint_hex", "item", "rendered", "started_ms", "token")

    def __init__(self, token: int, item: Item, endpoint: CompiledEndpoint, endpoint_hex: str) -> None:
        self.token = token
        self.item = item
        self.endpoint = endpoint
        self.endpoint_hex = endpoint_hex
        self.rendered: Rendered | None = None
        self.started_ms = 0


def no_transfer(error: ErrorClass, detail: str) -> Result:
    """The result of an attempt that never got as far as a connection."""
    return Result(error, detail, None, b"", False, NO_TIMINGS, None, 0, False)


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
        self._place = place
        self._body_bytes = body_bytes
        self._chance = chance
        self._times = TimeText()

    def attempt_ended(self, delivery: Delivery, result: Result, now_ms: int) -> None:
        """An attempt was made and this came of it."""
        item, endpoint = delivery.item, delivery.endpoint
        outcome = self._policy.decide(
            endpoint.record, item, result.error, result.status, result.retry_after_s, now_ms, self._chance()
        )
        self._cells[Cell.ATTEMPTS] += 1
        line = encode_line(self._attempt_line(delivery, result, outcome, now_ms))
        self._log.add(line)
        self._settle(delivery.token, item, outcome, line, now_ms)

    def gave_up(self, delivery: Delivery, reason: str, error: ErrorClass | None, detail: str, now_ms: int) -> None:
        """Dead without another attempt: expired, or nothing that can be rendered."""
        item, endpoint, rendered = delivery.item, delivery.endpoint, delivery.rendered
        host = (rendered.host_key if rendered else endpoint.host_key) or None
        url = rendered.url if rendered else None
        entry = b"" if error is None else trail_attempt(now_ms, int(error))
        self._give_up(delivery.token, item, reason, error, detail, now_ms, entry, endpoint.record.method, host, url)

    def unusable(self, token: int, item: Item | None, reason: str, detail: str, now_ms: int) -> None:
        """Dead since there is no endpoint to send it to, or since its bytes are no item (then `item` is None)."""
        error = ErrorClass.RENDER_ERROR if reason == "render_error" else None
        self._give_up(token, item, reason, error, detail, now_ms)

    def _give_up(
        self,
        token: int,
        item: Item | None,
        reason: str,
        error: ErrorClass | None,
        detail: str,
        now_ms: int,
        entry: bytes = b"",
        method: str | None = None,
        host: str | None = None,
        url: str | None = None,
    ) -> None:
        line = Line(
            time=self._times.format(now_ms),
            id=None if item is None else format_id(item.postback_id),
            attempt=0 if item is None else len(item.attempts),
            outcome="dead",
            reason=reason,
            method=method,
            host=host,
            url=url,
            response_code=None,
            response_time_ms=None,
            response_body=None,
            body_truncated=False,
            error=None if error is None else error.name.lower(),
            error_detail=detail,
            next_attempt_at=None,
            timings_ms=NO_TIMINGS_JSON,
            remote_ip=None,
            endpoint=None if item is None else item.endpoint_id.hex(),
            worker=self._place,
        )
        encoded = encode_line(line)
        self._log.add(encoded)
        self._dead(token, entry, reason, encoded, None if item is None else item.endpoint_id)

    def park(self, token: int, delay_ms: int, entry: bytes = b"") -> None:
        """Back to the later set; without an entry no attempt is used up."""
        self._cells[Cell.PARKED] += 1
        self._lease.settle(Later(token, delay_ms, entry))

    # Below: lines and outcomes

    def _attempt_line(self, delivery: Delivery, result: Result, outcome: Outcome, now_ms: int) -> Line:
        rendered = delivery.rendered
        assert rendered is not None
        body = log_body(result.body, result.truncated, self._body_bytes)
        has_answer = result.status is not None
        line = Line(
            self._times.format(delivery.started_ms),
            format_id(delivery.item.postback_id),
            delivery.item.attempt,
            outcome.kind,
            outcome.reason,
            delivery.endpoint.record.method,
            rendered.host_key,
            rendered.url,
            result.status,
            round(result.timings.total, 3) if result.remote_ip is not None else None,
            body.text if has_answer else None,
            body.truncated,
            None if outcome.error is None else outcome.error.name.lower(),
            result.error_detail,
            self._times.format(now_ms + outcome.delay_ms) if outcome.kind == "retry" else None,
            timings_json(result.timings) if result.timings is not NO_TIMINGS else NO_TIMINGS_JSON,
            result.remote_ip,
            delivery.endpoint_hex,
            self._place,
        )
        if body.base64 is None:
            return line
        values = {name: getattr(line, name) for name in Line.__struct_fields__}
        return BinaryLine(**values, response_body_b64=body.base64)

    def _settle(self, token: int, item: Item, outcome: Outcome, line: bytes, now_ms: int) -> None:
        if outcome.kind == "delivered":
            self._cells[Cell.DELIVERED] += 1
            self._lease.settle(Ack(token))
            return
        entry = trail_attempt(now_ms, outcome.code)
        if outcome.kind == "retry":
            self._cells[Cell.RETRIED] += 1
            self._lease.settle(Later(token, outcome.delay_ms, entry))
        else:
            self._dead(token, entry, outcome.reason or "", line, item.endpoint_id)

    def _dead(self, token: int, entry: bytes, reason: str, line: bytes, endpoint_id: bytes | None) -> None:
        self._cells[Cell.DEAD] += 1
        self._lease.settle(Dead(token, entry, reason, line[:ANSWER_BYTES], endpoint_id))
