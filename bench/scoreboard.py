# SPDX-License-Identifier: MIT
"""What counting costs per postback: a recorder that counts everything against one that counts nothing, in one process.

    python -m bench.scoreboard [--rounds 7] [--count 200000] [--json]

Both record the same delivered attempts, formatting the log line and noting the outcome as in a worker; what is
subtracted is everything but the counting. Published every 384 attempts, as a busy worker does, and after each single
one, the worst case. Goal: at most 1 µs.
"""

import statistics
import time
from typing import Any, cast

import click

from bench.support import report
from postbackd.codec import EndpointRecord, Item, encode_record, endpoint_id, first_id
from postbackd.delivery.endpoints import Endpoint
from postbackd.delivery.outcome import RetryPolicy
from postbackd.delivery.recorder import Delivery, Recorder
from postbackd.delivery.transfer import Result
from postbackd.scoreboard import Scoreboard
from postbackd.settings import Settings
from postbackd.signing import SigningKeys

BATCH = 384
NOW_MS = 1_800_000_000_000


class _Sink:
    """Stands for the log file and the lease: takes what it is given and forgets it."""

    def add(self, line: bytes) -> None:
        """A line."""

    def settle(self, outcome: object) -> None:
        """An outcome."""


class _Uncounted:
    """A tally that counts nothing."""

    def attempt(self, *_: object) -> None:
        """Nothing."""

    def publish(self) -> None:
        """Nothing."""


def make_recorder(counts: bool) -> Recorder:
    sink = cast(Any, _Sink())
    recorder = Recorder(sink, sink, RetryPolicy(Settings().retry), Scoreboard(1).row(0), "node.0", 4096)
    if not counts:
        recorder._tally = cast(Any, _Uncounted())
    return recorder


def make_deliveries() -> list[tuple[Delivery, Result]]:
    record = encode_record(EndpointRecord(method="GET", url="http://127.0.0.1:8888/?k={k}", fields=("k",)))
    endpoint = Endpoint(endpoint_id(record), record, Settings(), SigningKeys({}))
    assert endpoint.compiled is not None
    made = []
    for index in range(BATCH):
        item = Item(endpoint_id(record), first_id(NOW_MS) + index, ["v"])
        rendered = endpoint.compiled.render(item.values, item.postback_id, 1, NOW_MS)
        took_ms = 0.3 + index % 97 * 1.7
        result = Result(None, None, 200, b"ok", False, "127.0.0.1", True, took_ms, took_ms)
        made.append((Delivery(index, item, endpoint, rendered, NOW_MS + index % 31), result))
    return made


def _ns_each(recorder: Recorder, deliveries: list[tuple[Delivery, Result]], count: int, publish_each: bool) -> float:
    ended, publish = recorder.attempt_ended, recorder.publish
    started = time.process_time_ns()
    for _ in range(count // BATCH):
        for delivery, result in deliveries:
            ended(delivery, result, NOW_MS)
            if publish_each:
                publish()
        publish()
    return (time.process_time_ns() - started) / (count // BATCH * BATCH)


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--count", default=200_000, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, count: int, as_json: bool) -> None:
    """Measure what counting costs."""
    deliveries = make_deliveries()
    found: dict[str, list[float]] = {"with": [], "without": [], "published after each": []}
    for _ in range(rounds):  # in turn, so that a noisy moment hits all of them
        found["with"].append(_ns_each(make_recorder(True), deliveries, count, False))
        found["without"].append(_ns_each(make_recorder(False), deliveries, count, False))
        found["published after each"].append(_ns_each(make_recorder(True), deliveries, count // 10, True))
    medians = {name: statistics.median(values) for name, values in found.items()}
    cost_ns = medians["with"] - medians["without"]
    rows = [
        ("ns to record a postback, counted", f"{medians['with']:.0f}"),
        ("the same, nothing counted", f"{medians['without']:.0f}"),
        ("counting costs, ns a postback", f"{cost_ns:.0f}"),
        ("at one a turn, published at once", f"{medians['published after each'] - medians['without']:.0f}"),
    ]
    report("scoreboard: cost per postback", rows, {**medians, "cost_ns": cost_ns}, as_json)


if __name__ == "__main__":
    main()
