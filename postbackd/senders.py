# SPDX-License-Identifier: MIT
"""Who may send, how often and where to: the bearer tokens of `ingest.tokens` (RFC 6750), compared in constant time,
and what `[ingest.senders."name"]` allows each. No I/O but the log.

An entry is `name:secret`, the name being what logs and idempotency scopes know the sender by, or a bare secret, whose
name is then `token-1`, `token-2` and so on by its place. Without entries everybody may send.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from postbackd import oplog
from postbackd.errors import ConfigError, RequestError
from postbackd.scoreboard import SENDERS, Scoreboard, SenderUses, monotonic_ms
from postbackd.settings import SenderLimits

SCHEME = "bearer "
SAY_EVERY_MS = 1000
_NAMED = re.compile(r"([A-Za-z0-9_-]{1,32}):(.+)", re.DOTALL)
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
_Digest = bytes


class Rate:
    """A token bucket that all ingest processes share: each sees what the others let in (SenderUses).

    Two processes may let in the last one at the same moment, so a burst can be over by one a process. A process that
    starts anew begins with a full bucket.
    """

    def __init__(
        self, per_s: float, burst: float, uses: SenderUses, column: int, now_ms: Callable[[], int] = monotonic_ms
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._uses = uses
        self._column = column
        self._now_ms = now_ms
        self._level = burst
        self._at_ms = now_ms()
        self._seen = uses.total(column)

    def take(self) -> None:
        """Let one request in; raises RequestError (429) when there is no room."""
        now_ms, total = self._now_ms(), self._uses.total(self._column)
        refilled = self._level + (now_ms - self._at_ms) * self._per_s / 1000 - (total - self._seen)
        self._level = max(min(refilled, self._burst), -self._burst)
        self._at_ms, self._seen = now_ms, total
        if self._level < 1:
            wait_s = math.ceil((1 - self._level) / self._per_s)
            message = f"This token may send {self._per_s:g} requests a second: send the request again in {wait_s} s."
            raise RequestError(429, "rate_limited", message, retry_after_s=wait_s)
        self._level -= 1
        self._seen += 1
        self._uses.add(self._column)


class Sender(msgspec.Struct, frozen=True):
    """Who sent a request, and what it may."""

    name: str
    rate: Rate | None = None
    hosts: tuple[str, ...] | None = None  # None: all

    def refuse_host(self, host: str | None) -> None:
        """Raise RequestError (403) unless this sender may send there; a host that is a placeholder is any host."""
        for allowed in self.hosts or ():
            if host == allowed or (host is not None and allowed[0] == "*" and host.endswith(allowed[1:])):
                return
        message = f"This token may not send to {(host or 'a host that comes from the data')[:255]}."
        raise RequestError(403, "host_not_allowed", message, "endpoint.url")


ANYBODY = Sender("")  # where there are no tokens


class Senders:
    """The tokens of one process, kept as digests."""

    def __init__(
        self,
        tokens: Sequence[str],
        limits: Mapping[str, SenderLimits] | None = None,
        uses: SenderUses | None = None,
        now_ms: Callable[[], int] = monotonic_ms,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ConfigError for a token that is empty or that no header can carry, and for a name that is given twice
        or has limits and no token. `on_refused` is told of each failed try."""
        self._senders: list[tuple[_Digest, Sender]] = []
        limits = limits or {}
        uses = uses or Scoreboard(1).sender_uses(0)
        names: list[str] = []
        for number, entry in enumerate(tokens, 1):
            found = _NAMED.fullmatch(entry)
            name, secret = found.groups() if found else (f"token-{number}", entry)
            if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
                raise ConfigError(f"ingest.tokens: {name} has to be printable ASCII without blanks, and not empty")
            if name in names:
                raise ConfigError(f"ingest.tokens: the name {name} stands there twice")
            names.append(name)
            own = limits.get(name, SenderLimits())
            rate = None if own.rate is None else self._rate(own, len(names) - 1, uses, now_ms)
            self._senders.append((_digest(secret), Sender(name, rate, _hosts(name, own) if own.hosts else None)))
        for name in limits:
            if name not in names:
                known = ", ".join(names) or "none"
                raise ConfigError(f"ingest.senders: no token has the name {name}: known are {known}")
        self._now_ms = now_ms
        self._on_refused = on_refused
        self._said_ms = -SAY_EVERY_MS
        self._unsaid = 0

    @staticmethod
    def _rate(own: SenderLimits, column: int, uses: SenderUses, now_ms: Callable[[], int]) -> Rate:
        if column >= SENDERS:
            raise ConfigError(f"ingest.senders: only the first {SENDERS} of ingest.tokens may have a rate")
        assert own.rate is not None
        return Rate(own.rate, max(own.burst or own.rate, 1.0), uses, column, now_ms)

    def find(self, authorization: str | None, address: str) -> Sender:
        """The sender that a request's Authorization header names; raises RequestError (401, 403)."""
        if not self._senders:
            return ANYBODY
        if authorization is None or not authorization.lower().startswith(SCHEME):
            self._refuse("missing", address)
            message = "Send a token of this daemon: Authorization: Bearer <token>."
            raise RequestError(401, "token_missing", message)
        digest = _digest(authorization[len(SCHEME) :].strip())
        sender = None
        for expected, known in self._senders:  # all of them, whichever it is: the time taken tells nothing
            if hmac.compare_digest(digest, expected):
                sender = known
        if sender is None:
            self._refuse("unknown", address)
            raise RequestError(403, "token_unknown", "This token is not one of ingest.tokens.")
        return sender

    def _refuse(self, why: str, address: str) -> None:
        """Count a failed try; a line for them, one a second at most; never the token itself."""
        self._on_refused()
        self._unsaid += 1
        now_ms = self._now_ms()
        if now_ms - self._said_ms >= SAY_EVERY_MS:
            oplog.warning("token_refused", why=why, address=address, count=self._unsaid)
            self._said_ms, self._unsaid = now_ms, 0


def secret_of(entry: str) -> str:
    """The secret of an entry of `ingest.tokens`: what a client of ours sends."""
    found = _NAMED.fullmatch(entry)
    return found.group(2) if found else entry


def _hosts(name: str, limits: SenderLimits) -> tuple[str, ...]:
    for host in limits.hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(
                f"ingest.senders.{name}.hosts: {host!r} has to be a host in lower case without its port, as a.example, "
                "or *.example for all below it"
            )
    return tuple(limits.hosts)


def _digest(secret: str) -> _Digest:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
