# SPDX-License-Identifier: MIT
"""What a request is answered that could not be taken: every failure → one error of the table in docs/api.md.

The one place where failures of the queue and of ourselves become words for a client.
"""

import msgspec

from postbackd import oplog
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

Answer = tuple[str, list[tuple[str, str]], bytes]  # status line, headers, body

RETRY_AFTER_S = 5
STATUS_LINES = {
    400: "400 Bad Request",
    401: "401 Unauthorized",
    403: "403 Forbidden",
    409: "409 Conflict",
    411: "411 Length Required",
    413: "413 Content Too Large",
    415: "415 Unsupported Media Type",
    422: "422 Unprocessable Content",
    429: "429 Too Many Requests",
    500: "500 Internal Server Error",
    503: "503 Service Unavailable",
}


def refusal_of(error: Exception) -> RequestError:
    """The answer to a request that ended with this error."""
    # Its traceback holds the frames that hold the error: a circle that kept each refused body, of 16 MiB perhaps, until
    # the collector came by.
    error.__traceback__ = None
    if isinstance(error, RequestError):
        return error
    if isinstance(error, QueueUnsureError):
        text = f"The queue did not answer in time: {error} The request may still be delivered."
        return RequestError(503, "queue_unsure", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, QueueUnavailableError):
        text = f"The queue cannot be reached: {error} Nothing was queued; send the request again."
        return RequestError(503, "queue_unavailable", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, SpoolError):
        text = f"Redis is away and the request cannot be spooled: {error} Send the request again."
        return RequestError(503, "spool_full", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, ReplicasMissingError):
        text = f"Replicas of the queue are missing: {error} Nothing was queued; send the request again."
        return RequestError(503, "durability_timeout", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, QueueFullError):
        text = f"The queue is full: {error} Nothing was queued; send the request again."
        return RequestError(503, "queue_full", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, DurabilityTimeoutError):
        text = f"The postbacks are queued but not as durable as wanted: {error} They may still be delivered."
        return RequestError(503, "durability_timeout", text, retry_after_s=RETRY_AFTER_S)
    if isinstance(error, IdempotencyConflictError):
        text = "This Idempotency-Key came with another body within 24 hours: take a new key for a new request."
        return RequestError(409, "idempotency_conflict", text)
    if isinstance(error, RecordConflictError):
        text = "Another endpoint is stored under the same digest: change the endpoint in any way."
        return RequestError(422, "endpoint_conflict", text, "endpoint")
    oplog.error("request_failed", error=repr(error))
    return RequestError(500, "internal_error", "postbackd failed; its log says why.")


def error_answer(error: RequestError) -> Answer:
    """The answer for a refused request, in the one form every error has."""
    body = msgspec.json.encode({"error": error.payload()})
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if error.retry_after_s is not None:
        headers.append(("Retry-After", str(error.retry_after_s)))
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    return STATUS_LINES[error.status], headers, body
