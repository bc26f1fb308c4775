# SPDX-License-Identifier: MIT
"""The last failures with their answers, read from the end of the delivery log.

Looked at only after the scoreboard has counted a failure, and at most the last `WINDOW_BYTES`: a busy log grows by
megabytes a second, nearly all of it deliveries.
"""

import os
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

KEPT = 50
WINDOW_BYTES = 2 * 1024 * 1024
_OUTCOME = b'"outcome":"'
_DELIVERED = b'"outcome":"delivered"'


class Failures:
    """Follows the log of one daemon."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._position = 0
        self._identity: tuple[int, int] | None = None
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT)  # newest first

    def newest(self) -> list[dict[str, Any]]:
        """Log lines whose outcome is not delivered, newest first."""
        return list(self._lines)

    def read(self) -> None:
        """Take up what was appended since the last time; a log that cannot be read shows no failures."""
        try:
            with self._path.open("rb") as file:
                data = self._new_bytes(file.fileno())
        except OSError:
            return
        found: list[dict[str, Any]] = []
        for line in reversed(data.split(b"\n")):
            if _DELIVERED in line or _OUTCOME not in line:
                continue
            try:
                found.append(msgspec.json.decode(line))
            except msgspec.DecodeError:  # torn by a full disk
                continue
            if len(found) == KEPT:
                break
        self._lines = deque([*found, *self._lines][:KEPT], maxlen=KEPT)

    def _new_bytes(self, descriptor: int) -> bytes:
        """Whole lines that were not read yet, at most the window's worth of them."""
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity or status.st_size < self._position:
            self._identity, self._position = identity, 0
        start = max(self._position, status.st_size - WINDOW_BYTES)
        data = os.pread(descriptor, status.st_size - start, start)
        whole, newline, _ = data.rpartition(b"\n")
        self._position = start + len(whole) + len(newline)
        return whole
