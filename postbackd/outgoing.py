# SPDX-License-Identifier: MIT
"""What a request that goes out may be made of: method, header names, media type, scheme. Pure.

Ingest refuses the rest with a 422; delivery looks at the stored record once more, since whoever can write to Redis
could otherwise send anything anywhere: a line break in a method or in a header's name begins another request.
"""

import re
from collections.abc import Container

from postbackd.codec import BodyTemplate, EndpointRecord
from postbackd.signing import RESERVED_HEADERS
from postbackd.template_values import CONTROL

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
# Those that frame the message or belong to one connection; Host would name another site than the URL.
FORBIDDEN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "te", "upgrade", "trailer", "keep-alive"}
)
LEAST_TIMEOUT_S, MOST_TIMEOUT_S = 0.1, 60

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 field-name
_MEDIA_TYPE = re.compile(r"[!#$&^_.+0-9A-Za-z-]+/[!#$&^_.+0-9A-Za-z-]+\s*(;[\x20-\x7e]*)?")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


class OutgoingError(ValueError):
    """Something that no request of ours has; the text is a sentence for the sender."""


def check_method(method: str) -> None:
    """Raises OutgoingError."""
    if method not in METHODS:
        raise OutgoingError(f"The method {method[:20]!r} is not one of {', '.join(METHODS)}.")


def check_header_name(name: str, is_signed: bool) -> None:
    """Raises OutgoingError."""
    lower = name.lower()
    if not _TOKEN.fullmatch(name):
        raise OutgoingError(f"{name[:80]!r} is no header name by RFC 9110.")
    if lower in FORBIDDEN_HEADERS or lower.startswith("proxy-"):
        raise OutgoingError(f"The header {name} is set by the transfer itself: leave it out.")
    if is_signed and lower.startswith(RESERVED_HEADERS):
        raise OutgoingError(f"The header {name} is the signature's (`sign` is set): leave it out.")


def check_media_type(text: str) -> None:
    """Raises OutgoingError."""
    if not _MEDIA_TYPE.fullmatch(text):
        raise OutgoingError(f"{text[:80]!r} is no media type, as application/json is.")


def check_scheme(scheme: str, allowed: Container[str]) -> None:
    """Raises OutgoingError."""
    if scheme not in allowed:
        raise OutgoingError(f"The scheme {scheme} is not allowed by security.schemes.")


def check_record(record: EndpointRecord) -> None:
    """All that can be said of a stored record before it is compiled; raises OutgoingError."""
    check_method(record.method)
    for name, value in record.headers:
        check_header_name(name, record.sign is not None)
        if CONTROL.search(_PLACEHOLDER.sub("", value)):
            raise OutgoingError(f"The header {name} has a control character.")
    if record.timeout is not None and not LEAST_TIMEOUT_S <= record.timeout <= MOST_TIMEOUT_S:
        raise OutgoingError(f"The time-out {record.timeout} is not {LEAST_TIMEOUT_S} to {MOST_TIMEOUT_S} seconds.")
    if isinstance(record.body, BodyTemplate):
        check_media_type(record.body.content_type)
