# SPDX-License-Identifier: MIT
"""A hundred names whose DNS never answers, beside healthy ones, with a name server of our own and a real daemon.

The daemon has a mount namespace of its own in which /etc/resolv.conf names our server. The resolver is told there to
wait for 150 s, so whatever ends before that did not wait for a dead name: counts decide, no time.
"""

import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dnslib
import pytest
import redis

from postbackd.queue.keys import Keys
from tests.support.daemon import Daemon, running_sink, wait_until
from tests.support.servers import server, url

__all__ = ["server", "url"]
KEYS = Keys("pb")
DEAD, ITEMS = 100, 3
BOUND_S = 120  # below what the resolver waits for a dead name

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for port 53 and a mount namespace")


class NameServer:
    """Answers names that begin with `well` with 127.0.0.1, and no other."""

    def __init__(self) -> None:
        self.address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, 53))
        self.asked: Counter[str] = Counter()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                data, client = self._socket.recvfrom(4096)
            except OSError:
                return
            query = dnslib.DNSRecord.parse(data)
            name = str(query.q.qname).rstrip(".")
            self.asked[name] += 1
            if name.startswith("well"):
                reply = query.reply()
                if query.q.qtype == dnslib.QTYPE.A:
                    reply.add_answer(dnslib.RR(name, rdata=dnslib.A("127.0.0.1"), ttl=60))
                self._socket.sendto(reply.pack(), client)

    def dead_asked(self) -> int:
        """How many dead names have been asked for."""
        return sum(name.startswith("dead") for name in list(self.asked))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def name_server() -> Iterator[NameServer]:
    made = NameServer()
    try:
        yield made
    finally:
        made.close()


class DaemonOfNames(Daemon):
    """A daemon for which /etc/resolv.conf is ours."""

    def __init__(self, folder: Path, queue_url: str, address: str) -> None:
        self._conf = folder / "resolv.conf"
        self._conf.write_text(f"nameserver {address}\noptions timeout:30 attempts:5\n")
        super().__init__(folder, [f"queue.url={queue_url}"], "ingest,deliver")

    def command(self) -> list[str]:
        script = f'mount --bind {self._conf} /etc/resolv.conf && exec "$@"'
        return ["unshare", "-m", "sh", "-c", script, "sh", *super().command()]


def test_hundred_dead_names_delay_no_healthy_host_nor_the_exit(server: redis.Redis, url: str, tmp_path: Path) -> None:
    with name_server() as names, running_sink(tmp_path / "sink") as sink:
        daemon = DaemonOfNames(tmp_path, url, names.address)
        try:
            for number in range(DEAD):
                target = f"http://dead{number}.test:{sink.port}/"
                assert daemon.post({"endpoint": {"method": "GET", "url": target}, "data": [{}] * ITEMS})[0] == 202
            wait_until(lambda: names.dead_asked() == DEAD, "all dead names are being looked up", BOUND_S)
            for number in range(20):  # names that nobody has looked up before
                target = f"http://well{number}.test:{sink.port}/"
                assert daemon.post({"endpoint": {"method": "GET", "url": target}, "data": [{}] * 5})[0] == 202
            wait_until(lambda: len(daemon.delivered_ids()) == 100, "the healthy ones are delivered", BOUND_S)
            assert len(daemon.log()) == 100, "no dead look-up has ended meanwhile"
            assert daemon.stop() == 0
            assert len(daemon.log()) == 100, "nor did the exit wait for one"
        finally:
            daemon.destroy()
    waiting = server.llen(KEYS.ready) + server.llen(KEYS.wake) + server.zcard(KEYS.later)
    assert waiting == DEAD * ITEMS, "all of the dead ones are given back"
