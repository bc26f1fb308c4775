# SPDX-License-Identifier: MIT
"""Idempotency keys: what makes two requests the same. Pure.

The scope of a key is its sender; the same key with the same decoded body is the same request, whatever blanks and
order of members it was sent with.
"""

import hashlib
import struct
from collections.abc import Sequence

import msgspec

from postbackd.codec import format_id
from postbackd.errors import RequestError

MAX_KEY_LENGTH = 255
_canonical = msgspec.json.Encoder(order="deterministic").encode  # members sorted, no blanks


def key_digest(sender: str, key: str) -> bytes:
    """The 16 bytes under which a key is kept; raises RequestError where it is none."""
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        message = f"Idempotency-Key has 1 to {MAX_KEY_LENGTH} printable ASCII characters."
        raise RequestError(422, "invalid_idempotency_key", message)
    return hashlib.blake2b(f"{sender}\0{key}".encode(), digest_size=16).digest()


def body_hash(body: bytes) -> bytes:
    """The digest of a body's meaning; the body has been decoded before and so can be again."""
    return hashlib.blake2b(_canonical(msgspec.json.decode(body)), digest_size=16).digest()


def pack_ids(ids: Sequence[int]) -> bytes:
    """Ids as they are kept with a key: 8 bytes each."""
    return struct.pack(f">{len(ids)}Q", *ids)


def format_ids(packed: bytes) -> list[str]:
    """The ids kept with a key, as users see them."""
    return [format_id(number) for (number,) in struct.iter_unpack(">Q", packed)]
