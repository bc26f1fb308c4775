# SPDX-License-Identifier: MIT
"""The layout, held: who imports what, that nothing goes in circles, and that files keep to their size."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "postbackd"
MAX_LINES = 400
PURE = [
    "codec",
    "template",
    "template_syntax",
    "template_values",
    "template_modifiers",
    "template_text",
    "statuses",
    "outgoing",
    "url",
    "endpoint",
    "request",
    "idempotency",
    "signing",
    "delivery.outcome",
    "delivery.schedule",
    "delivery.lane",
    "delivery.lanes",
    "delivery.breaker",
    "delivery.flow_limit",
    "delivery.recall",
    "delivery.egress",
    "delivery.pace",
    "delivery.pacer",
    "rate_board",
    "admin.history",
    "admin.host_troubles",
    "oplog_limit",
    "tools.board",
    "tools.figures",
    "tools.plain_text",
    "admin.hosts",
    "admin.host_series",
    "admin.totals",
    "tally",
]
IO_MODULES = {"socket", "redis", "pycurl", "bjoern", "subprocess", "select", "os", "threading", "time", "hiredis"}
ONLY_IN = {
    "redis": ["queue."],
    "hiredis": ["queue."],
    "pycurl": ["delivery.transfer", "delivery.curl_options"],
    "bjoern": ["server."],
    "falcon": ["ingest", "methods", "admin."],
    "prometheus_client": ["admin."],
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Full names of what a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


MODULES = dict(modules())
OURS = {name: {i.removeprefix("postbackd.") for i in imports_of(path) if i.startswith("postbackd.")} & set(MODULES)
        for name, path in MODULES.items()}  # fmt: skip


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_in_its_place_only(library: str) -> None:
    users = [name for name, path in MODULES.items() if library in {i.split(".")[0] for i in imports_of(path)}]
    assert users, "the rule is about something"
    assert [
        name for name in users if not any(name == place or name.startswith(place) for place in ONLY_IN[library])
    ] == []


@pytest.mark.parametrize("name", PURE)
def test_pure_module_imports_no_io(name: str) -> None:
    assert {i.split(".")[0] for i in imports_of(MODULES[name])} & IO_MODULES == set()


def test_no_import_goes_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for other in OURS[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_queue_and_transfer_know_neither_each_other_nor_their_callers() -> None:
    callers = {"ingest", "supervisor", "children", "cli"}
    for name in MODULES:
        if name.startswith("queue."):
            assert {i for i in OURS[name] if i in callers or i.startswith(("delivery.", "server."))} == set(), name
    assert not {i for i in OURS["delivery.transfer"] if i.startswith("queue") or i in callers}


@pytest.mark.parametrize("call", ["fork", "kill"])
def test_processes_are_made_and_ended_in_two_files(call: str) -> None:
    users = [
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == call
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    assert set(users) == {"worker_pool"} if call == "fork" else set(users) <= {"worker_pool", "supervisor"}


@pytest.mark.parametrize("name", MODULES)
def test_file_is_short_and_says_what_it_is_for(name: str) -> None:
    text = MODULES[name].read_text()
    assert text.startswith("# SPDX-License-Identifier: MIT\n")
    assert ast.get_docstring(ast.parse(text)), "a module docstring"
    assert len(text.splitlines()) <= MAX_LINES
