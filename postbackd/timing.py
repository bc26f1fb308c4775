# SPDX-License-Identifier: MIT
"""When a postback is due and when it is given up: the request's words → the trail behind its element. Pure.

`deliver_at` (RFC 3339 with a zone, or Unix seconds) or `delay` (seconds), and `expires_after` (seconds, counted from
then or else from acceptance) stand beside `endpoint` and `data`, and under `"@"` in an item, which goes before.
"""

from datetime import datetime
from typing import Any

import msgspec

from postbackd.codec import trail_expiry, trail_start
from postbackd.errors import RequestError

MAX_AHEAD_S = 29 * 86_400  # an endpoint's record is kept 30 days from its last use by ingest
MEMBERS = frozenset({"deliver_at", "delay", "expires_after"})


class Timing(msgspec.Struct, frozen=True):
    """What a request or an item says, checked. None: nothing."""

    deliver_at_s: float | None = None  # Unix seconds
    delay_s: float | None = None
    expires_after_s: float | None = None

    def over(self, outer: "Timing") -> "Timing":
        """This item's words, those of its request where it has none."""
        says_when = self.deliver_at_s is not None or self.delay_s is not None
        return Timing(
            self.deliver_at_s if says_when else outer.deliver_at_s,
            self.delay_s if says_when else outer.delay_s,
            outer.expires_after_s if self.expires_after_s is None else self.expires_after_s,
        )

    def trail(self, now_ms: int, default_expires_after_s: float, path: str) -> bytes:
        """What goes behind the element; raises RequestError when it is too far ahead. `now_ms` is server time."""
        wait_s = self.delay_s or 0.0
        if self.deliver_at_s is not None:
            wait_s = max(self.deliver_at_s - now_ms / 1000, 0.0)
        expires_after_s = default_expires_after_s if self.expires_after_s is None else self.expires_after_s
        if wait_s + expires_after_s > MAX_AHEAD_S:
            message = (
                f"The postback would be kept for {(wait_s + expires_after_s) / 86_400:.1f} days: deliver_at (or delay) "
                f"and expires_after ({expires_after_s:g} s) may reach 29 days ahead together."
            )
            raise RequestError(422, "too_far_ahead", message, path)
        trail = trail_start(now_ms + round(wait_s * 1000)) if wait_s > 0 else b""
        return trail if self.expires_after_s is None else trail + trail_expiry(self.expires_after_s)


NOTHING = Timing()


def read_timing(members: dict[str, Any], parent: str) -> Timing:
    """Check the members found in a request or under an item's `"@"`; raises RequestError."""

    def path_of(name: str) -> str:
        return f"{parent}.{name}" if parent else name

    for name in members:
        if name not in MEMBERS:
            message = f'"@" has no member `{name[:80]}`: it has deliver_at, delay and expires_after.'
            raise RequestError(422, "unknown_member", message, path_of(name))
    at, delay, expires_after = (members.get(name) for name in ("deliver_at", "delay", "expires_after"))
    if at is not None and delay is not None:
        raise RequestError(422, "invalid_value", "Give deliver_at or delay, not both.", path_of("delay"))
    return Timing(
        None if at is None else _unix_s(at, path_of("deliver_at")),
        None if delay is None else _seconds(delay, path_of("delay"), 0.0),
        None if expires_after is None else _seconds(expires_after, path_of("expires_after"), 0.001),
    )


def _unix_s(value: object, path: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
        if at is not None and at.tzinfo is not None:
            return at.timestamp()
    message = "deliver_at is a time with its zone as 2026-11-24T01:02:03Z, or Unix seconds."
    raise RequestError(422, "invalid_value", message, path)


def _seconds(value: object, path: str, least_s: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and least_s <= value <= MAX_AHEAD_S:
        return float(value)
    message = f"{path.rpartition('.')[2]} is a number of seconds, {least_s:g} to {MAX_AHEAD_S} (29 days)."
    raise RequestError(422, "invalid_value", message, path)
