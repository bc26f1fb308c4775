# SPDX-License-Identifier: MIT
"""Hosts of requests and their addresses: what libcurl has to be told before a transfer may start.

An address that is written as such needs no look-up. For a name, the resolver's answer goes to libcurl as a
CURLOPT_RESOLVE entry, once per answer: the entry stays in the multi's cache until it is replaced.
"""

import ipaddress
from typing import NamedTuple

from postbackd.delivery.resolver import Resolver
from postbackd.url import DEFAULT_PORTS

MAX_HOSTS = 100_000
TELL_FOR_MS = 100


class Ready(NamedTuple):
    """The transfer may start; `resolve` is to be set on it unless None."""

    resolve: str | None


class Failed(NamedTuple):
    """No transfer can be made; `is_blocked` when the policy forbids every address of the name."""

    reason: str
    is_blocked: bool


_NOTHING_TO_TELL = Ready(None)


class Names:
    """What is known of every host, by host key."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._names: dict[str, str | None] = {}  # host key → its name; None: an address
        self._told: dict[str, tuple[tuple[str, ...], int]] = {}  # `name:port` → addresses libcurl knows, since when
        self._waiting: dict[str, set[str]] = {}  # name → host keys whose lanes wait for it

    def look_up(self, host_key: str, scheme: str, now_ms: int) -> Ready | Failed | None:
        """None: it is being looked up, and the host key will be in `take_resolved`."""
        try:
            name = self._names[host_key]
        except KeyError:
            name = self._learn(host_key)
        if name is None:
            return _NOTHING_TO_TELL
        answer = self._resolver.resolve(name, now_ms)
        if answer is None:
            self._waiting.setdefault(name, set()).add(host_key)
            return None
        if not answer.addresses:
            if answer.blocked is not None:
                return Failed(answer.blocked, True)
            return Failed(answer.error or f"{name} has no address", False)
        port = host_key[len(name) + 1 :] or DEFAULT_PORTS[scheme]
        place = f"{name}:{port}"
        told, since_ms = self._told.get(place, ((), now_ms))
        if told == answer.addresses:
            # Transfers that start in the same turn carry it too: libcurl takes them up in no given order, and one that
            # came before would look the name up itself.
            if now_ms - since_ms > TELL_FOR_MS:
                return _NOTHING_TO_TELL
        else:
            if len(self._told) >= MAX_HOSTS:
                self._told.clear()
            self._told[place] = (answer.addresses, now_ms)
        addresses = ",".join(f"[{address}]" if ":" in address else address for address in answer.addresses)
        return Ready(f"{place}:{addresses}")

    def take_resolved(self) -> list[str]:
        """Host keys whose names have an answer now."""
        return [key for name in self._resolver.take_ready() for key in self._waiting.pop(name, ())]

    def _learn(self, host_key: str) -> str | None:
        if len(self._names) >= MAX_HOSTS:
            self._names.clear()
        name = address_name(host_key)
        self._names[host_key] = name
        return name


def address_name(host_key: str) -> str | None:
    """The name to look up, or None where the host is an address: in brackets, or four decimal numbers.

    Other spellings of addresses (0x7f000001, 127.1) are looked up as names are.
    """
    if host_key.startswith("["):
        return None
    name = host_key.partition(":")[0]
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return name
    return None
