# SPDX-License-Identifier: MIT
"""docs/configuration.md, written from the settings' declarations: `python -m postbackd.tools.settings_doc`.

In: settings.py. Out: the whole page on standard output. A test holds the file in docs/ against it.
"""

import types
import typing
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from postbackd.settings import Declaration, Host, Settings, declarations, declarations_of

INTRO = """\
# Configuration

This page is written from the declarations in `postbackd/settings.py` (`make config`); do not edit it.

Settings come from a TOML file (`-c FILE`, or the one that `POSTBACKD_CONFIG` names), then from the environment
(`POSTBACKD_INGEST__PORT=9000`), then from `--set ingest.port=9000`; the later one wins. `postbackd config` prints what
is in force, secrets masked, and `postbackd check` judges it. An unknown key or a wrong value ends the start with one
line that names the nearest right one. Durations are seconds and may have fractions; sizes are bytes.

"Reload" tells whether a SIGHUP takes up a changed value; the others need a restart.
"""

TABLE_HEAD = "| setting | default | meaning | unit | reload |\n|---|---|---|---|---|\n"
HOSTS_INTRO = """
## [hosts."api.partner.example"]

What is different for one host. The key is the host as in the URL, in lower case, with `:port` where it is not the
scheme's own.

"""


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    section = None
    for declaration in declarations():
        if declaration.section != section:
            section = declaration.section
            parts += [f"\n## [{section}]\n\n" if section else "\n## At the top\n\n", _about(section), TABLE_HEAD]
        parts.append(_row(declaration))
    parts += [HOSTS_INTRO, TABLE_HEAD]
    parts += [_row(declaration) for declaration in declarations_of("hosts", Host)]
    return "".join(parts)


def _about(section: str) -> str:
    if not section:
        return ""
    kind = next(field.type for field in msgspec.structs.fields(Settings) if field.name == section)
    doc = (getattr(kind, "__doc__", None) or "").strip()
    return f"{doc}\n\n" if doc else ""


def _row(declaration: Declaration) -> str:
    default = _default(declaration)
    text = declaration.text
    if declaration.choices:
        some = "any of" if isinstance(declaration.default, list) else "one of"
        text += f"; {some} " + ", ".join(f"`{choice}`" for choice in declaration.choices)
    if bounds := _bounds(declaration.type):
        text += f"; {bounds}"
    reload = "yes" if declaration.reload else ""
    return f"| `{declaration.name}` | {default} | {_escape(text)} | {declaration.unit} | {reload} |\n"


def _default(declaration: Declaration) -> str:
    value = declaration.default
    if value is None:
        return "as in [delivery]" if declaration.section == "hosts" else "none"
    return f"`{_escape(msgspec.json.encode(value).decode())}`"


def _bounds(annotation: Any) -> str:
    """The bounds of a type, in words."""
    found: list[str] = []
    _collect(annotation, found)
    return ", ".join(dict.fromkeys(found))


def _collect(annotation: Any, found: list[str]) -> None:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *marks = typing.get_args(annotation)
        _collect(inner, found)
        for mark in marks:
            if isinstance(mark, Meta):
                found += [
                    f"{word} {bound}"
                    for word, bound in (("≥", mark.ge), (">", mark.gt), ("≤", mark.le))
                    if bound is not None
                ]
    elif origin is typing.Union or origin is types.UnionType:
        for part in typing.get_args(annotation):
            _collect(part, found)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
