# SPDX-License-Identifier: MIT
"""The data directory: one running daemon on one machine, and who its processes are.

It is created with mode 0700 when missing. Files that stand in it for this module:

    postbackd.pid    flock'ed while the daemon runs, holds the supervisor's pid
    machine          whose directory this is; a copy on another machine would hand out the same worker numbers,
                     so the same ids, and is refused
    processes.json   [{"role": "supervisor|ingest|deliver|queue", "pid": 1, "slot": 0 or null}, …], replaced as
                     a whole whenever a process comes or goes, gone when the daemon has stopped

What else is in it (worker numbers, the embedded queue's files) belongs to queue/.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypedDict

from postbackd import oplog
from postbackd.errors import BootError
from postbackd.suggestion import with_setting

LOCK_WAIT_S = 2.0  # children of a supervisor that was killed a moment ago need some milliseconds to die
ORPHANS_WAIT_S = 20.0  # where the supervisor is gone: a child that is in an fsync dies when that has ended
LOCK_RETRY_S = 0.02
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
MACHINE_ID = Path("/etc/machine-id")


class ProcessRow(TypedDict):
    """One running process of a daemon."""

    role: str
    pid: int
    slot: int | None


class DataDir:
    """The opened, locked directory. The lock is held until `close`, and by forked children until they end."""

    def __init__(self, path: str | os.PathLike[str], machine_id: Path = MACHINE_ID) -> None:
        self.path = Path(path)
        self._machine_id = machine_id
        self._lock_fd = -1
        self._written: list[ProcessRow] = []
        self._said_failure = False

    def open(self) -> None:
        """Create, lock and check it; a BootError says in one line what is in the way."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock()
            self._check_machine()
        except OSError as error:
            self.close()
            raise BootError(
                f"cannot use data_dir {self.path.absolute()}: {error.strerror}; "
                "set data_dir to one that this user may write"
            ) from error
        except BootError:
            self.close()
            raise

    def _lock(self) -> None:
        pid_file = self.path / "postbackd.pid"
        self._lock_fd = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        began_s = time.monotonic()
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(self._lock_fd, 20, 0).decode(errors="replace").strip() or "unknown"
                is_orphaned = holder.isdecimal() and not Path(f"/proc/{holder}").exists()
                if time.monotonic() - began_s > (ORPHANS_WAIT_S if is_orphaned else LOCK_WAIT_S):
                    raise BootError(
                        f"data_dir {self.path.absolute()} is in use by another postbackd (pid {holder}): "
                        f"stop it or take another: {with_setting('data_dir=' + self.path.name + '2')}"
                    ) from None
                time.sleep(LOCK_RETRY_S)
        os.ftruncate(self._lock_fd, 0)
        try:
            os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            # The lock is what counts: a daemon that does not start on a full disk helps nobody.
            oplog.error("data_dir_full", path=str(self.path), hint="make room there")

    def _check_machine(self) -> None:
        if fault := foreign_machine(self.path, self._machine_id):
            raise BootError(fault)
        here, mark = machine_fingerprint(self._machine_id), self.path / "machine"
        if here is not None and not _read(mark):
            write_whole(mark, here + "\n")

    def write_processes(self, rows: list[ProcessRow]) -> None:
        """Keep processes.json; does nothing while nothing has changed, and says it once when it cannot."""
        if rows == self._written:
            return
        try:
            write_whole(self.path / "processes.json", json.dumps(rows) + "\n")
        except OSError as error:  # tried again at the next call: a supervisor must not die of a full disk
            if not self._said_failure:
                self._said_failure = True
                oplog.error("processes_not_written", error=error.strerror, path=str(self.path), hint="make room there")
            return
        self._said_failure = False
        self._written = list(rows)

    def close(self) -> None:
        """Unlock. The pid file stays, empty: removing a locked file would let two daemons lock two files."""
        if self._lock_fd < 0:
            return
        if self._written:
            (self.path / "processes.json").unlink(missing_ok=True)
            os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)
        self._lock_fd = -1


def read_processes(data_dir: str | os.PathLike[str]) -> list[ProcessRow]:
    """The processes of the daemon that runs on this directory; empty when there is none."""
    try:
        rows: list[ProcessRow] = json.loads((Path(data_dir) / "processes.json").read_text())
    except FileNotFoundError:
        return []
    return rows


def holder_of(data_dir: str | os.PathLike[str]) -> str | None:
    """The pid of the daemon that holds this directory, as it wrote it; None when none does. Raises OSError."""
    try:
        with open(Path(data_dir) / "postbackd.pid", "rb") as file:
            # Shared and let go at once: a daemon that starts now waits for longer than that.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _read(Path(data_dir) / "postbackd.pid") or "unknown"
    return None


def foreign_machine(data_dir: Path, machine_id: Path = MACHINE_ID) -> str | None:
    """Why a directory of another machine is refused; None for one of this machine, or a new one. Raises OSError."""
    here, mark = machine_fingerprint(machine_id), data_dir / "machine"
    if here is None or _read(mark) in ("", here):
        return None
    return (
        f"data_dir {data_dir} was made on another machine, and two copies would give out the same ids: "
        f"use an empty one, or remove {mark} if the original is gone for good"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def machine_fingerprint(source: Path) -> str | None:
    """A digest of the machine's id, which itself is not to be spread (machine-id(5)); None where there is none.

    Containers mostly have none: then nothing is checked, since a volume that moves with its container is no copy.
    """
    try:
        machine_id = source.read_text().strip()
    except OSError:
        return None
    return hashlib.blake2b(machine_id.encode(), digest_size=16, person=b"postbackd").hexdigest() if machine_id else None


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file so that its readers see the old content or the new, never a part."""
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)
