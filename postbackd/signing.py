# SPDX-License-Identifier: MIT
"""Signatures of postbacks, by the Standard Webhooks specification (v1: HMAC-SHA256 over `id.timestamp.body`). Pure.

In: `security.signing_keys`, where a name stands for one secret (`whsec_` and base64), or for several with blanks or
commas between them, or a list of them. Every secret of a name signs, so a receiver may go over from an old secret to
a new one whenever it likes: rotation is adding the new one, and removing the old one later. Secrets stay in here: no
error and no log line has one.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence

from postbackd.errors import ConfigError

PREFIX = "whsec_"
MAX_SECRETS = 8  # of one name: a header of eight signatures has 400 bytes
SHORT_SECRET_BYTES = 24  # Standard Webhooks asks for 24 to 64; `postbackd check` warns of shorter ones
RESERVED_HEADERS = "webhook-"  # nobody else's headers begin so on a signed postback
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SigningKeys:
    """The keys of a configuration, by name."""

    def __init__(self, setting: Mapping[str, str | Sequence[str]]) -> None:
        """Raises ConfigError that names the key and never shows a secret."""
        self._secrets = {name: _secrets(name, value) for name, value in setting.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._secrets

    def short(self) -> list[str]:
        """Names that have a secret shorter than the specification asks for."""
        return [name for name, secrets in self._secrets.items() if min(map(len, secrets)) < SHORT_SECRET_BYTES]

    def headers(self, name: str, message_id: str, timestamp_s: int, body: bytes | None) -> list[bytes]:
        """The header lines of one attempt; `timestamp_s` is when it is made. Raises KeyError for an unknown name."""
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body or b"")
        signatures = b" ".join(b"v1," + _signature(secret, signed) for secret in self._secrets[name])
        return [
            b"webhook-id: " + message_id.encode(),
            b"webhook-timestamp: %d" % timestamp_s,
            b"webhook-signature: " + signatures,
        ]


def _signature(secret: bytes, signed: bytes) -> bytes:
    return base64.b64encode(hmac.digest(secret, signed, "sha256"))  # a third of what hmac.new takes


def _secrets(name: str, value: str | Sequence[str]) -> list[bytes]:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"security.signing_keys: {name!r:.80} is no name of a key: letters, digits and ._- make one")
    texts = [text for part in ([value] if isinstance(value, str) else value) for text in re.split(r"[\s,]+", part)]
    texts = [text for text in texts if text]
    if not 1 <= len(texts) <= MAX_SECRETS:
        raise ConfigError(f"security.signing_keys.{name}: has {len(texts)} secrets: 1 to {MAX_SECRETS} are taken")
    return [_decode(name, number, text) for number, text in enumerate(texts, 1)]


def _decode(name: str, number: int, text: str) -> bytes:
    inner = text.removeprefix(PREFIX)
    try:
        secret = base64.b64decode(inner + "=" * (-len(inner) % 4), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not secret:
        raise ConfigError(
            f"security.signing_keys.{name}: secret {number} is not whsec_ and base64: "
            'make one with echo "whsec_$(openssl rand -base64 32)"'
        )
    return secret
