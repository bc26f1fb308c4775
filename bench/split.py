# SPDX-License-Identifier: MIT
"""Ingest on one machine, delivery on others, one queue between them; delivery machines come and go under load.

    python -m bench.split [--rate 300] [--items 5] [--phase 4] [--shards 1] [--json]

Machines are network namespaces with a cable to the queue each (as root; otherwise all is loopback and bytes are Redis'
own counters alone). One delivery machine at first; a second one comes; the first is stopped (SIGTERM); it comes back,
and the second is lost (kill -9 of everything on it). Then every acknowledged id is held against what the targets
answered.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
import redis

from bench.failover_parts.hosts import Host, hosts
from bench.failover_parts.servers import wait_until
from bench.support import free_port, process, report, sink_command, wait_for_port
from postbackd.queue.embedded import find_server
from postbackd.tools.audit import compare, read_delivered, read_sent

PASSWORD = "s3cret"
CONNECTIONS = 32
SETTLE_BOUND_S = 180
SETTINGS = (
    "ingest.workers=4",
    "delivery.workers=1",
    "delivery.timeout=2",
    "retry.schedule=[0.5, 1, 2]",
    "queue.lease_timeout=10",
    'security.allow_networks=["127.0.0.0/8"]',
)


class Machine:
    """A host with a daemon that can be started, stopped and lost; its data_dir stays."""

    def __init__(self, folder: Path, host: Host, role: str, queue_port: int, shards: int) -> None:
        self.folder = folder / host.name
        self.folder.mkdir()
        self.host = host
        self._role = role
        self.port = free_port()
        self._settings = [
            f"data_dir={self.folder / 'var'}",
            f"log.path={self.folder / 'deliveries.jsonl'}",
            f"ingest.port={self.port}",
            f"queue.url=redis://:{PASSWORD}@{host.queue_address}:{queue_port}",
            f"queue.shards={shards}",
            *SETTINGS,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """What the daemon has said."""
        return (self.folder / "output").read_text(errors="replace")

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        command = [*self.host.prefix, sys.executable, "-m", "postbackd.cli", "run", "--roles", self._role]
        command += [part for setting in self._settings for part in ("--set", setting)]
        with (self.folder / "output").open("ab") as output:
            before = self.output.count("postbackd is ready")
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        started = self._process
        wait_until(
            lambda: self.output.count("postbackd is ready") > before or started.poll() is not None, "it is ready"
        )
        if started.poll() is not None:
            raise SystemExit(f"bench: {self.host.name} did not start: {self.output}")

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def lose(self) -> None:
        """kill -9 of everything on it."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=10)

    def destroy(self) -> None:
        """End what is left."""
        if self._process is not None and self._process.poll() is None:
            self.lose()


class Split:
    """The queue, an ingest machine with its load, two delivery machines with a target each."""

    def __init__(self, stack: contextlib.ExitStack, rate: float, items: int, shards: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pbsplit"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        made = stack.enter_context(hosts(["ingest", "deliver1", "deliver2"]))
        self.has_cables = bool(made[0].prefix)
        port, sink_port = free_port(), free_port()
        self.client = self._start_queue(stack, port, sorted({host.queue_address for host in made}))
        roles = ("ingest", "deliver", "deliver")
        self.machines = [Machine(self.folder, host, role, port, shards) for host, role in zip(made, roles, strict=True)]
        for machine in self.machines:
            stack.callback(machine.destroy)
        for machine in self.machines[1:] if self.has_cables else self.machines[1:2]:
            record = ["--record", str(machine.folder / "received.jsonl")]
            sink = sink_command(sink_port, *record, "--latency", "0.005")
            stack.enter_context(process(None, [*machine.host.prefix, *sink], stdout=subprocess.DEVNULL))
        self.machines[0].start()
        self._sent = self.folder / "sent.jsonl"
        load = [*made[0].prefix, sys.executable, "-m", "bench.chaos_parts.load", str(self.machines[0].port), str(rate)]
        load += [str(items), str(CONNECTIONS), str(self._sent), str(sink_port)]
        self._load = load
        self._stack = stack

    def _start_queue(self, stack: contextlib.ExitStack, port: int, addresses: list[str]) -> redis.Redis:
        folder = self.folder / "queue"
        folder.mkdir()
        command = [find_server("auto"), "--port", str(port), "--bind", *sorted({"127.0.0.1", *addresses})]
        command += ["--requirepass", PASSWORD, "--dir", str(folder), "--save", "", "--appendonly", "yes"]
        stack.enter_context(process(None, command, stdout=subprocess.DEVNULL))
        wait_for_port(port)
        return redis.Redis(port=port, password=PASSWORD)

    def start_load(self) -> None:
        """Requests from the ingest machine itself, so that the cable carries the queue's bytes alone."""
        self._running = self._stack.enter_context(process(None, self._load))

    def records(self) -> list[Path]:
        """What the targets recorded."""
        return [path for machine in self.machines if (path := machine.folder / "received.jsonl").exists()]

    def received(self) -> int:
        """Requests that reached a target so far."""
        return sum(path.read_bytes().count(b"\n") for path in self.records())

    def finish(self) -> tuple[int, int, int]:
        """End the load and wait for what was acknowledged: how many, lost, delivered too often."""
        self._running.send_signal(signal.SIGTERM)
        self._running.wait(60)
        sent = read_sent([self._sent])
        deadline_s = time.monotonic() + SETTLE_BOUND_S
        while (found := compare(sent, read_delivered(self.records(), sent))).lost and time.monotonic() < deadline_s:
            time.sleep(0.5)
        time.sleep(1.0)  # what comes twice
        found = compare(sent, read_delivered(self.records(), sent))
        return len(sent), len(found.lost), sum(found.duplicated.values()) - len(found.duplicated)


def run(rate: float, items: int, phase_s: float, shards: int) -> dict[str, Any]:
    """The whole story; its figures."""
    with contextlib.ExitStack() as stack:
        split = Split(stack, rate, items, shards)
        _, first, second = split.machines
        first.start()
        before = split.client.info("stats")
        cables = [(m.host.bytes_sent(), m.host.bytes_received()) for m in split.machines]
        split.start_load()
        per_s: dict[str, float] = {}

        def phase(name: str) -> None:
            began_s, count = time.monotonic(), split.received()
            time.sleep(phase_s)
            wait_until(lambda: split.received() > count, f"something is delivered: {name}", SETTLE_BOUND_S)
            per_s[name] = (split.received() - count) / (time.monotonic() - began_s)

        phase("one delivery machine")
        second.start()
        phase("a second one added")
        exit_code = first.stop()
        phase("the first one stopped")
        first.start()
        second.lose()
        phase("the second one lost")
        acknowledged, lost, twice = split.finish()
        after = split.client.info("stats")
        sent = [m.host.bytes_sent() - was[0] for m, was in zip(split.machines, cables, strict=True)]
        received = [m.host.bytes_received() - was[1] for m, was in zip(split.machines, cables, strict=True)]
        output = "".join(machine.output for machine in split.machines)
        return {
            "has_cables": split.has_cables,
            "acknowledged": acknowledged,
            "lost": lost,
            "twice": twice,
            "exit_code_of_stopped": exit_code,
            "delivered_per_s": per_s,
            "redis_bytes_in": (after["total_net_input_bytes"] - before["total_net_input_bytes"]) / acknowledged,
            "redis_bytes_out": (after["total_net_output_bytes"] - before["total_net_output_bytes"]) / acknowledged,
            "ingest_to_queue": sent[0] / acknowledged,
            "queue_to_ingest": received[0] / acknowledged,
            "delivery_to_queue": sum(sent[1:]) / acknowledged,
            "queue_to_delivery": sum(received[1:]) / acknowledged,
            "tracebacks": output.count("Traceback"),
        }


@click.command()
@click.option("--rate", default=300.0, show_default=True, help="Requests a second.")
@click.option("--items", default=5, show_default=True, help="Postbacks a request.")
@click.option("--phase", default=4.0, show_default=True, help="Seconds of each phase.")
@click.option("--shards", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rate: float, items: int, phase: float, shards: int, as_json: bool) -> None:
    """Split ingest from delivery and let delivery machines come and go."""
    found = run(rate, items, phase, shards)
    counts = f"{found['acknowledged']} / {found['lost']} / {found['twice']}"
    to_queue, from_queue = found["ingest_to_queue"], found["queue_to_ingest"]
    to_delivery, from_delivery = found["queue_to_delivery"], found["delivery_to_queue"]
    rows = [
        ("postbacks acknowledged / lost / delivered twice", counts),
        *((f"deliveries/s, {name}", f"{value:.0f}") for name, value in found["delivered_per_s"].items()),
        ("bytes into / out of Redis a postback", f"{found['redis_bytes_in']:.0f} / {found['redis_bytes_out']:.0f}"),
    ]
    if found["has_cables"]:
        rows += [
            ("on the cable, a postback: ingest → queue / back", f"{to_queue:.0f} / {from_queue:.0f}"),
            ("on the cable, a postback: queue → delivery / back", f"{to_delivery:.0f} / {from_delivery:.0f}"),
        ]
    place = "network namespaces" if found["has_cables"] else "loopback"
    report(f"split machines ({place}): {rate:g} requests/s of {items}", rows, found, as_json)
    sys.exit(1 if found["lost"] or found["tracebacks"] else 0)


if __name__ == "__main__":
    main()
