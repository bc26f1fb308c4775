# SPDX-License-Identifier: MIT
"""Chaos: the whole daemon under load while everything around it and in it fails, then an audit of every postback.

    python -m bench.chaos [--seconds 600] [--seed N] [--rate 250] [--items 10] [--json] [--keep FOLDER]

Faults are drawn from the printed seed. After the last one everything is mended, the queue runs empty, dead letters are
replayed, and each acknowledged id must have been answered 2xx by a sink. Exit code 1 when one was not, when an id
was given out twice, when something arrived that nobody sent, or when more arrived twice than the faults explain.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from bench.chaos_parts.faults import Faults
from bench.chaos_parts.world import BATCH, IN_FLIGHT, POSTBACKD, SINKS, World, world
from bench.support import report
from postbackd.codec import parse_id
from postbackd.tools.audit import Audit, compare, read_delivered

CONNECTIONS = 16
SETTLE_BOUND_S = 600
INGEST_WORKERS, DELIVERY_WORKERS = 4, 2
# After these a postback may be delivered again: what one delivery worker had in flight or not settled, for each.
AGAIN_PER_WORKER = IN_FLIGHT + BATCH


def disturb(made: World, faults: Faults, seconds: float, rate: float, items: int) -> None:
    """Load and faults for so long; everything is mended at the end."""
    arguments = [made.port, rate, items, CONNECTIONS, made.sent, *made.sink_ports]
    load = subprocess.Popen([sys.executable, "-m", "bench.chaos_parts.load", *map(str, arguments)])
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("chaos", total=seconds)
        began_s = time.monotonic()
        next_s = began_s + 2.0
        while (now_s := time.monotonic()) < began_s + seconds:
            progress.update(task, completed=now_s - began_s)
            faults.undo_due()
            if now_s >= next_s:
                faults.step()
                next_s = now_s + faults.pause_s()
            time.sleep(0.02)
    faults.undo_due(everything=True)
    load.send_signal(signal.SIGTERM)
    load.wait(120)


def settle(made: World) -> tuple[float, Counter[str]]:
    """Let everything be delivered, dead letters too; how long that took, and what they had died of."""
    began_s = time.monotonic()
    made.wait_until(lambda: made.waiting() == 0, "everything is delivered", SETTLE_BOUND_S)
    died: Counter[str] = Counter()
    for _entry, fields in made.redis.xrange("pb:{0}:dead"):
        died[fields[b"reason"].decode()] += 1
    if died:
        subprocess.run([*POSTBACKD, "dead", "replay", "--all", *made.options()], check=True, stdout=subprocess.DEVNULL)
        made.wait_until(lambda: made.waiting() == 0, "what was replayed is delivered", SETTLE_BOUND_S)
    took_s = time.monotonic() - began_s
    made.daemon.send_signal(signal.SIGTERM)
    made.daemon.wait(60)
    return took_s, died


def read_sent(path: Path) -> tuple[list[int], set[int], list[float], Counter[int]]:
    """Acknowledged ids, numbers of unacknowledged requests, the time of each 202 in ms, and all statuses."""
    ids: list[int] = []
    refused: set[int] = set()
    times_ms: list[float] = []
    statuses: Counter[int] = Counter()
    for line in path.open():
        entry = json.loads(line)
        statuses[entry["status"]] += 1
        if entry["status"] == 202:
            ids += map(parse_id, entry["ids"])
            times_ms.append(entry["ms"])
        else:
            refused.add(entry["r"])
    return ids, refused, sorted(times_ms), statuses


def entries(path: Path, without: bytes | None = None) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file but those with these bytes. Killed processes leave torn ones, which are passed over."""
    for line in path.open("rb"):
        if without is None or without not in line:
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def strangers(made: World, found: Audit, refused: set[int]) -> int:
    """Deliveries of ids that were never acknowledged, and whose request was not one without an acknowledgement."""
    wanted = set(found.others)
    count = 0
    for number in range(len(SINKS)):
        for entry in entries(made.record(number)):
            query = dict(part.split("=") for part in entry["url"].partition("?")[2].split("&"))
            count += parse_id(query["id"]) in wanted and int(query["r"]) not in refused
    return count


def late_answers(made: World, duplicated: dict[int, int]) -> int:
    """Deliveries too many that the log explains: an attempt was given up on, and the target had answered it late."""
    given_up: Counter[int] = Counter()
    for entry in entries(made.log_path, without=b'"outcome":"delivered"'):
        number = parse_id(entry["id"])
        if number in duplicated and entry["response_code"] is None:
            given_up[number] += 1
    return sum(min(count - 1, given_up[number]) for number, count in duplicated.items())


def allowed_again(faults: Faults, items: int) -> int:
    """How many deliveries too many the faults explain at most, beside late answers."""
    counts = faults.counts
    deaths = counts["kill -9 delivery worker"] + counts["stop delivery worker past its lease"]
    deaths += DELIVERY_WORKERS * counts["kill -9 supervisor"]
    breaks = sum(count for name, count in counts.items() if "Redis" in name or "Valkey" in name)
    # A broken connection may cost a delivery worker its lease, if that takes longer than the lease's time-out.
    return (deaths + DELIVERY_WORKERS * breaks) * AGAIN_PER_WORKER + breaks * INGEST_WORKERS * items


def judge(made: World, faults: Faults, items: int, settled: tuple[float, Counter[str]]) -> dict[str, Any]:
    """Every figure of the run, and what is wrong with it."""
    ids, refused, times_ms, statuses = read_sent(made.sent)
    sent = set(ids)
    records = [made.record(number) for number in range(len(SINKS))]
    found = compare(sent, read_delivered(records, sent))
    repeated = sum(found.duplicated.values()) - len(found.duplicated)
    late = late_answers(made, found.duplicated)
    allowed = allowed_again(faults, items)
    output = made.output.read_text(errors="replace")
    wrong = [*faults.surprises]
    if found.lost:
        wrong.append(f"{len(found.lost)} acknowledged postbacks were lost, among them {found.lost[:3]}")
    if len(sent) != len(ids):
        wrong.append(f"{len(ids) - len(sent)} ids were given out twice")
    if unknown := strangers(made, found, refused):
        wrong.append(f"{unknown} deliveries came out of nowhere")
    if repeated - late > allowed:
        wrong.append(f"{repeated - late} deliveries too many, and the faults explain {allowed}")
    if "Traceback" in output:
        wrong.append("there is a traceback in the daemon's output")
    return {
        "acknowledged": len(sent),
        "requests": {str(status): count for status, count in sorted(statuses.items())},
        "delivered": found.delivered,
        "lost": len(found.lost),
        "repeated": repeated,
        "repeated_late_answers": late,
        "repeated_allowed": allowed,
        "unacknowledged_but_delivered": len(found.others),
        "p50_ms": times_ms[len(times_ms) // 2] if times_ms else None,
        "p99_ms": times_ms[int(len(times_ms) * 0.99)] if times_ms else None,
        "settled_s": round(settled[0], 1),
        "died": dict(settled[1]),
        "faults": dict(faults.counts),
        "wrong": wrong,
    }


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="How long faults go on.")
@click.option("--seed", type=int, help="Of the faults; by default a new one.")
@click.option("--rate", default=250.0, show_default=True, help="Requests a second.")
@click.option("--items", default=10, show_default=True, help="Postbacks a request.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and records in this folder.")
def main(seconds: float, seed: int | None, rate: float, items: int, as_json: bool, keep: Path | None) -> None:
    """Run, settle, audit."""
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(1))  # so that the world is taken down
    seed = random.randrange(1_000_000) if seed is None else seed
    print(f"chaos: seed {seed}, {seconds:g} s, {rate:g} requests/s of {items} postbacks", file=sys.stderr)
    with world() as made:
        if not made.has_tmpfs:
            print("chaos: no tmpfs here (that needs root): the full disk is left out", file=sys.stderr)
        faults = Faults(made, seed)
        try:
            disturb(made, faults, seconds, rate, items)
            figures = judge(made, faults, items, settle(made))
        finally:
            if keep is not None:
                shutil.copytree(made.folder, keep, ignore=shutil.ignore_patterns("queue", "socket"), dirs_exist_ok=True)
    rows = [(name, json.dumps(value)) for name, value in figures.items() if name not in ("faults", "wrong")]
    rows += [(f"fault: {name}", str(count)) for name, count in figures["faults"].items()]
    report(f"chaos, seed {seed}, {seconds:g} s", rows, {"seed": seed, **figures}, as_json)
    for line in figures["wrong"]:
        print(f"chaos: {line}", file=sys.stderr)
    sys.exit(1 if figures["wrong"] else 0)


if __name__ == "__main__":
    main()
