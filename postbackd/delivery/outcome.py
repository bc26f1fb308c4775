# SPDX-License-Identifier: MIT
"""What an attempt's result means: delivered, retry or dead, and why. Pure.

result ── 2xx, or by the endpoint's own rule ────────────> delivered
       ── blocked, render error, an answer not to retry,
          a success whose body lacks what it must hold ──> dead
       ── else ── attempts left and before the expiry ───> retry, after the schedule's wait
               ── none left, or too late ────────────────> dead
"""

from collections.abc import Container
from typing import Literal, NamedTuple

from postbackd.codec import EndpointRecord, ErrorClass, Item
from postbackd.delivery.schedule import expires_at_ms, retried_statuses, retry_delay_ms
from postbackd.settings import Retry

Kind = Literal["delivered", "retry", "dead"]

# Errors that no retry mends, and the reason of their death.
_FINAL = {
    ErrorClass.BLOCKED: "blocked",
    ErrorClass.RENDER_ERROR: "render_error",
    ErrorClass.TOO_LARGE: "render_error",
    ErrorClass.UNEXPECTED_BODY: "unexpected_body",
}
ANY_2XX = frozenset(range(200, 300))

# Tried again, unlike others of the class it is logged as: a reload is under way, or the configuration is being mended.
_LOGGED_AS = {ErrorClass.SIGNING_KEY_MISSING: ErrorClass.RENDER_ERROR}


class Outcome(NamedTuple):
    """What becomes of a postback after an attempt."""

    kind: Kind
    reason: str | None  # of a dead one
    error: ErrorClass | None
    code: int  # of the trail: the answer's status, or the error's number
    delay_ms: int  # of a retry


class RetryPolicy:
    """The configuration's part of the decision."""

    def __init__(self, settings: Retry) -> None:
        self._schedule_s = tuple(settings.schedule)
        self._max_attempts = settings.max_attempts
        self._jitter = settings.jitter
        self._statuses = retried_statuses(settings.statuses)
        self.expires_after_s = settings.expires_after

    def decide(
        self,
        record: EndpointRecord,
        item: Item,
        error: ErrorClass | None,
        status: int | None,
        retry_after_s: int,
        now_ms: int,
        chance: float,
        successes: Container[int] = ANY_2XX,
    ) -> Outcome:
        """The outcome of the attempt that has just ended; `error` is the transfer's own or UNEXPECTED_BODY, `status`
        the answer's, `successes` what the endpoint takes for one."""
        if error is None and status is not None:
            if status in successes:
                return Outcome("delivered", None, None, status, 0)
            error, code = status_class(status), status
            if status not in self._statuses:
                return Outcome("dead", "refused_status", error, code, 0)
        else:
            error = error or ErrorClass.NETWORK_ERROR
            code = int(error)
            if error in _FINAL:
                return Outcome("dead", _FINAL[error], error, code, 0)
            error = _LOGGED_AS.get(error, error)
        attempt = item.attempt
        if attempt >= (record.max_attempts or self._max_attempts):
            return Outcome("dead", "attempts_exhausted", error, code, 0)
        schedule_s = record.schedule or self._schedule_s
        delay_ms = retry_delay_ms(schedule_s, attempt, self._jitter, chance, retry_after_s)
        if now_ms + delay_ms > self.expires_at_ms(item):
            return Outcome("dead", "expired", error, code, 0)
        return Outcome("retry", None, error, code, delay_ms)

    def expires_at_ms(self, item: Item) -> int:
        """When the postback is given up."""
        return expires_at_ms(item, self.expires_after_s)


ASKS_FOR_PAUSE = frozenset({429, 503})  # with Retry-After: the whole host's business

_NOT_THE_HOSTS = frozenset(
    {
        ErrorClass.BLOCKED,
        ErrorClass.RENDER_ERROR,
        ErrorClass.TOO_LARGE,
        ErrorClass.EXPIRED,
        ErrorClass.SIGNING_KEY_MISSING,
        ErrorClass.UNEXPECTED_BODY,
    }
)


def is_host_fault(error: ErrorClass | None, status: int | None) -> bool:
    """Whether an attempt failed by the host's fault: what its breaker counts."""
    if error is not None:
        return error not in _NOT_THE_HOSTS
    return status is None or (status >= 500 and status != 501)


def status_class(status: int) -> ErrorClass:
    """The class of an answer that is no success."""
    if status >= 500:
        return ErrorClass.HTTP_5XX
    if status >= 400:
        return ErrorClass.HTTP_4XX
    if status >= 300:
        return ErrorClass.HTTP_3XX
    if status >= 200:
        return ErrorClass.HTTP_2XX
    return ErrorClass.NETWORK_ERROR  # an interim answer and nothing behind it
