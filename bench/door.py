# SPDX-License-Identifier: MIT
"""The door under attack: what holds each attack, what it takes, and what a well-behaved client notices of it.

    python -m bench.door [--seconds 5] [--idle 5000] [--slow 1000] [--json]

Each attack runs in a process of its own while a client posts the sample on four kept connections, 300 requests a
second, and measures each. "Alone" is measured before each attack, in the same run. Ingest has one core, everything else
the other. Limits are the defaults of [ingest].
"""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import psutil

from bench.support import MEASURED_CORE, Daemon, daemon, pin_to_other_core, queue_server, report, sample_endpoint

PACE_S = 1 / 300
CONNECTIONS = 4
START_BOUND_S = 60
DRIP_S = 1.0
Sockets = list[socket.socket]


def sample() -> bytes:
    data = [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}]
    body = json.dumps({"endpoint": sample_endpoint(9), "data": data}, separators=(",", ":")).encode()
    head = b"POST /ingest.php HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def measure(port: int, seconds: float) -> list[float]:
    """Milliseconds of each request of a client that behaves; a refused one ends the bench."""
    request = sample()
    clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(CONNECTIONS)]
    took: list[float] = []
    next_s = end_s = time.perf_counter()
    end_s += seconds
    number = 0
    while next_s < end_s:
        time.sleep(max(next_s - time.perf_counter(), 0))
        client = clients[number % CONNECTIONS]
        started_s = time.perf_counter()
        client.sendall(request)
        answer = client.recv(4096)
        took.append((time.perf_counter() - started_s) * 1000)
        if not answer.startswith(b"HTTP/1.1 202 "):
            raise SystemExit(f"bench: a well-behaved client got {answer[:200]!r}")
        number += 1
        next_s += PACE_S
    for client in clients:
        client.close()
    return took


# The attacks: each makes its load, says that it stands, and keeps it up until it is ended


def open_connections(port: int, count: int, sent: bytes) -> Sockets:
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), 30)
        client.sendall(sent)
        clients.append(client)
    return clients


def hold(clients: Sockets) -> None:
    while clients:
        time.sleep(1)


def drip(clients: Sockets) -> None:
    """A byte now and then on each."""
    while True:
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(b"x")
            time.sleep(DRIP_S / len(clients))


def again_and_again(port: int, sent: bytes) -> None:
    """The same on new connections, one after the other."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        time.sleep(0.005)


HEAD = b"POST /i HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
TINY_HEADERS = b"GET / HTTP/1.1\r\n" + b"".join(b"%x:\r\n" % number for number in range(12_000))
ENDLESS = b"POST /i HTTP/1.1\r\nHost: a\r\nContent-Length: 200000000\r\n\r\n" + b"x" * 60_000_000
Attack = Callable[[int, Callable[[], None]], None]


def attacks(idle: int, slow: int) -> dict[str, tuple[str, Attack]]:
    """Name → what holds it, and the attack itself."""

    def standing(*loads: tuple[int, bytes], drips: bool = False) -> Attack:
        def run(port: int, ready: Callable[[], None]) -> None:
            clients = [client for count, sent in loads for client in open_connections(port, count, sent)]
            ready()
            drip(clients[-slow:]) if drips else hold(clients)

        return run

    def repeating(sent: bytes) -> Attack:
        def run(port: int, ready: Callable[[], None]) -> None:
            ready()
            again_and_again(port, sent)

        return run

    return {
        f"{idle} idle connections": ("idle_timeout, max_connections", standing((idle, b""))),
        f"{slow} slow in the header": ("request_timeout", standing((slow, b"POST /i HTTP/1.1\r\nX: "), drips=True)),
        f"{slow} slow in the body": ("request_timeout", standing((slow, HEAD + b"\r\n"), drips=True)),
        f"{idle} idle and {slow} slow": (
            "idle_timeout, request_timeout",
            standing((idle, b""), (slow, HEAD + b"\r\n"), drips=True),
        ),
        "400 bodies of 900 kB, unfinished": ("max_arriving_bytes", standing((400, HEAD + b"\r\n" + b"x" * 900_000))),
        "200 headers of 80 kB, unfinished": ("max_arriving_bytes", standing((200, TINY_HEADERS[:80_000]))),
        "200 MB bodies, again and again": ("the limit of 16 MiB", repeating(ENDLESS)),
        "3,000 pipelined requests, again and again": (
            "pipelining_refused",
            repeating(b"GET / HTTP/1.1\r\n\r\n" * 3000),
        ),
        "a new connection each 5 ms": ("nothing needs to", repeating(b"")),
    }


@contextmanager
def under_attack(attack: Attack, port: int) -> Iterator[None]:
    """The attack in a process of its own, from when it stands until the block ends."""
    ready = multiprocessing.Event()

    def run() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        attack(port, ready.set)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    try:
        if not ready.wait(START_BOUND_S):
            raise SystemExit("bench: the attack does not stand")
        yield
    finally:
        process.terminate()
        process.join()


def connections(port: int) -> int:
    """Established ones of the door, as the kernel lists them."""
    wanted = f":{port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return sum(row[1].endswith(wanted) and row[3] == "01" for row in rows[1:])


def rss_mb(running: Daemon) -> tuple[float, float]:
    """Of the largest ingest process, and of all."""
    sizes = [psutil.Process(pid).memory_info().rss / 1e6 for pid in running.pids("ingest")]
    return max(sizes), sum(sizes)


def rank(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[int(share * 100) - 1]


@click.command()
@click.option("--seconds", default=5, show_default=True, help="Length of each measurement.")
@click.option("--idle", default=5000, show_default=True)
@click.option("--slow", default=1000, show_default=True)
@click.option("--workers", default=4, show_default=True, help="Ingest processes on the measured core.")
@click.option("--json", "as_json", is_flag=True)
def main(seconds: int, idle: int, slow: int, workers: int, as_json: bool) -> None:
    """Attack the door."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {}
    with (
        queue_server("everysec") as (url, client),
        daemon(url, MEASURED_CORE, "ingest", [f"ingest.workers={workers}"]) as running,
    ):
        pin_to_other_core()
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        measure(running.port, 1)
        for name, (held_by, attack) in attacks(idle, slow).items():
            client.flushall()
            alone = measure(running.port, seconds)
            with under_attack(attack, running.port):
                open_at_start = connections(running.port)
                beside = measure(running.port, seconds)
                largest, whole = rss_mb(running)
                peak = max(open_at_start, connections(running.port))
            ratio = rank(beside, 0.99) / rank(alone, 0.99)
            both = f"{rank(alone, 0.99):.2f} → {rank(beside, 0.99):.2f} ms, {ratio:.2f} times"
            text = f"{both}; {peak} open, {largest:.0f} MB"
            rows.append((f"{name}\n  held by {held_by}", text))
            figures[name] = {
                "held_by": held_by,
                "connections": peak,
                "rss_mb_largest": largest,
                "rss_mb_all": whole,
                "alone_p50_ms": rank(alone, 0.5),
                "alone_p99_ms": rank(alone, 0.99),
                "beside_p50_ms": rank(beside, 0.5),
                "beside_p99_ms": rank(beside, 0.99),
                "p99_ratio": ratio,
            }
    title = f"door: p99 of a well-behaved client alone → under attack ({workers} ingest processes), peak, largest RSS"
    report(title, rows, figures, as_json)


if __name__ == "__main__":
    main()
