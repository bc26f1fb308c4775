# SPDX-License-Identifier: MIT
"""How `postbackd explain` tells what it has found of one postback: a line for each thing that happened, by time."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from postbackd.queue.left_behind import PAGE
from postbackd.suggestion import command
from postbackd.worker_pool import node_name

Story = dict[str, Any]


def tell(story: Story, log_path: str) -> Iterator[str]:
    """The lines; takes the endpoint out of it."""
    here = f" on this machine ({node_name()})" if story["accepted_here"] else ""
    but = "" if _is_known(story) else "nothing here knows it; by its number it would have been "
    yield f"{story['id']}  {but}accepted {story['accepted']}{here}"
    endpoint = story.pop("endpoint", None)
    if endpoint is not None:
        yield f"endpoint  {endpoint.method} {endpoint.url}"
    yield from _in_order(story["attempts"], story.get("started_anew"))
    if not story["attempts"]:
        yield f"attempts  none in {log_path}"
    if story.get("reclaims"):
        yield f"reclaims  {story['reclaims']} workers ended while they held it"
    yield f"now       {_place(story, log_path)}"
    if "queue_error" in story:
        yield f"warning   the queue was not looked through: {story['queue_error']}"
    if "left_behind" in story:
        where = f"{story['left_behind']}, the embedded queue that queue.url has replaced"
        yield f"warning   it may lie in {where}, where nobody delivers it: {PAGE}"
    if "disk_error" in story:
        yield f"warning   the spool was not looked through: {story['disk_error']}"


def _is_known(story: Story) -> bool:
    """Whether anything but the number itself tells of it, or somewhere was not looked."""
    return bool(story["place"] or story["attempts"] or "queue_error" in story or "disk_error" in story)


def _in_order(attempts: list[dict[str, Any]], start: str | None) -> Iterator[str]:
    """Attempts and replays by time. The item knows its last start; replays before that one show by what is dead and
    is tried from the first attempt again."""
    is_dead = False
    for number, attempt in enumerate(attempts):
        if start is not None and time_of(attempt) >= start:
            yield _start_line(start, is_replay=number > 0)
            start = None
        elif is_dead and attempt["attempt"] <= 1:
            yield "replayed  by hand (dead replay) in between; attempts count from 1 again"
        yield _attempt_line(attempt)
        is_dead = attempt.get("outcome") == "dead"
    if start is not None:
        yield _start_line(start, is_replay=bool(attempts))


def _start_line(start: str, is_replay: bool) -> str:
    if is_replay:
        return f"replayed  {start}  by hand (dead replay); attempts count from 1 again"
    if _seconds_until(start) > 0:
        return f"waits     until {start}, its deliver_at"
    return f"counts    from {start} on (its deliver_at, or replayed by hand)"


def time_of(attempt: dict[str, Any]) -> str:
    """By which attempts are ordered, whether from the log or from the item's trail."""
    return str(attempt.get("time") or attempt.get("ended") or "")


def _attempt_line(attempt: dict[str, Any]) -> str:
    number = attempt["attempt"]
    if "outcome" not in attempt:
        if attempt["class"] == "endpoint_missing":
            return f"waited    {attempt['ended']}  endpoint_missing: Redis has no record of it; 10 times, then dead"
        code = "" if attempt["response_code"] is None else f"{attempt['response_code']} "
        return f"attempt {number}  {attempt['ended']}  {code}{attempt['class']}  (its log line is not in this log)"
    answer = f"{attempt['response_code']}" if attempt["response_code"] is not None else ""
    error = attempt["error"] or ""
    detail = f" ({attempt['error_detail']})" if attempt["error_detail"] else ""
    took = f" after {attempt['response_time_ms']} ms" if attempt["response_time_ms"] is not None else ""
    number_text = f"attempt {number}" if number else "no attempt"
    outcome = attempt["outcome"] + (f", {attempt['reason']}" if attempt["reason"] else "")
    to = f" from {attempt['remote_ip']}" if attempt["remote_ip"] else ""
    then = f"; next at {attempt['next_attempt_at']}" if attempt["next_attempt_at"] else ""
    middle = " ".join(part for part in (answer, error) if part)
    by = f" by {attempt['worker']}" if attempt.get("worker") else ""
    return f"{number_text}  {attempt['time']}  {outcome}: {middle}{detail}{took}{to}{by}{then}"


def _place(story: Story, log_path: str) -> str:
    match story["place"]:
        case "ready":
            return f"ready: attempt {story['next_attempt']} as soon as a delivery worker takes it"
        case "leased":
            return f"leased: worker {story['worker']} has it, attempt {story['next_attempt']}"
        case "later":
            due_s = _seconds_until(story["due"])
            when = f"in {due_s:.1f} s" if due_s > 0 else f"{-due_s:.1f} s ago, so with the next claim"
            if story["parked"]:
                why = f"put off, since its host is full or shut ({command('top')}); sooner when that has room"
                return f"later: {why}, else attempt {story['next_attempt']} is due {story['due']}, {when}"
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
        case _ if "left_behind" in story:
            return "unknown: not in queue, spool, overflow file or log; the embedded queue was not looked through"
        case _:
            return (
                "unknown: not in queue, spool or overflow file, and no line of it in "
                f"{log_path}*: it was delivered and its log removed, or never accepted here"
            )


def _seconds_until(text: str) -> float:
    return datetime.fromisoformat(text).timestamp() - time.time()
