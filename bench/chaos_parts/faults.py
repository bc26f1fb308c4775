# SPDX-License-Identifier: MIT
"""The faults, drawn from a seed: what is done to the world, and what undoes it some seconds later."""

import contextlib
import heapq
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from bench.chaos_parts.world import LEASE_TIMEOUT_S, World, send_signal

FILLER_BYTES = 1_048_576


class Fault(NamedTuple):
    """One kind of fault: how likely, and what does it; the return value says whether it was done."""

    name: str
    weight: int
    do: Callable[[], bool]


def _continue(pid: int) -> None:
    send_signal(pid, signal.SIGCONT)  # it may have been killed meanwhile


class Faults:
    """Does faults at random until told to mend everything."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._proxy_busy = self._disk_busy = self._queue_busy = self._daemon_busy = False
        self._sinks_busy: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._faults = [
            Fault("kill -9 ingest worker", 4, lambda: self._kill("ingest")),
            Fault("kill -9 delivery worker", 4, lambda: self._kill("deliver")),
            Fault("kill -9 supervisor", 2, self._kill_supervisor),
            Fault("kill -9 Valkey", 2, self._kill_queue),
            Fault("stop delivery worker past its lease", 1, lambda: self._stop("deliver", LEASE_TIMEOUT_S + 5.0)),
            Fault("stop ingest worker", 2, lambda: self._stop("ingest", 3.0)),
            Fault("stop Valkey", 1, self._stop_queue),
            Fault("fill the disk of data_dir", 1, self._fill_disk),
            Fault("cut Redis connections", 3, lambda: self._misbehave("drop", 0.1)),
            Fault("refuse Redis connections", 2, lambda: self._misbehave("refuse", 4.0)),
            Fault("stall Redis connections", 1, lambda: self._misbehave("stall", 8.0)),
            Fault("delay Redis connections", 2, lambda: self._misbehave("delay 100", 4.0)),
            Fault("stop a target", 2, self._stop_sink),
            Fault("kill a target", 2, self._kill_sink),
        ]

    def step(self) -> None:
        """Undo what is due, and do one fault."""
        self._watch_daemon()
        fault = self._random.choices(self._faults, [fault.weight for fault in self._faults])[0]
        if fault.do():
            self.counts[fault.name] += 1

    def pause_s(self) -> float:
        """How long until the next fault."""
        return self._random.uniform(0.5, 4.0)

    def undo_due(self, everything: bool = False) -> None:
        """End the faults whose time is over, or all."""
        while self._undo and (everything or self._undo[0][0] <= time.monotonic()):
            heapq.heappop(self._undo)[2]()

    def _later(self, after_s: float, undo: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._undo, (time.monotonic() + after_s, self._sequence, undo))

    def _watch_daemon(self) -> None:
        code = self._world.daemon.poll()
        if code is not None and not self._daemon_busy:
            self.surprises.append(f"the daemon ended by itself with exit code {code}")
            self._world.start_daemon()

    # Processes of the daemon

    def _kill(self, role: str) -> bool:
        pids = self._world.pids(role)
        return bool(pids) and send_signal(self._random.choice(pids), signal.SIGKILL)

    def _stop(self, role: str, for_s: float) -> bool:
        pids = self._world.pids(role)
        if not pids:
            return False
        pid = self._random.choice(pids)
        if not send_signal(pid, signal.SIGSTOP):
            return False
        self._later(for_s, lambda: _continue(pid))
        return True

    def _kill_supervisor(self) -> bool:
        if self._daemon_busy or self._world.daemon.poll() is not None:
            return False
        self._daemon_busy = True
        self._world.daemon.kill()
        self._world.daemon.wait()
        self._later(self._random.uniform(0, 2), self._start_daemon)
        return True

    def _start_daemon(self) -> None:
        self._daemon_busy = False
        self._world.start_daemon()

    # Redis and the way to it

    def _kill_queue(self) -> bool:
        if self._queue_busy:
            return False
        self._queue_busy = True
        self._world.queue.kill()
        self._world.queue.wait()
        self._later(self._random.uniform(0, 4), self._start_queue)
        return True

    def _start_queue(self) -> None:
        self._queue_busy = False
        self._world.start_queue()

    def _stop_queue(self) -> bool:
        if self._queue_busy:
            return False
        self._queue_busy = True
        pid = self._world.queue.pid
        send_signal(pid, signal.SIGSTOP)
        self._later(7.0, lambda: self._continue_queue(pid))
        return True

    def _continue_queue(self, pid: int) -> None:
        self._queue_busy = False
        send_signal(pid, signal.SIGCONT)

    def _misbehave(self, order: str, for_s: float) -> bool:
        if self._proxy_busy:
            return False
        self._proxy_busy = True
        self._world.order(order)
        self._later(for_s, self._behave)
        return True

    def _behave(self) -> None:
        self._proxy_busy = False
        self._world.order("pass")

    # The disk

    def _fill_disk(self) -> bool:
        if self._disk_busy or not self._world.has_tmpfs:
            return False
        self._disk_busy = True
        filler = self._world.data_dir / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # until it is full
            for size in (FILLER_BYTES, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        continue
        self._later(5.0, self._empty_disk)
        return True

    def _empty_disk(self) -> None:
        self._disk_busy = False
        (self._world.data_dir / "filler").unlink()

    # Targets

    def _stop_sink(self) -> bool:
        sink = self._idle_sink()
        if sink is None:
            return False
        process = self._world.sinks[sink]
        assert process is not None
        send_signal(process.pid, signal.SIGSTOP)
        self._later(4.0, lambda: self._continue_sink(sink))
        return True

    def _continue_sink(self, sink: int) -> None:
        self._sinks_busy.discard(sink)
        process = self._world.sinks[sink]
        assert process is not None
        send_signal(process.pid, signal.SIGCONT)

    def _kill_sink(self) -> bool:
        sink = self._idle_sink()
        if sink is None:
            return False
        process = self._world.sinks[sink]
        assert process is not None
        process.kill()
        process.wait()
        self._later(3.0, lambda: self._start_sink(sink))
        return True

    def _start_sink(self, sink: int) -> None:
        self._sinks_busy.discard(sink)
        self._world.start_sink(sink)

    def _idle_sink(self) -> int | None:
        idle = [number for number in range(len(self._world.sinks)) if number not in self._sinks_busy]
        if not idle:
            return None
        sink = self._random.choice(idle)
        self._sinks_busy.add(sink)
        return sink
