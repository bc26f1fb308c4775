# SPDX-License-Identifier: MIT
"""Rollbacks: the queue client of two ingest processes, while its servers fail over to and fro, at random.

    python -m bench.rollbacks [--steps 3000] [--seed N] [--durability replica|fsync] [--json]

The client runs in this process, against real Valkeys: single requests, groups, Idempotency-Keys and turns of the
replay, drawn from the printed seed, with disturbances between and amid them. A seed repeats the choices, not how far a
server has got at each. At the end everything is mended, the spool replayed, and every acknowledged postback must be at
the master of then, with its endpoint's record, and no Idempotency-Key may have had two answers. Exit code 1 otherwise.
Twice in the queue is allowed: at least once is the promise.

At level replica two servers take turns as master and replica; at level fsync one is killed and comes back (which loses
no page cache, so it is no proof of the fsync). About 200 steps/s. Without the look at the master of now before a
spooled file is removed (46553eb, ec4c8df) each of the seeds 1 to 6 loses 6 to 370 of some 2,300 postbacks in 900 steps.
"""

import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import click

from bench.rollbacks_parts.disturbances import Disturbances
from bench.rollbacks_parts.ingest import Ingest
from bench.rollbacks_parts.load import Audit, Load
from bench.rollbacks_parts.servers import running_servers
from bench.support import report
from postbackd import oplog
from postbackd.queue.spool import spool_size

PROCESSES = 2
LEVELS = ("replica", "fsync")


class Step(NamedTuple):
    """One kind of step: how often, at which levels, and what does it; the return value says whether it was done."""

    name: str
    weight: int
    levels: tuple[str, ...]
    do: Callable[[], bool]


class Figures(NamedTuple):
    """What became of a run. `done` counts the disturbances, each kind from 0."""

    requests: int
    refused: int
    acknowledged: int
    keys: int
    done: Counter[str]
    audit: Audit

    @property
    def has_failed(self) -> bool:
        """Whether anything is not as promised."""
        return any(self.audit._replace(twice=0))


def requests_of(load: Load) -> list[Step]:
    """What is asked."""
    return [
        Step("request", 450, LEVELS, load.enqueue),
        Step("group of requests", 250, LEVELS, load.enqueue_group),
        Step("Idempotency-Key", 100, LEVELS, load.ask_once),
        Step("turn of the replay", 130, LEVELS, load.replay),
    ]


def disturbances_of(disturbances: Disturbances) -> list[Step]:
    """What is done to it."""
    replica, fsync = ("replica",), ("fsync",)
    return [
        Step("connections cut", 15, LEVELS, disturbances.cut_connections),
        Step("SCRIPT FLUSH", 10, LEVELS, disturbances.flush_scripts),
        Step("process died, its spool taken over", 7, LEVELS, disturbances.replace_process),
        Step("replica away", 4, replica, disturbances.lose_replica),
        Step("failover, old master killed", 4, replica, disturbances.promote_and_kill),
        Step("failover, old master answers", 4, replica, disturbances.promote_alive),
        Step("master killed, failover later", 4, replica, disturbances.kill_then_promote),
        Step("failover to and fro (A, B, A)", 8, replica, disturbances.promote_and_return),
        Step("server killed, back at once", 4, fsync, disturbances.restart_server),
        Step("server killed, back later", 8, fsync, disturbances.kill_server),
    ]


def run(steps: int, seed: int, durability: str) -> Figures:
    """So many steps, then the audit."""
    randomness = random.Random(seed)
    with running_servers(durability) as (servers, folder):

        def new_process() -> Ingest:
            return Ingest(servers.url, folder, durability)

        processes = [new_process() for _ in range(PROCESSES)]
        load = Load(randomness, processes)
        disturbances = Disturbances(randomness, servers, load, processes, new_process)
        kinds = [step for step in disturbances_of(disturbances) if durability in step.levels]
        done = Counter({step.name: 0 for step in kinds})
        table = requests_of(load) + kinds
        weights = [step.weight for step in table]
        for number in range(steps):
            disturbances.at(number)
            [step] = randomness.choices(table, weights)
            if step.do() and step in kinds:
                done[step.name] += 1
        disturbances.mend()
        load.settle()
        audit = load.audit(servers, spool_size(folder / "spool")[1])
        for process in processes:
            process.die()
    return Figures(load.requests, load.refused, load.acknowledged, load.keys, done, audit)


@click.command()
@click.option("--steps", default=3000, show_default=True)
@click.option("--seed", type=int, help="Repeat the choices of a run; a new one unless given.")
@click.option("--durability", default="replica", show_default=True, type=click.Choice(LEVELS))
@click.option("--json", "as_json", is_flag=True)
def main(steps: int, seed: int | None, durability: str, as_json: bool) -> None:
    """Disturb, audit, tell."""
    seed = random.randrange(1_000_000) if seed is None else seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end, too
    oplog.configure("text", "error")  # that a server is away is no news here
    print(f"rollbacks: seed {seed}", file=sys.stderr)
    found = run(steps, seed, durability)
    rows = [
        ("requests", str(found.requests)),
        ("refused", str(found.refused)),
        ("postbacks acknowledged", str(found.acknowledged)),
        ("Idempotency-Keys answered", str(found.keys)),
        *((f"disturbance: {name}", str(count)) for name, count in found.done.items()),
        ("lost", str(found.audit.lost)),
        ("endpoint records missing", str(found.audit.records_missing)),
        ("keys with two answers", str(found.audit.keys_with_two_answers)),
        ("files left in the spool", str(found.audit.left_in_spool)),
        ("twice in the queue", str(found.audit.twice)),
    ]
    figures = {"seed": seed, "steps": steps, "durability": durability, **found._asdict()}
    report(
        f"rollbacks: seed {seed}, {steps} steps, {durability}",
        rows,
        figures | {"audit": found.audit._asdict()},
        as_json,
    )
    sys.exit(1 if found.has_failed else 0)


if __name__ == "__main__":
    main()
