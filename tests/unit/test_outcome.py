# SPDX-License-Identifier: MIT
"""Outcomes and schedules: tables with the values just outside each limit."""

import pytest

from postbackd.codec import EPOCH_MS, EndpointRecord, ErrorClass, Item
from postbackd.delivery.outcome import RetryPolicy
from postbackd.delivery.schedule import expires_at_ms, retried_statuses, retry_delay_ms
from postbackd.errors import ConfigError
from postbackd.settings import Retry

RECORD = EndpointRecord(method="GET", url="http://h/")
ACCEPTED_MS = EPOCH_MS + 1_000_000
NOW_MS = ACCEPTED_MS + 1000


def item(attempts: int = 0) -> Item:
    return Item(bytes(8), (ACCEPTED_MS - EPOCH_MS) << 22, [], [(NOW_MS, 503)] * attempts)


def decide(error=None, status=None, attempts=0, record=RECORD, retry_after_s=0, now_ms=NOW_MS, **settings):
    policy = RetryPolicy(Retry(**settings))
    return policy.decide(record, item(attempts), error, status, retry_after_s, now_ms, 0.5)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert decide(status=status)[:4] == ("delivered", None, None, status)


@pytest.mark.parametrize(
    ("status", "error"),
    [(300, "http_3xx"), (302, "http_3xx"), (400, "http_4xx"), (404, "http_4xx"), (501, "http_5xx"), (424, "http_4xx")],
)
def test_other_answers_are_dead_at_once(status: int, error: str) -> None:
    outcome = decide(status=status)
    assert (outcome.kind, outcome.reason, outcome.code) == ("dead", "refused_status", status)
    assert outcome.error is not None and outcome.error.name.lower() == error


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_answers_to_retry_are_retried(status: int) -> None:
    outcome = decide(status=status)
    assert (outcome.kind, outcome.reason, outcome.code) == ("retry", None, status)


@pytest.mark.parametrize("error", [e for e in ErrorClass if e <= ErrorClass.NETWORK_ERROR])
def test_network_errors_are_retried(error: ErrorClass) -> None:
    outcome = decide(error=error, status=200 if error is ErrorClass.TIMEOUT else None)
    assert (outcome.kind, outcome.error, outcome.code) == ("retry", error, int(error))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ErrorClass.BLOCKED, "blocked"),
        (ErrorClass.RENDER_ERROR, "render_error"),
        (ErrorClass.TOO_LARGE, "render_error"),
        (ErrorClass.UNEXPECTED_BODY, "unexpected_body"),
    ],
)
def test_what_no_retry_mends_is_dead_at_once(error: ErrorClass, reason: str) -> None:
    assert decide(error=error)[:2] == ("dead", reason)


def test_attempts_are_counted_to_the_last() -> None:
    assert decide(status=503, attempts=7, max_attempts=9, expires_after=1e9).kind == "retry"
    assert decide(status=503, attempts=8, max_attempts=9, expires_after=1e9)[:2] == ("dead", "attempts_exhausted")
    assert decide(status=503, max_attempts=1)[:2] == ("dead", "attempts_exhausted")


def test_endpoints_own_retry_goes_first() -> None:
    record = EndpointRecord(method="GET", url="http://h/", max_attempts=2, schedule=(7.0,))
    assert decide(status=503, record=record, jitter=0).delay_ms == 7000
    assert decide(status=503, record=record, attempts=1).reason == "attempts_exhausted"


def test_attempt_past_the_expiry_is_dead_now_with_its_last_class() -> None:
    edge = {"schedule": [10.0], "jitter": 0, "expires_after": 11.0}
    assert decide(status=503, **edge).kind == "retry"
    late = decide(status=503, now_ms=NOW_MS + 1, **edge)
    assert (late.kind, late.reason, late.error) == ("dead", "expired", ErrorClass.HTTP_5XX)


def test_endpoints_own_rule_goes_before_2xx() -> None:
    def judge(status: int) -> tuple:
        return RetryPolicy(Retry()).decide(RECORD, item(), None, status, 0, NOW_MS, 0.5, {201, 302, 503})

    for status in (201, 302, 503):
        assert judge(status)[:4] == ("delivered", None, None, status)
    assert judge(200)[:4] == ("dead", "refused_status", ErrorClass.HTTP_2XX, 200)
    assert judge(500)[:3] == ("retry", None, ErrorClass.HTTP_5XX)
    assert judge(404)[:3] == ("dead", "refused_status", ErrorClass.HTTP_4XX)


def test_configured_statuses_replace_the_rule() -> None:
    assert decide(status=503, statuses=[404]).kind == "dead"
    assert decide(status=404, statuses=[404]).kind == "retry"
    assert retried_statuses([418, "5xx"]) == {418, *range(500, 600)}
    for wrong in (["6xx"], ["abc"], [99], [600]):
        with pytest.raises(ConfigError, match="statuses"):
            retried_statuses(wrong)


@pytest.mark.parametrize(
    ("attempt", "chance", "retry_after_s", "delay_ms"),
    [(1, 0.0, 0, 5000), (2, 0.0, 0, 30_000), (3, 0.0, 0, 30_000), (1, 0.5, 0, 5500), (1, 0.0, 60, 60_000),
     (2, 0.0, 10, 30_000), (1, 0.0, 7200, 3_600_000)],
)  # fmt: skip
def test_delay_follows_the_schedule(attempt: int, chance: float, retry_after_s: int, delay_ms: int) -> None:
    assert retry_delay_ms([5.0, 30.0], attempt, 0.2, chance, retry_after_s) == delay_ms


def test_expiry_counts_from_the_start_and_an_items_own_goes_first() -> None:
    assert expires_at_ms(item(), 10) == ACCEPTED_MS + 10_000
    started = Item(bytes(8), 0, [], start_ms=5_000_000, expires_after_s=2)
    assert expires_at_ms(started, 10) == 5_002_000
