# SPDX-License-Identifier: MIT
"""The syntax of templates: text → pieces. Pure.

text         = literal, `{{`, `}}`, or a placeholder, in one pass from left to right; nothing is expanded twice
placeholder  = `{name}` or `{name|modifier|…}`; modifiers: raw, default:x, and those of template_modifiers.py
name         = a key of the data object, a dotted path into it, or @id @timestamp @timestamp_ms @attempt
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from postbackd import url as urls
from postbackd.template_modifiers import ModifierError, Step, make_step
from postbackd.url import UrlError

BUILT_INS = ("@id", "@timestamp", "@timestamp_ms", "@attempt")

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TemplateError(ValueError):
    """A template that cannot be compiled. `position` counts characters of its text, from 0."""

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message if position is None else f"{message[:-1]} (at character {position + 1}).")
        self.message = str(self)
        self.position = position


class Placeholder(NamedTuple):
    """One `{…}` of a template."""

    name: str
    raw: bool
    default: str | None
    steps: tuple[Step, ...]  # what its modifiers do to a value, in their order
    default_steps: tuple[Step, ...]  # those behind the default, which it goes through as well
    source: str  # as it was written, for `keep`
    position: int


Piece = str | Placeholder


def parse(text: str) -> list[Piece]:
    """The pieces of a template; raises TemplateError."""
    pieces: list[Piece] = []
    literal = ""
    end = 0
    for token in _TOKEN.finditer(text):
        literal += text[end : token.start()]
        end = token.end()
        found = token.group()
        if found in ("{{", "}}"):
            literal += found[0]
        elif len(found) == 1:
            message = f"A lone {found} has no meaning: write {found}{found} for the character itself."
            raise TemplateError(message, token.start())
        else:
            if literal:
                pieces.append(literal)
                literal = ""
            pieces.append(_parse_placeholder(token.group(1), found, token.start()))
    literal += text[end:]
    if literal:
        pieces.append(literal)
    return pieces


def _parse_placeholder(inner: str, source: str, position: int) -> Placeholder:
    name, *modifiers = inner.split("|")
    if not name:
        raise TemplateError("A placeholder without a name has no meaning: write {key}.", position)
    if name.startswith("@") and name not in BUILT_INS:
        raise TemplateError(f"There is no built-in {name[:40]}: known are {', '.join(BUILT_INS)}.", position)
    raw, default = False, None
    steps: list[Step] = []
    steps_before_default = 0
    at = position + 1 + len(name)
    for modifier in modifiers:
        kind, colon, argument = modifier.partition(":")
        if kind == "raw" and not colon:
            raw = True
        elif kind == "default" and colon:
            if default is not None:
                raise TemplateError("The modifier default stands there twice.", at + 1)
            default, steps_before_default = argument, len(steps)
        elif kind == "default":
            raise TemplateError("The modifier default needs its text, as in default:x.", at + 1)
        elif kind == "raw":
            raise TemplateError("The modifier raw takes nothing behind a colon.", at + 1)
        else:
            try:
                steps.append(make_step(kind, argument if colon else None))
            except ModifierError as error:
                raise TemplateError(str(error), at + 1) from None
        at += 1 + len(modifier)
    return Placeholder(name, raw, default, tuple(steps), tuple(steps[steps_before_default:]), source, position)


def split_url(pieces: Sequence[Piece]) -> tuple[str, list[Piece], list[Piece], list[Piece] | None]:
    """Scheme, authority, path and query (None without `?`) of a template; raises TemplateError and UrlError."""
    for piece in pieces:
        if isinstance(piece, str):
            urls.check_characters(piece)
    first = pieces[0] if pieces else ""
    if isinstance(first, Placeholder):
        raise TemplateError("The scheme cannot be a placeholder: write http:// or https://.", first.position)
    scheme, mark, rest = first.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in urls.DEFAULT_PORTS:
        raise UrlError("The URL must begin with http:// or https://.")
    authority: list[Piece] = []
    path: list[Piece] = []
    query: list[Piece] | None = None
    for piece in [rest, *pieces[1:]]:
        text = piece
        if isinstance(text, str) and not path and query is None:
            end = re.search(r"[/?]", text)
            if end is None:
                authority.append(text)
                continue
            authority.append(text[: end.start()])
            text = text[end.start() :]
            if text[0] == "?":
                path.append("/")
            elif text[0] == "/":
                path.append("/")
                text = text[1:]
        if isinstance(text, str) and query is None and "?" in text:
            before, _, text = text.partition("?")
            path.append(before)
            query = []
        target = query if query is not None else (path if path else authority)
        target.append(text)
    return scheme, authority, path or ["/"], query
