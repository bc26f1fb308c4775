# SPDX-License-Identifier: MIT
"""Answers held back under a real bjoern: what happens to the connection when something goes wrong meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import wait_until
from tests.support.door_server import DoorServer, read_all, request


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DoorServer]:
    started = DoorServer(tmp_path, {}, holds=True)
    wait_until(started.lives, "it serves")
    yield started
    started.destroy()


def test_answer_that_is_not_found_ends_its_connection_and_no_other(server: DoorServer) -> None:
    """bjoern closes the descriptor that it finds: it must be the connection's again by then."""
    process = psutil.Process(server.process.pid)
    before = process.num_fds()
    for _ in range(3):
        with server.connect() as client:
            client.sendall(request(path=b"/raise"))
            assert read_all(client) == b""
    wait_until(lambda: process.num_fds() == before, "no descriptor is left behind, none is gone")
    for number in range(3):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n"
        assert server.send(request(b"%d" % number)) == head + b"%d" % number
