# SPDX-License-Identifier: MIT
"""The spool of one ingest process: where requests wait, fsynced, while Redis is away (QUEUE.md, "spool").

The process' main thread appends; its replay thread (spool_replay.py) seals files, enqueues what is in them and
removes them. Files are kept short so that room comes back while a long outage is still being replayed.
"""

import errno
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from postbackd.errors import SpoolError
from postbackd.queue.spool_file import SUFFIX, SpoolFile
from postbackd.scoreboard import monotonic_ms

SEGMENT_BYTES = 16 * 1024 * 1024
RECOUNT_MS = 200  # how old the sizes of the other processes' files, and the room on the disk, may be
MIN_ROOM_BYTES = 64 * 1024  # with less the disk is full: /ready has to say so before, and while, nothing is tried
REFUSE_MS = 1000  # after a failure of the disk: each try would cost a file, and /ready could not tell


class Spool:
    """Appends requests to files of `folder`, which all processes of a daemon share and none may overfill."""

    def __init__(self, folder: Path, place: str, max_bytes: int) -> None:
        """`place` is `<node>.<slot>`, the first part of every stream's name."""
        self.folder = folder
        self._place = place
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(max_bytes // 8, 1))
        self._lock = threading.Lock()
        self._active: dict[int, SpoolFile] = {}  # by shard
        self._files: list[SpoolFile] = []  # oldest first
        self._counted_ms = -RECOUNT_MS
        self._total_bytes = 0
        self._has_room = True
        self._failure = ""
        self._refuse_until_ms = 0
        self.on_append: Callable[[], None] = lambda: None

    def append(self, requests: Sequence[tuple[bytes, bytes, list[bytes]]], shard: int = 0) -> None:
        """Keep requests (endpoint id, record, elements) on the disk with one fsync; they may be acknowledged when this
        returns. Raises SpoolError, and then none of them may."""
        self.refuse_full()
        with self._lock:
            try:
                file = self._file(shard)
                self._total_bytes += file.append(requests)
            except OSError as error:
                self._give_up_active(shard)
                self._failure = self._reason(error)
                self._refuse_until_ms = monotonic_ms() + REFUSE_MS
                raise SpoolError(self._failure) from None
        self.on_append()

    def _give_up_active(self, shard: int) -> None:
        """Whatever failed: this file is not written to again. One without any request goes at once, or a disk that
        stays full would cost a file and a descriptor a try."""
        file = self._active.pop(shard, None)
        if file is not None and file.count == 0:
            self._files.remove(file)
            file.remove()

    def _reason(self, error: OSError) -> str:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk under {self.folder} is full: make room there."
        return f"{self.folder} cannot be written: {error.strerror}; look at that disk."

    def _file(self, shard: int) -> SpoolFile:
        """The file to append to: the shard's active one while it is short, or a new one."""
        active = self._active.get(shard)
        if active is not None and not active.sealed and active.bytes < self._segment_bytes:
            return active
        if active is not None:
            active.sealed = True
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self._active[shard] = SpoolFile.create(self.folder, f"{self._place}.{secrets.token_hex(8)}", shard)
        self._files.append(made)
        return made

    def refuse_full(self) -> None:
        """Raise SpoolError when nothing more may be spooled."""
        now_ms = monotonic_ms()
        if now_ms < self._refuse_until_ms:
            raise SpoolError(self._failure)
        if now_ms - self._counted_ms >= RECOUNT_MS:
            self._counted_ms = now_ms
            self._total_bytes = self.total_bytes()
            self._has_room = has_room(self.folder)
        if not self._has_room:
            raise SpoolError(self._reason(OSError(errno.ENOSPC, "")))
        if self._total_bytes >= self._max_bytes:
            raise SpoolError(
                f"the spool holds {self._total_bytes} bytes, spool.max_bytes = {self._max_bytes}: it is replayed when "
                "Redis is back."
            )

    def total_bytes(self) -> int:
        """The size of all spool files of this data_dir, whoever writes them."""
        return spool_size(self.folder)[0]

    # For the replay thread

    def pending(self) -> list[SpoolFile]:
        """This process' files, oldest first."""
        with self._lock:
            return list(self._files)

    def seal(self, file: SpoolFile, count: int) -> bool:
        """Whether the file ends with its `count`-th request for good: nothing is appended to it from now on."""
        with self._lock:
            if not file.sealed and file.count == count:
                file.sealed = True
            return file.sealed and file.count == count

    def forget(self, file: SpoolFile) -> bool:
        """The file is about to be removed; False when it has been already, since it never held a request."""
        with self._lock:
            if file not in self._files:
                return False
            self._files.remove(file)
            if self._active.get(file.shard) is file:
                del self._active[file.shard]
            return True

    def take_over(self) -> list[SpoolFile]:
        """Take the files of processes that have ended, oldest first; what was taken is in `pending` from now on."""
        try:
            paths = sorted(self.folder.glob("*" + SUFFIX), key=_modified_ns)
        except FileNotFoundError:
            return []
        mine = {file.path for file in self.pending()}
        taken = [file for path in paths if path not in mine and (file := SpoolFile.take(path)) is not None]
        with self._lock:
            self._files[:0] = taken
        return taken


def has_room(folder: Path) -> bool:
    """Whether the disk under a spool's folder, which need not be there yet, has any room for this user."""
    disk = os.statvfs(folder.parent)
    return disk.f_frsize * (disk.f_bfree if os.geteuid() == 0 else disk.f_bavail) >= MIN_ROOM_BYTES


def spool_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of all spool files in a folder."""
    total_bytes = files = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    try:
                        total_bytes += entry.stat().st_size
                    except FileNotFoundError:  # replayed and removed meanwhile
                        continue
                    files += 1
    except FileNotFoundError:
        return 0, 0
    return total_bytes, files


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
