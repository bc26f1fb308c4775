# SPDX-License-Identifier: MIT
"""A request's bytes → its endpoint and its items, or why they are refused. Pure.

All or nothing: what decodes here is whole. The endpoint stays bytes (endpoint.py checks it), items stay untyped.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from postbackd.errors import RequestError

MAX_DEPTH = 64  # of the whole document; the request, its list and the item are three of them
ITEM_DEPTH = 3


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """A request whose items are wanted as objects. Decoding it validates every byte of `data`."""

    endpoint: msgspec.Raw
    data: list[dict[str, Any]] | dict[str, Any]
    deliver_at: Any = None
    delay: Any = None
    expires_after: Any = None

    def timing(self) -> dict[str, Any]:
        """What it says of when its postbacks are due or expire."""
        return {"deliver_at": self.deliver_at, "delay": self.delay, "expires_after": self.expires_after}


class RawRequest(msgspec.Struct):
    """The same request once more, its items as the bytes that were sent (for JSON bodies)."""

    endpoint: msgspec.Raw
    data: msgspec.Raw


decode_request = msgspec.json.Decoder(Request).decode
_decode_raw_request = msgspec.json.Decoder(RawRequest).decode
_decode_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_MSGSPEC_PATH = re.compile(r" - at `\$\.?(?:<[^`]*>)?([^`]*)`$")
_UNKNOWN_MEMBER = re.compile(r"unknown field `([^`]*)`")
_MISSING_MEMBER = re.compile(r"missing required field `([^`]*)`")


def is_too_deep(value: object, levels_left: int) -> bool:
    """Whether a decoded value nests deeper than allowed; msgspec itself has no limit below Python's stack."""
    children: Iterable[object]
    if type(value) is dict:
        children = value.values()
    elif type(value) is list:
        children = value
    else:
        return False
    if levels_left <= 0:
        return True
    return any(is_too_deep(child, levels_left - 1) for child in children)


def too_deep() -> RequestError:
    return RequestError(400, "malformed_json", f"The JSON nests deeper than {MAX_DEPTH} levels.")


def json_fault(text: bytes, levels: int) -> RequestError | None:
    """Why a text is no JSON that is taken, None when it is."""
    try:
        return too_deep() if is_too_deep(_decode_any(text), levels) else None
    except RecursionError:
        return too_deep()
    except UnicodeDecodeError as error:
        return RequestError(400, "malformed_json", f"The body is not UTF-8 (byte {error.start} of a string).")
    except msgspec.ValidationError:
        return RequestError(400, "malformed_json", "A number is out of the range of a double (about 1.8e308).")
    except msgspec.DecodeError as error:
        return RequestError(400, "malformed_json", f"{error}.")


def _validation_error(error: msgspec.ValidationError) -> RequestError:
    """Name the member that is unknown, missing or of the wrong type."""
    text = str(error)
    found = _MSGSPEC_PATH.search(text)
    parent = found.group(1) if found else ""
    text = _MSGSPEC_PATH.sub("", text)

    def path_of(member: str) -> str:
        return f"{parent}.{member}" if parent else member

    if unknown := _UNKNOWN_MEMBER.search(text):
        name = unknown.group(1)
        message = (
            f"The request has no member `{name}`: it has `endpoint` and `data`, and perhaps `deliver_at` or `delay`, "
            "and `expires_after`."
        )
        return RequestError(422, "unknown_member", message, path_of(name))
    if missing := _MISSING_MEMBER.search(text):
        name = missing.group(1)
        return RequestError(422, "missing_member", f"The request needs a member `{name}`.", path_of(name))
    return RequestError(422, "invalid_type", f"{text}.", parent or None)


def explain_rejection(body: bytes) -> RequestError:
    """Why a body that did not decode as a request is refused. The slow path: it decodes once more, untyped.

    A body that is no JSON at all is a 400 wherever its fault stands, even behind a member of the wrong type.
    """
    if not body.strip():
        return RequestError(400, "empty_body", "The body is empty: send {endpoint, data} as JSON.")
    if fault := json_fault(body, MAX_DEPTH):
        return fault
    try:
        decode_request(body)
    except msgspec.ValidationError as error:
        return _validation_error(error)
    return RequestError(400, "malformed_json", "The body is not JSON that can be read.")


def raw_items(body: bytes) -> list[bytes]:
    """Each item's JSON exactly as it was sent."""
    data = _decode_raw_request(body).data
    text = bytes(data)
    if text.lstrip()[:1] == b"[":
        return [bytes(item) for item in _decode_raw_items(text)]
    return [text]
