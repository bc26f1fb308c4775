# SPDX-License-Identifier: MIT
"""Every failure becomes one error of the table, and holds nothing of its request back."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from postbackd.errors import (
    DurabilityTimeoutError,
    IdempotencyConflictError,
    QueueFullError,
    QueueUnavailableError,
    QueueUnsureError,
    RecordConflictError,
    ReplicasMissingError,
    RequestError,
    SpoolError,
)
from postbackd.refusal import refusal_of


@pytest.mark.parametrize(
    ("error", "status", "code", "waits"),
    [
        (RequestError(413, "body_too_large", "Too large."), 413, "body_too_large", False),
        (QueueUnsureError("no reply."), 503, "queue_unsure", True),
        (QueueUnavailableError("refused."), 503, "queue_unavailable", True),
        (SpoolError("full."), 503, "spool_full", True),
        (QueueFullError("full."), 503, "queue_full", True),
        (ReplicasMissingError("0 of 1."), 503, "durability_timeout", True),
        (DurabilityTimeoutError("1 of 2."), 503, "durability_timeout", True),
        (IdempotencyConflictError("another body"), 409, "idempotency_conflict", False),
        (RecordConflictError("another record"), 422, "endpoint_conflict", False),
        (ZeroDivisionError("a bug"), 500, "internal_error", False),
    ],
)
def test_each_failure_has_its_answer(error: Exception, status: int, code: str, waits: bool) -> None:
    refusal = refusal_of(error)
    assert (refusal.status, refusal.code, refusal.retry_after_s is not None) == (status, code, waits)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Body:
    """Stands for a body of 16 MiB."""


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("error", [RequestError(413, "body_too_large", "Too large."), ZeroDivisionError("a bug")])
def test_refused_body_is_let_go_without_the_collector(error: Exception) -> None:
    bodies: list[weakref.ref[Body]] = []

    def refuse() -> None:
        body = Body()
        bodies.append(weakref.ref(body))
        raise error

    def answer() -> RequestError:
        try:
            refuse()
        except Exception as failure:
            refusal = refusal_of(failure)
        return refusal

    answer()
    assert bodies[0]() is None
