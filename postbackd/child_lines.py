# SPDX-License-Identifier: MIT
"""A pipe from the children to the supervisor for the one line of an error that ends a child.

All workers of a role tend to fail alike, so the supervisor prints each line once.
"""

import os

from postbackd import oplog


class ChildLines:
    """Made before the fork; the children send, the supervisor prints."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._seen: set[bytes] = set()

    def send(self, line: str) -> None:
        """In a child."""
        os.write(self._in, line.encode().replace(b"\n", b" ") + b"\n")

    def close_reader(self) -> None:
        """In a child, which reads nothing."""
        os.close(self._out)

    def print_new(self) -> None:
        """Print what came and was not printed before."""
        try:
            lines = os.read(self._out, 65536).splitlines()
        except BlockingIOError:
            return
        new = [line for line in dict.fromkeys(lines) if line not in self._seen]
        self._seen.update(new)
        for line in new:
            oplog.message(line.decode(errors="replace"))

    def forget(self) -> None:
        """Print all lines anew: another configuration is being tried."""
        self._seen.clear()
