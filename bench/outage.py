# SPDX-License-Identifier: MIT
"""An outage of Redis under load: what senders feel, and how long the spool takes to run empty.

    python -m bench.outage [--rate 2000] [--before 10] [--away 60] [--after 20] [--json]

Valkey (append-only file, fsync always) is killed and started again; requests of one postback go on at a fixed rate over
64 connections. At the end every acknowledged id must stand in the delivery log as delivered.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import click
import redis

from bench.support import QueueServer, daemon, nginx_target, report
from postbackd.tools.audit import compare, read_delivered

CONNECTIONS = 64
DELIVERED_BOUND_S = 300


class Answered(NamedTuple):
    """One answered request."""

    due_s: float  # when it should have been sent: waiting for a free connection counts
    took_ms: float
    status: int
    ids: list[str]


class Load:
    """Requests at a fixed rate over so many connections."""

    def __init__(self, port: int, target_port: int, rate: float) -> None:
        endpoint = {"method": "GET", "url": f"http://127.0.0.1:{target_port}/?k={{k}}"}
        body = json.dumps({"endpoint": endpoint, "data": {"k": "v"}}, separators=(",", ":")).encode()
        head = b"POST /i HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._request = head % len(body) + body
        self._port = port
        self._interval_s = 1 / rate
        self._next_s = 0.0
        self.answered: list[Answered] = []
        self.broken = 0
        self.stopping = False

    async def run(self) -> None:
        """Until `stopping`."""
        self._next_s = time.monotonic()
        await asyncio.gather(*(self._connection() for _ in range(CONNECTIONS)))

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while not self.stopping:
            due_s, self._next_s = self._next_s, self._next_s + self._interval_s
            await asyncio.sleep(max(due_s - time.monotonic(), 0))
            try:
                writer.write(self._request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                answer = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                continue
            status = int(head[9:12])
            ids = json.loads(answer)["ids"] if status == 202 else []
            self.answered.append(Answered(due_s, (time.monotonic() - due_s) * 1000, status, ids))
        writer.close()


def rank_ms(answered: list[Answered], share: float) -> float:
    """The time that a share of the requests stays under."""
    times_ms = sorted(one.took_ms for one in answered)
    return times_ms[min(int(len(times_ms) * share), len(times_ms) - 1)] if times_ms else 0.0


def spool_files(folder: Path) -> list[Path]:
    return list((folder / "spool").glob("*.spool"))


async def outage(
    load: Load, server: QueueServer, folder: Path, before_s: float, away_s: float, after_s: float
) -> dict[str, float]:
    """Run the load through the outage; when Redis went and came, and how long the spool took."""
    running = asyncio.create_task(load.run())
    await asyncio.sleep(before_s)
    gone_s = time.monotonic()
    server.kill()
    await asyncio.sleep(away_s)
    spooled_bytes = sum(path.stat().st_size for path in spool_files(folder))
    await asyncio.to_thread(server.start)
    back_s = time.monotonic()
    replayed_s = None
    while time.monotonic() < back_s + after_s or spool_files(folder):
        if replayed_s is None and not spool_files(folder):
            replayed_s = time.monotonic()
        await asyncio.sleep(0.05)
    replayed_s = replayed_s or time.monotonic()
    load.stopping = True
    await running
    return {"gone_s": gone_s, "back_s": back_s, "drain_s": replayed_s - back_s, "spooled_bytes": spooled_bytes}


def wait_for_delivery(client: redis.Redis) -> float:
    """How long until nothing waits any more."""
    began_s = time.monotonic()
    while client.llen("pb:{0}:ready") + client.zcard("pb:{0}:later") + _leased(client):
        if time.monotonic() > began_s + DELIVERED_BOUND_S:
            raise SystemExit(f"bench: not everything is delivered after {DELIVERED_BOUND_S} s")
        time.sleep(0.05)
    return time.monotonic() - began_s


def _leased(client: redis.Redis) -> int:
    workers = client.zrange("pb:{0}:workers", 0, -1)
    return sum(max(client.hlen(f"pb:{{0}}:lease:{worker.decode()}") - 1, 0) for worker in workers)


@click.command()
@click.option("--rate", default=2000.0, show_default=True, help="Requests a second.")
@click.option("--before", default=10.0, show_default=True, help="Seconds before the outage.")
@click.option("--away", default=60.0, show_default=True, help="Seconds without Redis.")
@click.option("--after", default=20.0, show_default=True, help="Seconds of load after it.")
@click.option("--json", "as_json", is_flag=True)
def main(rate: float, before: float, away: float, after: float, as_json: bool) -> None:
    """Measure one outage."""
    server = QueueServer("always")
    try:
        with nginx_target(None) as target_port, daemon(server.url, None, "ingest,deliver", []) as running:
            load = Load(running.port, target_port, rate)
            found = asyncio.run(outage(load, server, running.folder, before, away, after))
            rest_s = wait_for_delivery(server.client)
            sent = {int(text, 16) for one in load.answered for text in one.ids}
            time.sleep(0.5)  # the last lines of the log
            audit = compare(sent, read_delivered([running.folder / "deliveries.jsonl"], sent))
    finally:
        server.destroy()
    during = [one for one in load.answered if found["gone_s"] <= one.due_s < found["back_s"]]
    around = [one for one in load.answered if not found["gone_s"] <= one.due_s < found["back_s"]]
    figures = {
        "rate": rate,
        "away_s": away,
        "acknowledged": len(sent),
        "refused": sum(one.status != 202 for one in load.answered),
        "broken": load.broken,
        "lost": len(audit.lost),
        "delivered_twice": sum(audit.duplicated.values()) - len(audit.duplicated),
        "outage_p50_ms": rank_ms(during, 0.5),
        "outage_p99_ms": rank_ms(during, 0.99),
        "outage_max_ms": rank_ms(during, 1.0),
        "else_p50_ms": rank_ms(around, 0.5),
        "else_p99_ms": rank_ms(around, 0.99),
        "acknowledged_in_outage": sum(one.status == 202 for one in during),
        "spool_bytes": found["spooled_bytes"],
        "spool_drained_after_s": found["drain_s"],
        "all_delivered_after_load_s": rest_s,
    }
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in figures.items()]
    report(f"Redis away for {away:g} s under {rate:g} requests/s", rows, figures, as_json)
    sys.exit(1 if audit.lost else 0)


if __name__ == "__main__":
    main()
