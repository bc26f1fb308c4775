# SPDX-License-Identifier: MIT
"""`postbackd audit`: what was acknowledged against what arrived: lost, duplicated, out of nowhere.

Sent: any text in which the ids stand (the answers of ingest, the output of `postbackd send`), read for everything
that looks like an id. Received: a sink's record, where only what was answered 2xx counts as delivered, or a delivery
log, where only `delivered` does, and where one given up as a dead letter, which is kept, is told apart from a lost one.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from postbackd.codec import format_id, parse_id
from postbackd.errors import ExitCode, PostbackdError
from postbackd.suggestion import command

_ID = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{16}(?![0-9a-zA-Z])")
_decode = msgspec.json.Decoder().decode


class Audit(NamedTuple):
    """The result; ids as numbers."""

    sent: int
    delivered: int  # requests delivered, duplicates counted
    lost: list[int]
    duplicated: dict[int, int]  # id → how often it was delivered
    out_of_nowhere: list[int]  # delivered, and in no sent file: not acknowledged, or another's
    dead: list[int]  # never delivered, and given up by the delivery log: not lost


def read_sent(files: Iterable[Path]) -> set[int]:
    """Every id in the files."""
    return {parse_id(text) for file in files for line in _lines(file) for text in _ID.findall(line)}


def read_delivered(files: Iterable[Path], sent: set[int], dead: set[int] | None = None) -> Iterator[int]:
    """The id of every delivery that the files show; those that a delivery log gives up are added to `dead`.

    Torn lines (a killed sink, a full disk under the log) are passed over and told: that can only make more lost.
    """
    for file in files:
        whole = 0
        torn: list[int] = []
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            entry = _entry_of(line)
            if entry is None:
                torn.append(number)
                continue
            whole += 1
            if dead is not None and entry.get("outcome") == "dead" and entry["id"]:
                dead.add(parse_id(entry["id"]))
            found = _id_of(entry, sent)
            if found is not None:
                yield found
        if torn and not whole:
            raise PostbackdError(
                f"{file}:{torn[0]}: no JSON line and no id: give a sink's record (sink --record), a delivery log or ids"
            )
        if torn:
            click.echo(f"postbackd: {file}: {len(torn)} torn lines passed over, the first is {torn[0]}", err=True)


def _entry_of(line: str) -> dict[str, Any] | None:
    try:
        entry = _decode(line)
    except msgspec.DecodeError:
        entry = None
    if isinstance(entry, dict):
        return entry
    return {"url": line.strip()} if _ID.fullmatch(line.strip()) else None  # a partner's list of ids


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            yield from lines
    except OSError as error:
        raise PostbackdError(f"{file}: cannot be read: {error.strerror}") from None


def _id_of(entry: dict[str, Any], sent: set[int]) -> int | None:
    """The postback that a recorded request delivered, or None: it was refused, or it names none."""
    if "outcome" in entry:
        return parse_id(entry["id"]) if entry["outcome"] == "delivered" and entry["id"] else None
    status = entry.get("status", 200)
    if status is None or not 200 <= status < 300:
        return None
    places = [entry.get("url", ""), *entry.get("headers", {}).values(), entry.get("body", "")]
    found = [parse_id(text) for place in places for text in _ID.findall(place)]
    return next((number for number in found if number in sent), found[0] if found else None)


def compare(sent: set[int], delivered: Iterable[int], dead: Iterable[int] = ()) -> Audit:
    """Lost, duplicated, out of nowhere, dead. `dead` is looked at when all of `delivered` was read."""
    counts = Counter(delivered)
    missing = sent - counts.keys()
    given_up = missing & set(dead)
    return Audit(
        len(sent),
        counts.total(),
        sorted(missing - given_up),
        {number: count for number, count in counts.items() if count > 1},
        sorted(counts.keys() - sent),
        sorted(given_up),
    )


def audit(sent_files: Iterable[Path], received_files: Iterable[Path], show: int, as_json: bool) -> int:
    """Print the result; exit code 1 when anything is lost, which what is dead is not."""
    sent = read_sent(sent_files)
    if not sent:  # an audit of nothing finds nothing lost, which must not look like a proof
        raise PostbackdError("no id in what was sent: give the answers of ingest, or the output of postbackd send")
    dead: set[int] = set()
    found = compare(sent, read_delivered(received_files, sent, dead), dead)
    repeated = sum(found.duplicated.values()) - len(found.duplicated)
    if as_json:
        report = {
            "sent": found.sent,
            "delivered": found.delivered,
            "lost": [format_id(number) for number in found.lost],
            "duplicated": {format_id(number): count for number, count in found.duplicated.items()},
            "repeated_deliveries": repeated,
            "out_of_nowhere": [format_id(number) for number in found.out_of_nowhere],
            "dead": [format_id(number) for number in found.dead],
        }
        click.echo(json.dumps(report))
    else:
        click.echo(f"sent            {found.sent}")
        click.echo(f"delivered       {found.delivered}")
        click.echo(f"lost            {len(found.lost)}")
        click.echo(f"dead            {len(found.dead)}")
        click.echo(f"duplicated      {len(found.duplicated)} ({repeated} deliveries too many)")
        click.echo(f"out of nowhere  {len(found.out_of_nowhere)}")
        named = (
            ("lost", found.lost),
            ("dead", found.dead),
            ("duplicated", sorted(found.duplicated)),
            ("out of nowhere", found.out_of_nowhere),
        )
        for name, numbers in named:
            for number in numbers[:show]:
                click.echo(f"{name}: {format_id(number)}  ({command('explain ' + format_id(number))})")
    return ExitCode.FAILED if found.lost else ExitCode.OK
