# SPDX-License-Identifier: MIT
"""One bad host never hurts another: a healthy tenth of the traffic, alone and beside hosts that hang, crawl and reset.

    python -m bench.isolation [--rate 500] [--seconds 15] [--hosts 500] [--json]

Postbacks are queued at a fixed rate, as ingest would queue them; one delivery worker has one core. First alone: `rate`
a second to four healthy hosts (loopback addresses, so each has its lane). Then beside them nine times as many to a host
that never answers, one that answers after 5 s and one that resets every connection. The time of a postback goes from
its acceptance (in its id) to its answer, out of the delivery log; what is not delivered in the seconds counts as not
delivered. Wanted: at least 0.9 of the throughput and at most twice the p99. On a machine that is busy otherwise the
worker gets less than its core (shown as its share), and that is measured then.

Second part: `hosts` hosts of 1 ms to 4 s, two postbacks a second each, which is more than the worker has places for.
Each group should take what its hosts take; what cannot be had is taken from the slow ones.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import redis

from bench.support import MEASURED_CORE, OTHER_CORE, Daemon, daemon, free_port, process, queue_server, report
from postbackd.clock import Clock
from postbackd.codec import EPOCH_MS, IdGenerator
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.queue.keys import Keys

KEYS = Keys("pb")
TICK_S = 0.01
HEALTHY = [f"127.0.1.{number}" for number in range(1, 5)]
BAD = ["127.0.2.1", "127.0.3.1", "127.0.4.1"]
BAD_SHARE = 0.9
AFTER_S = 3.0  # for what was queued last
GROUPS_MS = ((0, 20), (20, 200), (200, 1000), (1000, 1 << 30))


class Delivered(NamedTuple):
    """A delivered postback, as the log has it."""

    host: str
    accepted_ms: int
    took_ms: float  # from its acceptance to its answer


class Feed:
    """Postbacks for some hosts, queued at a rate."""

    def __init__(self, client: redis.Redis, port: int) -> None:
        self._client = client
        self._port = port
        self._ids = IdGenerator(0, Clock().now_ms)
        self._chance = random.Random(7)
        self._endpoints: dict[str, IngestEndpoint] = {}

    def _endpoint(self, host: str) -> IngestEndpoint:
        if host not in self._endpoints:
            text = msgspec.json.encode({"method": "GET", "url": f"http://{host}:{self._port}/?n={{n}}"})
            made = compile_endpoint(text, default="", unmatched="empty", allow_host=False, schemes=["http"])
            self._client.set(KEYS.endpoint(made.id), made.record, ex=86_400)
            self._endpoints[host] = made
        return self._endpoints[host]

    def run(self, seconds: float, flows: Sequence[tuple[Sequence[str], float]]) -> tuple[int, int]:
        """Queue for so long, each flow's hosts by turns at its rate, mixed; from when to when, in ms since 1970."""
        began_s, queued, turns = time.monotonic(), [0] * len(flows), 0
        began_ms = time.time_ns() // 1_000_000
        while (passed_s := time.monotonic() - began_s) < seconds:
            hosts = []
            for flow, (names, per_s) in enumerate(flows):
                due = int(passed_s * per_s) - queued[flow]
                hosts += [names[(queued[flow] + number) % len(names)] for number in range(due)]
                queued[flow] += due
            self._chance.shuffle(hosts)
            if hosts:
                ids = self._ids.next_ids(len(hosts))
                items = [self._endpoint(h).encode(i, {"n": i & 1023}, 0, None) for h, i in zip(hosts, ids, strict=True)]
                self._client.rpush(KEYS.ready, *items)
            turns += 1
            time.sleep(max(0.0, turns * TICK_S - (time.monotonic() - began_s)))
        return began_ms, time.time_ns() // 1_000_000


class Log:
    """The daemon's delivery log, read on from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def delivered(self) -> list[Delivered]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._read += end
        lines = (json.loads(line) for line in data[:end].splitlines())
        return [_delivered(line) for line in lines if line["outcome"] == "delivered"]


def _delivered(line: dict[str, Any]) -> Delivered:
    accepted_ms = (int(line["id"], 16) >> 22) + EPOCH_MS
    head, _, ms = line["time"].removesuffix("Z").partition(".")
    sent_ms = int(time.mktime(time.strptime(head, "%Y-%m-%dT%H:%M:%S")) - time.timezone) * 1000 + int(ms)
    return Delivered(line["host"].partition(":")[0], accepted_ms, sent_ms + line["response_time_ms"] - accepted_ms)


def rank_ms(times_ms: Sequence[float], share: float) -> float:
    ordered = sorted(times_ms)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def figures_of(found: Sequence[Delivered], window: tuple[int, int]) -> dict[str, float]:
    """Of the postbacks accepted within the window: how many a second were delivered in it, and their times."""
    within = [one for one in found if window[0] <= one.accepted_ms < window[1]]
    in_time = [one for one in within if one.accepted_ms + one.took_ms < window[1] + 1000]
    times_ms = [one.took_ms for one in within]
    per_s = len(in_time) / ((window[1] - window[0]) / 1000)
    return {"per_s": per_s, "p50_ms": rank_ms(times_ms, 0.5), "p99_ms": rank_ms(times_ms, 0.99)}


def healthy_tenth(running: Daemon, client: redis.Redis, port: int, rate: float, seconds: float) -> dict[str, Any]:
    """The first part: alone, then beside the bad hosts."""
    feed, log = Feed(client, port), Log(running.folder / "deliveries.jsonl")
    feed.run(2, [(HEALTHY, rate)])  # connections, limits
    found: dict[str, Any] = {}
    for name, flows in (
        ("alone", [(HEALTHY, rate)]),
        ("beside", [(HEALTHY, rate), (BAD, rate * BAD_SHARE / (1 - BAD_SHARE))]),
    ):
        cpu_s = running.cpu_s("deliver")
        window = feed.run(seconds, flows)
        time.sleep(AFTER_S)
        delivered = [one for one in log.delivered() if one.host in HEALTHY]
        found[name] = figures_of(delivered, window)
        found[name]["cpu_share"] = (running.cpu_s("deliver") - cpu_s) / (seconds + AFTER_S)
    found["throughput_ratio"] = found["beside"]["per_s"] / found["alone"]["per_s"]
    found["p99_ratio"] = found["beside"]["p99_ms"] / found["alone"]["p99_ms"]
    found["parked"] = client.zcard(KEYS.later)
    return found


def unequal(
    running: Daemon, client: redis.Redis, port: int, latencies_ms: Sequence[float], seconds: float
) -> list[dict[str, Any]]:
    """The second part: by group of hosts, what was offered, what was delivered and how late beyond their own time."""
    feed, log = Feed(client, port), Log(running.folder / "deliveries.jsonl")
    log.delivered()
    hosts = [f"127.1.{number // 256}.{number % 256}" for number in range(len(latencies_ms))]
    latency_of = dict(zip(hosts, latencies_ms, strict=True))
    window = feed.run(seconds, [(hosts, 2.0 * len(hosts))])
    time.sleep(AFTER_S)
    delivered = [one for one in log.delivered() if one.host in latency_of]
    rows = []
    for low_ms, high_ms in GROUPS_MS:
        group = {host for host in hosts if low_ms <= latency_of[host] < high_ms}
        beyond = [one._replace(took_ms=one.took_ms - latency_of[one.host]) for one in delivered if one.host in group]
        figures = figures_of(beyond, window)
        rows.append(
            {"from_ms": low_ms, "to_ms": high_ms, "hosts": len(group), "offered_per_s": 2 * len(group)} | figures
        )
    return rows


@contextmanager
def targets(latencies_ms: Sequence[float]) -> Any:
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.targets", str(port), *(f"{ms:.1f}" for ms in latencies_ms)]
    with process(OTHER_CORE, command, stdout=subprocess.DEVNULL):
        time.sleep(1)
        yield port


@click.command()
@click.option("--rate", default=500.0, show_default=True, help="Healthy postbacks a second.")
@click.option("--seconds", default=15.0, show_default=True, help="Of each measurement.")
@click.option("--hosts", default=500, show_default=True, help="Of the second part; 0 leaves it out.")
@click.option("--json", "as_json", is_flag=True)
def main(rate: float, seconds: float, hosts: int, as_json: bool) -> None:
    """Measure isolation."""
    latencies_ms = [4.0 ** (6 * number / max(hosts - 1, 1)) for number in range(hosts)]  # 1 ms to 4.1 s, even in log
    random.Random(3).shuffle(latencies_ms)
    with queue_server("everysec") as (url, client), targets(latencies_ms) as port:
        with daemon(url, MEASURED_CORE, "deliver", ["delivery.workers=1"]) as running:
            first = healthy_tenth(running, client, port, rate, seconds)
        client.flushall()
        groups = []
        if hosts:
            with daemon(url, MEASURED_CORE, "deliver", ["delivery.workers=1"]) as running:
                groups = unequal(running, client, port, latencies_ms, seconds)
    rows = [
        (
            f"{name}: deliveries/s, p50 ms, p99 ms, share of a core",
            "{per_s:.0f}, {p50_ms:.1f}, {p99_ms:.1f}, {cpu_share:.2f}".format(**first[name]),
        )
        for name in ("alone", "beside")
    ]
    rows.append(("beside, of alone: throughput, p99", f"{first['throughput_ratio']:.2f}, {first['p99_ratio']:.2f}"))
    for group in groups:
        what = "{hosts} hosts of {from_ms} to {to_ms} ms".format(**group).replace(f" to {1 << 30} ms", " ms and more")
        text = "{per_s:.0f} of {offered_per_s}/s, {p50_ms:.1f}, {p99_ms:.1f}".format(**group)
        rows.append((f"{what}: delivered, p50 and p99 ms beyond the host's own", text))
    title = f"isolation: {rate:g} healthy postbacks/s, 9 times as many to hosts that hang, crawl, reset"
    report(title, rows, {"first": first, "unequal": groups}, as_json)


if __name__ == "__main__":
    main()
