# SPDX-License-Identifier: MIT
"""The worker number of an ingest process: 12 bits of every id, which no two processes ever share.

Leased in Redis (`pb:num:<n>` = owner, SET NX, TTL 7 d, renewed every 5 min) and kept in a file of data_dir with the
last renewal, held by flock: a successor takes the file and with it the number, also without Redis, and becomes its
owner by a name of its own, so that a copy of the file is worth nothing. Unrenewed for 6 d it is not used any more.

Ids hold the server's time, and another server's may be behind: a successor begins where its predecessor's ids can have
ended, as the file tells, and takes another number where that is too far ahead.
"""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from postbackd import oplog
from postbackd.clock import Clock
from postbackd.codec import MAX_WORKER_NUMBER, IdGenerator
from postbackd.errors import QueueFullError, QueueUnavailableError
from postbackd.queue.keys import Keys
from postbackd.queue.link import Link
from postbackd.scoreboard import monotonic_ms

TTL_S = 7 * 86_400
USABLE_MS = 6 * 86_400_000
RENEW_EVERY_MS = 300_000
LEAD_MS = 100  # beyond it the file is written again: so much it may be wrong about how far ids are ahead
MOST_AHEAD_MS = 1000  # of a successor's first ids; beyond it another number costs less than ids of a time to come
TRIES = 64  # random numbers tried before the rest is walked through


class Kept(msgspec.Struct, frozen=True):
    """What the file of a number holds."""

    number: int
    owner: str
    renewed_ms: int
    ahead_ms: int = 0  # of ids, that is of the server's clock, against this machine's


def has_numbers(data_dir: Path) -> bool:
    """Whether an ingest process has ever worked in this data_dir."""
    return any((data_dir / "numbers").glob("*.num"))


class WorkerNumber:
    """Gives out ids as long as the number is ours (`ingest.IdSource`). One thread renews, another takes ids."""

    def __init__(self, data_dir: Path, keys: Keys, clock: Clock) -> None:
        self._folder = data_dir / "numbers"
        self._keys = keys
        self._clock = clock
        self._file: int | None = None
        self._kept: Kept | None = None
        self._is_inherited = False  # from a predecessor, whose name as the owner is still in Redis
        self._generator: IdGenerator | None = None
        self._given_ms = 0  # until when ids of an inherited number may have been given out
        self._why_none = "Redis was not asked for one yet."
        self._renewed_ms = 0

    def generator(self) -> IdGenerator:
        """The ids of our number; raises QueueUnavailableError while there is none."""
        generator = self._generator
        if generator is None:
            raise QueueUnavailableError(f"This process has no worker number for its ids. {self._why_none}")
        return generator

    def is_due(self, now_ms: int) -> bool:
        """Whether the number should be renewed, or found; `now_ms` is monotonic. Also when another server's clock has
        moved our ids."""
        if self._generator is None or self._kept is None or now_ms - self._renewed_ms >= RENEW_EVERY_MS:
            return True
        return abs(self._ahead_ms() - self._kept.ahead_ms) > LEAD_MS

    def renew(self, link: Link) -> None:
        """Renew the number, or find one; without Redis only a predecessor's, from its file."""
        if self._kept is None:
            self._take_free_file()
        try:
            now_ms = monotonic_ms()
            if self._kept is None or not self._renew(link, self._kept):
                self._lease_new(link)
            self._renewed_ms = now_ms
        except (QueueUnavailableError, QueueFullError) as error:  # full: a new number is a write, a renewal is none
            if self._kept is None and self._why_none != str(error):
                oplog.error("worker_number_missing", error=str(error), hint="until there is one, requests get 503")
            self._why_none = str(error)
        self.expire()

    def expire(self) -> None:
        """Give out ids as long as the last renewal is young enough, and not a moment longer."""
        kept = self._kept
        if kept is None or self._clock.now_ms() - kept.renewed_ms > USABLE_MS:
            self._generator = None
        elif self._generator is None:
            self._generator = IdGenerator(kept.number, self._clock.now_ms, self._given_ms)

    def _ahead_ms(self) -> int:
        """How far our ids are ahead of this machine's clock: after a step back they stay where they were."""
        ahead_ms = self._clock.ahead_ms()
        generator = self._generator
        return ahead_ms if generator is None else max(ahead_ms, ahead_ms + generator.last_ms - self._clock.now_ms())

    def _renew(self, link: Link, kept: Kept) -> bool:
        """Whether the number is still ours: it was, or nobody has it."""
        key = self._keys.number(kept.number)
        owner = link.call_for(key, "GET", key)
        if self._is_inherited and self._given_ms - self._clock.now_ms() > MOST_AHEAD_MS:
            return False
        name = secrets.token_hex(8) if self._is_inherited else kept.owner
        if owner is None:
            if link.call_for(key, "SET", key, name, "NX", "EX", TTL_S) is None:
                return False
        elif owner != kept.owner.encode():
            return False
        elif self._is_inherited:
            link.call_for(key, "SET", key, name, "EX", TTL_S)
        else:
            link.call_for(key, "EXPIRE", key, TTL_S)
        self._is_inherited = False
        self._keep(Kept(kept.number, name, self._clock.now_ms(), self._ahead_ms()))
        return True

    def _lease_new(self, link: Link) -> None:
        self._forget()
        owner = secrets.token_hex(8)
        first = secrets.randbelow(MAX_WORKER_NUMBER + 1)
        candidates = [secrets.randbelow(MAX_WORKER_NUMBER + 1) for _ in range(TRIES)]
        candidates += [(first + step) % (MAX_WORKER_NUMBER + 1) for step in range(MAX_WORKER_NUMBER + 1)]
        for number in candidates:
            key = self._keys.number(number)
            if link.call_for(key, "SET", key, owner, "NX", "EX", TTL_S) is not None:
                self._open_file(number)
                self._keep(Kept(number, owner, self._clock.now_ms(), self._clock.ahead_ms()))
                return
        raise QueueUnavailableError(
            f"All {MAX_WORKER_NUMBER + 1} worker numbers are taken: fewer ingest processes, or wait until old ones end."
        )

    # The file

    def _take_free_file(self) -> None:
        """Take the number of a predecessor that has ended, newest renewal first."""
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._folder.iterdir(), key=lambda path: path.name):
                if path.suffix == ".num" and self._take_file(path):
                    return

    def _take_file(self, path: Path) -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = msgspec.json.decode(os.read(descriptor, 4096), type=Kept)
        except (BlockingIOError, msgspec.DecodeError):  # held by a living process, or torn by a crash: not ours
            os.close(descriptor)
            return False
        if self._clock.now_ms() - kept.renewed_ms > USABLE_MS:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return False
        self._file, self._kept, self._is_inherited = descriptor, kept, True
        self._clock.assume_ahead(kept.ahead_ms)  # or our first ids could be the predecessor's last ones
        # Twice: what the file may be wrong by, and what a clock moves until that is noticed.
        self._given_ms = self._clock.machine_ms() + kept.ahead_ms + 2 * LEAD_MS
        return True

    def _open_file(self, number: int) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / f"{number}.num"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise QueueUnavailableError(
                f"The worker number cannot be kept in {self._folder}: {error.strerror}; mend that folder."
            ) from None

    def _keep(self, kept: Kept) -> None:
        self._kept = kept
        data = msgspec.json.encode(kept)
        if self._file is None:
            return
        try:
            # One write of fixed place: shorter than before cannot happen while number and owner stay.
            os.pwrite(self._file, data, 0)
            os.ftruncate(self._file, len(data))
        except OSError as error:  # a full disk: the number is ours in Redis all the same
            raise QueueUnavailableError(
                f"The worker number cannot be kept in {self._folder}: {error.strerror}; make room there."
            ) from None

    def _forget(self) -> None:
        """Our number is another's by now: its file goes."""
        if self._file is not None:
            if self._kept is not None:
                (self._folder / f"{self._kept.number}.num").unlink(missing_ok=True)
            os.close(self._file)
        self._file = self._kept = self._generator = None
        self._given_ms = 0
        self._is_inherited = False
