# SPDX-License-Identifier: MIT
"""How a value becomes text in each place of a request: URL, host, header, JSON, XML. Pure.

In: a value of the queue element (str, int, float, bool, or bytes that hold a container's compact JSON). Out: text
that can change nothing of the structure around it, or a RenderError.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from postbackd.codec import ErrorClass
from postbackd.url import encode_uri, encode_value

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_XML_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})

Encode = Callable[[Any], str]


class RenderError(ValueError):
    """Values that make no request of this template; the postback is dead."""

    def __init__(self, message: str, error_class: ErrorClass = ErrorClass.RENDER_ERROR) -> None:
        super().__init__(message)
        self.error_class = error_class


def value_text(value: Any) -> str:
    """A value of the queue element as text: integers exact, floats as repr, containers as their compact JSON."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return "true" if value else "false"
    if kind is bytes:
        return value.decode(errors="replace")  # type: ignore[no-any-return]
    return repr(value)


def url_value(value: Any) -> str:
    return encode_value(value if type(value) is str else value_text(value))


def url_raw(value: Any) -> str:
    return encode_uri(value_text(value))


def host_value(value: Any) -> str:
    text = value_text(value)
    if not re.fullmatch(
        r"[\w.-]+", text
    ):  # letters of other scripts become A-labels, or the host is refused as a whole
        raise RenderError(f"the value {text[:40]!r} cannot be part of a host name")
    return text


def header_value(value: Any) -> str:
    text = value_text(value)
    if CONTROL.search(text):
        raise RenderError("a value for a header has a control character")
    return text


def json_inside_string(value: Any) -> str:
    return msgspec.json.encode(value_text(value)).decode()[1:-1]


def json_value(value: Any) -> str:
    if type(value) is bytes:
        return value.decode(errors="replace")
    return msgspec.json.encode(value).decode()


def xml_value(value: Any) -> str:
    return value_text(value).translate(_XML_ESCAPES)
