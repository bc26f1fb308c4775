# SPDX-License-Identifier: MIT
"""The observer: looks at the daemon every 2 s and tells what it saw, now and over the last hours.

Two threads: one reads the scoreboard, the spool and the log, which answer at once; the other asks the queue server,
which may not. Whoever asks us gets what was seen last, and the counters as they are now.
"""

import contextlib
import hashlib
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from postbackd import __version__, oplog
from postbackd.admin import hosts, totals
from postbackd.admin.facts import DaemonFacts
from postbackd.admin.failures import Failures
from postbackd.admin.history import STEP_S, History, Point
from postbackd.admin.host_series import HostSeries
from postbackd.admin.host_troubles import HostTroubles
from postbackd.admin.profile import ProcessTable
from postbackd.admin.refusals import Refusals
from postbackd.data_dir import ProcessRow, read_processes, write_whole
from postbackd.errors import QueueFullError, QueueUnavailableError
from postbackd.host_board import HostFigures
from postbackd.limits import ingest_workers, worker_count
from postbackd.queue.figures import FigureReader, NodeSnapshot, QueueFigures
from postbackd.queue.spool import has_room, spool_size
from postbackd.scoreboard import Cell, Phase, Scoreboard, monotonic_ms
from postbackd.settings import Settings
from postbackd.suggestion import options_anywhere

NOW_S = 10  # what "now" means: rates and percentiles are those of the last 10 s
IDLE_S = 10  # between looks at a queue of which no process of ours does anything; 13 commands each
SETTLED_S = 5  # without a move, to have seen what the last one led to
KEEP_EVERY_S = 60  # of the history
RUNBOOK = 'see "Requests are refused" in docs/runbook.md'
LOST_LINES_S = 60  # how long lost log lines are a reason not to be ready


class Sample(NamedTuple):
    """The counters at one moment."""

    at_s: float  # monotonic
    sums: list[int]


class Observer:
    """What the admin app shows."""

    def __init__(
        self, settings: Settings, facts: DaemonFacts, scoreboard: Scoreboard, node: str, reader: FigureReader
    ) -> None:
        self.settings = settings
        self.facts = facts
        self.node = node
        self.figures = QueueFigures()
        self.history = History()
        self.host_series = HostSeries()
        self.process_table = ProcessTable(settings.data_dir)
        self.spool = (0, 0)
        self.refusals = Refusals()
        self._has_room = True
        self._scoreboard = scoreboard
        self._reader = reader
        self._nodes: list[NodeSnapshot] = []
        self._nodes_ms = 0
        self._queue_counters: list[int] = []
        self._queue_read_s = self._moved_s = time.monotonic()
        self._failures = Failures(settings.log.path)
        self._failed = -1
        self._samples: deque[Sample] = deque(maxlen=NOW_S // STEP_S + 1)
        self._hosts: deque[dict[str, HostFigures]] = deque(maxlen=NOW_S // STEP_S + 1)
        self._history_path = Path(settings.data_dir) / "history"
        self._kept_s = time.monotonic()
        self._troubles = HostTroubles()
        self._lost_seen = 0
        self._lost_s = -float(LOST_LINES_S)
        self._node_id = _node_id(node, settings.data_dir)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(look,), name=name, daemon=True)
            for name, look in (("observer", self.look), ("queue-figures", self.look_at_queue))
        ]

    # Looking

    def start(self) -> None:
        """Begin; the first look is taken at once. The history goes on where a predecessor left it."""
        with contextlib.suppress(OSError, msgspec.DecodeError):  # none there, or another version's
            self.history.unpack(self._history_path.read_bytes(), time.time())
        now_s = time.monotonic()
        self.refusals.begin(now_s, now_s - (time.time() - self.facts.started_ms / 1000))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Look no more, and tell the other daemons that this one stops."""
        self._stopping.set()
        self._keep_history()
        self._threads[1].join(STEP_S)
        if self.figures.reachable and not self._threads[1].is_alive():
            self._reader.leave(self._node_id)

    def _run(self, look: Any) -> None:
        while True:
            try:
                look()
            except Exception as error:  # the top of the thread: the next look may go better
                oplog.error("look_failed", error=repr(error))
            if self._stopping.wait(STEP_S):
                return

    def look(self) -> None:
        """Once every `STEP_S`: counters, spool, failures; adds a point to the history."""
        sample = self._sample()
        before = self._samples[-1] if self._samples else sample
        self._samples.append(sample)
        board = self.facts.hosts.hosts()
        self._hosts.append({figures.host: figures for figures in board})
        self._troubles.look(self.hosts(), time.time_ns() // 1_000_000)
        self.host_series.take(board)
        self.process_table.look()
        folder = Path(self.settings.data_dir) / "spool"
        self.spool, self._has_room = spool_size(folder), has_room(folder)
        self.refusals.take(sample.at_s, totals.by_error(sample.sums), sample.sums[Cell.ACCEPTED])
        failed = sample.sums[Cell.RETRIED] + sample.sums[Cell.DEAD]
        if failed != self._failed:
            self._failed = failed
            self._failures.read()
        if (lost := sample.sums[Cell.LOG_LINES_LOST]) > self._lost_seen:
            self._lost_seen, self._lost_s = lost, sample.at_s
        self.history.add(self._point(before, sample))
        if sample.at_s - self._kept_s >= KEEP_EVERY_S:
            self._kept_s = sample.at_s
            self._keep_history()

    def _keep_history(self) -> None:
        """For a successor, after a reload or a restart. A full disk costs the history of a minute, no more."""
        with contextlib.suppress(OSError):
            write_whole(self._history_path, self.history.pack())

    def _sample(self) -> Sample:
        return Sample(time.monotonic(), self._scoreboard.sums())

    def _point(self, before: Sample, sample: Sample) -> Point:
        queue = self.figures
        took = totals.durations(_difference(before, sample))
        return Point(
            t=round(time.time(), 1),
            in_=_rate(before, sample, Cell.ACCEPTED),
            out=_rate(before, sample, Cell.DELIVERED),
            retried=_rate(before, sample, Cell.RETRIED),
            dead=_rate(before, sample, Cell.DEAD),
            p50=took.quantile(0.5),
            p99=took.quantile(0.99),
            ready=queue.ready,
            later=queue.later,
            dead_total=queue.dead,
            oldest_s=queue.oldest_ready_s,
            spool_bytes=self.spool[0],
            in_flight=sample.sums[Cell.IN_FLIGHT],
        )

    def look_at_queue(self) -> None:
        """How much waits, and who else shares the queue: every `STEP_S`, or `IDLE_S` while nothing moves."""
        now_s, counters = time.monotonic(), self.sums()[: Cell.IN_FLIGHT]
        if counters != self._queue_counters:
            self._queue_counters, self._moved_s = counters, now_s
        is_idle = self.figures.reachable and now_s - self._moved_s > SETTLED_S
        if is_idle and now_s - self._queue_read_s < IDLE_S:
            return
        self._queue_read_s = now_s
        try:
            self.figures = self._reader.read()
            self._nodes = self._reader.exchange(self._snapshot(self._reader.server_ms))
            self._nodes_ms = monotonic_ms()
        except QueueFullError:  # it takes no write: the others do without our figures, and /ready says why
            return
        except QueueUnavailableError as error:
            self.figures = QueueFigures(error=str(error))

    def _snapshot(self, server_ms: int) -> NodeSnapshot:
        now = self.now()
        return NodeSnapshot(
            id=self._node_id,
            seen_ms=server_ms,
            node=self.node,
            in_per_s=now["in_per_s"],
            out_per_s=now["out_per_s"],
            in_flight=now["in_flight"],
            spool_bytes=self.spool[0],
            workers=sum(worker["alive"] for worker in self.workers()),
            version=__version__,
            state=self._scoreboard.phase.name.lower(),
            ready=not self.reasons(),
        )

    # Telling

    def stats(self) -> dict[str, Any]:
        """Everything, as /stats shows it."""
        now_ms = time.time_ns() // 1_000_000
        reasons = self.reasons()
        spool_bytes, spool_files = self.spool
        return {
            "now_ms": now_ms,
            "version": __version__,
            "node": self.node,
            "data_dir": str(Path(self.settings.data_dir).resolve()),
            "options": options_anywhere(),
            "started_ms": self.facts.started_ms,
            "uptime_s": (now_ms - self.facts.started_ms) / 1000,
            "state": self._scoreboard.phase.name.lower(),
            "ready": not reasons,
            "reasons": reasons,
            "reload_refused": self._scoreboard.reload_refused or None,
            "queue": self._queue(),
            "spool": {
                "bytes": spool_bytes,
                "max_bytes": self.settings.spool.max_bytes,
                "files": spool_files,
                "disk_full": not self._has_room,
            },
            "refused_last_minute": self.refusals.by_error(),
            "log": {"path": self.settings.log.path, "lines_lost": self._scoreboard.total(Cell.LOG_LINES_LOST)},
            "totals": totals.totals(self.sums()),
            "now": self.now(),
            "workers": self.workers(),
            "hosts": self.hosts(),
            "failures": self._failures.newest(),
            "cluster": self.cluster(),
        }

    def _queue(self) -> dict[str, Any]:
        figures = self.figures
        return {
            **{name: getattr(figures, name) for name in figures.__struct_fields__},
            "max_depth": self.settings.queue.max_depth,
        }

    def sums(self) -> list[int]:
        """Every counter of the daemon, as it is now."""
        return self._scoreboard.sums()

    def reasons(self) -> list[str]:
        """Why the daemon is not ready; empty when it is."""
        reasons = []
        phase, queue, settings = self._scoreboard.phase, self.figures, self.settings
        if phase is Phase.STARTING:
            reasons.append("starting: not all workers run yet")
        if phase is Phase.DRAINING:
            reasons.append("draining: the daemon is stopping")
        if not queue.reachable:
            reasons.append(f"queue: {queue.error}")
        elif queue.ready + queue.later >= settings.queue.max_depth:
            reasons.append(
                f"queue: {queue.ready + queue.later} postbacks wait, queue.max_depth = {settings.queue.max_depth}"
            )
        elif queue.shards_full and queue.shards_full + queue.shards_away >= settings.queue.shards:
            reasons.append(
                f"queue: Redis is out of memory, {queue.used_memory_bytes} bytes of {queue.max_memory_bytes}: "
                "requests get 503 queue_full until it has drained, or maxmemory is raised"
            )
        if self.spool[0] >= settings.spool.max_bytes:
            reasons.append(f"spool: {self.spool[0]} bytes, spool.max_bytes = {settings.spool.max_bytes}")
        if not self._has_room and not queue.reachable:
            reasons.append(
                f"spool: the disk under {settings.data_dir} is full (df -h): requests get 503 spool_full "
                "until there is room, or Redis is back"
            )
        if "ingest" in self.facts.roles and (refused := self.refusals.all_refused()):
            reasons.append(f"ingest: all requests of the last minute are refused, {refused}: {RUNBOOK}")
        if time.monotonic() - self._lost_s < LOST_LINES_S:
            reasons.append(
                f"log: lines are being lost ({self._lost_seen} in all): make room or mend {settings.log.path}"
            )
        if phase is Phase.RUNNING:
            alive = {worker["role"] for worker in self.workers() if worker["alive"]}
            reasons += [f"{role}: no worker runs" for role in ("ingest", "deliver") if role in self.facts.roles - alive]
        return reasons

    def now(self) -> dict[str, Any]:
        """Rates and percentiles over the last `NOW_S` seconds, gauges of this moment."""
        sample = self._sample()
        before = self._samples[0] if self._samples else sample
        grown = _difference(before, sample)
        took, lag = totals.durations(grown), totals.lags(grown)
        attempts = grown[Cell.ATTEMPTS]
        delivered = grown[Cell.DELIVERED]
        in_flight = sample.sums[Cell.IN_FLIGHT]
        return {
            "in_per_s": _rate(before, sample, Cell.ACCEPTED),
            "out_per_s": _rate(before, sample, Cell.DELIVERED),
            "attempts_per_s": _rate(before, sample, Cell.ATTEMPTS),
            "retried_per_s": _rate(before, sample, Cell.RETRIED),
            "dead_per_s": _rate(before, sample, Cell.DEAD),
            "success_ratio": round(delivered / attempts, 4) if attempts else None,
            "latency_ms": {f"p{share}": took.quantile(share / 100) for share in (50, 90, 99)},
            "lag_ms": {f"p{share}": lag.quantile(share / 100) for share in (50, 99)},
            "in_flight": in_flight,
            "saturation": round(in_flight / self.capacity(), 4),
        }

    def hosts(self) -> list[dict[str, Any]]:
        """Hosts by recent traffic."""
        if not self._samples or not self._hosts:
            return []
        passed_s = time.monotonic() - self._samples[0].at_s
        rows = hosts.rows(self.facts.hosts.hosts(), self._hosts[0], passed_s, monotonic_ms())
        return [{**row, "failing_since_ms": self._troubles.since_ms(row["host"])} for row in rows]

    def capacity(self) -> int:
        """Transfers that all delivery workers may have in flight."""
        return worker_count(self.settings.delivery.workers, per_core=1) * self.settings.delivery.in_flight

    def workers(self) -> list[dict[str, Any]]:
        """Every ingest and delivery worker; also those that should run and do not."""
        running = [row for row in self.processes() if row["role"] in ("ingest", "deliver")]
        found = [self._worker(row["role"], row["slot"] or 0, row["pid"]) for row in running]
        there = {(row["role"], row["slot"]) for row in running}
        for role, count in self._counts().items():
            found += [self._worker(role, slot, None) for slot in range(count) if (role, slot) not in there]
        return sorted(found, key=lambda row: (row["role"], row["slot"]))

    def _counts(self) -> dict[str, int]:
        """How many workers there should be, by role."""
        counts = {
            "ingest": ingest_workers(self.settings.ingest),
            "deliver": worker_count(self.settings.delivery.workers, per_core=1),
        }
        return {role: count for role, count in counts.items() if role in self.facts.roles}

    def _worker(self, role: str, slot: int, pid: int | None) -> dict[str, Any]:
        rows = [self._scoreboard.row(number) for number in self.facts.rows.get(role, ())]
        cells = next((row for row in rows if row[Cell.PID] == pid), None)
        beaten_ms = 0 if cells is None else cells[Cell.HEARTBEAT_MS]
        return {
            "role": role,
            "slot": slot,
            "pid": pid,
            "alive": pid is not None,
            "restarts": 0 if cells is None else cells[Cell.RESTARTS],
            "heartbeat_age_s": round((monotonic_ms() - beaten_ms) / 1000, 1) if beaten_ms else None,
            "in_flight": 0 if cells is None else cells[Cell.IN_FLIGHT],
            "waiting": 0 if cells is None else cells[Cell.WAITING],
        }

    def restarts(self) -> dict[str, int]:
        """How often workers were started again after their death, by role."""
        rows = self.facts.rows.items()
        return {role: sum(self._scoreboard.row(number)[Cell.RESTARTS] for number in numbers) for role, numbers in rows}

    def processes(self) -> list[ProcessRow]:
        """Every process of this daemon, as the supervisor wrote them down."""
        return read_processes(self.settings.data_dir)

    def cluster(self) -> list[dict[str, Any]]:
        """Every daemon that shares the queue and was heard of in the last minute; this one is always there."""
        own = self._snapshot(self._reader.server_ms)
        silent_ms = monotonic_ms() - self._nodes_ms
        rows = []
        for snapshot in [own, *(other for other in self._nodes if other.id != own.id)]:
            row = {name: getattr(snapshot, name) for name in snapshot.__struct_fields__}
            del row["id"], row["seen_ms"]
            seen_ms_ago = 0 if snapshot is own else max(own.seen_ms - snapshot.seen_ms, 0) + silent_ms
            rows.append({**row, "seen_ms_ago": seen_ms_ago})
        return sorted(rows, key=lambda row: str(row["node"]))


def _difference(before: Sample, after: Sample) -> list[int]:
    return [new - old for new, old in zip(after.sums, before.sums, strict=True)]


def _rate(before: Sample, after: Sample, cell: Cell) -> float:
    """How much a counter grew per second."""
    passed_s = after.at_s - before.at_s
    return round((after.sums[cell] - before.sums[cell]) / passed_s, 2) if passed_s > 0 else 0.0


def _node_id(node: str, data_dir: str) -> str:
    """The same after a restart, and another one for a second daemon on the same machine."""
    place = hashlib.blake2b(str(Path(data_dir).absolute()).encode(), digest_size=4)
    return f"{node}.{place.hexdigest()}"
