# SPDX-License-Identifier: MIT
"""`postbackd explain`: one postback's whole story, from queue, spool, overflow file and delivery log.

The log gives every attempt as it was logged; the item's own trail gives those whose lines are elsewhere (another
machine, a log that was rotated away).
"""

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from postbackd.clock import SLEW_BOUND_MS, format_ms
from postbackd.codec import (
    CodecError,
    Item,
    accept_ms,
    attempt_class_name,
    attempt_status,
    decode_record,
    format_id,
    parse_id,
)
from postbackd.errors import ExitCode, PostbackdError, QueueUnavailableError
from postbackd.queue.dead_letters import DeadLetter, Filter
from postbackd.queue.dead_overflow import NAME, read_letter
from postbackd.queue.embedded import running_url
from postbackd.queue.find import Finder, Found, id_bytes
from postbackd.queue.left_behind import left_behind
from postbackd.queue.spool_file import SUFFIX
from postbackd.settings import Settings
from postbackd.tools.story import Story, tell, time_of

WORKER_SHIFT, WORKER_MASK = 10, 0xFFF


def explain(settings: Settings, text: str, as_json: bool) -> int:
    """Print the story of the id `text`; exit code 1 when nothing is known of it."""
    postback_id = parse_id(text)
    story: Story = {
        "id": text,
        "accepted": format_ms(accept_ms(postback_id)),
        "worker_number": postback_id >> WORKER_SHIFT & WORKER_MASK,
        "place": None,
    }
    story["accepted_here"] = os.path.exists(Path(settings.data_dir) / "numbers" / f"{story['worker_number']}.num")
    story["attempts"] = list(_logged(Path(settings.log.path), text))
    _look_in_queue(settings, postback_id, story)
    story["attempts"].sort(key=time_of)
    last = story["attempts"][-1].get("outcome") if story["attempts"] else None
    if story["place"] is None and last == "delivered":  # its spool file may stay a while longer than it
        story["place"] = "delivered"
    if story["place"] is None:
        try:
            _look_on_disk(Path(settings.data_dir), postback_id, story)
        except OSError as error:
            story["disk_error"] = f"{error.filename}: {error.strerror}"
    if story["place"] is None and (folder := left_behind(settings.queue.url, settings.data_dir)):
        story["left_behind"] = str(folder)
    if story["place"] is None and last is not None and "queue_error" not in story:
        story["place"] = "gone from dead" if last == "dead" else "nowhere now"
    click.echo(msgspec.json.encode(story) if as_json else "\n".join(tell(story, settings.log.path)))
    return ExitCode.FAILED if story["place"] is None else ExitCode.OK


# What is known


def _look_in_queue(settings: Settings, postback_id: int, story: Story) -> None:
    try:
        queue = settings.queue
        finder = Finder(running_url(queue, settings.data_dir), queue.prefix, queue.shards)
    except PostbackdError as error:  # the log and the disk can still tell
        story["queue_error"] = str(error)
        return
    try:
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("looking through the queue", total=finder.waiting())
            found = finder.find(postback_id, lambda count: progress.advance(task, count))
        if found is not None:
            _add_found(found, story)
            record = found.letter.record if found.letter else finder.record(found.item.endpoint_id)
            story["endpoint"] = _endpoint(record)
    except QueueUnavailableError as error:
        story["queue_error"] = str(error)
    finally:
        finder.close()


def _add_found(found: Found, story: Story) -> None:
    item = found.item
    story["place"] = found.place
    story["next_attempt"] = item.attempt
    story["reclaims"] = item.reclaims
    if found.due_ms is not None:
        story["due"], story["parked"] = format_ms(found.due_ms), found.is_parked
    if found.worker is not None:
        story["worker"] = found.worker
    if found.letter is not None:
        story["reason"], story["died"] = found.letter.reason, format_ms(found.letter.died_ms)
    since = _begin(item, story["attempts"])  # attempts before a replay have numbers too
    logged = {attempt["attempt"] for attempt in story["attempts"] if attempt["time"] >= since}
    for number, (at_ms, code) in enumerate(item.attempts, 1):
        if number not in logged:
            attempt = {"attempt": number, "ended": format_ms(at_ms), "class": attempt_class_name(code)}
            story["attempts"].append({**attempt, "response_code": attempt_status(code)})
    if item.start_ms is not None:
        story["started_anew"] = since


def _begin(item: Item, attempts: list[dict[str, Any]]) -> str:
    """Since when its attempts count: its start, or the first of them where that is earlier.

    The start is the server's time, an attempt's that of its worker, whose clock was set by an answer of the server
    and is behind by as long as that was on its way, and whose turn may have begun before the start: by some ms.
    """
    if item.start_ms is None:
        return ""
    begin, earliest = format_ms(item.start_ms), format_ms(item.start_ms - SLEW_BOUND_MS)
    for number, (ended_ms, _) in enumerate(item.attempts, 1):
        times = [one["time"] for one in attempts
                 if one["attempt"] == number and earliest <= one["time"] <= format_ms(ended_ms)]  # fmt: skip
        begin = min(begin, max(times, default=begin))
    return begin


def _endpoint(record: bytes | None) -> Any:
    try:
        return None if not record else decode_record(record)
    except CodecError:
        return None


def _look_on_disk(data_dir: Path, postback_id: int, story: Story) -> None:
    wanted = id_bytes(postback_id)
    if data_dir.exists():
        os.listdir(data_dir)  # another user's: glob would find nothing, and not say why
    for path in sorted((data_dir / "spool").glob("*" + SUFFIX)):
        try:
            is_there = wanted in path.read_bytes()
        except FileNotFoundError:  # replayed meanwhile
            continue
        if is_there:
            story["place"], story["file"] = "spooled", str(path)
            return
    for path in sorted((data_dir / "spool").glob("*.damaged")):
        if wanted in path.read_bytes():
            story["place"], story["file"] = "damaged", str(path)
            return
    letter = _in_overflow(data_dir / NAME, postback_id)
    if letter is not None:
        story["endpoint"] = _endpoint(letter.record)
        story["place"], story["file"] = "dead (overflow file)", str(data_dir / NAME)
        story["reason"], story["died"] = letter.reason, format_ms(letter.died_ms)


def _in_overflow(path: Path, postback_id: int) -> DeadLetter | None:
    wanted = Filter(postback_id=format_id(postback_id))
    if not path.exists():
        return None
    with path.open("rb") as file:
        for line in file:
            letter = read_letter(line)
            if letter is not None and wanted.matches(letter):
                return letter
    return None


def _logged(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """Its lines in the delivery log and in rotated ones beside it, oldest first; torn ones (a full disk) left out."""
    mark = f'"id":"{text}"'.encode()
    spaced = f'"id": "{text}"'.encode()
    files = sorted(path.parent.glob(path.name + "*"), key=lambda file: file.stat().st_mtime)
    for file in files:
        with _open(file) as lines:
            for line in lines:
                if (mark in line or spaced in line) and line.endswith(b"\n"):
                    entry = _decoded(line)
                    if entry is not None and entry.get("id") == text:
                        yield entry


def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return entry if isinstance(entry, dict) and "outcome" in entry else None


def _open(file: Path) -> IO[bytes]:
    try:
        return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise PostbackdError(f"{file}: cannot be read: {error.strerror}") from None
