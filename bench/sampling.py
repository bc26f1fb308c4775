# SPDX-License-Identifier: MIT
"""What sampling a busy worker's stacks costs: CPU per unit of Python work, sampled and not, in turn.

    python -m bench.sampling [--rounds 9] [--seconds 1] [--json]

The work is what a delivery worker does with an ended attempt (log line, outcome, counters), the busiest it can be: one
thread at 100 %. Every other stretch runs with the sampler at work, as /profile/cpu has it; on a machine that is not
quiet their difference is noise, and what one look takes by itself says more. Goal: at most 2 %.
"""

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import click
import msgspec

from bench.scoreboard import NOW_MS, make_deliveries, make_recorder
from bench.support import report
from postbackd.stack_sampler import (
    FOLDER,
    INTERVAL_MS,
    LONGEST_S,
    SIGNAL,
    SampleRequest,
    StackSampler,
    request_path,
    result_path,
)

LOOKS = 2000
WORKER_DEPTH = 12  # frames


def _ns_each(seconds: float) -> float:
    """CPU per attempt over some seconds."""
    recorder, deliveries = make_recorder(True), make_deliveries()
    count, until_s, started_ns = 0, time.monotonic() + seconds, time.process_time_ns()
    while time.monotonic() < until_s:
        for delivery, result in deliveries:
            recorder.attempt_ended(delivery, result, NOW_MS)
        recorder.publish()
        count += len(deliveries)
    return (time.process_time_ns() - started_ns) / count


def _ns_a_look(data_dir: Path, depth: int) -> float:
    """CPU of one signal with its look, at a stack as deep as a worker's."""
    if depth:
        return _ns_a_look(data_dir, depth - 1)
    request_path(data_dir, "deliver", 0).write_bytes(msgspec.json.encode(SampleRequest("look", LONGEST_S)))
    signal.raise_signal(SIGNAL)
    started_ns = time.process_time_ns()
    for _ in range(LOOKS):
        signal.raise_signal(SIGNAL)
    return (time.process_time_ns() - started_ns) / LOOKS


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--seconds", default=1.0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, seconds: float, as_json: bool) -> None:
    """Measure what sampling costs."""
    found: dict[str, list[float]] = {"sampled": [], "not sampled": []}
    looks = 0
    with tempfile.TemporaryDirectory(prefix="pbs") as folder:
        data_dir = Path(folder)
        (data_dir / FOLDER).mkdir()
        StackSampler(data_dir, "deliver", 0, os.getpid()).install()
        for number in range(rounds):
            request = SampleRequest(f"{number:016x}", seconds * 1.5)
            request_path(data_dir, "deliver", 0).write_bytes(msgspec.json.encode(request))
            signal.raise_signal(SIGNAL)
            found["sampled"].append(_ns_each(seconds))
            while not (path := result_path(data_dir, request.id)).exists():
                time.sleep(0.01)
            looks += msgspec.json.decode(path.read_bytes())["samples"]
            found["not sampled"].append(_ns_each(seconds))
        look_ns = _ns_a_look(data_dir, WORKER_DEPTH)
    sampled, plain = (statistics.median(found[name]) for name in ("sampled", "not sampled"))
    pairs = zip(found["sampled"], found["not sampled"], strict=True)
    percent = statistics.median((one / other - 1) * 100 for one, other in pairs)
    by_looks = look_ns * (1000 / INTERVAL_MS) / 1e9 * 100
    rows = [
        ("ns an attempt, not sampled", f"{plain:.0f}"),
        ("ns an attempt, sampled", f"{sampled:.0f}"),
        ("sampling costs, % (median of pairs)", f"{percent:.2f}"),
        ("CPU of one look, µs, by itself", f"{look_ns / 1000:.1f}"),
        (f"that many of them a second: {1000 // INTERVAL_MS}, %", f"{by_looks:.2f}"),
        ("looks a second", f"{looks / (rounds * seconds * 1.5):.0f}"),
    ]
    report("stack sampler: cost while it runs", rows, {"percent": percent, "by_looks_percent": by_looks}, as_json)


if __name__ == "__main__":
    main()
