# SPDX-License-Identifier: MIT
"""Machines on a network that can be cut: namespaces around a hub in the middle, which drops without a word.

It takes root and ip from iproute2. This machine takes part as one of them, with a cable of its own. A cut is a rule of
the hub for each direction, so both ends find out as they would of a pulled cable: packets go out, and nothing comes.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator, Sequence

from bench.failover_parts.hosts import may_make_namespaces


class Machine:
    """One machine: a prefix for commands that run on it, and its address."""

    def __init__(self, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        self.address = address
        self.prefix = list(prefix)


LOOPBACK = Machine()


class Network:
    """A hub, so many machines, and this one as `here`."""

    def __init__(self, stack: contextlib.ExitStack, count: int) -> None:
        self._net = f"10.{random.randint(64, 254)}.{random.randint(0, 254)}"
        self._hub = f"pb{os.getpid()}-hub"
        self._rules: list[list[str]] = []
        self._make_space(stack, self._hub)
        _ip("netns", "exec", self._hub, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        self.here = Machine(self._plug(None, 0))
        stack.callback(_ip, "link", "del", _here())  # at once: the hub's end goes some time after its namespace
        _ip("route", "add", f"{self._net}.0/24", "via", f"{self._net}.1")  # goes with its cable
        self.machines: list[Machine] = []
        for number in range(1, count + 1):
            space = f"pb{os.getpid()}-{number}"
            self._make_space(stack, space)
            self.machines.append(Machine(self._plug(space, number), ["ip", "netns", "exec", space]))

    def _make_space(self, stack: contextlib.ExitStack, name: str) -> None:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)  # cables go with it
        _ip("-n", name, "link", "set", "lo", "up")

    def _plug(self, space: str | None, number: int) -> str:
        """A cable from the hub to a namespace, or to this machine; the address at its far end."""
        there, gateway, address = f"pb{os.getpid()}h{number}"[:15], *(f"{self._net}.{number * 4 + n}" for n in (1, 2))
        inside = ["-n", space] if space else []
        name = "eth0" if space else _here()
        _ip(*inside, "link", "add", name, "type", "veth", "peer", "name", there, "netns", self._hub)
        for where, cable, at in ((["-n", self._hub], there, gateway), (inside, name, address)):
            _ip(*where, "addr", "add", f"{at}/30", "dev", cable)
            _ip(*where, "link", "set", cable, "up")
        if space:
            _ip(*inside, "route", "add", "default", "via", gateway)
        return address

    def cut(self, some: Sequence[Machine], others: Sequence[Machine]) -> None:
        """Nothing goes between these and those any more."""
        for one in some:
            for other in others:
                for source, target in ((one, other), (other, one)):
                    rule = ["from", source.address, "to", target.address, "blackhole"]
                    _ip("-n", self._hub, "rule", "add", *rule)
                    self._rules.append(rule)

    def cut_off(self, machine: Machine, how: str) -> None:
        """Cut one machine off. unplug: it reaches nobody. part: it reaches postbackd, which is here, but no other
        machine. side: it and postbackd reach each other, and nobody else."""
        others = [other for other in self.machines if other is not machine]
        some = [machine, self.here] if how == "side" else [machine]
        self.cut(some, [*others, self.here] if how == "unplug" else others)

    def mend(self) -> None:
        """Everybody reaches everybody again."""
        while self._rules:
            _ip("-n", self._hub, "rule", "del", *self._rules.pop())


def _here() -> str:
    """This machine's end of its cable."""
    return f"pb{os.getpid()}here"[:15]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """A network for the length of a with block."""
    if not may_make_namespaces():
        raise SystemExit("bench: network namespaces take root and ip: apt-get install iproute2")
    with contextlib.ExitStack() as stack:
        yield Network(stack, count)
