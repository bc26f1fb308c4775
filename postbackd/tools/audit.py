# SPDX-License-Identifier: MIT
"""`postbackd audit`: what was acknowledged against what arrived: lost, waiting, dead, duplicated, others.

Sent: any text in which the ids stand (the answers of ingest, the output of `postbackd send`), read for everything
that looks like an id. Received: a sink's record, where only what was answered 2xx counts as delivered, or a delivery
log, where only `delivered` does, and where one given up as a dead letter, which is kept, is told apart from a lost one.
What neither shows is looked for in the queue, the spool and the overflow file before it is called lost. What arrived
and was not sent (others) is normal where a log covers more than the answers do. Files may be gzip's.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from postbackd.codec import format_id, parse_id
from postbackd.errors import ExitCode, PostbackdError
from postbackd.suggestion import command
from postbackd.tools.whereabouts import Whereabouts

_ID = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{16}(?![0-9a-zA-Z])")
GZIP_MAGIC = b"\x1f\x8b"
NEAR = 86_400_000 << 22  # a day, as ids count time
_decode = msgspec.json.Decoder().decode


class Audit(NamedTuple):
    """The result; ids as numbers. Every id that was sent is delivered, lost, waiting or dead."""

    sent: int
    delivered: int  # of those sent
    lost: list[int]
    duplicated: dict[int, int]  # of those sent: id → how often it was delivered
    others: list[int]  # delivered, and in no sent file: not acknowledged, or other traffic
    dead: list[int]  # never delivered, and given up: kept as dead letters
    waiting: list[int]  # not delivered yet, and in the queue or the spool


def read_sent(files: Iterable[Path]) -> set[int]:
    """Every id in the files."""
    return {parse_id(text) for file in files for line in _lines(file) for text in _ID.findall(line)}


def read_delivered(
    files: Iterable[Path], sent: set[int], dead: set[int] | None = None, *, tells: bool = True
) -> Iterator[int]:
    """The id of every delivery that the files show; those that a delivery log gives up are added to `dead`.

    Torn lines (a killed sink, a full disk under the log) are passed over and told: that can only make more lost.
    """
    near = range(min(sent) - NEAR, max(sent) + NEAR) if sent else range(0)
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
            found = _id_of(entry, sent, near)
            if found is not None:
                yield found
        if torn and not whole:
            raise PostbackdError(
                f"{file}:{torn[0]}: no JSON line and no id: give a sink's record (sink --record), a delivery log or ids"
            )
        if torn and tells:
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
        with file.open("rb") as start:
            is_packed = start.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        opener = gzip.open if is_packed else open
        with opener(file, "rt", encoding="utf-8", errors="replace") as lines:
            yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PostbackdError(f"{file}: is no whole gzip file: {error}") from None
    except OSError as error:
        raise PostbackdError(f"{file}: cannot be read: {error.strerror}") from None


def _id_of(entry: dict[str, Any], sent: set[int], near: range) -> int | None:
    """The postback that a recorded request delivered, or None: it was refused, or it names none.

    Any value of a URL may have 16 hex digits (9007199254740993): one that was not sent is taken for an id only where
    the time in it is `near` those that were."""
    if "outcome" in entry:
        return parse_id(entry["id"]) if entry["outcome"] == "delivered" and entry["id"] else None
    status = entry.get("status", 200)
    if status is None or not 200 <= status < 300:
        return None
    places = [entry.get("url", ""), *entry.get("headers", {}).values(), entry.get("body", "")]
    found = [parse_id(text) for place in places for text in _ID.findall(place)]
    mine = next((number for number in found if number in sent), None)
    return mine if mine is not None else next((number for number in found if number in near), None)


def compare(sent: set[int], delivered: Iterable[int], dead: Iterable[int] = (), waiting: Iterable[int] = ()) -> Audit:
    """Tell them apart. `dead` and `waiting` are looked at when all of `delivered` was read."""
    counts = Counter(delivered)
    missing = sent - counts.keys()
    given_up = missing & set(dead)
    still = (missing - given_up) & set(waiting)
    return Audit(
        len(sent),
        len(sent) - len(missing),
        sorted(missing - given_up - still),
        {number: count for number, count in counts.items() if count > 1 and number in sent},
        sorted(counts.keys() - sent),
        sorted(given_up),
        sorted(still),
    )


def audit(
    sent_files: Sequence[Path],
    received_files: Sequence[Path],
    show: int,
    as_json: bool,
    look_for: Callable[[list[int]], Whereabouts],
) -> int:
    """Print the result; exit code 1 when anything is lost, which what waits or is dead is not. `look_for` finds what
    was not delivered."""
    sent = read_sent(sent_files)
    if not sent:  # an audit of nothing finds nothing lost, which must not look like a proof
        raise PostbackdError("no id in what was sent: give the answers of ingest, or the output of postbackd send")
    dead: set[int] = set()
    found, places = compare(sent, read_delivered(received_files, sent, dead), dead), Whereabouts()
    if found.lost:
        places = look_for(found.lost)
        # Read again: what was delivered since is in the log before it leaves the queue.
        again = read_delivered(received_files, sent, dead, tells=False)
        found = compare(sent, again, dead | places.dead, places.waiting)
    repeated = sum(found.duplicated.values()) - len(found.duplicated)
    if as_json:
        report = {
            "sent": found.sent,
            "delivered": found.delivered,
            "lost": [format_id(number) for number in found.lost],
            "waiting": [format_id(number) for number in found.waiting],
            "dead": [format_id(number) for number in found.dead],
            "duplicated": {format_id(number): count for number, count in found.duplicated.items()},
            "repeated_deliveries": repeated,
            "others": [format_id(number) for number in found.others],
            "not_asked": places.not_asked,
        }
        click.echo(json.dumps(report))
    else:
        _show(found, repeated, show)
    if found.lost:
        for place in places.not_asked:
            click.echo(f"postbackd: not looked through, so what is lost may wait there: {place}", err=True)
    return ExitCode.FAILED if found.lost else ExitCode.OK


def _show(found: Audit, repeated: int, show: int) -> None:
    click.echo(f"sent            {found.sent}")
    click.echo(f"delivered       {found.delivered}")
    click.echo(f"lost            {len(found.lost)}")
    click.echo(f"waiting         {len(found.waiting)}" + (" (not delivered yet)" if found.waiting else ""))
    click.echo(f"dead            {len(found.dead)}")
    click.echo(f"duplicated      {len(found.duplicated)} ({repeated} deliveries too many)")
    click.echo(f"others          {len(found.others)} (delivered, in no file of --sent: other traffic)")
    named = (
        ("lost", found.lost),
        ("waiting", found.waiting),
        ("dead", found.dead),
        ("duplicated", sorted(found.duplicated)),
    )
    for name, numbers in named:
        for number in numbers[:show]:
            click.echo(f"{name}: {format_id(number)}  ({command('explain ' + format_id(number))})")
