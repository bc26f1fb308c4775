# SPDX-License-Identifier: MIT
"""Keeps the dead stream within its cap: what is too many or too old goes to the overflow file, whole, and then out.

A thread of one delivery worker of a daemon, once a minute; a key in Redis lets one of all daemons do it. Interrupted
between file and stream, a letter stands in both, never in none (QUEUE.md, "keeping the dead within their cap").
"""

import threading
from pathlib import Path

from postbackd import oplog
from postbackd.errors import QueueFullError, QueueUnavailableError
from postbackd.queue.dead_letters import CALL_TIMEOUT_S, PAGE, letter_of_entry
from postbackd.queue.dead_overflow import NAME, append
from postbackd.queue.keys import Keys
from postbackd.queue.route import route_to
from postbackd.queue.wire import Wire
from postbackd.settings import Dead
from postbackd.suggestion import command

EVERY_S = 60.0
TURN_TTL_S = 55  # of the key that says whose turn it is


class DeadKeeper:
    """Looks after the dead stream of one shard, which may keep its share of `dead.max_count`."""

    def __init__(self, url: str, keys: Keys, data_dir: Path, settings: Dead, shards: int = 1) -> None:
        self._url = url
        self._keys = keys
        self._path = data_dir / NAME
        self._max_count = -(-settings.max_count // shards)
        self._max_age_ms = int(settings.max_age * 1000)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dead-keeper", daemon=True)

    def start(self) -> None:
        """Begin; the first look comes after a minute."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self.keep()
            except (QueueUnavailableError, QueueFullError):
                continue  # workers say that Redis is away, or takes no write
            except Exception as error:  # the top of the thread: the next minute may go better
                oplog.error("dead_letters_not_moved", error=repr(error))

    def stop(self) -> None:
        """Look no more; a page under way is finished by nobody, and stands in both places at worst."""
        self._stopping.set()

    def keep(self) -> int:
        """Move what is beyond the cap; how many. Raises QueueUnavailableError."""
        wire = route_to(self._url).open(self._keys.shard, CALL_TIMEOUT_S)
        try:
            if wire.call("SET", self._keys.dead_turn, b"1", "NX", "EX", TURN_TTL_S) is None:
                return 0
            moved = 0
            while not self._stopping.is_set() and (count := self._move_page(wire)):
                moved += count
            if moved:
                hint = command("dead list --overflow")
                oplog.warning("dead_letters_moved", count=moved, file=str(self._path), hint=hint)
            return moved
        except OSError as error:
            oplog.error(
                "dead_letters_not_moved",
                error=error.strerror,
                file=str(self._path),
                hint="they stay in Redis: make room",
            )
            return 0
        finally:
            wire.close()

    def _move_page(self, wire: Wire) -> int:
        """Move the oldest ones that are too many or too old, a page at most; how many."""
        over = wire.call("XLEN", self._keys.dead) - self._max_count
        oldest_ms = wire.server_ms() - self._max_age_ms
        entries = wire.call("XRANGE", self._keys.dead, "-", "+", "COUNT", PAGE)
        letters = [letter_of_entry(entry_id, fields, self._keys.shard) for entry_id, fields in entries]
        going = [letter for index, letter in enumerate(letters) if index < over or letter.died_ms < oldest_ms]
        if not going:
            return 0
        append(self._path, going)
        wire.call("XDEL", self._keys.dead, *(letter.entry_id for letter in going))
        wire.call("HINCRBY", self._keys.stats, "overflowed", len(going))
        return len(going)
