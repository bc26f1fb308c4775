# SPDX-License-Identifier: MIT
"""What an acknowledgement costs by how the server persists and ingest commits, in turn, in one run.

    python -m bench.durability [--connections 64] [--seconds 3] [--rounds 5] [--json]

Set up as bench.ingest. Beside it the time of an fsync on the disk of the append-only file: 200 bytes appended each.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import click

from bench.ingest import request_body
from bench.support import MEASURED_CORE, daemon, median, queue_server, report, spread, wrk

POLICIES = [(policy, ack) for policy in ("always", "everysec", "no") for ack in ("commit", "group")]
FSYNCS = 300


def fsync_ms() -> list[float]:
    """Times of so many appends with their fsync, sorted."""
    times_ms = []
    with tempfile.TemporaryDirectory(prefix="pbbench") as folder:
        descriptor = os.open(Path(folder) / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _ in range(FSYNCS):
            began_s = time.perf_counter()
            os.write(descriptor, b"\0" * 200)
            os.fdatasync(descriptor)
            times_ms.append((time.perf_counter() - began_s) * 1000)
        os.close(descriptor)
    return sorted(times_ms)


@click.command()
@click.option("--connections", default=64, show_default=True)
@click.option("--seconds", default=3, show_default=True, help="Of each round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(connections: int, seconds: int, rounds: int, as_json: bool) -> None:
    """Measure acknowledgements a second."""
    found: dict[str, list[dict[str, float]]] = {" ".join(pair): [] for pair in POLICIES}
    fsyncs: list[float] = []
    for _ in range(rounds):
        for policy, ack in POLICIES:
            settings = [f"ingest.ack={ack}"]
            with queue_server(policy) as (url, _client), daemon(url, MEASURED_CORE, "ingest", settings) as running:
                wrk(running.port, "/ingest.php", request_body(2), connections, 1)  # warm
                found[f"{policy} {ack}"].append(wrk(running.port, "/ingest.php", request_body(2), connections, seconds))
        fsyncs.append(median(fsync_ms()))
    rows = [
        (f"appendfsync {policy}, ack {ack}: acks/s", f"{spread([one['per_s'] for one in runs])}, p99 {p99:.3g} ms")
        for policy, ack in POLICIES
        for runs in [found[f"{policy} {ack}"]]
        for p99 in [median([one["p99_ms"] for one in runs])]
    ]
    rows.append(("fsync of this disk, ms", spread(fsyncs)))
    report("acks by appendfsync", rows, {"found": json.loads(json.dumps(found)), "fsync_ms": fsyncs}, as_json)


if __name__ == "__main__":
    main()
