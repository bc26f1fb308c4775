# SPDX-License-Identifier: MIT
"""`ingest.ack = "group"` on a real daemon: one commit for many requests, and each still answered for itself."""

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.daemon import Daemon, Sink, running_daemon, running_sink, wait_until
from tests.support.servers import running_server

BOUND_S = 60
CLIENTS = 24
DOCUMENT = json.dumps({"endpoint": {"method": "GET", "url": "http://127.0.0.1:1/x?k={k}"}, "data": {"k": "v"}}).encode()


def request(body: bytes = DOCUMENT, head: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    start = b"POST /i %b\r\nHost: a\r\nContent-Type: application/json\r\n" % version
    return start + b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def read_answer(client: socket.socket) -> tuple[bytes, bytes, bytes]:
    """Status line, headers and body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    status, _, headers = head.partition(b"\r\n")
    length = next(
        int(line.split(b":")[1]) for line in headers.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += client.recv(65536)
    assert len(body) == length
    return status, headers, body


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), BOUND_S)


@contextlib.contextmanager
def clients(daemon: Daemon, count: int) -> Iterator[list[socket.socket]]:
    """Connections that the daemon has accepted: each has had an answer."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(daemon)) for _ in range(count)]
        for client in opened:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            read_answer(client)
        yield opened


@contextlib.contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """The one ingest process stands still, so that what is sent meanwhile arrives together."""
    [worker] = daemon.children("ingest")
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_until(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED, "it stands still")
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[redis.Redis, str]]:
    with running_server("--appendonly", "yes") as started:
        yield started


@pytest.fixture
def daemon(server: tuple[redis.Redis, str], tmp_path: Path) -> Iterator[Daemon]:
    server[0].flushall()
    settings = [f"queue.url={server[1]}", "ingest.ack=group", "ingest.workers=1"]
    with running_daemon(tmp_path, settings, roles="ingest") as started:
        yield started


def ready(server: tuple[redis.Redis, str]) -> int:
    return int(server[0].llen("pb:{0}:ready"))


def pushes(server: tuple[redis.Redis, str]) -> int:
    return int(server[0].info("commandstats").get("cmdstat_rpush", {"calls": 0})["calls"])


def test_requests_that_arrive_together_share_a_commit(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    ids: set[str] = set()
    with clients(daemon, CLIENTS) as opened:
        opened[0].sendall(request())
        ids.update(json.loads(read_answer(opened[0])[2])["ids"])
        server[0].config_resetstat()
        with stopped(daemon):
            for client in opened:
                client.sendall(request())
        for client in opened:
            status, headers, body = read_answer(client)
            assert status == b"HTTP/1.1 202 Accepted"
            assert headers == b"Content-Type: application/json\r\nContent-Length: 41\r\nConnection: Keep-Alive"
            ids.update(json.loads(body)["ids"])
        assert pushes(server) < CLIENTS / 2
        for client in opened:  # and the connections go on
            client.sendall(request())
            ids.update(json.loads(read_answer(client)[2])["ids"])
    assert len(ids) == ready(server) == 2 * CLIENTS + 1


def test_each_is_answered_for_itself(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    bad = DOCUMENT.replace(b'"GET"', b'"TRACE"')
    sent: list[tuple[bytes, bytes]] = [
        (request(), b"202 Accepted"),
        (request(bad), b"422 Unprocessable Content"),
        (request(b"{"), b"400 Bad Request"),
        (request(head=b"Connection: keep-alive\r\n"), b"202 Accepted"),
        (request(head=b"Connection: close\r\n"), b"202 Accepted"),
        (request(version=b"HTTP/1.0"), b"202 Accepted"),
        (request(head=b"Proxy-Connection: close\r\n"), b"202 Accepted"),
        (request(head=b"Idempotency-Key: k1\r\n"), b"202 Accepted"),
        (request(DOCUMENT + b"\n" + DOCUMENT).replace(b"application/json", b"application/x-ndjson"), b"200 OK"),
        (request(), b"202 Accepted"),
        (b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK"),
    ]
    with clients(daemon, len(sent)) as opened:
        with stopped(daemon):
            for client, (data, _) in zip(opened, sent, strict=True):
                client.sendall(data)
        found = [read_answer(client) for client in opened]
        assert [status.removeprefix(b"HTTP/1.1 ") for status, *_ in found] == [wanted for _, wanted in sent]
        assert [number for number, (_, headers, _) in enumerate(found) if b"Connection: close" in headers] == [4, 5, 6]
        assert [opened[number].recv(1) for number in (4, 5, 6)] == [b""] * 3
    assert ready(server) == 9
    assert json.loads(found[1][2])["error"]["path"] == "endpoint.method"


def test_request_with_many_items_is_answered_at_once(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    document = json.loads(DOCUMENT)
    document["data"] = [{"k": str(number)} for number in range(1000)]
    with clients(daemon, 3) as opened:
        with stopped(daemon):
            for client, body in zip(opened, (DOCUMENT, json.dumps(document).encode(), DOCUMENT), strict=True):
                client.sendall(request(body))
        counts = [len(json.loads(read_answer(client)[2])["ids"]) for client in opened]
    assert counts == [1, 1000, 1]
    assert ready(server) == 1002


def test_large_requests_are_not_kept_until_there_are_many(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    """A kilobyte of gzip each, and 900 kB for Redis: what waits and what is done is not to add up."""
    large = {"endpoint": {"method": "POST", "url": "http://127.0.0.1:1/"}, "data": {"k": "v" * 900_000}}
    data = request(gzip.compress(json.dumps(large).encode()), b"Content-Encoding: gzip\r\n")
    [worker] = daemon.children("ingest")
    with clients(daemon, 150) as opened:
        before = peak_bytes(worker)
        with stopped(daemon):
            for client in opened:
                client.sendall(data)
        assert {read_answer(client)[0] for client in opened} == {b"HTTP/1.1 202 Accepted"}
    assert ready(server) == 150
    assert peak_bytes(worker) - before < 40_000_000


def peak_bytes(process: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def test_clients_that_leave_or_reset_harm_nobody(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    [worker] = daemon.children("ingest")
    before = psutil.Process(worker).num_fds()
    with clients(daemon, 12) as opened:
        with stopped(daemon):
            for number, client in enumerate(opened):
                client.sendall(request())
                if number % 3 == 0:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    client.close()
                elif number % 3 == 1:
                    client.shutdown(socket.SHUT_WR)
        for number, client in enumerate(opened):
            if number % 3 == 2:
                assert read_answer(client)[0] == b"HTTP/1.1 202 Accepted"
    assert daemon.children("ingest") == [worker]
    assert daemon.post(DOCUMENT)[0] == 202
    wait_until(lambda: psutil.Process(worker).num_fds() <= before + 1, "no descriptor is left behind")
    assert b"Traceback" not in daemon.output.read_bytes()


def test_request_behind_one_that_waits_is_refused_as_ever(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    with clients(daemon, 2) as [first, second]:
        with stopped(daemon):
            first.sendall(request())
            second.sendall(request() + request())
        assert read_answer(first)[0] == b"HTTP/1.1 202 Accepted"
        assert read_answer(second)[0] == b"HTTP/1.1 400 Bad Request"
        assert second.recv(1) == b""
        first.sendall(request())
        assert read_answer(first)[0] == b"HTTP/1.1 202 Accepted"
    assert ready(server) == 2


def test_client_that_reads_no_answers_is_cut(daemon: Daemon) -> None:
    """Whatever it sends: each request is answered before the next is read, until the socket's buffer is full."""
    document = json.loads(DOCUMENT)
    document["data"] = [{"k": str(number)} for number in range(400)]
    data = request(json.dumps(document).encode())
    cut = threading.Event()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", daemon.port))
        client.settimeout(BOUND_S)
        for _ in range(5000):
            try:
                client.sendall(data)
            except OSError:
                cut.set()
                break
    assert cut.is_set()
    assert daemon.post(DOCUMENT)[0] == 202
    assert b"Traceback" not in daemon.output.read_bytes()


def test_request_that_waits_long_for_its_commit_is_not_cut(server: tuple[redis.Redis, str], tmp_path: Path) -> None:
    """It has arrived, so `request_timeout` is none of its concern."""
    server[0].flushall()
    settings = [f"queue.url={server[1]}", "ingest.ack=group", "ingest.workers=1", "ingest.request_timeout=0.3"]
    with running_daemon(tmp_path, settings, roles="ingest") as daemon, clients(daemon, CLIENTS) as opened:
        server[0].client_pause(3000, all=False)  # writes wait, for less than the queue's time-out
        with stopped(daemon):
            for client in opened:
                client.sendall(request())
        assert {read_answer(client)[0] for client in opened} == {b"HTTP/1.1 202 Accepted"}
    assert ready(server) == CLIENTS


def test_full_queue_is_a_503_for_each(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    server[0].config_set("maxmemory", 1)
    try:
        with clients(daemon, 4) as opened:
            with stopped(daemon):
                for client in opened:
                    client.sendall(request())
            for client in opened:
                status, headers, body = read_answer(client)
                assert status == b"HTTP/1.1 503 Service Unavailable"
                assert b"Retry-After: 5" in headers
                assert json.loads(body)["error"]["code"] == "queue_full"
    finally:
        server[0].config_set("maxmemory", 0)
    assert ready(server) == 0


def test_redis_away_means_the_spool_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        running_sink(tmp_path / "sink") as sink,
        running_daemon(tmp_path / "daemon", ["ingest.ack=group", "ingest.workers=1"]) as daemon,
    ):
        body = json.dumps({"endpoint": {"method": "GET", "url": sink.url + "/x?k={k}"}, "data": {"k": "v"}}).encode()
        assert daemon.post(body)[0] == 202
        wait_until(daemon.delivered_ids, "delivery runs too: a worker that finds no server when it starts ends it all")
        [server] = [p for p in daemon.family() if "valkey" in p.name() or "redis" in p.name()]
        ids: list[str] = []
        with clients(daemon, CLIENTS) as opened:
            server.kill()
            with stopped(daemon):
                for client in opened:
                    client.sendall(request(body))
            for client in opened:
                status, _, answer = read_answer(client)
                assert status == b"HTTP/1.1 202 Accepted", answer
                ids += json.loads(answer)["ids"]
        wait_until(lambda: set(ids) <= set(daemon.delivered_ids()), "all are delivered")
        received(sink, CLIENTS + 1)


def received(sink: Sink, count: int) -> None:
    wait_until(lambda: len(sink.received()) >= count, f"{count} have arrived")


def test_stop_answers_what_was_read(daemon: Daemon, server: tuple[redis.Redis, str]) -> None:
    with clients(daemon, CLIENTS) as opened:
        with stopped(daemon):
            for client in opened:
                client.sendall(request())
            daemon.process.send_signal(signal.SIGTERM)
        for client in opened:
            assert read_answer(client)[0] == b"HTTP/1.1 202 Accepted"
    assert daemon.process.wait(BOUND_S) == 0
    assert ready(server) == CLIENTS


def test_it_can_be_changed_by_a_reload(tmp_path: Path, server: tuple[redis.Redis, str]) -> None:
    server[0].flushall()
    config = tmp_path / "postbackd.toml"
    config.write_text('[ingest]\nack = "commit"\n')
    with running_daemon(tmp_path, [f"queue.url={server[1]}", "ingest.workers=1"], "ingest", config) as daemon:
        [before] = daemon.children("ingest")
        config.write_text('[ingest]\nack = "group"\n')
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: daemon.children("ingest") not in ([], [before]) and len(daemon.children("ingest")) == 1, "new"
        )
        with clients(daemon, CLIENTS) as opened:
            opened[0].sendall(request())
            read_answer(opened[0])
            server[0].config_resetstat()
            with stopped(daemon):
                for client in opened:
                    client.sendall(request())
            assert {read_answer(client)[0] for client in opened} == {b"HTTP/1.1 202 Accepted"}
        assert pushes(server) < CLIENTS / 2


def test_client_of_others_agrees(daemon: Daemon) -> None:
    """One that nobody here wrote: curl, which says what it does not understand."""
    answer = subprocess.run(
        ["curl", "-sS", "-i", "--data-binary", DOCUMENT, "-H", "Content-Type: application/json", daemon.url + "/i"],
        capture_output=True,
        check=True,
        timeout=BOUND_S,
    ).stdout
    assert answer.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["ids"]) == 1
