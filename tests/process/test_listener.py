# SPDX-License-Identifier: MIT
"""bjoern in processes of its own: sharing a socket, draining, beating."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from postbackd.errors import BootError
from postbackd.server.listener import bind
from tests.support.daemon import wait_until
from tests.support.door_server import has_accepted

BOUND_S = 60
REPOSITORY = Path(__file__).parents[2]

# The app answers with what the test wants to know. Every request it has begun is a line of `handled`.
CHILD = """
import faulthandler, os, signal, socket, sys, time
from postbackd.server import guard, listener

faulthandler.dump_traceback_later(50)  # a drain that hangs says where, before its test gives up
fd, handled_path, drain_timeout_s, drain_delay_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
handled = os.open(handled_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
state = {"requests": 0, "beats": 0, "draining": False}

def app(environ, start_response):
    state["requests"] += 1
    body = environ["wsgi.input"].read()
    path = environ["PATH_INFO"]
    os.write(handled, (path + "\\n").encode())
    answer = str(os.getpid()).encode()
    if path == "/state":
        answer = repr(state).encode()
    elif path == "/echo":
        answer = body
    elif path == "/hang":
        time.sleep(3600)
    elif path == "/spin":
        before, end = state["beats"], time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        answer = str(state["beats"] - before).encode()
    else:
        time.sleep(0.0005)  # as long as a commit
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]

def beat():
    state["beats"] += 1

if "early" in sys.argv:
    run_server = listener.bjoern.server_run
    def run_server_late(*arguments):
        time.sleep(0.5)
        run_server(*arguments)
    listener.bjoern.server_run = run_server_late
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.raise_signal(signal.SIGTERM)
if "patient" in sys.argv:
    guard.AT_REST_MS = 3_600_000
listener.BEAT_EVERY_S = 0.02
listener.serve(socket.socket(fileno=fd), app, lambda: state.update(draining=True), drain_timeout_s,
               beat=beat, progress=lambda: state["requests"], drain_delay_s=drain_delay_s)
print("served", flush=True)
"""


class Server:
    """Processes that serve one inherited socket."""

    def __init__(self, folder: Path, count: int, drain_timeout_s: float, drain_delay_s: float, *flags: str) -> None:
        self.handled = folder / "handled"
        with closing(bind("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            fd = listener.fileno()
            arguments = [str(fd), str(self.handled), str(drain_timeout_s), str(drain_delay_s), *flags]
            self.processes = [
                subprocess.Popen(
                    [sys.executable, "-c", CHILD, *arguments],
                    pass_fds=[fd],
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(count)
            ]

    def get(self, path: str = "/", body: bytes | None = None) -> bytes:
        with closing(self.connect()) as connection:
            connection.request("POST", path, body)
            return connection.getresponse().read()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=BOUND_S)

    def terminate(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)

    def wait(self) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each process."""
        outputs = [process.communicate(timeout=BOUND_S) for process in self.processes]
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]

    def handled_paths(self) -> list[str]:
        return self.handled.read_text().split() if self.handled.exists() else []


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers = []

    def start(count: int = 1, drain_timeout_s: float = 30, drain_delay_s: float = 0, *flags: str) -> Server:
        servers.append(Server(tmp_path, count, drain_timeout_s, drain_delay_s, *flags))
        return servers[-1]

    yield start
    for server in servers:
        for process in server.processes:
            process.kill()
            process.communicate()


class Client(threading.Thread):
    """Posts on one keep-alive connection until it is closed; remembers which requests were answered."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(name=name)
        self.server = server
        self.answered: list[str] = []

    def run(self) -> None:
        with closing(self.server.connect()) as connection:
            for number in range(1_000_000):
                path = f"/{self.name}-{number}"
                try:
                    connection.request("POST", path, b'{"a": 1}')
                    response = connection.getresponse()
                    response.read()
                except (OSError, http.client.HTTPException):
                    return
                assert response.status == 200
                self.answered.append(path)


def test_drain_under_load_answers_every_request_that_was_read(start: Start) -> None:
    server = start(count=2)
    wait_until_all_serve(server)  # one that is still starting has no handler yet, and SIGTERM ends it
    clients = [Client(server, f"client{number}") for number in range(16)]
    for client in clients:
        client.start()
    wait_until(lambda: all(len(client.answered) > 20 for client in clients), "every client gets answers")
    server.terminate()
    ends = server.wait()
    for client in clients:
        client.join(BOUND_S)
    assert [(code, out) for code, out, _ in ends] == [(0, "served\n")] * 2, ends
    answered = [path for client in clients for path in client.answered]
    assert sorted(answered) == sorted(path for path in server.handled_paths() if path.startswith("/client"))


def test_processes_share_one_inherited_socket(start: Start) -> None:
    wait_until_all_serve(start(count=2))


def wait_until_all_serve(server: Server) -> None:
    pids = {str(process.pid).encode() for process in server.processes}
    seen: set[bytes] = set()
    wait_until(lambda: seen.add(server.get()) or seen == pids, "every process has answered")


def test_idle_connections_are_closed_and_the_process_ends(start: Start) -> None:
    server = start()
    with closing(server.connect()) as used, closing(server.connect()) as unused:
        used.request("POST", "/")
        used.getresponse().read()
        unused.connect()
        server.terminate()
        assert server.wait()[0][:2] == (0, "served\n")
        assert used.sock.recv(1) == b""


def test_request_that_is_still_arriving_is_answered_after_sigterm(start: Start) -> None:
    server = start(1, 100, 0, "patient")  # else the drain gives it a second, and a test that stands still is late
    server.get()
    with socket.create_connection(("127.0.0.1", server.port), BOUND_S) as slow:
        slow.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n")
        wait_until(lambda: has_accepted(server.processes[0].pid, slow), "it is the server's")
        server.terminate()
        wait_until(lambda: _is_refused_or_unanswered(server), "it accepts no more")
        for _ in range(20):
            slow.sendall(b"x")
        assert slow.recv(1000).endswith(b"x" * 20)
    assert server.wait()[0][:2] == (0, "served\n")


def _is_refused_or_unanswered(server: Server) -> bool:
    try:
        connection = socket.create_connection(("127.0.0.1", server.port), 0.05)
    except OSError:
        return True
    with connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            return not connection.recv(1)
        except OSError:
            return True


def test_sender_that_never_finishes_does_not_outlast_the_drain(start: Start) -> None:
    server = start()
    server.get()
    with socket.create_connection(("127.0.0.1", server.port), BOUND_S) as stuck:
        stuck.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\nx")
        wait_until(lambda: has_accepted(server.processes[0].pid, stuck), "it is the server's")
        server.terminate()
        assert server.wait()[0][:2] == (0, "served\n")
        assert _read_to_end(stuck) == b""


def _read_to_end(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1000)
    except ConnectionResetError:
        return b""


def test_request_that_hangs_in_the_app_is_cut_at_the_deadline(start: Start) -> None:
    server = start(1, 1.0)
    server.get()
    with socket.create_connection(("127.0.0.1", server.port), BOUND_S) as hanging:
        hanging.sendall(b"POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: "/hang" in server.handled_paths(), "the request hangs")
        server.terminate()
        [(code, out, errors)] = server.wait()
    assert (code, out) == (1, "")
    assert len(errors.splitlines()) == 1
    assert "drain_cut_short" in errors
    assert "connections=1" in errors


def test_sigterm_before_the_loop_runs_drains_too(start: Start) -> None:
    assert start(1, 30, 0, "early").wait()[0][:2] == (0, "served\n")


def test_second_sigterm_changes_nothing(start: Start) -> None:
    server = start()
    server.get()
    with closing(server.connect()) as connection:
        connection.connect()  # fresh, so it is given a second
        server.terminate()
        server.terminate()
        assert server.wait()[0][:2] == (0, "served\n")


def test_requests_are_taken_during_the_drain_delay(start: Start) -> None:
    server = start(1, 30, 3600)
    server.get()
    server.terminate()
    wait_until(lambda: b"'draining': True" in server.get("/state"), "the app is told")
    assert server.get("/echo", b"still here") == b"still here"


def test_idle_loop_beats(start: Start) -> None:
    server = start()
    server.get()

    def beats() -> int:
        return eval(server.get("/state"))["beats"]

    wait_until(lambda: beats() > 3, "it beats")


def test_app_that_does_not_return_does_not_beat(start: Start) -> None:
    server = start()
    server.get()
    # 25 alarms come in that half second. One beat may be due to the request that began.
    assert int(server.get("/spin")) <= 1


def test_taken_port_is_one_line() -> None:
    with closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(BootError) as caught:
            bind("127.0.0.1", port)
    assert str(caught.value).startswith(f"cannot listen on 127.0.0.1:{port}: the port is taken")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("host", "part"), [("192.0.2.1", "no such address"), ("no.such.host.invalid", "ingest.host")])
def test_unusable_host_is_one_line(host: str, part: str) -> None:
    with pytest.raises(BootError, match=part) as caught:
        bind(host, 0)
    assert len(str(caught.value).splitlines()) == 1


def test_accepted_connections_do_not_wait_for_acks() -> None:
    with closing(bind("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        wait_until(lambda: _accepts_with_nodelay(listener), "the connection arrives")


def _accepts_with_nodelay(listener: socket.socket) -> bool:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return False
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return True


def test_ipv6_works() -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    with closing(bind("::1", 0)) as listener, socket.create_connection(listener.getsockname()[:2]):
        assert listener.family == socket.AF_INET6


def test_socket_from_systemd_is_taken_and_its_variables_are_gone() -> None:
    code = (
        "import os, sys; from postbackd.server.listener import open_listener;"
        "os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "print(open_listener('127.0.0.1', 1).getsockname()[1], [n for n in os.environ if n.startswith('LISTEN')])"
    )
    with closing(bind("127.0.0.1", 0)) as listener:
        done = subprocess.run(
            [sys.executable, "-c", code, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == (f"{listener.getsockname()[1]} []\n", "")
