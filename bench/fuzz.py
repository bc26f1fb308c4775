# SPDX-License-Identifier: MIT
"""Hostile requests at raw sockets, many of them: answers of docs/api.md's table only, memory and processes as before.

    python -m bench.fuzz [--count 1000000] [--seed 1] [--processes 2]

The same seed, count and processes make the same bytes; the first case that is answered wrongly is printed with its
number and ends the run. tests/hostile/test_fuzz.py is the short form for CI. On 2 cores, daemon and clients together:
700 to 1,500 requests a second.
"""

import json
import multiprocessing
import sys
import time
from collections import Counter
from multiprocessing.queues import Queue

import click
import psutil

from bench.support import Daemon, daemon, queue_server, report, sample_endpoint
from tests.support.hostile import Hostile, judge, send

GOOD_EVERY = 500
WARM_UP = 500
MAX_GROWTH_BYTES = 20_000_000
SAY_EVERY = 10_000


def attack(port: int, seed: str, count: int, found: "Queue[tuple[str, Counter[str]]]") -> None:
    """One process' share; puts what went wrong (or "") and what it sent, a piece at a time."""
    kinds: Counter[str] = Counter()
    for number, case in enumerate(Hostile(seed).cases(count), 1):
        kinds[case.kind] += 1
        wrong = judge(send(port, case))
        if wrong is None and number % GOOD_EVERY == 0:
            wrong = good(port)
        if wrong is not None:
            found.put((f"seed {seed}, case {number} ({case.kind}): {wrong}\nsent {case.pieces!r:.3000}", kinds))
            return
        if number % SAY_EVERY == 0 or number == count:
            found.put(("", kinds))
            kinds = Counter()


def good(port: int) -> str | None:
    """What is wrong with the answer to a well-behaved client."""
    body = json.dumps({"endpoint": sample_endpoint(9), "data": {"key": "k", "value": "v"}}).encode()
    head = b"POST /i HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    class Good:
        pieces = (head + body,)
        resets = False

    answer = send(port, Good())  # type: ignore[arg-type]
    return None if answer.startswith(b"HTTP/1.1 202 ") else f"a well-behaved client got {answer[:300]!r}"


def rss_bytes(running: Daemon) -> dict[int, int]:
    return {pid: psutil.Process(pid).memory_info().rss for pid in running.pids("ingest")}


@click.command()
@click.option("--count", default=1_000_000, show_default=True, help="Requests in all.")
@click.option("--seed", default="1", show_default=True)
@click.option("--processes", default=2, show_default=True, help="Clients at the same time.")
@click.option("--ack", default="commit", show_default=True, type=click.Choice(["commit", "group"]))
@click.option("--json", "as_json", is_flag=True)
def main(count: int, seed: str, processes: int, ack: str, as_json: bool) -> None:
    """Send hostile requests."""
    settings = ["ingest.workers=2", f"ingest.ack={ack}"]
    with queue_server("no") as (url, client), daemon(url, None, "ingest", settings) as running:
        for _ in range(WARM_UP):
            if wrong := good(running.port):
                raise SystemExit(wrong)
        before = rss_bytes(running)
        found: Queue[tuple[str, Counter[str]]] = multiprocessing.Queue()
        started_s = time.monotonic()
        share = count // processes
        clients = [
            multiprocessing.Process(target=attack, args=(running.port, f"{seed}.{number}", share, found))
            for number in range(processes)
        ]
        for process in clients:
            process.start()
        kinds: Counter[str] = Counter()
        try:
            while kinds.total() < share * processes:
                wrong, sent = found.get(timeout=600)
                kinds += sent
                client.delete("pb:{0}:ready", "pb:{0}:later")  # nobody delivers here
                if wrong:
                    raise SystemExit(wrong)
                if sys.stderr.isatty():
                    print(f"\r{kinds.total()} requests", end="", file=sys.stderr)
        finally:
            for process in clients:
                process.terminate()
                process.join()
        seconds = time.monotonic() - started_s
        time.sleep(2)  # the guard's pass
        after = rss_bytes(running)
        output = (running.folder / "output").read_text()
    if after.keys() != before.keys():
        raise SystemExit(f"ingest processes died: {before.keys() - after.keys()}\n{output[-3000:]}")
    if "request_failed" in output or "Traceback" in output:
        raise SystemExit("a request failed inside:\n" + output[-3000:])
    growth = max(after[pid] - before[pid] for pid in after)
    rows = [
        ("requests", str(kinds.total())),
        ("requests/s", f"{kinds.total() / seconds:.0f}"),
        *((kind, str(number)) for kind, number in kinds.most_common()),
        ("RSS at the start, MB", ", ".join(f"{value / 1e6:.1f}" for value in before.values())),
        ("RSS at the end, MB", ", ".join(f"{value / 1e6:.1f}" for value in after.values())),
    ]
    figures = {"requests": kinds.total(), "seed": seed, "rss_growth_mb": growth / 1e6, "seconds": seconds}
    report(f"fuzz: seed {seed}", rows, figures, as_json)
    if growth > MAX_GROWTH_BYTES:
        raise SystemExit(f"RSS grew by {growth / 1e6:.1f} MB, over 20")


if __name__ == "__main__":
    main()
