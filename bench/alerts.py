# SPDX-License-Identifier: MIT
"""Alerts: each one of etc/prometheus/alerts.yml made to fire by a real fault, as a real Prometheus sees it.

    python -m bench.alerts [--only FAULT]… [--healthy 300]

Prometheus looks each second at rules in which `for: 5m` has become `for: 5s`; expressions and their windows stay. Each
fault has a daemon of its own, under a job of that name, and a healthy daemon under load is watched the whole time, for
at least `--healthy` seconds: there nothing may fire. Exit code 1 when an alert did not fire within its bound, when one
fired at the healthy daemon, or when no fault here makes it fire. Needs root for the full disk; twelve minutes, ten of
which are the age of PostbackdBacklogVeryOld (`--only` with other faults takes none of them).
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from bench.failover_parts.cluster import cluster_group
from bench.failover_parts.servers import wait_until
from bench.support import (
    Daemon,
    QueueServer,
    daemon,
    free_port,
    need,
    process,
    queue_server,
    sink_command,
    wait_for_port,
)

RULES = Path(__file__).parents[1] / "etc" / "prometheus" / "alerts.yml"
ALERTS = re.findall(r"alert: (\w+)", RULES.read_text())
CONFIG = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: postbackd
    file_sd_configs: [{{files: ["{folder}/targets/*.json"], refresh_interval: 1s}}]
"""
SETTINGS = ["ingest.workers=1", "delivery.workers=1"]


class Watch:
    """A Prometheus: its targets, and what fires."""

    def __init__(self, folder: Path, port: int) -> None:
        self._targets = folder / "targets"
        self._targets.mkdir()
        self._url = f"http://127.0.0.1:{port}/api/v1/"
        self.fired: dict[str, dict[str, str]] = {}  # by job: alert → what it said

    def add(self, job: str, *running: "Watched") -> None:
        """Scrape these daemons under a job's name, and wait until all have been."""
        targets = [{"targets": [f"127.0.0.1:{one.admin_port}" for one in running], "labels": {"job": job}}]
        draft = self._targets / f"{job}.draft"
        draft.write_text(json.dumps(targets))
        draft.rename(self._targets / f"{job}.json")
        query = urllib.parse.quote(f'postbackd_queue_up{{job="{job}"}} == 1')
        wait_until(lambda: len(self._ask(f"query?query={query}")["result"]) == len(running), f"{job} is scraped")

    def remove(self, job: str) -> None:
        """Scrape it no more: what fires for it ends."""
        (self._targets / f"{job}.json").unlink(missing_ok=True)

    def look(self) -> None:
        """Take down what fires now."""
        for alert in self._ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                job, name = alert["labels"]["job"], alert["labels"]["alertname"]
                self.fired.setdefault(job, {})[name] = alert["annotations"]["summary"]

    def wait_for(self, job: str, alerts: set[str], bound_s: float) -> set[str]:
        """Those that have not fired within the bound."""
        deadline_s = time.monotonic() + bound_s
        while (missing := alerts - set(self.fired.get(job, {}))) and time.monotonic() < deadline_s:
            time.sleep(0.3)
            self.look()
        return missing

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self._url + path, timeout=30) as answer:
            return dict(json.load(answer)["data"])


@contextlib.contextmanager
def prometheus() -> Iterator[Watch]:
    """A Prometheus of its own, on a free port and a folder that goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="pbalerts"))
    port = free_port()
    (folder / "prometheus.yml").write_text(CONFIG.format(folder=folder))
    (folder / "rules.yml").write_text(re.sub(r"^( +for: \d+)m$", r"\1s", RULES.read_text(), flags=re.MULTILINE))
    command = [need("prometheus", "prometheus"), f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    try:
        watch = Watch(folder, port)
        with (folder / "log").open("wb") as log, process(None, command, stdout=log, stderr=log):
            wait_for_port(port)
            yield watch
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Watched(NamedTuple):
    """A daemon with its admin app."""

    daemon: Daemon
    admin_port: int

    def post(self, target_port: int, count: int) -> int:
        """One request of so many postbacks; its status."""
        endpoint = {"method": "GET", "url": f"http://127.0.0.1:{target_port}/?n={{n}}"}
        body = json.dumps({"endpoint": endpoint, "data": [{"n": n} for n in range(count)]})
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", "/i", body, {"Content-Type": "application/json"})
            return connection.getresponse().status


class Place:
    """Where a fault is made: its daemon's job has its name, and everything that it starts ends with it."""

    def __init__(self, name: str, watch: Watch, queue_url: str) -> None:
        self.name = name
        self.watch = watch
        self.stack = contextlib.ExitStack()
        self._queue_url = queue_url
        self.well_port = self.sink("--latency", "0.005")

    def start(self, *settings: str, url: str = "", roles: str = "ingest,deliver,admin") -> Watched:
        """A daemon, on the shared server with a prefix of its own if no other is given."""
        admin_port = free_port()
        chosen = [*SETTINGS, f"admin.port={admin_port}", f"queue.prefix={self.name}", *settings]
        started = Watched(self.stack.enter_context(daemon(url or self._queue_url, None, roles, chosen)), admin_port)
        wait_for_port(admin_port)
        return started

    def scrape(self, *running: Watched) -> None:
        """Have them watched until the end."""
        self.stack.callback(self.watch.remove, self.name)
        self.watch.add(self.name, *running)

    def sink(self, *options: str) -> int:
        """A target; its port."""
        port = free_port()
        self.stack.enter_context(process(None, sink_command(port, *options), stdout=subprocess.DEVNULL))
        wait_for_port(port)
        return port

    def repeat(self, step: Callable[[], object], every_s: float) -> None:
        """Do it again and again, beside everything else; a connection that breaks is part of the fault."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(every_s):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    step()

        thread = threading.Thread(target=run)
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(over.set)


# The faults.


def well(place: Place) -> None:
    """Nothing: a daemon under load, with a target that answers."""
    running = place.start()
    place.scrape(running)
    place.repeat(lambda: running.post(place.well_port, 20), 0.1)


def daemon_gone(place: Place) -> None:
    """The daemon ends; its target stays."""
    running = place.start()
    place.scrape(running)
    running.daemon.end()


def redis_gone(place: Place) -> None:
    """Valkey is killed under load, until the spool is full."""
    server = QueueServer("always")
    place.stack.callback(server.destroy)
    running = place.start("spool.max_bytes=65536", url=server.url)
    place.scrape(running)
    place.repeat(lambda: running.post(place.well_port, 100), 0.2)
    server.kill()


def redis_full(place: Place) -> None:
    """Redis is at its maxmemory, under load."""
    server = QueueServer("always")
    place.stack.callback(server.destroy)
    running = place.start(url=server.url)
    place.scrape(running)
    place.repeat(lambda: running.post(place.well_port, 20), 0.2)
    server.client.config_set("maxmemory", int(server.client.info("memory")["used_memory"] * 0.9))


def shard_gone(place: Place) -> None:
    """One of two masters of a Cluster is killed, and has no replica."""
    group = place.stack.enter_context(cluster_group(2, replicas=False))
    place.scrape(place.start("queue.shards=2", url=group.url))
    group.owner(1).fail("kill")


def deliverer_gone(place: Place) -> None:
    """Ingest and delivery are two daemons, and the second one ends."""
    ingest = place.start(roles="ingest,admin")
    deliverer = place.start(roles="deliver,admin")
    place.scrape(ingest, deliverer)
    deliverer.daemon.end()
    ingest.post(place.well_port, 10)


def partner_slow(place: Place) -> None:
    """A target takes a second for each, four at once, and gets 400 at a time."""
    running, port = place.start("delivery.in_flight=4", "delivery.per_host=4"), place.sink("--latency", "1")
    place.scrape(running)
    running.post(port, 400)


def partner_refuses(place: Place) -> None:
    """Half of what is sent goes to a target that answers 404."""
    running, port = place.start(), place.sink("--status", "404")
    place.scrape(running)
    place.repeat(lambda: (running.post(port, 20), running.post(place.well_port, 20)), 0.5)


def partner_hangs(place: Place) -> None:
    """A target does not answer, and is sent to again and again."""
    running, port = place.start("delivery.timeout=1"), place.sink("--hang-rate", "1")
    place.scrape(running)
    place.repeat(lambda: running.post(port, 5), 0.5)


def workers_die(place: Place) -> None:
    """The delivery worker dies of SIGSEGV, again and again."""
    running = place.start()
    place.scrape(running)

    def kill() -> None:
        for pid in running.daemon.pids("deliver"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSEGV)

    place.repeat(kill, 3)


def log_disk_full(place: Place) -> None:
    """The delivery log lies on a file system of 64 KiB."""
    folder = Path(tempfile.mkdtemp(prefix="pbalerts"))
    place.stack.callback(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=65536", "tmpfs", str(folder)], check=True)
    place.stack.callback(subprocess.run, ["umount", str(folder)], check=True)
    running = place.start(f"log.path={folder}/deliveries.jsonl")
    place.scrape(running)
    place.repeat(lambda: running.post(place.well_port, 100), 0.5)


class Fault(NamedTuple):
    """What is done, and what must fire within which time."""

    make: Callable[[Place], None]
    alerts: set[str]
    bound_s: float = 120
    takes_long: bool = False  # passes beside the faults that follow


WELL = "well"
FAULTS = {
    WELL: Fault(well, set(), takes_long=True),
    "deliverer_gone": Fault(
        deliverer_gone, {"PostbackdNoDeliveries", "PostbackdBacklogOld", "PostbackdBacklogVeryOld"}, 900, True
    ),
    "partner_slow": Fault(partner_slow, {"PostbackdSaturated", "PostbackdDeliveriesLate"}, 300, True),
    "postbackd": Fault(daemon_gone, {"PostbackdDown"}),  # the job that this alert names
    "redis_gone": Fault(
        redis_gone,
        {
            "PostbackdQueueDown",
            "PostbackdNotReady",
            "PostbackdRedisErrors",
            "PostbackdSpoolInUse",
            "PostbackdSpoolFilling",
            "PostbackdIngestRefuses",
        },
    ),
    "redis_full": Fault(redis_full, {"PostbackdIngestRefuses", "PostbackdQueueMemoryHigh", "PostbackdNotReady"}),
    "shard_gone": Fault(shard_gone, {"PostbackdShardAway"}),
    "partner_refuses": Fault(
        partner_refuses, {"PostbackdHostFailing", "PostbackdSuccessLow", "PostbackdDeadLettersGrowing"}
    ),
    "partner_hangs": Fault(partner_hangs, {"PostbackdBreakerOpen"}),
    "workers_die": Fault(workers_die, {"PostbackdWorkersRestarting"}),
    "log_disk_full": Fault(log_disk_full, {"PostbackdLogLinesLost", "PostbackdNotReady"}),
}


def run(names: Sequence[str], healthy_s: float) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Make the faults: what fired, by fault, and what went wrong."""
    wrong: list[str] = []
    until_s = time.monotonic() + healthy_s
    with contextlib.ExitStack() as whole, queue_server("always") as (url, _):
        watch = whole.enter_context(prometheus())
        left_alone: list[tuple[str, float]] = []
        for name in names:
            fault, began_s = FAULTS[name], time.monotonic()
            place = Place(name, watch, url)
            with contextlib.ExitStack() as mine:
                (whole if fault.takes_long else mine).push(place.stack)
                fault.make(place)
                left_alone.append((name, began_s))
                if not fault.takes_long:
                    wrong += judge(watch, *left_alone.pop())
        for name, began_s in left_alone:
            wrong += judge(watch, name, began_s)
        while time.monotonic() < until_s:
            watch.look()
            time.sleep(0.5)
    wrong += [f"{name} fires at a daemon that is well: {text}" for name, text in watch.fired.get(WELL, {}).items()]
    return watch.fired, wrong


def judge(watch: Watch, name: str, began_s: float) -> list[str]:
    """Wait for what a fault must bring; what did not fire."""
    fault = FAULTS[name]
    if not fault.alerts:
        return []
    missing = watch.wait_for(name, fault.alerts, fault.bound_s)
    print(f"{name}: {'fired' if not missing else 'NOT fired'}, {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return [f"{alert} did not fire at {name} in {fault.bound_s:g} s" for alert in sorted(missing)]


def show(fired: dict[str, dict[str, str]]) -> None:
    """A table, in the order of the rules."""
    table = Table("alert", "fault", "what it said", title="alerts that fired", title_justify="left", show_lines=True)
    for alert in ALERTS:
        for name, found in fired.items():
            if alert in found:
                table.add_row(alert, f"{name}: {FAULTS[name].make.__doc__}", found[alert])
    Console().print(table)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="These faults alone.")
@click.option("--healthy", default=300.0, show_default=True, help="Least seconds of the daemon that is well.")
@click.option("--json", "as_json", is_flag=True)
def main(only: tuple[str, ...], healthy: float, as_json: bool) -> None:
    """Make every alert fire."""
    unknown = set(ALERTS) ^ set().union(*(one.alerts for one in FAULTS.values()))
    if unknown:
        raise SystemExit(f"bench: alerts without a fault, or faults without an alert: {sorted(unknown)}")
    fired, wrong = run(only or list(FAULTS), healthy)
    if as_json:
        print(json.dumps({"bench": "alerts", "fired": fired, "wrong": wrong}))
    else:
        show(fired)
    for line in wrong:
        print(f"bench: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
