# SPDX-License-Identifier: MIT
"""/profile: what every process of the daemon takes, by psutil; /profile/cpu: where a chosen one spends its time.

Stacks are sampled inside the worker (stack_sampler.py), since only there they are Python's own. It is asked by a file
and a signal, and leaves its result in a file: no handler here waits for anything.
"""

import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from postbackd.admin.sockets import established_sockets
from postbackd.data_dir import ProcessRow, read_processes, write_whole
from postbackd.stack_sampler import (
    FOLDER,
    LONGEST_S,
    SIGNAL,
    SampleRequest,
    SampleResult,
    request_path,
    result_path,
)

SAMPLED = ("ingest", "deliver", "admin")
LATE_S = 10.0  # a result that has not come by then does not come any more
RESULTS_KEPT = 20
KEPT_S = 1.0  # a look at the memory of all processes takes 5 ms each, in which the app answers nobody


class ProfileError(Exception):
    """Why there is no profile: an HTTP status, a code and a text."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class ProcessTable:
    """CPU of every process between two looks, all the rest of now."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = data_dir
        self._used: dict[int, tuple[float, float]] = {}  # pid → CPU seconds, when
        self._percent: dict[int, float] = {}
        self._rows: list[dict[str, Any]] = []
        self._read_s = -KEPT_S

    def look(self) -> None:
        """Read every process' CPU; the observer does it every 2 s."""
        used: dict[int, tuple[float, float]] = {}
        for row in read_processes(self._data_dir):
            pid = row["pid"]
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            now = used[pid] = (times.user + times.system, time.monotonic())
            before = self._used.get(pid)
            if before is not None and now[1] > before[1]:
                self._percent[pid] = round((now[0] - before[0]) / (now[1] - before[1]) * 100, 1)
        self._used = used
        self._percent = {pid: percent for pid, percent in self._percent.items() if pid in used}

    def rows(self) -> list[dict[str, Any]]:
        """Every process that runs, in the order of the supervisor's list; those of the last second again if asked."""
        if time.monotonic() - self._read_s < KEPT_S:
            return self._rows
        found = []
        established = established_sockets()
        for row in read_processes(self._data_dir):
            try:
                found.append(self._row(row, established))
            except psutil.NoSuchProcess:  # ended meanwhile
                continue
        self._rows, self._read_s = found, time.monotonic()
        return found

    def _row(self, row: ProcessRow, established: set[str]) -> dict[str, Any]:
        process = psutil.Process(row["pid"])
        with process.oneshot():
            memory = process.memory_full_info()
            switches = process.num_ctx_switches()
            io = process.io_counters()
            return {
                "role": row["role"],
                "pid": row["pid"],
                "slot": row["slot"],
                "cpu_percent": self._percent.get(row["pid"], 0.0),
                "rss_bytes": memory.rss,
                "uss_bytes": memory.uss,
                "fds": process.num_fds(),
                "threads": process.num_threads(),
                "connections": _connections(row["pid"], established),
                "ctx_switches": {"voluntary": switches.voluntary, "involuntary": switches.involuntary},
                "io": {
                    "read_count": io.read_count,
                    "write_count": io.write_count,
                    "read_bytes": io.read_bytes,
                    "write_bytes": io.write_bytes,
                },
            }


def _connections(pid: int, established: set[str]) -> int:
    """Established TCP connections of a process."""
    count = 0
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                try:
                    count += os.readlink(descriptor.path) in established
                except FileNotFoundError:  # closed meanwhile
                    continue
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    return count


class CpuProfiles:
    """Profiles asked for, and their results."""

    def __init__(self, data_dir: str) -> None:
        self._data_dir = Path(data_dir)
        self._running: dict[str, tuple[str, float]] = {}  # id → worker, when it has to be there

    def start(self, worker: str, seconds: float) -> str:
        """Have a worker sampled; the id of the profile to come. Raises ProfileError."""
        if not 0.1 <= seconds <= LONGEST_S:
            raise ProfileError(400, "invalid_seconds", f"seconds is 0.1 to {LONGEST_S:g}.")
        row = self._find(worker)
        name = f"{row['role']}.{row['slot']}"
        if any(busy == name and time.monotonic() < until for busy, until in self._running.values()):
            raise ProfileError(409, "profile_running", f"{name} is being sampled already: wait for that one.")
        sample_id = secrets.token_hex(8)
        try:
            (self._data_dir / FOLDER).mkdir(mode=0o700, exist_ok=True)
            request = msgspec.json.encode(SampleRequest(sample_id, seconds)).decode()
            write_whole(request_path(self._data_dir, row["role"], row["slot"] or 0), request)
            # psutil knows the process by its start too: a pid that is another's by now gets no signal.
            psutil.Process(row["pid"]).send_signal(SIGNAL)
        except psutil.NoSuchProcess:
            raise ProfileError(404, "worker_gone", f"{name} has just ended: try again.") from None
        except OSError as error:
            text = f"{self._data_dir / FOLDER} cannot be written: {error.strerror}."
            raise ProfileError(503, "profile_failed", text) from None
        self._forget_old()
        self._running[sample_id] = (name, time.monotonic() + seconds)
        return sample_id

    def _find(self, worker: str) -> ProcessRow:
        """The process that is meant: `deliver.0`, `deliver`, or a pid."""
        rows = [row for row in read_processes(self._data_dir) if row["role"] in SAMPLED]
        role, _, slot = worker.removeprefix("pb-").replace("-", ".").replace(":", ".").partition(".")
        for row in rows:
            if worker == str(row["pid"]) or (row["role"] == role and slot in ("", str(row["slot"]))):
                return row
        names = ", ".join(f"{row['role']}.{row['slot']}" for row in rows)
        raise ProfileError(404 if worker else 400, "worker_unknown", f"worker is one of {names}, or a pid of them.")

    def result(self, sample_id: str) -> SampleResult | None:
        """A finished profile; None while it is not. Raises ProfileError when there will be none."""
        if not sample_id.isalnum():
            raise ProfileError(404, "profile_unknown", "There is no profile of this id.")
        try:
            return msgspec.json.decode(result_path(self._data_dir, sample_id).read_bytes(), type=SampleResult)
        except (OSError, msgspec.DecodeError):
            pass
        worker, until_s = self._running.get(sample_id, ("", 0.0))
        if not worker:
            raise ProfileError(404, "profile_unknown", "There is no profile of this id.")
        if time.monotonic() > until_s + LATE_S:
            raise ProfileError(410, "profile_lost", f"{worker} ended before its profile was there: ask again.")
        return None

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        self._running = {id_: of for id_, of in self._running.items() if now_s < of[1] + 600}
        results = sorted((self._data_dir / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in results[:-RESULTS_KEPT]:
            path.unlink(missing_ok=True)


def collapsed(result: SampleResult) -> str:
    """One line a stack, `outer;inner count`, counting µs of CPU: what flame graph tools read."""
    return "".join(f"{';'.join(stack.frames)} {max(stack.cpu_us, 1)}\n" for stack in result.stacks)


def speedscope(result: SampleResult) -> dict[str, Any]:
    """The file format of speedscope.app: two views, by CPU time and by samples, which are wall-clock time."""
    names = list(dict.fromkeys(name for stack in result.stacks for name in stack.frames))
    index = {name: number for number, name in enumerate(names)}
    samples = [[index[name] for name in stack.frames] for stack in result.stacks]
    worker = f"{result.role}.{result.slot}"

    def profile(title: str, unit: str, weights: list[int]) -> dict[str, Any]:
        return {
            "type": "sampled",
            "name": f"{worker} {title}",
            "unit": unit,
            "startValue": 0,
            "endValue": sum(weights),
            "samples": samples,
            "weights": weights,
        }

    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": f"postbackd {worker}, {result.seconds:g} s",
        "exporter": "postbackd",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name.rpartition(":")[2], "file": name.rpartition(":")[0]} for name in names]},
        "profiles": [
            profile("CPU", "microseconds", [stack.cpu_us for stack in result.stacks]),
            profile("wall clock", "milliseconds", [stack.samples * result.interval_ms for stack in result.stacks]),
        ],
    }
