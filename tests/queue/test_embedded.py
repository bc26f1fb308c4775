# SPDX-License-Identifier: MIT
"""The embedded server: private, on the wanted port, its data back after a restart, one line when it cannot start."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from postbackd.errors import BootError
from postbackd.queue.embedded import EmbeddedServer, find_server
from postbackd.settings import Queue
from tests.support.daemon import free_port

STOP_S = 30


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pbe"))
    yield path
    shutil.rmtree(path)


def test_data_survives_a_restart_and_the_socket_is_private(folder: Path) -> None:
    server = EmbeddedServer(Queue(port=free_port()), folder)
    try:
        url = server.start()
        assert url.startswith("unix://:")
        client = redis.Redis.from_url(url)
        client.rpush("k", "v")
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.close()
        assert server.stop(STOP_S) == 0
        assert server.exit_code() == 0
        for name in ("password", "server.conf"):
            assert (folder / "queue" / name).stat().st_mode & 0o777 == 0o600
        assert server.start() == url
        client = redis.Redis.from_url(url)
        assert client.lrange("k", 0, -1) == [b"v"]
        client.close()
    finally:
        server.stop(STOP_S)


def test_stranger_without_the_password_gets_nothing(folder: Path) -> None:
    port = free_port()
    server = EmbeddedServer(Queue(port=port), folder)
    try:
        server.start()
        with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
            client.get("k")
    finally:
        server.stop(STOP_S)


def test_successor_waits_for_the_server_that_still_has_the_files(folder: Path) -> None:
    first, second = EmbeddedServer(Queue(port=free_port()), folder), EmbeddedServer(Queue(port=free_port()), folder)
    starting = threading.Thread(target=second.start)
    try:
        first.start()
        starting.start()
        starting.join(0.5)
        assert starting.is_alive() and second.pid is None, "two servers on one append-only file would ruin it"
        first.stop(STOP_S)
        starting.join(STOP_S)
        assert second.pid is not None
    finally:
        first.stop(STOP_S)
        starting.join(STOP_S)
        second.stop(STOP_S)


def test_taken_port_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = EmbeddedServer(Queue(port=port), folder)
        with pytest.raises(BootError, match=f"^queue.port {port} is taken"):
            server.start()


def test_missing_server_and_long_path_are_one_line(folder: Path) -> None:
    with pytest.raises(BootError, match="no server to start"):
        find_server("/nowhere/valkey-server")
    with pytest.raises(BootError, match="too long a path"):
        EmbeddedServer(Queue(), folder / ("x" * 100)).start()
