# SPDX-License-Identifier: MIT
"""The errors that cross a module's border, and the exit codes of every process.

Each error's text is one line that says what is wrong and how to mend it: it is printed or sent as it
stands. Expected outcomes of an attempt (a timeout, a 500) are values, not exceptions, and are not here.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command (0, 1, 2) and of the supervisor's children (all)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BOOT_FAILURE = 3  # a child could not start at all: the supervisor stops instead of looping
    LEASE_LOST = 4  # a delivery worker's lease was reclaimed under it: replaced at once


class PostbackdError(Exception):
    """Anything that ends a command with one clear line."""

    exit_code = ExitCode.FAILED


class ConfigError(PostbackdError):
    """A setting, flag or environment that cannot be used."""

    exit_code = ExitCode.USAGE


class BootError(PostbackdError):
    """A process cannot do its work at all on this machine as it is set up."""

    exit_code = ExitCode.BOOT_FAILURE


class QueueAwayError(BootError):
    """The queue server could not be reached at the start."""


class RequestError(PostbackdError):
    """A request that is answered with an error; nothing of it is queued.

    `path` names the place in the request, as in `data[3].key`. `retry_after_s` becomes the header Retry-After.
    """

    def __init__(
        self, status: int, code: str, message: str, path: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.path = path
        self.retry_after_s = retry_after_s

    def payload(self) -> dict[str, str]:
        """The member `error` of an answer."""
        payload = {"code": self.code, "message": self.message}
        if self.path is not None:
            payload["path"] = self.path
        return payload


class QueueUnavailableError(PostbackdError):
    """Redis did not run the command, for certain: refused, loading, read-only, or it said so."""


class QueueDeniedError(QueueUnavailableError):
    """Redis refuses the user or the password: waiting changes nothing."""


class QueueUnsureError(QueueUnavailableError):
    """A command was sent and no answer came: it may have run, not have run, or still run later."""


class QueueFullError(PostbackdError):
    """Redis is out of memory or the queue is over its depth: try again later, nothing was written."""


class ReplicasMissingError(QueueFullError):
    """Too few replicas answer for queue.durability = replica: try again later, nothing was written."""


class DurabilityTimeoutError(PostbackdError):
    """Enqueued, but too few replicas said so in time: no acknowledgement, though it may be delivered."""


class SpoolError(PostbackdError):
    """The request can be kept on the local disk no more: the spool or the disk is full, or an fsync failed."""


class IdempotencyConflictError(PostbackdError):
    """The Idempotency-Key came before with another body; nothing was written."""


class RecordConflictError(PostbackdError):
    """Another endpoint is stored under the same 64-bit digest; nothing was written."""


class LeaseLostError(PostbackdError):
    """The lease of this worker was reclaimed or the server went back in time: start no further attempt."""
