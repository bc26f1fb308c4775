# SPDX-License-Identifier: MIT
"""A server that is stopped is found silent, and heard again, by an invented clock."""

import signal
from collections.abc import Iterator

import psutil
import pytest

from postbackd.queue.pulse import SILENT_S, Pulse
from postbackd.queue.wire import Wire
from postbackd.queue_url import Node
from tests.support.daemon import wait_until
from tests.support.servers import Server

STOPPED, WELL = Node("stopped", 1), Node("well", 2)


@pytest.fixture
def servers() -> Iterator[dict[Node, Server]]:
    started = {STOPPED: Server(), WELL: Server()}
    yield started
    for server in started.values():
        server.process.send_signal(signal.SIGCONT)
        server.destroy()


def test_only_who_says_nothing_is_silent(servers: dict[Node, Server]) -> None:
    pulse = Pulse(lambda node: Wire(servers[node].url, 0.2, 0.2))
    pulse.look(servers, 0)

    def are_heard(now_s: float, *nodes: Node) -> bool:
        pulse.look(servers, now_s)
        return all(pulse._probes[node].heard_s == now_s for node in nodes)

    wait_until(lambda: are_heard(100, STOPPED, WELL), "both answer, however late")
    assert pulse.silent == frozenset()
    stopped = psutil.Process(servers[STOPPED].process.pid)
    stopped.suspend()
    wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED, "it says nothing more")
    pulse.look(servers, 101)  # perhaps it had answered already
    wait_until(lambda: are_heard(101 + SILENT_S, WELL), "the other answers")
    wait_until(lambda: are_heard(102 + SILENT_S, WELL), "the other answers")
    assert pulse.silent == {STOPPED}
    servers[STOPPED].process.send_signal(signal.SIGCONT)
    wait_until(lambda: are_heard(103 + 2 * SILENT_S, STOPPED, WELL), "both are heard")
    assert pulse.silent == frozenset()


def test_who_is_asked_about_no_more_is_forgotten(servers: dict[Node, Server]) -> None:
    pulse = Pulse(lambda node: Wire(servers[node].url, 0.2, 0.2))
    servers[STOPPED].kill()
    pulse.look([STOPPED], 0)
    pulse.look([STOPPED], SILENT_S)
    assert pulse.silent == {STOPPED}
    pulse.look([WELL], SILENT_S)
    assert pulse.silent == frozenset()


def test_connections_that_cannot_be_had_keep_nobody_waiting(servers: dict[Node, Server]) -> None:
    """One try a look, in turn: of thirty that are off each would cost its time-out."""
    tried: list[Node] = []

    def connect(node: Node) -> Wire:
        tried.append(node)
        return Wire("unix:///nowhere", 0.1)

    pulse = Pulse(connect)
    nodes = [Node("off", number) for number in range(3)]
    for now_s in range(6):
        pulse.look(nodes, now_s)
    assert tried == nodes * 2
