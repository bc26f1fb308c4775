# SPDX-License-Identifier: MIT
"""A Cluster of six nodes under load: what a failover, moved slots and a shard that is away cost; and what shards bring.

    python -m bench.cluster [--rate 200] [--items 5] [--durability replica] [--how kill …] [--json]
    python -m bench.cluster --throughput [--rounds 5] [--seconds 3] [--share 0.05]

Faults: three masters with a replica each, queue.shards = 4, durability replica. A master is killed or stopped and its
replica takes over (node timeout 1.5 s); every shard's slot is moved to another master, key by key; a master and its
replica are stopped for six seconds; and, as root, with each node in a network namespace, a master is cut off from
everybody, from everybody but postbackd, and with postbackd from everybody else. Then every acknowledged id is held
against what the target answered.
Throughput: ingest alone on a core, and four masters with a fiftieth of a core each, so that Valkey is the limit as it
is where its core is full; 1, 2 and 4 shards, a master each. Beside the requests stands what the least busy master took
of its share: at 100 % it is the limit.
"""

import sys
import time
from typing import NamedTuple

import click

from bench.failover_parts.cluster import CUTS, ClusterGroup, cluster_group
from bench.failover_parts.cpu_share import limit_to_share, main_thread_s
from bench.failover_parts.hosts import may_make_namespaces
from bench.failover_parts.servers import wait_until
from bench.failover_parts.trial import Figures, Trial, trial
from bench.ingest import request_body
from bench.support import MEASURED_CORE, daemon, median, report, spread, wrk

SHARDS = 4
BEFORE_S = 3.0
AFTER_S = 4.0
AWAY_S = 6.0
INGEST_WORKERS = 16  # each waits for one shard at a time: few would leave some shards without work
CONNECTIONS = 64
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
    began_s = time.monotonic()
    running.wait_for_more(int(rate * AFTER_S / 2))  # ingest goes on while the master is away
    if how == "side":
        time.sleep(max(began_s + SIDE_S - time.monotonic(), 0))
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


class Throughput(NamedTuple):
    """What so many shards took, round by round."""

    per_s: list[float]
    busy: list[float]  # of the share of a core that each master in use may take, what the least busy one took
    ingest: list[float]  # what ingest took of its core


def throughput(rounds: int, seconds: int, share: float) -> dict[int, Throughput]:
    """Requests a second by number of shards, each at a master of its own that has this share of a core."""
    found = {shards: Throughput([], [], []) for shards in (1, 2, 4)}
    with cluster_group(4, replicas=False) as group:
        for node in group.nodes:
            limit_to_share(node.process.pid, share)
        for _ in range(rounds):
            for shards, figures in found.items():
                _measure(group, shards, seconds, share, figures)
    return found


def _measure(group: ClusterGroup, shards: int, seconds: int, share: float, figures: Throughput) -> None:
    for node in group.nodes:
        node.client.flushall()
    body = request_body(2)
    masters = [group.owner(shard).process.pid for shard in range(shards)]
    settings = [f"queue.shards={shards}", f"ingest.workers={INGEST_WORKERS}"]
    with daemon(group.url, MEASURED_CORE, "ingest", settings) as running:
        wrk(running.port, "/ingest.php", body, CONNECTIONS, 1)
        busy_s = [main_thread_s(pid) for pid in masters]
        ingest_s, began_s = running.cpu_s("ingest"), time.monotonic()
        figures.per_s.append(wrk(running.port, "/ingest.php", body, CONNECTIONS, seconds)["per_s"])
        took_s = time.monotonic() - began_s
        figures.ingest.append((running.cpu_s("ingest") - ingest_s) / took_s)
        used_s = [main_thread_s(pid) - before_s for pid, before_s in zip(masters, busy_s, strict=True)]
        figures.busy.append(min(used_s) / took_s / share)


@click.command()
@click.option("--rate", default=200.0, show_default=True, help="Requests a second.")
@click.option("--items", default=5, show_default=True, help="Postbacks a request.")
@click.option("--how", multiple=True, type=click.Choice([*HOWS, *CUTS]), help="Only these.")
@click.option("--durability", default="replica", show_default=True, type=click.Choice(["server", "replica"]))
@click.option("--fail-rate", default=0.0, show_default=True, help="Attempts refused, to be tried again in 15 s.")
@click.option("--throughput", "measures", is_flag=True, help="Measure shards instead.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=3, show_default=True)
@click.option("--share", default=0.02, show_default=True, help="Of a core, for each master.")
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
    share: float,
    as_json: bool,
) -> None:
    """Disturb a Cluster, or measure what shards bring."""
    if measures:
        found = throughput(rounds, seconds, share)
        rows, figures = [], {"share": share}
        for shards, one in found.items():
            times = median(one.per_s) / median(found[1].per_s)
            text = f"{spread(one.per_s)}\n{times:.2f} times one shard; of its share each master took"
            text += f" ≥ {median(one.busy):.0%}, ingest {median(one.ingest):.0%} of a core"
            rows.append((f"requests/s, {shards} shards", text))
            figures[f"shards_{shards}"] = one._asdict()
        report(f"ingest, each master with {share:.0%} of a core", rows, figures, as_json)
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
