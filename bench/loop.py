# SPDX-License-Identifier: MIT
"""One request in an endless loop on one connection, beside a bare bjoern in the same run.

    python -m bench.loop [--seconds 3 | --count 10000] [--rounds 5] [--json]

The client sends the sample request, waits for its answer, and sends it again. It runs on the other core, with Valkey;
one ingest process has the measured one. Without a daemon of its own it can be pointed at a running one: --url.
"""

import socket
import sys
import time
from urllib.parse import urlsplit

import click

from bench.ingest import request_body
from bench.support import (
    MEASURED_CORE,
    daemon,
    free_port,
    median,
    pin_to_other_core,
    process,
    queue_server,
    report,
    spread,
    wait_for_port,
)


def loop(host: str, port: int, path: str, seconds: float, count: int | None) -> dict[str, float]:
    """Send and wait, for a time or a count; requests/s, p50 and p99 in ms."""
    body = request_body(2)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    times_s: list[float] = []
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started_s = now_s = time.perf_counter()
        while len(times_s) < count if count is not None else now_s - started_s < seconds:
            connection.sendall(request)
            _read_answer(connection)
            ended_s = time.perf_counter()
            times_s.append(ended_s - now_s)
            now_s = ended_s
    times_s.sort()
    return {
        "per_s": len(times_s) / (now_s - started_s),
        "p50_ms": times_s[len(times_s) // 2] * 1000,
        "p99_ms": times_s[len(times_s) * 99 // 100] * 1000,
    }


def _read_answer(connection: socket.socket) -> None:
    data = connection.recv(65536)
    while b"\r\n\r\n" not in data or not data.endswith(b"]}"):
        more = connection.recv(65536)
        if not more:
            raise SystemExit("bench: the connection was closed")
        data += more
    if not data.startswith(b"HTTP/1.1 202"):
        raise SystemExit(f"bench: not accepted: {data[:200]!r}")


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="Length of each round.")
@click.option("--count", type=int, help="Requests of each round, instead of a time.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--url", help="A running daemon's ingest address; nothing is started and nothing compared then.")
@click.option("--appendfsync", default="everysec", show_default=True, type=click.Choice(["always", "everysec", "no"]))
@click.option("--json", "as_json", is_flag=True)
def main(seconds: float, count: int | None, rounds: int, url: str | None, appendfsync: str, as_json: bool) -> None:
    """Measure the loop."""
    if url:
        parts = urlsplit(url)
        found = loop(parts.hostname or "127.0.0.1", parts.port or 80, parts.path, seconds, count)
        report("loop", [(name, f"{value:.4g}") for name, value in found.items()], found, as_json)
        return
    pin_to_other_core()
    bare_port = free_port()
    ours: list[dict[str, float]] = []
    bare: list[float] = []
    with (
        queue_server(appendfsync) as (queue_url, client),
        daemon(queue_url, MEASURED_CORE, "ingest", ["ingest.workers=1"]) as running,
        process(MEASURED_CORE, [sys.executable, "-m", "bench.peers.bare_bjoern", str(bare_port)]),
    ):
        wait_for_port(bare_port)
        loop("127.0.0.1", running.port, "/ingest.php", 0.5, None)
        for _ in range(rounds):
            client.flushall()
            bare.append(loop("127.0.0.1", bare_port, "/", seconds, count)["per_s"])
            ours.append(loop("127.0.0.1", running.port, "/ingest.php", seconds, count))
    columns = {name: [found[name] for found in ours] for name in ours[0]}
    ratios = [found["per_s"] / floor for found, floor in zip(ours, bare, strict=True)]
    figures = {name: median(values) for name, values in columns.items()}
    figures |= {"bare_per_s": median(bare), "ratio": median(ratios)}
    rows = [
        ("requests/s, bare bjoern", spread(bare)),
        (f"requests/s, postbackd (appendfsync {appendfsync})", spread(columns["per_s"])),
        ("ratio to bare bjoern", spread(ratios)),
        ("p50 ms", spread(columns["p50_ms"])),
        ("p99 ms", spread(columns["p99_ms"])),
    ]
    report("loop: one request after the other, one connection, 2 postbacks a request", rows, figures, as_json)


if __name__ == "__main__":
    main()
