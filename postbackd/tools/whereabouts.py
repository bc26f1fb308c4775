# SPDX-License-Identifier: MIT
"""Where postbacks are that a delivery log does not show as delivered: for `postbackd audit`, many at a time.

One pass through the queue, the spool and the overflow file of this configuration, however many are looked for.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from postbackd.codec import parse_id
from postbackd.errors import PostbackdError
from postbackd.queue.dead_overflow import NAME, read_letter
from postbackd.queue.embedded import running_url
from postbackd.queue.find import Finder, ids_in
from postbackd.queue.spool_file import SUFFIX
from postbackd.settings import Settings


class Whereabouts(msgspec.Struct):
    """Of those that were looked for; in neither set: in no place that was looked at."""

    waiting: set[int] = msgspec.field(default_factory=set)  # ready, leased, later or spooled
    dead: set[int] = msgspec.field(default_factory=set)  # kept as dead letters
    not_asked: list[str] = msgspec.field(default_factory=list)  # what could not be looked through, and why


def look_for(settings: Settings, missing: Iterable[int]) -> Whereabouts:
    """Look in every place, the spool first: what leaves it meanwhile is found in the queue."""
    wanted, found = set(missing), Whereabouts()
    data_dir = Path(settings.data_dir)
    try:
        for path in (data_dir / "spool").glob("*" + SUFFIX):
            try:
                found.waiting |= set(ids_in(path.read_bytes(), wanted))
            except FileNotFoundError:  # replayed meanwhile
                continue
        _look_in_queue(settings, wanted, found)
        if (data_dir / NAME).exists():
            found.dead |= _in_overflow(data_dir / NAME, wanted)
    except OSError as error:
        found.not_asked.append(f"{error.filename}: {error.strerror}")
    found.waiting -= found.dead
    return found


def _look_in_queue(settings: Settings, wanted: set[int], found: Whereabouts) -> None:
    queue = settings.queue
    try:
        finder = Finder(running_url(queue, settings.data_dir), queue.prefix, queue.shards)
        try:
            with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
                task = progress.add_task("looking through the queue", total=finder.waiting())
                places = finder.places(wanted, lambda count: progress.advance(task, count))
        finally:
            finder.close()
    except PostbackdError as error:
        found.not_asked.append(f"the queue: {error}")
        return
    found.dead |= {number for number, place in places.items() if place == "dead"}
    found.waiting |= places.keys() - found.dead


def _in_overflow(path: Path, wanted: set[int]) -> set[int]:
    with path.open("rb") as file:
        letters = map(read_letter, file)
        return {number for letter in letters if letter and letter.postback_id
                and (number := parse_id(letter.postback_id)) in wanted}  # fmt: skip
