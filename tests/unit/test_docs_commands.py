# SPDX-License-Identifier: MIT
"""Every `postbackd …` that README and docs/ tell a person to type is one that the command line takes."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import click
import pytest

from postbackd.cli import main
from postbackd.errors import PostbackdError
from postbackd.settings_loader import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BEFORE = r"(?:\$ )?(?:sudo (?:-u \S+ )?)?(?:\S*/)?"  # a prompt, another user, a path
TYPED = re.compile(rf"{BEFORE}postbackd(?=$| [a-z-])(.*)", re.DOTALL)
STAND_INS = {"ID": "0cabdc98cbb61800", "FILE": __file__, "F": __file__, "HOST": "a.example", "REASON": "expired"}
PLACEHOLDER = re.compile(r"section\.key=value|…")


def typed(page: str) -> Iterator[str]:
    """What stands behind `postbackd` in code blocks and inline code, without comment and without the rest of a pipe."""
    text = re.sub(r"^```.*?\n(.*?)^```", lambda fenced: indent(fenced[1], "    "), page, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^(?: {4,}|\t)(\S.*)$", text, re.MULTILINE)
    prose = re.sub(r"^(?: {4,}|\t)\S.*$", "", text, flags=re.MULTILINE)
    prose += "\n".join(line for line in blocks if "`" in line)  # a list item's further lines
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in [line for line in blocks if "`" not in line] + spans:
        if (match := TYPED.fullmatch(line.strip())) is not None:
            yield re.split(r"\s#|\s[|&;<>]|;", match[1])[0].strip()


def refusal(line: str) -> str | None:
    """Why the command line would not take it."""
    words = [STAND_INS.get(word, word) for word in shlex.split(line)]
    command: click.Command = main
    try:
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name = words.pop(0)
            if name not in command.commands:
                return f"there is no command {name}"
            command = command.commands[name]
        if not isinstance(command, click.Group) and words:  # without any, it is a command's name in a sentence
            context = command.make_context(command.name, words)
            load(None, {}, [one for one in context.params.get("overrides", ()) if not PLACEHOLDER.search(one)])
    except (click.ClickException, PostbackdError) as error:
        return error.format_message() if isinstance(error, click.ClickException) else str(error)
    except click.exceptions.Exit:  # --help, --version
        pass
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_documentation_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("POSTBACKD_")]:
        monkeypatch.delenv(name)
    refused = {line: why for line in typed(page.read_text()) if (why := refusal(line)) is not None}
    assert not refused


def test_the_search_finds_them() -> None:
    page = """
Text, `postbackd status
--json`, and `postbackd`.

    $ postbackd dead list --since 2h | head   # why
    sudo -u postbackd .venv/bin/postbackd explain ID
- An item:

      postbackd tail --failed > file; true

```sh
/usr/bin/postbackd check -c /etc/a.toml
```
    as `postbackd top` in a block
"""
    found = ["dead list --since 2h", "explain ID", "tail --failed", "check -c /etc/a.toml", "status --json", "", "top"]
    assert list(typed(page)) == found
    assert sum(len(list(typed(page.read_text()))) for page in PAGES) > 60, "or the search finds no more what is there"


def test_wrong_ones_are_refused() -> None:
    assert refusal("dead lst") == "there is no command lst"
    assert "No such option" in str(refusal("tail --host a --fialed"))
    assert "no such setting" in str(refusal("run --set ingest.prt=1"))
    assert "is not one of" in str(refusal("dead list --reason refused"))
    assert refusal("dead replay --host HOST --rate 50") is None
