# SPDX-License-Identifier: MIT
"""Who may send: the bearer tokens of `ingest.tokens` (RFC 6750), compared in constant time. No I/O but the log.

An entry is `name:secret`, the name being what logs and idempotency scopes know the sender by, or a bare secret, whose
name is then `token-1`, `token-2` and so on by its place. Without entries everybody may send.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence

from postbackd import oplog
from postbackd.errors import ConfigError, RequestError
from postbackd.scoreboard import monotonic_ms

SCHEME = "bearer "
ANYBODY = ""  # the name of a sender where there are no tokens
SAY_EVERY_MS = 1000
_NAMED = re.compile(r"([A-Za-z0-9_-]{1,32}):(.+)", re.DOTALL)
_Digest = bytes


class Senders:
    """The tokens of one process, kept as digests."""

    def __init__(self, tokens: Sequence[str], now_ms: Callable[[], int] = monotonic_ms) -> None:
        """Raises ConfigError for an empty token, one that no header can carry, or a name given twice."""
        self._senders: list[tuple[str, _Digest]] = []
        for number, entry in enumerate(tokens, 1):
            found = _NAMED.fullmatch(entry)
            name, secret = found.groups() if found else (f"token-{number}", entry)
            if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
                raise ConfigError(f"ingest.tokens: {name} has to be printable ASCII without blanks, and not empty")
            if name in (known for known, _ in self._senders):
                raise ConfigError(f"ingest.tokens: the name {name} stands there twice")
            self._senders.append((name, _digest(secret)))
        self._now_ms = now_ms
        self._said_ms = -SAY_EVERY_MS
        self._unsaid = 0

    def name_of(self, authorization: str | None, address: str) -> str:
        """The sender that a request's Authorization header names; raises RequestError (401, 403)."""
        if not self._senders:
            return ANYBODY
        if authorization is None or not authorization.lower().startswith(SCHEME):
            self._say("missing", address)
            message = "Send a token of this daemon: Authorization: Bearer <token>."
            raise RequestError(401, "token_missing", message)
        digest = _digest(authorization[len(SCHEME) :].strip())
        name = None
        for known, expected in self._senders:  # all of them, whichever it is: the time taken tells nothing
            if hmac.compare_digest(digest, expected):
                name = known
        if name is None:
            self._say("unknown", address)
            raise RequestError(403, "token_unknown", "This token is not one of ingest.tokens.")
        return name

    def _say(self, why: str, address: str) -> None:
        """A line for failed tries, one a second at most; never the token itself."""
        self._unsaid += 1
        now_ms = self._now_ms()
        if now_ms - self._said_ms >= SAY_EVERY_MS:
            oplog.warning("token_refused", why=why, address=address, count=self._unsaid)
            self._said_ms, self._unsaid = now_ms, 0


def secret_of(entry: str) -> str:
    """The secret of an entry of `ingest.tokens`: what a client of ours sends."""
    found = _NAMED.fullmatch(entry)
    return found.group(2) if found else entry


def _digest(secret: str) -> _Digest:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
