# SPDX-License-Identifier: MIT
"""A DNS server on loopback that answers as a test says, and the C library's resolver of this process turned to it.

`getaddrinfo` itself stays: glibc keeps the name servers it asks in a structure of each thread (resolv.h, `_res`), which
is set to our server before each look-up. No root, no /etc/resolv.conf of the machine touched.
"""

import ctypes
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer

Zone = dict[str, list[list[str]]]  # name → answers in turn (the last repeats): addresses, or one name as a CNAME

_libc = ctypes.CDLL(None)


class _SocketAddress(ctypes.Structure):
    _fields_ = [
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("address", ctypes.c_uint8 * 4),
        ("zero", ctypes.c_uint8 * 8),
    ]


class _ResolverState(ctypes.Structure):
    """The head of glibc's struct __res_state."""

    _fields_ = [
        ("retrans", ctypes.c_int),
        ("retry", ctypes.c_int),
        ("options", ctypes.c_ulong),
        ("nscount", ctypes.c_int),
        ("nsaddr_list", _SocketAddress * 3),
    ]


def _ask(port: int) -> None:
    """Turn this thread's resolver to a server on loopback."""
    _libc.__res_init()
    _libc.__res_state.restype = ctypes.POINTER(_ResolverState)
    state = _libc.__res_state().contents
    state.nscount = 1
    state.nsaddr_list[0] = _SocketAddress(
        socket.AF_INET, socket.htons(port), (ctypes.c_uint8 * 4)(127, 0, 0, 1), (ctypes.c_uint8 * 8)()
    )


class NameServer(BaseResolver):
    """Answers from a zone; counts what it was asked."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: Counter[str] = Counter()
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger(logf=lambda _line: None))
        self.port: int = self._server.server.server_address[1]
        self._server.start_thread()

    def resolve(self, request: Any, _handler: Any) -> DNSRecord:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        kind = QTYPE[request.q.qtype]
        self.asked[f"{name} {kind}"] += 1
        answers = self.zone.get(name)
        if answers is None:
            reply.header.rcode = RCODE.NXDOMAIN
            return reply
        turn = min(self.asked[f"{name} {kind}"], len(answers)) - 1
        for text in answers[turn]:
            self._add(reply, name, text, kind)
        return reply

    def _add(self, reply: DNSRecord, name: str, text: str, kind: str) -> None:
        if ":" in text:
            if kind == "AAAA":
                reply.add_answer(
                    RR(name, QTYPE.AAAA, rdata=AAAA(tuple(socket.inet_pton(socket.AF_INET6, text))), ttl=1)
                )
        elif text[-1].isdigit():
            if kind == "A":
                reply.add_answer(RR(name, QTYPE.A, rdata=A(text), ttl=1))
        else:
            reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME(text), ttl=1))
            for other in self.zone[text][-1]:
                self._add(reply, text, other, kind)

    def stop(self) -> None:
        self._server.stop()
        self._server.server.server_close()


@contextmanager
def name_server(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    """A name server that every `socket.getaddrinfo` of this process asks, for the length of a with block."""
    server = NameServer(zone)
    look_up = socket.getaddrinfo

    def ask_ours(*arguments: Any, **options: Any) -> Any:
        _ask(server.port)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask_ours)
    try:
        yield server
    finally:
        server.stop()
