# SPDX-License-Identifier: MIT
"""Ingest, commit before the status: requests/s of the sample request, beside a bare bjoern in the same run.

    python -m bench.ingest [--connections 64] [--seconds 3] [--rounds 5] [--appendfsync everysec] [--ack group] [--json]

The ingest processes have one core, wrk and Valkey share the other. Rounds alternate between us and the bare app.
Without --workers there are 8 processes, or 2 with --ack group.
Bytes into Redis per postback come from Redis' own counter, over a whole round, endpoint records included.
"""

import json
import sys
from typing import Any

import click
import redis

from bench.support import (
    MEASURED_CORE,
    SAMPLE_DATA,
    Daemon,
    daemon,
    free_port,
    median,
    process,
    queue_server,
    report,
    spread,
    wait_for_port,
    wrk,
)

WORKERS = {"commit": 8, "group": 2}


def request_body(items: int) -> bytes:
    data = [SAMPLE_DATA[number % len(SAMPLE_DATA)] for number in range(items)]
    endpoint = {"method": "GET", "url": "http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}"}
    return json.dumps({"endpoint": endpoint, "data": data}, separators=(",", ":")).encode()


def one_round(running: Daemon, client: redis.Redis, connections: int, seconds: int, items: int) -> dict[str, float]:
    """One run of wrk against the daemon, with the CPU and the bytes it took."""
    client.flushall()
    cpu_before, queue_before = running.cpu_s("ingest"), client.info()
    found = wrk(running.port, "/ingest.php", request_body(items), connections, seconds)
    queue_after = client.info()
    postbacks = client.llen("pb:{0}:ready")
    return {
        **found,
        "postbacks_per_s": found["per_s"] * items,
        "cpu_us_per_request": (running.cpu_s("ingest") - cpu_before) / found["requests"] * 1e6,
        "queue_cpu_us_per_request": _cpu_s(queue_after, queue_before) / found["requests"] * 1e6,
        "redis_bytes_in": (queue_after["total_net_input_bytes"] - queue_before["total_net_input_bytes"]) / postbacks,
        "redis_bytes_out": (queue_after["total_net_output_bytes"] - queue_before["total_net_output_bytes"]) / postbacks,
        "redis_commands": (queue_after["total_commands_processed"] - queue_before["total_commands_processed"])
        / postbacks,
        "rss_mb": running.rss_bytes("ingest") / 1e6,
    }


def _cpu_s(after: dict[str, Any], before: dict[str, Any]) -> float:
    return float(after["used_cpu_user"] + after["used_cpu_sys"] - before["used_cpu_user"] - before["used_cpu_sys"])


@click.command()
@click.option("--connections", default=64, show_default=True)
@click.option("--seconds", default=3, show_default=True, help="Length of each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--ack", default="commit", show_default=True, type=click.Choice(["commit", "group"]))
@click.option("--workers", type=int, help="Ingest processes on the measured core.")
@click.option("--items", default=2, show_default=True, help="Postbacks a request; 2 is the sample.")
@click.option("--appendfsync", default="everysec", show_default=True, type=click.Choice(["always", "everysec", "no"]))
@click.option("--json", "as_json", is_flag=True)
def main(
    connections: int,
    seconds: int,
    rounds: int,
    ack: str,
    workers: int | None,
    items: int,
    appendfsync: str,
    as_json: bool,
) -> None:
    """Measure ingest."""
    workers = workers or WORKERS[ack]
    bare_port = free_port()
    ours: list[dict[str, float]] = []
    bare: list[float] = []
    with (
        queue_server(appendfsync) as (url, client),
        daemon(url, MEASURED_CORE, "ingest", [f"ingest.workers={workers}", f"ingest.ack={ack}"]) as running,
        process(MEASURED_CORE, [sys.executable, "-m", "bench.peers.bare_bjoern", str(bare_port)]),
    ):
        wait_for_port(bare_port)
        wrk(running.port, "/ingest.php", request_body(items), connections, 1)
        for _ in range(rounds):
            bare.append(wrk(bare_port, "/", request_body(items), connections, seconds)["per_s"])
            ours.append(one_round(running, client, connections, seconds, items))
    columns = {name: [found[name] for found in ours] for name in ours[0]}
    ratios = [found["per_s"] / floor for found, floor in zip(ours, bare, strict=True)]
    figures = {name: median(values) for name, values in columns.items()}
    figures |= {"bare_per_s": median(bare), "ratio": median(ratios), "connections": connections, "items": items}
    rows = [
        ("requests/s, bare bjoern (1 process)", spread(bare)),
        (f"requests/s, postbackd ({ack}, {workers} processes, appendfsync {appendfsync})", spread(columns["per_s"])),
        ("ratio to bare bjoern", spread(ratios)),
        ("postbacks/s", spread(columns["postbacks_per_s"])),
        ("p50 / p99 ms", f"{figures['p50_ms']:.2f} / {figures['p99_ms']:.2f}"),
        ("CPU µs a request, ingest processes", spread(columns["cpu_us_per_request"])),
        ("CPU µs a request, Valkey", spread(columns["queue_cpu_us_per_request"])),
        ("bytes into Redis a postback", spread(columns["redis_bytes_in"])),
        ("bytes out of Redis a postback", spread(columns["redis_bytes_out"])),
        ("Redis commands a postback", spread(columns["redis_commands"])),
        ("RSS MB, largest ingest process", spread(columns["rss_mb"])),
    ]
    report(f"ingest: {connections} connections, {items} postbacks a request", rows, figures, as_json)


if __name__ == "__main__":
    main()
