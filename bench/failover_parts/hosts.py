# SPDX-License-Identifier: MIT
"""Machines for a bench: network namespaces with a cable to the queue each, or just this machine where that is not
allowed (it takes root and ip from iproute2). The counters of a cable show what a machine and the queue said."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Host:
    """One machine: a prefix for commands that run on it, and the queue's address as seen from it."""

    def __init__(self, name: str, prefix: list[str], queue_address: str, cable: str | None) -> None:
        self.name = name
        self.prefix = prefix
        self.queue_address = queue_address
        self._cable = cable

    def bytes_sent(self) -> int:
        """To the queue so far, with TCP and IP headers; 0 where there is no cable of its own."""
        return self._counter("rx_bytes")  # what the queue's end has received

    def bytes_received(self) -> int:
        """From the queue so far."""
        return self._counter("tx_bytes")

    def _counter(self, name: str) -> int:
        if self._cable is None:
            return 0
        return int(Path(f"/sys/class/net/{self._cable}/statistics/{name}").read_text())


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def may_make_namespaces() -> bool:
    """Whether this process may: tried out, since root in a container may not."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"pbtry{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except subprocess.CalledProcessError:
        return False
    return True


@contextlib.contextmanager
def hosts(names: list[str]) -> Iterator[list[Host]]:
    """So many machines for the length of a with block."""
    if not may_make_namespaces():
        yield [Host(name, [], "127.0.0.1", None) for name in names]
        return
    net = f"10.{random.randint(64, 254)}.{random.randint(0, 254)}"
    with contextlib.ExitStack() as stack:
        made = []
        for number, name in enumerate(names):
            space, cable = f"pb{os.getpid()}-{number}", f"pb{os.getpid()}v{number}"[:15]
            here, there = f"{net}.{number * 4 + 1}", f"{net}.{number * 4 + 2}"
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "del", space)  # the cable goes with it
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("addr", "add", f"{here}/30", "dev", cable)
            _ip("link", "set", cable, "up")
            _ip("-n", space, "addr", "add", f"{there}/30", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")
            made.append(Host(name, ["ip", "netns", "exec", space], here, cable))
        yield made
