# SPDX-License-Identifier: MIT
"""Pools of pre-forked worker processes: fork, watch, replace, stop.

A pool owns the slots of one role. A slot keeps its index over restarts; what runs in it is an incarnation with
a name of its own, `<node>.<slot>.<16 random hex>`, fresh at every fork, so that a stopped predecessor can never
settle its successor's lease. In come the turns of the supervisor's loop with the time, and the deaths it
reaped; out go forked children, running the role's main with a `SlotContext`. For a reload (reload.py) an index can
have two workers for a while, each with a row of the scoreboard for itself: the successor that starts, and the
predecessor that drains.

A pool does not wait for its children (the supervisor reaps them all in one place), knows no setting and opens
no connection. Signals, back-off and heartbeats are explained where they are handled, below.
"""

import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple, NoReturn

from postbackd import oplog
from postbackd.backoff import Backoff
from postbackd.errors import ExitCode, LeaseLostError, PostbackdError
from postbackd.forked import describe_exit, die_with, name_process, shed_supervisor
from postbackd.scoreboard import Cell, Scoreboard, monotonic_ms

STUCK_MS = 60_000  # a loop that has not beaten this long is stuck: killed and replaced
PAUSE_MS = 5_000  # the supervisor's own turns come each second: a longer gap means that it was stopped itself
FORK_AGAIN_MS = 1_000  # after the machine had no room for a process
NODE_LENGTH = 40  # keeps a worker's name within the scoreboard's ring


def node_name(hostname: str | None = None) -> str:
    """The short host name as far as it goes into keys and the log: letters, digits and dashes."""
    short = (socket.gethostname() if hostname is None else hostname).split(".")[0]
    return re.sub(r"[^A-Za-z0-9-]+", "-", short).strip("-")[:NODE_LENGTH] or "node"


@dataclass(frozen=True)
class Slot:
    """A worker's place: `index` counts within its role, `number` is its row of the scoreboard."""

    role: str
    index: int
    number: int


class SlotContext:
    """What a worker's main is given. Its `return` is the process' exit code; see `handle_signals` first."""

    def __init__(self, slot: Slot, worker: str, scoreboard: Scoreboard) -> None:
        self.slot = slot
        self.worker = worker
        self.scoreboard = scoreboard
        self.cells = scoreboard.row(slot.number)
        self.cells[Cell.PID] = os.getpid()

    @property
    def role(self) -> str:
        return self.slot.role

    @property
    def index(self) -> int:
        return self.slot.index

    @property
    def place(self) -> str:
        """`<node>.<slot>`, as in the delivery log."""
        return self.worker.rpartition(".")[0]

    def beat(self) -> None:
        """Say that the main loop moves; the first beat says that this worker is ready.

        From the loop itself, at least every 10 s, never from another thread: a stuck loop must look stuck.
        """
        self.cells[Cell.HEARTBEAT_MS] = monotonic_ms()
        oplog.say_repeats()

    def handle_signals(self, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Install the handlers, then let signals in: a child starts with all of them blocked.

        Handlers only set a flag. What came before (a SIGTERM right after the fork) is delivered now.
        """
        for signum, handler in handlers.items():
            signal.signal(signum, _without_arguments(handler))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _without_arguments(handler: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    return lambda _signum, _frame: handler()


WorkerMain = Callable[[SlotContext], int]


class Death(NamedTuple):
    """A child that has ended, as the supervisor learns of it."""

    slot: Slot
    pid: int
    worker: str
    exit_code: int  # negative: the signal that killed it, as in subprocess


class Place:
    """One slot with what runs in it now."""

    def __init__(self, slot: Slot, main: WorkerMain) -> None:
        self.slot = slot
        self.main = main
        self.is_trial = False  # of a configuration that is not in force yet: not tried again when it dies
        self.kill_at_ms: int | None = None  # retiring: asked to end, not replaced, killed then
        self.pid: int | None = None
        self.worker = ""
        self.started_ms = 0
        self.due_ms: int | None = None  # empty: when to fork again; None: not again, or not empty
        self.backoff = Backoff()


class WorkerPool:
    """The slots of one role."""

    def __init__(
        self,
        role: str,
        count: int,
        main: WorkerMain,
        scoreboard: Scoreboard,
        *,
        rows: range | None = None,
        node: str | None = None,
        owns_leases: bool = False,
        retire_signal: signal.Signals = signal.SIGTERM,
        in_child: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        """`rows` of the scoreboard are this pool's; more than `count` of them leave room for successors.
        `owns_leases`: the dead are noted in the scoreboard, for the living to reclaim. `retire_signal` asks one worker
        to drain while the daemon goes on. Two functions run in the children: `in_child` first (the supervisor closes
        there what is its own alone), `report` with the line of an error that ends the child."""
        self.role = role
        self.rows = rows or range(count)
        self.stopping = False
        self._retire_signal = retire_signal
        self._scoreboard = scoreboard
        self._node = node or node_name()
        self._owns_leases = owns_leases
        self._in_child = in_child
        self._report = report
        self._places = [Place(Slot(role, index, self.rows[index]), main) for index in range(count)]
        self._watched_ms = 0
        self._excused_until_ms = 0

    # What the supervisor calls, in the order of a life

    def start(self, now_ms: int) -> None:
        """Fork every slot's first worker."""
        for place in self._places:
            self._fork(place, now_ms)

    def is_ready(self) -> bool:
        """Whether every slot is filled by a worker that has beaten."""
        return all(self.has_beaten(place) for place in self._places)

    def has_beaten(self, place: Place) -> bool:
        """Whether a worker runs there that has said that it works."""
        return place.pid is not None and self._scoreboard.row(place.slot.number)[Cell.HEARTBEAT_MS] > 0

    def turn(self, now_ms: int) -> None:
        """Fill the slots that are due and kill the workers that are stuck. Once a second or more often."""
        if now_ms - self._watched_ms > PAUSE_MS:
            # After SIGSTOP and SIGCONT, or a paused virtual machine, every heartbeat is old and nobody is
            # stuck: the workers get their time anew.
            self._excused_until_ms = now_ms + STUCK_MS
        self._watched_ms = now_ms
        for place in self._places:
            if place.pid is None:
                if place.due_ms is not None and now_ms >= place.due_ms:
                    self._scoreboard.row(place.slot.number)[Cell.RESTARTS] += 1
                    self._fork(place, now_ms)
            elif not self.stopping:
                if place.kill_at_ms is None:
                    self._kill_if_stuck(place, now_ms)
                else:
                    self._kill_if_overdue(place, now_ms)

    def next_due_ms(self) -> int | None:
        """When `turn` has a slot to fill, if any."""
        return min((place.due_ms for place in self._places if place.due_ms is not None), default=None)

    def died(self, pid: int, status: int, now_ms: int) -> Death | None:
        """Take note of a reaped child; None when it is not of this pool. Its slot is filled again in a turn.

        Who owned a lease stands in the scoreboard before this returns, so before its successor is forked.
        """
        place = next((place for place in self._places if place.pid == pid), None)
        if place is None:
            return None
        death = Death(place.slot, pid, place.worker, os.waitstatus_to_exitcode(status))
        if self._owns_leases:
            self._scoreboard.note_death(place.worker)
        place.pid = None
        lived_ms = now_ms - place.started_ms
        if place.is_trial or place.kill_at_ms is not None:
            self._places.remove(place)
        elif not self.stopping:
            excused = death.exit_code == ExitCode.LEASE_LOST
            place.due_ms = now_ms + place.backoff.delay_ms(lived_ms, now_ms, excused=excused)
        _log_death(death, lived_ms, None if place.due_ms is None else place.due_ms - now_ms)
        return death

    def stop(self) -> None:
        """Ask every worker to drain; nobody is replaced any more."""
        self.stopping = True
        for place in self._places:
            place.due_ms = None
        self.signal(signal.SIGTERM)

    # What a reload calls

    def holders(self, index: int) -> list[Place]:
        """The places of an index that are not retiring."""
        return [place for place in self._places if place.slot.index == index and place.kill_at_ms is None]

    def top_index(self) -> int:
        """The highest index in use."""
        return max((place.slot.index for place in self._places), default=-1)

    def add(self, index: int, main: WorkerMain, now_ms: int, *, is_trial: bool) -> Place | None:
        """Start a worker for an index, beside the one it may have; None while no row of the scoreboard is free."""
        used = {place.slot.number for place in self._places}
        number = next((number for number in self.rows if number not in used), None)
        if number is None:
            return None
        place = Place(Slot(self.role, index, number), main)
        place.is_trial = is_trial
        self._places.append(place)
        self._fork(place, now_ms)
        return place

    def adopt(self, main: WorkerMain) -> None:
        """What runs in every slot from its next start on; trials are over."""
        for place in self._places:
            place.main = main
            place.is_trial = False

    def retire(self, place: Place, kill_at_ms: int) -> None:
        """Ask one worker to drain; it is not replaced, and killed if it still runs then."""
        if place not in self._places:
            return
        if place.pid is None:
            self._places.remove(place)
            return
        place.kill_at_ms = kill_at_ms
        os.kill(place.pid, self._retire_signal)

    def has(self, place: Place) -> bool:
        """Whether it is still there."""
        return place in self._places

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to every worker of the pool."""
        for pid in self.pids():
            os.kill(pid, signum)  # not reaped yet, so the pid is ours even if it has ended

    def pids(self) -> list[int]:
        return [place.pid for place in self._places if place.pid is not None]

    def running(self) -> list[tuple[int, Slot]]:
        """Pid and slot of every worker."""
        return [(place.pid, place.slot) for place in self._places if place.pid is not None]

    # Watching

    def _kill_if_stuck(self, place: Place, now_ms: int) -> None:
        beaten_ms = self._scoreboard.row(place.slot.number)[Cell.HEARTBEAT_MS]
        silent_ms = now_ms - max(beaten_ms, place.started_ms)
        if silent_ms <= STUCK_MS or now_ms < self._excused_until_ms or place.pid is None:
            return
        slot = place.slot
        oplog.error("worker_stuck", role=slot.role, slot=slot.index, worker_pid=place.pid, silent_s=silent_ms // 1000)
        os.kill(place.pid, signal.SIGKILL)  # a stuck loop does not look at its flags; SIGTERM would change nothing
        place.started_ms = now_ms  # dies at once; were it not to, it is killed again in a minute, not every second

    def _kill_if_overdue(self, place: Place, now_ms: int) -> None:
        if place.kill_at_ms is None or now_ms < place.kill_at_ms or place.pid is None:
            return
        oplog.warning("retired_worker_killed", role=self.role, slot=place.slot.index, worker_pid=place.pid)
        os.kill(place.pid, signal.SIGKILL)
        place.kill_at_ms = now_ms + STUCK_MS

    # Forking

    def _fork(self, place: Place, now_ms: int) -> None:
        slot = place.slot
        place.worker = f"{self._node}.{slot.index}.{secrets.token_hex(8)}"
        place.started_ms = now_ms
        self._scoreboard.clear_gauges(slot.number)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child would write what is buffered here a second time
        parent_pid = os.getpid()
        # A signal between fork and the child's own handlers would run the supervisor's there, or be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._be_the_child(place, parent_pid)
        except OSError as error:  # EAGAIN, ENOMEM: the machine is full just now; a trial is tried again too
            place.due_ms = now_ms + FORK_AGAIN_MS
            oplog.error("fork_failed", role=slot.role, slot=slot.index, error=error.strerror)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        place.pid = pid
        place.due_ms = None
        oplog.info("worker_started", role=slot.role, slot=slot.index, worker_pid=pid)

    def _be_the_child(self, place: Place, parent_pid: int) -> NoReturn:
        """The child's whole life. It leaves by os._exit: what the supervisor would do at its exit is not ours,
        and closing libcurl's multi can block for seconds (DESIGN 7)."""
        code: int = ExitCode.FAILED
        try:
            die_with(parent_pid)
            name_process(f"pb-{place.slot.role}-{place.slot.index}")
            self._in_child()
            shed_supervisor()
            code = place.main(SlotContext(place.slot, place.worker, self._scoreboard))
        except PostbackdError as error:
            self._report(f"postbackd: {error}")
            code = ExitCode.LEASE_LOST if isinstance(error, LeaseLostError) else error.exit_code
        except BaseException:
            oplog.crash()
        finally:
            try:
                oplog.say_repeats(is_end=True)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)


def _log_death(death: Death, lived_ms: int, restart_in_ms: int | None) -> None:
    fields: dict[str, object] = {"role": death.slot.role, "slot": death.slot.index, "worker_pid": death.pid}
    if restart_in_ms is None and death.exit_code == ExitCode.OK:
        oplog.info("worker_stopped", **fields)
        return
    restart = "no" if restart_in_ms is None else f"{restart_in_ms / 1000:g}s"
    oplog.warning(
        "worker_died",
        **fields,
        how=describe_exit(death.exit_code),
        lived_s=round(lived_ms / 1000, 1),
        restart_in=restart,
    )
