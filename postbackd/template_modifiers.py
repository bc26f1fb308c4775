# SPDX-License-Identifier: MIT
"""Modifiers: what stands behind `|` in a placeholder, and what it does to a value. Pure.

Each takes a value and gives the next: a value of the queue element at first, text afterwards (`json` gives bytes, as
containers have them: JSON that goes into a JSON body as it is). They run from left to right, before the place they
stand in encodes what comes out. `raw` and `default:x` are template_syntax.py's: they are about encoding and missing
values, not about values.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from postbackd.template_values import RenderError, value_text

Step = Callable[[Any], Any]

MS_FROM = 100_000_000_000  # a number from here on is milliseconds: as seconds it would be the year 5138
DIRECTIVES = frozenset("aAbBdfFGHIjmMpsSTuUVwWyYzZ%")  # of date; %s is Unix seconds
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d+)?")


class ModifierError(ValueError):
    """A modifier that cannot be; the text is a sentence for the template's author."""


def _hashed(name: str) -> Step:
    def step(value: Any) -> str:
        return hashlib.new(name, value_text(value).encode(), usedforsecurity=False).hexdigest()

    return step


def _b64url(value: Any) -> str:
    return base64.urlsafe_b64encode(value_text(value).encode()).decode().rstrip("=")


def _json(value: Any) -> bytes:
    return value if type(value) is bytes else msgspec.json.encode(value)


PLAIN: dict[str, Step] = {
    "lower": lambda value: value_text(value).lower(),
    "upper": lambda value: value_text(value).upper(),
    "trim": lambda value: value_text(value).strip(),
    "md5": _hashed("md5"),
    "sha1": _hashed("sha1"),
    "sha256": _hashed("sha256"),
    "b64url": _b64url,
    "json": _json,
}
WITH_ARGUMENT = ("default", "map", "date")
NAMES = ("raw", *PLAIN, *(f"{name}:…" for name in WITH_ARGUMENT))


def make_step(name: str, argument: str | None) -> Step:
    """The step of a modifier other than raw and default; `argument` is what stands behind its colon, if there is one.
    Raises ModifierError."""
    if name in PLAIN:
        if argument is not None:
            raise ModifierError(f"The modifier {name} takes nothing behind a colon.")
        return PLAIN[name]
    if name == "map" and argument is not None:
        return _map(argument)
    if name == "date" and argument is not None:
        return _date(argument)
    if name in ("map", "date"):
        example = "map:a=b,c=d" if name == "map" else "date:%Y-%m-%d"
        raise ModifierError(f"The modifier {name} needs its argument, as in {example}.")
    raise ModifierError(f"There is no modifier {name[:40]!r}: known are {', '.join(NAMES)}.")


def _map(argument: str) -> Step:
    """`map:a=b,c=d`: a value that is listed becomes what stands for it, any other stays as it is."""
    table: dict[str, str] = {}
    for pair in argument.split(","):
        key, equals, text = pair.partition("=")
        if not equals:
            raise ModifierError(f"The modifier map lists pairs as a=b,c=d: {pair[:40]!r} is none.")
        if key in table:
            raise ModifierError(f"The modifier map has {key[:40]!r} twice.")
        table[key] = text

    def step(value: Any) -> Any:
        return table.get(value_text(value), value)

    return step


def _date(pattern: str) -> Step:
    """`date:FORMAT`: a time as strftime writes it, in UTC."""
    if not pattern:
        raise ModifierError("The modifier date needs a format, as in date:%Y-%m-%d.")
    for directive in _DIRECTIVE.findall(pattern):
        if directive not in DIRECTIVES or not directive:
            known = " ".join(f"%{letter}" for letter in sorted(DIRECTIVES))
            raise ModifierError(f"The modifier date has no %{directive}: known are {known}.")

    def step(value: Any) -> str:
        at = _time_of(value)

        def text_of(found: re.Match[str]) -> str:
            # One directive at a time: what stands between is not strftime's, whose idea of it goes by the locale.
            if found.group() == "%s":
                return str(int(at.timestamp() // 1))
            return f"{at.year:04d}" if found.group() == "%Y" else at.strftime(found.group())

        return _DIRECTIVE.sub(text_of, pattern)

    return step


def _time_of(value: Any) -> datetime:
    """Unix seconds or milliseconds (a number, or digits), or an ISO 8601 time; UTC where it has no zone."""
    text = value_text(value).strip()
    try:
        if type(value) is not bool and _NUMBER.fullmatch(text):
            number = float(text)
            return datetime.fromtimestamp(number / 1000 if abs(number) >= MS_FROM else number, UTC)
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise RenderError(f"the value {text[:40]!r} is no time: date takes Unix seconds or ISO 8601") from None
