# SPDX-License-Identifier: MIT
"""Ports for what tests and benches start: each given once to whoever asks of this installation.

A port that the kernel calls free is free at that moment alone: another test, or the source port of somebody's
connection, may have it before our server has started, or while it is away between a kill and its restart. Those here
lie below the ports that the kernel gives out, and a counter in a file of .venv, which all processes share, goes through
them from a random one: two checkouts hardly meet.
"""

import fcntl
import os
import random
import socket
import sys
from pathlib import Path

COUNT = 12_000  # as many as are given out before one comes again
LOWEST = 10_000
WIDTH = 5


def free_port() -> int:
    """A TCP port of loopback that nothing listens on, and that nobody else is given for long."""
    first, last = _range()
    file = os.open(Path(sys.prefix) / "last-port", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = os.pread(file, WIDTH, 0)
        port = int(text) if text.isdigit() else random.randint(first, last)
        for _ in range(first, last + 1):
            port = port + 1 if first <= port < last else first
            if _is_free(port):
                os.pwrite(file, b"%0*d" % (WIDTH, port), 0)
                return port
    finally:
        os.close(file)
    raise OSError(f"none of the ports {first} to {last} is free")


def _range() -> tuple[int, int]:
    """Just below what the kernel takes for connections and for port 0."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    last = lowest - 1 if lowest > LOWEST + COUNT else 65_535
    return last - COUNT + 1, last


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections keep no port
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True
