# SPDX-License-Identifier: MIT
"""docs/runbook.md knows every alert, every warning and error of the log, and the lines it explains are still said."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
TREES = [ast.parse(path.read_text()) for path in sorted((ROOT / "postbackd").rglob("*.py"))]
SHARD_EVENTS = {"redis_lost", "redis_still_lost"}  # in a variable, see delivery/shard.py


def section(heading: str) -> str:
    return RUNBOOK.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def said(levels: tuple[str, ...]) -> Iterator[str]:
    """The events of every `oplog.warning("…")` and `oplog.error("…")`."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels:
            owner, event = node.func.value, node.args[0]
            if isinstance(owner, ast.Name) and owner.id == "oplog" and isinstance(event, ast.Constant):
                yield event.value


def texts() -> Iterator[str]:
    """Every string of the code, f-strings with … for what is filled in."""
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_every_alert_is_in_its_table() -> None:
    rules = [rule for group in yaml.safe_load((ROOT / "etc/prometheus/alerts.yml").read_text())["groups"]
             for rule in group["rules"]]  # fmt: skip
    assert {rule["alert"] for rule in rules} == set(re.findall(r"Postbackd\w+", section("Which alert")))


def test_every_warning_and_error_is_in_its_table() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("Every warning and error in the log"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(said(("warning", "error"))) | SHARD_EVENTS


def test_lines_that_are_explained_are_still_said() -> None:
    everything = "\n".join(texts())
    rows = re.findall(r"^\| (`.*?) \|", section("It does not start, or a reload is refused"), re.MULTILINE)
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row)]
    parts = [part.strip(" :()") for line in lines for part in line.split("…") if part.strip(" :()")]
    assert len(lines) > 20
    assert [part for part in parts if part not in everything and part != "Expected"] == []  # Expected: msgspec's


def test_links_from_it_and_to_it_lead_to_sections() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for file, anchor in re.findall(r"\]\(([\w/.-]*\.md)?#([\w-]+)\)", page.read_text()):
            target = page if not file else page.parent / file
            if "runbook.md" not in (page.name, target.name):
                continue
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name}: {file}#{anchor}"
