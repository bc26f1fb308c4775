# SPDX-License-Identifier: MIT
"""Delivery of queued sample postbacks to a fast target, beside raw keep-alive sockets in the same run.

    python -m bench.delivery [--postbacks 40000] [--rounds 5] [--target nginx|sink] [--json]

One delivery worker has one core; the target and Valkey share the other. A round enqueues the postbacks, starts a
daemon, and waits until Redis says that all are delivered: claim, render, transfer, log line and settle included. The
CPU of a start is measured apart (the worker is ready and idle before the postbacks come) and so not in the figure.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
import redis

from bench.support import (
    MEASURED_CORE,
    OTHER_CORE,
    SAMPLE_DATA,
    Daemon,
    daemon,
    free_port,
    median,
    nginx_target,
    process,
    queue_server,
    report,
    sample_endpoint,
    sink_command,
    spread,
    wait_for_port,
)
from postbackd.clock import Clock
from postbackd.codec import IdGenerator
from postbackd.endpoint import compile_endpoint
from postbackd.queue.keys import Keys

KEYS = Keys("pb")
ENQUEUE_BATCH = 1000
BOUND_S = 600


def enqueue(client: redis.Redis, key: bytes, port: int, count: int) -> None:
    """Queue sample postbacks for a port of this machine, as ingest would, under a key."""
    text = msgspec.json.encode(sample_endpoint(port))
    endpoint = compile_endpoint(text, default="", unmatched="empty", allow_host=False, schemes=["http"])
    ids = IdGenerator(0, Clock().now_ms)
    client.set(KEYS.endpoint(endpoint.id), endpoint.record, ex=86_400)
    for start in range(0, count, ENQUEUE_BATCH):
        batch = ids.next_ids(min(ENQUEUE_BATCH, count - start))
        client.rpush(key, *(endpoint.encode(i, SAMPLE_DATA[n % 2], n, None) for n, i in enumerate(batch)))


def one_round(running: Daemon, client: redis.Redis, port: int, count: int) -> dict[str, float]:
    """Enqueue where nobody claims, let it loose, wait until all is delivered; what it took."""
    client.delete(KEYS.stats)
    enqueue(client, b"hidden", port, count)
    before = client.info()
    cpu_s, started_s = running.cpu_s("deliver"), time.monotonic()
    client.rename(b"hidden", KEYS.ready)
    while int(client.hget(KEYS.stats, "delivered") or 0) < count:
        if time.monotonic() > started_s + BOUND_S:
            raise SystemExit(f"bench: not delivered in {BOUND_S} s; stats {client.hgetall(KEYS.stats)}")
        time.sleep(0.05)
    took_s = time.monotonic() - started_s
    after = client.info()

    def per_postback(name: str) -> float:
        return float(after[name] - before[name]) / count

    return {
        "cpu_us": (running.cpu_s("deliver") - cpu_s) / count * 1e6,
        "queue_cpu_us": (per_postback("used_cpu_user") + per_postback("used_cpu_sys")) * 1e6,
        "per_s": count / took_s,
        "redis_bytes_out": per_postback("total_net_output_bytes"),
        "redis_bytes_in": per_postback("total_net_input_bytes"),
        "redis_commands": per_postback("total_commands_processed"),
        "rss_mb": running.rss_bytes("deliver") / 1e6,
    }


def raw_sockets(port: int, count: int, connections: int) -> dict[str, float]:
    """The floor: CPU µs a request and requests/s."""
    command = [sys.executable, "-m", "bench.peers.raw_sockets", str(port), str(count), str(connections)]
    with process(MEASURED_CORE, command, stdout=subprocess.PIPE) as started:
        output, _ = started.communicate()
    if started.returncode:
        raise SystemExit("bench: the raw sockets failed")
    found: dict[str, float] = json.loads(output)
    return found


@contextmanager
def target_server(name: str, latency_s: float) -> Iterator[int]:
    """nginx, or our own sink."""
    if name == "nginx" and not latency_s:
        with nginx_target(OTHER_CORE) as port:
            yield port
        return
    port = free_port()
    command = sink_command(port, "--latency", str(latency_s))
    with process(OTHER_CORE, command, stdout=subprocess.DEVNULL):
        wait_for_port(port)
        yield port


@click.command()
@click.option("--postbacks", default=40_000, show_default=True, help="In each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--per-host", default=32, show_default=True, help="Connections, of the raw sockets too.")
@click.option("--target", default="nginx", show_default=True, type=click.Choice(["nginx", "sink"]))
@click.option("--latency", default=0.0, show_default=True, help="Seconds before each answer; takes the sink.")
@click.option("--appendfsync", default="everysec", show_default=True, type=click.Choice(["always", "everysec", "no"]))
@click.option("--json", "as_json", is_flag=True)
def main(
    postbacks: int, rounds: int, per_host: int, target: str, latency: float, appendfsync: str, as_json: bool
) -> None:
    """Measure delivery."""
    ours: list[dict[str, float]] = []
    raw: list[float] = []
    settings = ["delivery.workers=1", f"delivery.per_host={per_host}"]
    with (
        queue_server(appendfsync) as (url, client),
        target_server(target, latency) as port,
        daemon(url, MEASURED_CORE, "deliver", settings) as running,
    ):
        one_round(running, client, port, min(postbacks, 5000))
        for _ in range(rounds):
            raw.append(raw_sockets(port, postbacks, per_host)["cpu_us"])
            ours.append(one_round(running, client, port, postbacks))
    columns = {name: [found[name] for found in ours] for name in ours[0]}
    ratios = [found["cpu_us"] / floor for found, floor in zip(ours, raw, strict=True)]
    figures = {name: median(values) for name, values in columns.items()}
    figures |= {"raw_cpu_us": median(raw), "ratio": median(ratios), "postbacks": postbacks * rounds}
    rows = [
        (f"CPU µs a delivery, raw keep-alive sockets ({per_host})", spread(raw)),
        ("CPU µs a delivery, delivery worker", spread(columns["cpu_us"])),
        ("ratio to raw sockets", spread(ratios)),
        ("deliveries/s, one worker", spread(columns["per_s"])),
        ("CPU µs a delivery, Valkey", spread(columns["queue_cpu_us"])),
        ("bytes out of Redis a postback", spread(columns["redis_bytes_out"])),
        ("bytes into Redis a postback", spread(columns["redis_bytes_in"])),
        ("Redis commands a postback, inner ones of scripts included", spread(columns["redis_commands"])),
        ("RSS MB of the worker", spread(columns["rss_mb"])),
    ]
    place = f"{target} with {latency:g} s of latency" if latency else target
    title = f"delivery: {rounds} x {postbacks} sample postbacks to {place}, appendfsync {appendfsync}"
    report(title, rows, figures, as_json)


if __name__ == "__main__":
    main()
