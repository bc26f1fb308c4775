# SPDX-License-Identifier: MIT
"""Postbacks in an embedded queue that is used no more, since `queue.url` names another server by now.

Nobody delivers them, and nothing else would say so: `run`, `check` and `explain` ask here. Judged by the append-only
files alone, without a server: where they name no key that goes with postbacks there never was one.
"""

import fcntl
import re
import shlex
from pathlib import Path

PAGE = "docs/operations.md, Moving from the embedded queue"
# A lease is made by every start, but what is in one has its endpoint's record, too.
HOLDS_POSTBACKS = re.compile(rb"\{\d+\}:(?:ep:|ready|wake|later|dead(?!_turn))")
LONGEST_KEY = 32  # of these, without the prefix
BLOCK_BYTES = 1 << 20


def left_behind(url: str, data_dir: Path | str) -> Path | None:
    """The folder of an embedded queue that may hold postbacks and that no server serves; None when there is none."""
    folder = Path(data_dir).absolute() / "queue"
    try:
        if not url or _is_served(folder):
            return None
        return folder if any(map(_names_postbacks, (folder / "appendonlydir").iterdir())) else None
    except OSError:  # none, or another user's: that is told elsewhere
        return None


def what_to_do(folder: Path) -> str:
    """For a line of the log, and of `check`."""
    moved = f"mv {shlex.quote(str(folder))} {shlex.quote(str(folder))}.moved"
    return f"move them ({PAGE}), then say that it is done: {moved}"


def _is_served(folder: Path) -> bool:
    """Whether a server holds the lock of embedded.py; then it is in use."""
    if not (folder / "lock").exists():
        return False
    with open(folder / "lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once: a server that starts waits for longer
        except BlockingIOError:
            return True
    return False


def _names_postbacks(file: Path) -> bool:
    with file.open("rb") as content:
        rest = b""
        while block := content.read(BLOCK_BYTES):
            if HOLDS_POSTBACKS.search(rest + block):
                return True
            rest = block[-LONGEST_KEY:]
    return False
