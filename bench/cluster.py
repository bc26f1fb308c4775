# SPDX-License-Identifier: MIT
"""A Cluster of six nodes under load: what a failover, moved slots and a shard that is away cost; and what shards bring.

    python -m bench.cluster [--rate 200] [--items 5] [--durability replica] [--how kill …] [--json]
    python -m bench.cluster --throughput [--rounds 3] [--seconds 3]

Faults: three masters with a replica each, queue.shards = 4, durability replica. A master is killed or stopped and its
replica takes over (node timeout 1.5 s); every shard's slot is moved to another master, key by key; a master and its
replica are stopped for six seconds; and, as root, with each node in a network namespace, a master is cut off from
everybody, from everybody but postbackd, and with postbackd from everybody else. Then every acknowledged id is held
against what the target answered.
Throughput: four masters with appendfsync always, which makes Valkey the limit, and 1, 2 and 4 shards, a master each;
ingest alone, 64 connections.
"""

import sys
import time
from typing import Any

import click

from bench.failover_parts.cluster import CUTS, ClusterGroup, cluster_group
from bench.failover_parts.hosts import may_make_namespaces
from bench.failover_parts.servers import wait_until
from bench.failover_parts.trial import Figures, Trial, trial
from bench.ingest import request_body
from bench.support import MEASURED_CORE, daemon, median, report, spread, wrk

SHARDS = 4
BEFORE_S = 3.0
AFTER_S = 4.0
AWAY_S = 6.0
SIDE_S = 8.0  # how long postbackd stays with the deposed master
HOWS = ("kill", "stop", "move", "away")
NAMES = {
    "kill": "a master killed (-9)",
    "stop": "a master stopped (SIGSTOP)",
    "move": "all slots moved, key by key",
    "away": f"a master and its replica stopped for {AWAY_S:g} s",
    "unplug": "a master cut off from everybody",
    "part": "a master cut off from all but postbackd",
    "side": "a master and postbackd cut off from all others",
}


def _fail_over(group: ClusterGroup, running: Trial, how: str, rate: float) -> None:
    before = group.fail_over(1, how)
    if how == "side":
        time.sleep(SIDE_S)
    else:
        running.wait_for_more(int(rate * AFTER_S / 2))
    group.mend(before, how)
    wait_until(group.is_whole, "the old master is a replica of the new one")


def _move(group: ClusterGroup, running: Trial, rate: float) -> None:
    for shard in range(SHARDS):
        masters = [node for node in group.nodes if node.is_master()]
        at = masters.index(group.owner(shard))
        group.move(shard, masters[(at + 1) % len(masters)])
        running.wait_for_more(int(rate / 2))


def _stop_shard(group: ClusterGroup, running: Trial) -> None:
    master = group.owner(1)
    pair = (group.replica_of(master), master)
    for node in pair:
        node.fail("stop")
    began = running.acknowledged()
    time.sleep(AWAY_S)
    if running.acknowledged() == began:
        raise SystemExit("bench: the other shards did not go on")
    for node in pair:
        node.mend("stop")
    wait_until(group.is_whole, "all nodes are well")


def disturb(how: str, rate: float, items: int, durability: str = "replica", fail_rate: float = 0) -> Figures:
    """One disturbance under load; what it came to."""
    settings = [f"queue.shards={SHARDS}", f"queue.durability={durability}", "queue.durability_timeout=1"]
    with (
        cluster_group(3, replicas=True, apart=how in CUTS) as group,
        trial(group.url, rate, items, settings=settings, fail_rate=fail_rate) as running,
    ):
        running.wait_for_more(int(rate * BEFORE_S / 2))
        running.mark()
        if how == "move":
            _move(group, running, rate)
        elif how == "away":
            _stop_shard(group, running)
        else:
            _fail_over(group, running, how, rate)
        running.wait_for_more(int(rate * AFTER_S / 2))
        return running.finish()


def throughput(rounds: int, seconds: int) -> dict[int, list[float]]:
    """Requests a second by number of shards."""
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    body = request_body(2)
    with cluster_group(4, replicas=False, appendfsync="always") as group:
        for _ in range(rounds):
            for shards, rates in found.items():
                for node in group.nodes:
                    node.client.flushall()
                settings = [f"queue.shards={shards}", "ingest.workers=8"]
                with daemon(group.url, MEASURED_CORE, "ingest", settings) as running:
                    wrk(running.port, "/ingest.php", body, 64, 1)
                    rates.append(wrk(running.port, "/ingest.php", body, 64, seconds)["per_s"])
    return found


@click.command()
@click.option("--rate", default=200.0, show_default=True, help="Requests a second.")
@click.option("--items", default=5, show_default=True, help="Postbacks a request.")
@click.option("--how", multiple=True, type=click.Choice([*HOWS, *CUTS]), help="Only these.")
@click.option("--durability", default="replica", show_default=True, type=click.Choice(["server", "replica"]))
@click.option("--fail-rate", default=0.0, show_default=True, help="Attempts refused, to be tried again in 15 s.")
@click.option("--throughput", "measures", is_flag=True, help="Measure shards instead.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    rate: float,
    items: int,
    how: tuple[str, ...],
    durability: str,
    fail_rate: float,
    measures: bool,
    rounds: int,
    seconds: int,
    as_json: bool,
) -> None:
    """Disturb a Cluster, or measure what shards bring."""
    if measures:
        found = throughput(rounds, seconds)
        rows = [(f"requests/s, {shards} shards", spread(rates)) for shards, rates in found.items()]
        figures: dict[str, Any] = {f"shards_{shards}": median(rates) for shards, rates in found.items()}
        report("ingest, appendfsync always, a master for each shard", rows, figures, as_json)
        return
    rows, failed = [], False
    figures = {"rate": rate, "items": items, "shards": SHARDS, "durability": durability, "fail_rate": fail_rate}
    for one in how or (*HOWS, *(CUTS if may_make_namespaces() else ())):
        result = disturb(one, rate, items, durability, fail_rate)
        failed |= bool(result.lost and durability == "replica") or bool(result.wrong)
        figures[one] = result._asdict()
        text = f"{result.acknowledged} acknowledged, {result.refused} requests refused, {result.spooled} spooled"
        text += f"\n{result.lost} lost, {result.twice} delivered twice"
        text += f"\n{result.longest_without_ack_s:.1f} s without acknowledgement"
        text += f", {result.longest_without_delivery_s:.1f} s without delivery"
        rows.append((NAMES[one], "\n".join([text, *result.wrong])))
    report(f"Cluster: {SHARDS} shards, {rate:g} requests/s of {items}, durability {durability}", rows, figures, as_json)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
