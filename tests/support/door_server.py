# SPDX-License-Identifier: MIT
"""The door alone: bjoern, framing and guard in one process with an app that echoes, and raw requests for it."""

import contextlib
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil

from postbackd.server.listener import bind

BOUND_S = 60
REPOSITORY = Path(__file__).parents[2]

# Answers with the request as it understood it; every request it has run is a line of `handled`.
CHILD = """
import os, socket, sys, time
from postbackd.server import guard, held, listener
from postbackd.server.watch import NO_LIMITS

fd, handled_path, limits, holds = int(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4] == "True"
holder = held.Holder()
handled = os.open(handled_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
counts = {"refused": 0, "cut": 0}

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    os.write(handled, (environ["REQUEST_METHOD"] + " " + environ["PATH_INFO"] + "\\n").encode())
    time.sleep(float(environ.get("HTTP_X_BUSY_S", "0")))
    answer = repr(counts).encode() if environ["PATH_INFO"] == "/counts" else body
    answer = environ.get("HTTP_X_SHOWN", "").encode() or answer
    if environ["PATH_INFO"] == "/big":
        answer = b"x" * 8_000_000
    elif holds and (connection := holder.hold(environ, start_response)):
        def find_answer():
            if environ["PATH_INFO"] == "/raise":
                raise RuntimeError("no answer")
            return "200 OK", [("Content-Length", str(len(answer)))], answer

        return connection.wait_for(find_answer, start_response)
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]

def count(what):
    counts[what] += 1

guard.PASS_EVERY_S = 0.05
listener.serve(socket.socket(fileno=fd), app, lambda: None, 5.0, beat=lambda: None, progress=lambda: 0,
               limits=NO_LIMITS._replace(**limits), on_refused=lambda: count("refused"), on_cut=lambda: count("cut"))
"""


def has_accepted(pid: int, client: socket.socket) -> bool:
    """Whether the connection is this process' and not the listening socket's, with which it would end."""
    ours = client.getsockname()[1]
    return any(one.raddr and one.raddr.port == ours for one in psutil.Process(pid).net_connections("tcp"))


class DoorServer:
    """One process that serves, with limits of the test's choice."""

    def __init__(self, folder: Path, limits: dict[str, int], *, holds: bool = False) -> None:
        """`holds`: answers are held back until every request that has arrived was run."""
        self.handled_path = folder / "handled"
        self.front = 0  # the port of a proxy before it, if the test has one
        self.errors = folder / "errors"
        with closing(bind("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            fd = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(fd), str(self.handled_path), repr(limits), str(holds)],
                pass_fds=[fd],
                cwd=REPOSITORY,
                stderr=self.errors.open("wb"),
            )

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), BOUND_S)

    def send(self, *pieces: bytes, port: int | None = None) -> bytes:
        """All that comes back until the server closes; it is told that nothing more is sent."""
        with self.connect(port) as client:
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(0.05)  # so that it is a read of its own; a slower machine only makes it an easier test
                with contextlib.suppress(OSError):
                    client.sendall(piece)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            return read_all(client)

    def has(self, client: socket.socket) -> bool:
        """Whether the process has accepted this connection and not closed it."""
        return has_accepted(self.process.pid, client)

    def handled(self) -> list[str]:
        return self.handled_path.read_text().splitlines() if self.handled_path.exists() else []

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def destroy(self) -> None:
        self.process.kill()
        self.process.wait()

    def lives(self) -> bool:
        return self.process.poll() is None and self.send(request(b"still there")).endswith(b"still there")


def read_all(client: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(OSError):  # reset: what came before it counts
        while piece := client.recv(65536):
            answer += piece
    return answer


def request(body: bytes = b"hello", headers: bytes = b"", path: bytes = b"/echo") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, headers, len(body), body)


def get(path: bytes = b"/first") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path
