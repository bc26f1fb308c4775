# SPDX-License-Identifier: MIT
"""Failovers of a master watched by three sentinels, under load: the table of what each of them cost.

    python -m bench.failover [--replicas 2] [--copies 1] [--rate 200] [--durability replica] [--how kill …] [--json]

For each way: the master fails, the sentinels (down-after 1 s) name another, the old one comes back and becomes a
replica, load all the while; then every acknowledged id is held against what the target answered. Seconds without
delivery begin with the fault and hold the sentinels' own time (about 2.3 s).

kill, stop, cut (a proxy holds back every byte to the master) and again (the next master is deposed at once, too) run on
this machine. As root also unplug, part and side: each server and each sentinel is in a network namespace, and the
master's is cut off from everybody, from everybody but postbackd, and with postbackd from everybody else. What level
server may cost shows with --fail-rate: with targets that are well everything is delivered before the deposed master
comes back without it. With fewer --copies than replicas the sentinels may name one that lacks acknowledged postbacks,
since they go by offsets some seconds old.
"""

import sys
import time

import click

from bench.failover_parts.hosts import may_make_namespaces
from bench.failover_parts.sentinels import AGAIN, CUTS, HOWS, sentinel_group
from bench.failover_parts.servers import wait_until
from bench.failover_parts.trial import Figures, trial
from bench.support import report

BEFORE_S = 3.0
AFTER_S = 4.0
SIDE_S = 8.0  # how long postbackd stays with the deposed master: less than min-replicas-max-lag
NAMES = {
    "kill": "master killed (-9)",
    "stop": "master stopped (SIGSTOP)",
    "cut": "master cut off by a proxy",
    AGAIN: "master killed, the next one deposed at once",
    "unplug": "master cut off from everybody",
    "part": "master cut off from all but postbackd",
    "side": "master and postbackd cut off from all others",
}


def fail_over(
    how: str, replicas: int, rate: float, items: int, durability: str, fail_rate: float = 0, copies: int = 1
) -> tuple[Figures, float]:
    """One failover; its figures, and how long the sentinels took. `copies`: the replicas that a 202 waits for."""
    settings = [f"queue.durability={durability}", "queue.durability_timeout=1", f"queue.replicas={copies}"]
    with (
        sentinel_group(replicas, apart=how in CUTS) as group,
        trial(group.url, rate, items, settings=settings, fail_rate=fail_rate) as running,
    ):
        running.wait_for_more(int(rate * BEFORE_S / 2))
        running.mark()
        failed_s = time.monotonic()
        before = group.fail_over(how)
        named_s = time.monotonic() - failed_s
        if how == "side":  # nothing is acknowledged at level replica
            time.sleep(SIDE_S)
        elif replicas > copies:  # or nothing can be acknowledged without the old one
            running.wait_for_more(int(rate * AFTER_S / 2))
        group.mend(before, how)
        wait_until(group.is_whole, "the old master is a replica of the new one")
        running.wait_for_more(int(rate * AFTER_S / 2))
        return running.finish(), named_s


@click.command()
@click.option("--replicas", default=2, show_default=True)
@click.option("--rate", default=200.0, show_default=True, help="Requests a second.")
@click.option("--items", default=5, show_default=True, help="Postbacks a request.")
@click.option("--copies", default=1, show_default=True, help="Replicas that a 202 waits for, of those.")
@click.option("--durability", default="replica", show_default=True, type=click.Choice(["server", "replica"]))
@click.option("--fail-rate", default=0.0, show_default=True, help="Attempts refused, to be tried again in 15 s.")
@click.option("--how", multiple=True, type=click.Choice(list(NAMES)), help="Only these.")
@click.option("--json", "as_json", is_flag=True)
def main(
    replicas: int,
    rate: float,
    items: int,
    copies: int,
    durability: str,
    fail_rate: float,
    how: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fail over in each way."""
    rows: list[tuple[str, str]] = []
    figures: dict[str, object] = {"replicas": replicas, "rate": rate, "items": items, "durability": durability}
    figures["fail_rate"] = fail_rate
    failed = False
    for one in how or (*HOWS, AGAIN, *(CUTS if may_make_namespaces() else ())):
        found, named_s = fail_over(one, replicas, rate, items, durability, fail_rate, copies)
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
