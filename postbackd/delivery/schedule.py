# SPDX-License-Identifier: MIT
"""When to try again, and until when. Pure: times and chance are passed in."""

from collections.abc import Sequence

from postbackd.codec import Item
from postbackd.errors import ConfigError
from postbackd.statuses import parse_statuses

RETRY_AFTER_CAP_S = 3600
RETRIED_BELOW_500 = frozenset({408, 425, 429})
NOT_IMPLEMENTED = 501


def retried_statuses(setting: Sequence[int | str]) -> frozenset[int]:
    """The answers that are tried again, from `retry.statuses`; raises ConfigError."""
    if not setting:
        return RETRIED_BELOW_500 | (frozenset(range(500, 600)) - {NOT_IMPLEMENTED})
    try:
        return parse_statuses(setting)
    except ValueError as error:
        raise ConfigError(f"retry.statuses: {error}") from None


def retry_delay_ms(
    schedule_s: Sequence[float], attempt: int, jitter: float, chance: float, retry_after_s: int = 0
) -> int:
    """How long to wait after attempt number `attempt` (from 1). The schedule's last wait repeats; up to `jitter` of a
    wait is added, by `chance` in [0, 1); Retry-After can only make it longer, up to an hour."""
    wait_s = schedule_s[min(attempt, len(schedule_s)) - 1]
    wait_s *= 1 + jitter * chance
    return int(max(wait_s, min(retry_after_s, RETRY_AFTER_CAP_S)) * 1000)


def expires_at_ms(item: Item, expires_after_s: float) -> int:
    """When the postback is given up: counted from its start, with its own limit where it has one."""
    own_s = item.expires_after_s
    return item.due_from_ms + int((expires_after_s if own_s is None else own_s) * 1000)
