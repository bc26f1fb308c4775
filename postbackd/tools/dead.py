# SPDX-License-Identifier: MIT
"""`postbackd dead`: list, show, replay and purge dead letters, filtered; counts first with --dry-run.

Interrupted, a replay or purge has done a part and leaves the rest as it was: run it again.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from postbackd.clock import format_ms
from postbackd.codec import CodecError, attempt_class_name, attempt_status, decode_record
from postbackd.errors import ConfigError, ExitCode, PostbackdError
from postbackd.queue.dead_letters import DeadLetter, DeadLetters, Filter
from postbackd.queue.dead_overflow import OverflowLetters
from postbackd.suggestion import command

Letters = DeadLetters | OverflowLetters

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_time_ms(option: str, text: str, now_s: float) -> int:
    """`2h`, `30m`, `3d` before now, or an ISO time (UTC where it names no zone), in ms since 1970."""
    if text[:-1].isdigit() and text[-1:] in UNITS_S:
        return int((now_s - int(text[:-1]) * UNITS_S[text[-1]]) * 1000)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: write 30m, 2h or 3d, or a time as 2026-11-24T01:02:03Z") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def list_letters(letters: Letters, wanted: Filter, limit: int, as_json: bool) -> int:
    """Print them, oldest first."""
    found: list[DeadLetter] = []
    more = 0
    with _progress(transient=True) as progress:
        task = progress.add_task("looking", total=letters.count())
        for looked_at, page in letters.pages(wanted):
            room = limit - len(found)
            found += page[:room]
            more += len(page[room:])
            progress.advance(task, looked_at)
            if wanted == Filter() and len(found) == limit:  # all are meant: they need no look to be counted
                more = max(letters.count() - limit, 0)
                break
    if as_json:
        for letter in found:
            click.echo(json.dumps(as_object(letter)))
        return ExitCode.OK
    table = Table(box=None)
    for column in ("died", "id", "reason", "last answer", "attempts", "host"):
        table.add_column(column)
    for letter in found:
        answer = letter.line.get("response_code") or letter.line.get("error") or ""
        row = [format_ms(letter.died_ms), letter.postback_id, letter.reason, str(answer), str(len(letter.attempts))]
        table.add_row(*row, str(letter.line.get("host") or ""))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    click.echo(f"{len(found)} shown" + (f", {more} more (--limit)" if more else ""), err=True)
    return ExitCode.OK


def show_letter(letters: Letters, postback_id: str, overflow: bool) -> int:
    """Print everything about one, as JSON."""
    for _, page in letters.pages(Filter(postback_id=postback_id)):
        for letter in page:
            click.echo(json.dumps(as_object(letter), indent=2))
            return ExitCode.OK
    where = "in the overflow file" if overflow else "in Redis (the cap may have moved it to the file: --overflow)"
    tells = f"{command('explain ' + postback_id)} tells where it is"
    click.echo(f"postbackd: {postback_id} is no dead letter {where}; {tells}", err=True)
    return ExitCode.FAILED


def replay_letters(
    letters: Letters, wanted: Filter, rate_per_s: float | None, dry_run: bool, as_json: bool = False
) -> int:
    """Give them back to ready, at a rate."""
    ended = _work(letters, wanted, "replayed", dry_run, letters.replay, rate_per_s, as_json)
    if ended == ExitCode.OK and not dry_run and (fault := letters.finish()):
        click.echo(
            f"postbackd: all are given back, and stay in the file: {fault} Run it again: none goes twice", err=True
        )
        return ExitCode.FAILED
    return ended


def purge_letters(letters: DeadLetters, wanted: Filter, dry_run: bool, as_json: bool = False) -> int:
    """Delete them for ever."""
    return _work(letters, wanted, "purged", dry_run, letters.purge, None, as_json)


def _work(
    letters: Letters,
    wanted: Filter,
    done: str,
    dry_run: bool,
    work: Callable[[list[DeadLetter]], int],
    rate_per_s: float | None,
    as_json: bool,
) -> int:
    # Whatever dies while this runs is not meant: a replayed postback that dies again would go round for ever.
    until_ms = min(wanted.until_ms or sys.maxsize, letters.now_ms())
    bounded = msgspec.structs.replace(wanted, until_ms=until_ms)
    count = 0
    try:
        with _progress() as progress:
            task = progress.add_task(done, total=letters.count())
            for looked_at, page in letters.pages(bounded):
                progress.advance(task, looked_at - len(page))
                for part in [page] if dry_run else _portions(page, rate_per_s):
                    began_s = time.monotonic()
                    count += len(part) if dry_run else work(part)
                    progress.advance(task, len(part))
                    if rate_per_s is not None and not dry_run:
                        time.sleep(max(0.0, len(part) / rate_per_s - (time.monotonic() - began_s)))
    except (KeyboardInterrupt, PostbackdError) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        click.echo(
            f"postbackd: {why} after {count} {done}; the rest is still dead: run it again, with "
            f"--until {format_ms(until_ms)} to leave out what has died since",
            err=True,
        )
        return ExitCode.FAILED
    if as_json:
        click.echo(json.dumps({done: count, "dry_run": dry_run}))
    else:
        click.echo(f"{count} would be {done}" if dry_run else f"{count} {done}")
    return ExitCode.OK


def _progress(transient: bool = False) -> Progress:
    return Progress(console=Console(stderr=True), transient=transient, disable=not sys.stderr.isatty())


def _portions(page: list[DeadLetter], rate_per_s: float | None) -> Iterator[list[DeadLetter]]:
    """A page in portions of a tenth of a second, so that the rate is even."""
    size = max(1, len(page) if rate_per_s is None else int(rate_per_s / 10))
    for start in range(0, len(page), size):
        yield page[start : start + size]


def as_object(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON."""
    try:
        endpoint: Any = json.loads(_record_json(letter.record)) if letter.record else None
    except CodecError as error:
        endpoint = str(error)
    return {
        "died": format_ms(letter.died_ms),
        "id": letter.postback_id or None,
        "accepted": None if letter.accepted_ms is None else format_ms(letter.accepted_ms),
        "reason": letter.reason,
        "attempts": [
            {"time": format_ms(at_ms), "class": attempt_class_name(code), "response_code": attempt_status(code)}
            for at_ms, code in letter.attempts
        ],
        "reclaims": 0 if letter.item is None else letter.item.reclaims,
        "endpoint_id": letter.endpoint or None,
        "endpoint": endpoint,
        "last": letter.line,
    }


def _record_json(record: bytes) -> bytes:
    return msgspec.json.encode(decode_record(record))
