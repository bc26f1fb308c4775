# SPDX-License-Identifier: MIT
"""A daemon under load while something is done to its queue: what was acknowledged, lost, delivered twice, how long
nothing was delivered."""

import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bench.failover_parts.servers import wait_until
from bench.support import Daemon, daemon, free_port, process, sink_command, wait_for_port
from postbackd.codec import parse_id
from postbackd.tools.audit import compare, read_delivered

SETTLE_BOUND_S = 180
QUIET_S = 75  # the spool of a process that has ended is taken over by others once in 60 s, a lease ends after 10
CONNECTIONS = 256  # those with an Idempotency-Key, never spooled, are sent again until they are acknowledged
SETTINGS = (
    "ingest.workers=4",
    "delivery.workers=2",
    "delivery.timeout=2",
    "retry.schedule=[0.5, 1, 2]",
    "queue.lease_timeout=10",
)


class Figures(NamedTuple):
    """What one trial came to."""

    acknowledged: int
    refused: int  # requests answered with a 503, or not at all
    spooled: int
    lost: int
    twice: int  # deliveries too many
    longest_without_ack_s: float
    longest_without_delivery_s: float
    wrong: list[str]


class Trial:
    """A sink, a daemon, load on it."""

    def __init__(self, folder: Path, running: Sequence[Daemon], load: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.running = running
        self._load = load
        self._disturbed_s = time.time()

    def acknowledged(self) -> int:
        """Requests acknowledged so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "sent.jsonl").read_bytes().count(b'"status": 202')
        return 0

    def wait_for_more(self, requests: int) -> None:
        """Until so many more requests are acknowledged."""
        goal = self.acknowledged() + requests
        wait_until(lambda: self.acknowledged() >= goal, f"{requests} more requests are acknowledged", SETTLE_BOUND_S)

    def mark(self) -> None:
        """The disturbance begins now: the gaps are those from here on."""
        self._disturbed_s = time.time()

    def finish(self) -> Figures:
        """End the load, wait until every acknowledged postback has arrived or can arrive no more, count."""
        self._load.send_signal(signal.SIGTERM)
        self._load.wait(120)
        ended_s = time.time()
        lines = [json.loads(line) for line in (self.folder / "sent.jsonl").open()]
        sent = {parse_id(text) for line in lines for text in line["ids"]}
        record = self.folder / "received.jsonl"
        self._wait_for_deliveries(record, sent)
        self._wait_for_spools()
        time.sleep(1.0)  # what comes twice
        found = compare(sent, read_delivered([record], sent))
        acks_s = [line["at"] for line in lines if line["status"] == 202]
        output = "".join((one.folder / "output").read_text(errors="replace") for one in self.running)
        return Figures(
            acknowledged=len(sent),
            refused=sum(line["status"] != 202 for line in lines),
            spooled=sum(_spooled(one.folder) for one in self.running),
            lost=len(found.lost),
            twice=sum(found.duplicated.values()) - len(found.duplicated),
            longest_without_ack_s=self._longest_gap_s(acks_s, ended_s),
            longest_without_delivery_s=self._longest_gap_s(list(self._deliveries_s()), ended_s),
            wrong=["there is a traceback in a daemon's output"] if "Traceback" in output else [],
        )

    def _wait_for_deliveries(self, record: Path, sent: set[int]) -> None:
        """Until all have come, or nothing more does: a level may lose some."""
        bound_s = time.monotonic() + SETTLE_BOUND_S
        size, quiet_s = 0, time.monotonic()
        while compare(sent, read_delivered([record], sent)).lost and time.monotonic() < bound_s:
            if record.stat().st_size != size:
                size, quiet_s = record.stat().st_size, time.monotonic()
            elif time.monotonic() - quiet_s > QUIET_S:
                return
            time.sleep(0.5)

    def _wait_for_spools(self) -> None:
        """Until every spooled file is gone, and said to be: what was in it may be delivered before."""
        bound_s = time.monotonic() + QUIET_S
        while any(list((one.folder / "spool").glob("*.spool")) for one in self.running) and time.monotonic() < bound_s:
            time.sleep(0.1)

    def _deliveries_s(self) -> Iterator[float]:
        for one in self.running:
            with contextlib.suppress(FileNotFoundError):
                for line in (one.folder / "deliveries.jsonl").open("rb"):
                    if b'"outcome":"delivered"' in line:
                        yield datetime.fromisoformat(json.loads(line)["time"]).timestamp()

    def _longest_gap_s(self, times_s: list[float], ended_s: float) -> float:
        inside = sorted(at_s for at_s in times_s if self._disturbed_s <= at_s <= ended_s)
        marks = [self._disturbed_s, *inside, ended_s]
        return max(later - earlier for earlier, later in itertools.pairwise(marks))


def _spooled(folder: Path) -> int:
    """Requests that came back out of the spool, as the daemon says it file by file."""
    count = 0
    for line in (folder / "output").read_text(errors="replace").splitlines():
        if " spool_replayed " in line:
            count += int(line.partition("requests=")[2].split()[0])
    return count


@contextlib.contextmanager
def trial(
    url: str,
    rate: float,
    items: int,
    *,
    roles: Sequence[str] = ("ingest,deliver",),
    settings: Sequence[str] = (),
    fail_rate: float = 0,
) -> Iterator[Trial]:
    """Daemons with these roles on one queue, the first of which is under load, for the length of a with block.

    `fail_rate`: the share of attempts that the target refuses, so that this many wait in later at each moment.
    """
    folder = Path(tempfile.mkdtemp(prefix="pbtrial"))
    sink_port = free_port()
    record = ["--record", str(folder / "received.jsonl")]
    sink = sink_command(sink_port, *record, "--latency", "0.005", "--fail-rate", str(fail_rate))
    if fail_rate:
        settings = [*settings, "retry.schedule=[15, 1, 1, 1]", "retry.max_attempts=25"]  # none may die of it
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(process(None, sink, stdout=subprocess.DEVNULL))
        wait_for_port(sink_port)
        running = [stack.enter_context(daemon(url, None, role, [*SETTINGS, *settings])) for role in roles]
        load = [sys.executable, "-m", "bench.chaos_parts.load", str(running[0].port), str(rate), str(items)]
        load += [str(CONNECTIONS), str(folder / "sent.jsonl"), str(sink_port)]
        started = stack.enter_context(process(None, load))
        yield Trial(folder, running, started)
