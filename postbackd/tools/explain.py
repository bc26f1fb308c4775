# SPDX-License-Identifier: MIT
"""`postbackd explain`: one postback's whole story, from queue, spool, overflow file and delivery log.

The log gives every attempt as it was logged; the item's own trail gives those whose lines are elsewhere (another
machine, a log that was rotated away).
"""

import gzip
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from postbackd.clock import format_ms
from postbackd.codec import CodecError, accept_ms, attempt_class_name, decode_record, format_id, parse_id
from postbackd.errors import ExitCode, PostbackdError, QueueUnavailableError
from postbackd.queue.dead_letters import DeadLetter, Filter
from postbackd.queue.dead_overflow import NAME, read_letter
from postbackd.queue.embedded import running_url
from postbackd.queue.find import Finder, Found, id_bytes
from postbackd.queue.spool_file import SUFFIX
from postbackd.settings import Settings
from postbackd.suggestion import command

WORKER_SHIFT, WORKER_MASK = 10, 0xFFF

Story = dict[str, Any]


def explain(settings: Settings, text: str, as_json: bool) -> int:
    """Print the story; exit code 1 when nothing is known of it."""
    try:
        postback_id = parse_id(text)
    except ValueError as error:
        raise PostbackdError(f"{error}: take it from the answer of ingest or from the delivery log") from None
    story: Story = {
        "id": text,
        "accepted": format_ms(accept_ms(postback_id)),
        "worker_number": postback_id >> WORKER_SHIFT & WORKER_MASK,
        "place": None,
    }
    story["attempts"] = list(_logged(Path(settings.log.path), text))
    _look_in_queue(settings, postback_id, story)
    last = story["attempts"][-1].get("outcome") if story["attempts"] else None
    if story["place"] is None and last == "delivered":  # its spool file may stay a while longer than it
        story["place"] = "delivered"
    if story["place"] is None:
        _look_on_disk(Path(settings.data_dir), postback_id, story)
    if story["place"] is None and last is not None and "queue_error" not in story:
        story["place"] = "gone from dead" if last == "dead" else "nowhere now"
    click.echo(msgspec.json.encode(story) if as_json else "\n".join(_tell(story, settings)))
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
        story["due"] = format_ms(found.due_ms)
    if found.worker is not None:
        story["worker"] = found.worker
    if found.letter is not None:
        story["reason"], story["died"] = found.letter.reason, format_ms(found.letter.died_ms)
    since = "" if item.start_ms is None else format_ms(item.start_ms)  # attempts before a replay have numbers too
    logged = {attempt["attempt"] for attempt in story["attempts"] if attempt["time"] >= since}
    for number, (at_ms, code) in enumerate(item.attempts, 1):
        if number not in logged:
            story["attempts"].append({"attempt": number, "ended": format_ms(at_ms), "class": attempt_class_name(code)})
    if item.start_ms is not None:
        story["started_anew"] = format_ms(item.start_ms)


def _endpoint(record: bytes | None) -> Any:
    try:
        return None if not record else decode_record(record)
    except CodecError:
        return None


def _look_on_disk(data_dir: Path, postback_id: int, story: Story) -> None:
    wanted = id_bytes(postback_id)
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


# How it is told


def _tell(story: Story, settings: Settings) -> Iterator[str]:
    yield f"{story['id']}  accepted {story['accepted']} by ingest process number {story['worker_number']}"
    endpoint = story.pop("endpoint", None)
    if endpoint is not None:
        yield f"endpoint  {endpoint.method} {endpoint.url}"
    for attempt in story["attempts"]:
        yield _attempt_line(attempt)
    if not story["attempts"]:
        yield f"attempts  none in {settings.log.path}"
    if story.get("reclaims"):
        yield f"reclaims  {story['reclaims']} workers ended while they held it"
    if story.get("started_anew"):
        yield f"started   anew {story['started_anew']} (deliver_at, or a replay): attempts count from then"
    yield f"now       {_place(story, settings)}"
    if "queue_error" in story:
        yield f"warning   the queue was not looked through: {story['queue_error']}"


def _attempt_line(attempt: dict[str, Any]) -> str:
    number = attempt["attempt"]
    if "outcome" not in attempt:
        if attempt["class"] == "endpoint_missing":
            return f"waited    {attempt['ended']}  endpoint_missing: Redis has no record of it; 10 times, then dead"
        return f"attempt {number}  {attempt['ended']}  {attempt['class']}  (its log line is not in this log)"
    answer = f"{attempt['response_code']}" if attempt["response_code"] is not None else ""
    error = attempt["error"] or ""
    detail = f" ({attempt['error_detail']})" if attempt["error_detail"] else ""
    took = f" after {attempt['response_time_ms']} ms" if attempt["response_time_ms"] is not None else ""
    number_text = f"attempt {number}" if number else "no attempt"
    outcome = attempt["outcome"] + (f", {attempt['reason']}" if attempt["reason"] else "")
    to = f" from {attempt['remote_ip']}" if attempt["remote_ip"] else ""
    then = f"; next at {attempt['next_attempt_at']}" if attempt["next_attempt_at"] else ""
    middle = " ".join(part for part in (answer, error) if part)
    return f"{number_text}  {attempt['time']}  {outcome}: {middle}{detail}{took}{to}{then}"


def _place(story: Story, settings: Settings) -> str:
    match story["place"]:
        case "ready":
            return f"ready: attempt {story['next_attempt']} as soon as a delivery worker takes it"
        case "leased":
            return f"leased: worker {story['worker']} has it, attempt {story['next_attempt']}"
        case "later":
            due_s = _seconds_until(story["due"])
            when = f"in {due_s:.1f} s" if due_s > 0 else f"{-due_s:.1f} s ago, so with the next claim"
            return f"later: attempt {story['next_attempt']} is due {story['due']}, {when}"
        case "dead":
            return f"dead since {story['died']}: {story['reason']} ({command('dead replay --id ' + story['id'])})"
        case "spooled":
            return f"spooled in {story['file']}: it goes to the queue when Redis is back"
        case "dead (overflow file)":
            how = command(f"dead replay --overflow --id {story['id']}")
            return f"dead since {story['died']}: {story['reason']}, in {story['file']} ({how})"
        case "damaged":
            return f"in {story['file']}: damaged on the disk of the spool, so it was not enqueued; a person must look"
        case "delivered":
            return "delivered"
        case "gone from dead":
            return "no longer in dead: purged, or replayed and then delivered by a daemon with another log"
        case "nowhere now":
            return "in no place that was looked at: delivered with its line in another log, or moving; ask again"
        case _ if "queue_error" in story:
            return "unknown: the queue does not answer; ask again when it does"
        case _:
            return (
                "unknown: not in queue, spool or overflow file, and no line of it in "
                f"{settings.log.path}*: it was delivered and its log removed, or never accepted here"
            )


def _seconds_until(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() - time.time()
