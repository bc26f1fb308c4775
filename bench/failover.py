# SPDX-License-Identifier: MIT
"""Failovers of a master watched by three sentinels, under load: the table of what each of them cost.

    python -m bench.failover [--replicas 2] [--rate 200] [--items 5] [--durability replica] [--json]

For each of kill -9, SIGSTOP and a pulled cable: the master fails, the sentinels (down-after 1 s) name another, the old
one comes back and becomes a replica, load all the while; then every acknowledged id is held against what the target
answered. Seconds without delivery begin with the fault and hold the sentinels' own time (about 2.3 s).
"""

import sys
import time

import click

from bench.failover_parts.servers import HOWS, sentinel_group, wait_until
from bench.failover_parts.trial import Figures, trial
from bench.support import report

BEFORE_S = 3.0
AFTER_S = 4.0
NAMES = {"kill": "master killed (-9)", "stop": "master stopped (SIGSTOP)", "cut": "master cut off"}


def fail_over(how: str, replicas: int, rate: float, items: int, durability: str) -> tuple[Figures, float]:
    """One failover; its figures, and how long the sentinels took."""
    settings = [f"queue.durability={durability}", "queue.durability_timeout=1", "queue.replicas=1"]
    with sentinel_group(replicas) as group, trial(group.url, rate, items, settings=settings) as running:
        running.wait_for_more(int(rate * BEFORE_S / 2))
        running.mark()
        failed_s = time.monotonic()
        before = group.fail_over(how)
        named_s = time.monotonic() - failed_s
        if replicas > 1:  # or nothing can be acknowledged without the old one
            running.wait_for_more(int(rate * AFTER_S / 2))
        before.mend(how)
        wait_until(group.is_whole, "the old master is a replica of the new one")
        running.wait_for_more(int(rate * AFTER_S / 2))
        return running.finish(), named_s


@click.command()
@click.option("--replicas", default=2, show_default=True)
@click.option("--rate", default=200.0, show_default=True, help="Requests a second.")
@click.option("--items", default=5, show_default=True, help="Postbacks a request.")
@click.option("--durability", default="replica", show_default=True, type=click.Choice(["server", "replica"]))
@click.option("--how", multiple=True, type=click.Choice(HOWS), help="Only these.")
@click.option("--json", "as_json", is_flag=True)
def main(replicas: int, rate: float, items: int, durability: str, how: tuple[str, ...], as_json: bool) -> None:
    """Fail over in each way."""
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {"replicas": replicas, "rate": rate, "items": items, "durability": durability}
    failed = False
    for one in how or HOWS:
        found, named_s = fail_over(one, replicas, rate, items, durability)
        failed |= bool(found.lost and durability == "replica") or bool(found.wrong)
        figures[one] = {**found._asdict(), "named_s": named_s}
        text = f"{found.acknowledged} acknowledged, {found.refused} requests refused, {found.spooled} spooled"
        text += f"\n{found.lost} lost, {found.twice} delivered twice"
        text += (
            f"\nnext master named after {named_s:.1f} s; {found.longest_without_ack_s:.1f} s without acknowledgement"
        )
        text += f"\n{found.longest_without_delivery_s:.1f} s without delivery"
        rows.append((NAMES[one], "\n".join([text, *found.wrong])))
    report(f"failover: {replicas} replicas, {rate:g} requests/s of {items}, {durability}", rows, figures, as_json)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
