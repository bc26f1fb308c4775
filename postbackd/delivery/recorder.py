# SPDX-License-Identifier: MIT
"""What ended is recorded: a line for the delivery log, an outcome for the lease, counters for the scoreboard.

The line is added before the outcome, and the worker flushes the log before it settles: what is settled has its line.
"""

import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from postbackd import oplog
from postbackd.codec import ErrorClass, Item, format_id, trail_attempt
from postbackd.delivery.endpoints import Endpoint
from postbackd.delivery.lane import PARK_MIN_MS
from postbackd.delivery.log import NULL, DeliveryLog, Formatter, TimeText
from postbackd.delivery.outcome import Kind, RetryPolicy
from postbackd.delivery.transfer import Result
from postbackd.queue.lease_client import Dead, Later, Outcome
from postbackd.scoreboard import Cell
from postbackd.tally import METHOD_STEP, Tally, reason_cell
from postbackd.template import Rendered

RECALLABLE = 0.5  # added to a delay
UNNAMED_MS = 600_000  # longest wait of a postback whose host is a placeholder
ANSWER_BYTES = 16_384  # of a dead letter's last answer, which is its log line; beyond that its body is cut
KEPT_BODY = 1024  # characters; of base64 these are whole groups of four

# Of postbacks whose endpoint's record cannot be used, by the reason of their death.
_ERRORS_OF_RECORDS = {"render_error": ErrorClass.RENDER_ERROR, "blocked": ErrorClass.BLOCKED}


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


class Settling(Protocol):
    """Where outcomes go: the lease, or the one among several that a token names."""

    @property
    def settle(self) -> Callable[[Outcome], None]:
        """Keeps an outcome for the next exchange."""


class Recorder:
    """The one place where postbacks end, wait or go back."""

    def __init__(
        self,
        log: DeliveryLog,
        lease: Settling,
        policy: RetryPolicy,
        cells: "memoryview[int]",
        place: str,
        body_bytes: int,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._add_line = log.add
        self._lease = lease
        self._policy = policy
        self._cells = cells
        self._formatter = Formatter(place, body_bytes)
        self._chance = chance
        self._tally = Tally(cells, Cell.ATTEMPTS, Cell.DELIVERED)
        self._times = TimeText()
        self._later_times = TimeText()

    def attempt_ended(self, delivery: Delivery, result: Result, now_ms: int) -> Kind:
        """An attempt was made and this came of it. `now_ms` is server time."""
        endpoint = delivery.endpoint
        if result.error is not None or result.status not in endpoint.successes:
            return self._failed(delivery, result, now_ms)
        if endpoint.needed is not None and endpoint.needed not in result.body:
            return self._failed(delivery, _unexpected(result, endpoint.needed), now_ms)
        item, rendered = delivery.item, delivery.rendered
        lag_ms = -1 if item.attempts else _lag_ms(delivery)
        self._tally.attempt(endpoint.method_index, result.total_ms, result.reused, lag_ms)
        assert rendered is not None
        line_format = endpoint.line_format or self._line_format(endpoint, rendered)
        time_text = self._times.format(delivery.started_ms)
        self._add_line(
            self._formatter.delivered(line_format, time_text, item.postback_id, item.attempt, rendered.url, result)
        )
        self._lease.settle(delivery.token)
        return "delivered"

    def publish(self) -> None:
        """Bring the scoreboard up to date."""
        self._tally.publish()

    def _line_format(self, endpoint: Endpoint, rendered: Rendered) -> bytes:
        if not endpoint.host_json:
            return self._formatter.delivered_format(endpoint.method_json, _quoted(rendered.host_key), endpoint.id_json)
        made = self._formatter.delivered_format(endpoint.method_json, endpoint.host_json, endpoint.id_json)
        endpoint.line_format = made
        return made

    def _failed(self, delivery: Delivery, result: Result, now_ms: int) -> Kind:
        item, compiled = delivery.item, delivery.endpoint.compiled
        assert compiled is not None
        outcome = self._policy.decide(
            compiled.record,
            item,
            result.error,
            result.status,
            result.retry_after_s,
            now_ms,
            self._chance(),
            delivery.endpoint.successes,
        )
        next_at = NULL
        if outcome.kind == "retry":
            next_at = b'"%b"' % self._later_times.format(now_ms + outcome.delay_ms)
        endpoint, rendered = delivery.endpoint, delivery.rendered
        assert rendered is not None
        lag_ms = -1 if item.attempts else _lag_ms(delivery)
        class_number = 0 if outcome.error is None else int(outcome.error)
        total_ms = None if result.remote_ip is None else result.total_ms
        self._tally.attempt(class_number * METHOD_STEP + endpoint.method_index, total_ms, result.reused, lag_ms)
        line = self._formatter.line(
            self._times.format(delivery.started_ms),
            item.postback_id,
            item.attempt,
            outcome.kind,
            outcome.reason,
            endpoint.method_json,
            endpoint.host_json or _quoted(rendered.host_key),
            rendered.url,
            result,
            None if outcome.error is None else outcome.error.name.lower(),
            result.error_detail,
            next_at,
            endpoint.id_json,
        )
        self._add_line(line)
        entry = trail_attempt(now_ms, outcome.code)
        if outcome.kind == "retry":
            self._cells[Cell.RETRIED] += 1
            self._lease.settle(Later(delivery.token, outcome.delay_ms, entry))
        else:
            _say_dead(item.postback_id, rendered.host_key, outcome.reason, outcome.error, result.status)
            self._dead(delivery.token, entry, outcome.reason or "", line, item.endpoint_id)
        return outcome.kind

    def gave_up(self, delivery: Delivery, reason: str, error: ErrorClass, detail: str, now_ms: int) -> None:
        """Dead without another attempt: expired, or nothing that can be rendered."""
        url = None if delivery.rendered is None else delivery.rendered.url
        self._give_up(delivery.token, delivery.item, delivery.endpoint, reason, error, detail, now_ms, url)

    def unusable(
        self, token: int, item: Item | None, reason: str, detail: str, now_ms: int, endpoint: Endpoint | None = None
    ) -> None:
        """Dead since it must not be touched, there is no endpoint to send it to, or its bytes are no item (then
        `item` is None)."""
        error = _ERRORS_OF_RECORDS.get(reason)
        self._give_up(token, item, endpoint, reason, error, detail, now_ms)

    def _give_up(
        self,
        token: int,
        item: Item | None,
        endpoint: Endpoint | None,
        reason: str,
        error: ErrorClass | None,
        detail: str,
        now_ms: int,
        url: str | None = None,
    ) -> None:
        line = self._formatter.line(
            self._times.format(now_ms),
            None if item is None else item.postback_id,
            0 if item is None else len(item.attempts),
            "dead",
            reason,
            NULL if endpoint is None else endpoint.method_json,
            NULL if endpoint is None else endpoint.host_json or NULL,
            url,
            None,
            None if error is None else error.name.lower(),
            detail,
            NULL,
            NULL if item is None else _quoted(item.endpoint_id.hex()),
        )
        self._add_line(line)
        host = None if endpoint is None else endpoint.host_json.decode().strip('"') or None
        _say_dead(None if item is None else item.postback_id, host, reason, error, None)
        self._dead(token, b"", reason, line, None if item is None else item.endpoint_id)  # no attempt: no entry

    def park_for_host(self, delivery: Delivery, delay_ms: int, now_ms: int) -> None:
        """Back to the later set since its host cannot take it now: to be called back when it can (lua/recall.lua), so
        marked by half a millisecond. Not beyond its expiry; and not for long where no recall would find it."""
        if not delivery.endpoint.host_key:
            delay_ms = PARK_MIN_MS + delay_ms % UNNAMED_MS
        left_ms = self._policy.expires_at_ms(delivery.item) - now_ms
        self._cells[Cell.PARKED] += 1
        self._lease.settle(Later(delivery.token, max(min(delay_ms, left_ms + 1), PARK_MIN_MS) + RECALLABLE, b""))

    def park(self, token: int, delay_ms: int, entry: bytes = b"") -> None:
        """Back to the later set; without an entry no attempt is used up."""
        self._cells[Cell.PARKED] += 1
        self._lease.settle(Later(token, delay_ms, entry))

    def _dead(self, token: int, entry: bytes, reason: str, line: bytes, endpoint_id: bytes | None) -> None:
        self._cells[Cell.DEAD] += 1
        self._cells[reason_cell(reason)] += 1
        self._lease.settle(Dead(token, entry, reason, shortened(line), endpoint_id))


def shortened(line: bytes) -> bytes:
    """A log line as a dead letter keeps it: a long body is cut, so that it stays JSON and its host can be asked for."""
    if len(line) <= ANSWER_BYTES:
        return line
    entry = msgspec.json.decode(line)
    for name in ("response_body", "response_body_b64"):
        if entry.get(name):
            entry[name] = entry[name][:KEPT_BODY]
            entry["body_truncated"] = True
    return msgspec.json.encode(entry)


def _say_dead(
    postback_id: int | None, host: str | None, reason: str | None, error: ErrorClass | None, status: int | None
) -> None:
    """One event each; the operational log holds back what repeats for the same host and reason."""
    oplog.warning(
        "dead_letter",
        host=host or "unknown",
        reason=reason,
        error=None if error is None else error.name.lower(),
        status=status,
        id="unknown" if postback_id is None else format_id(postback_id),
    )


def _unexpected(result: Result, needed: bytes) -> Result:
    """A success whose body is not one."""
    where = f"what was read of the body ({len(result.body)} bytes)" if result.truncated else "the body"
    detail = f"{where} does not contain {needed.decode()[:80]!r}"
    return msgspec.structs.replace(result, error=ErrorClass.UNEXPECTED_BODY, error_detail=detail)


def _lag_ms(delivery: Delivery) -> int:
    """From when it was due to its first attempt, by two processes' clocks."""
    lag_ms = delivery.started_ms - delivery.item.due_from_ms
    return lag_ms if lag_ms > 0 else 0


def _quoted(text: str) -> bytes:
    """A host or a digest as JSON: neither holds anything that JSON escapes."""
    return b'"%b"' % text.encode()
