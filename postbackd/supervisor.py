# SPDX-License-Identifier: MIT
"""The supervisor: the run loop. Starts everything in order, replaces what dies, stops everything in order.

Start: data directory, ingest socket (a taken port ends it here), embedded queue server (where no queue.url is
set), then all workers at once. Stop: ingest workers (they answer what was read), the socket, delivery workers
(they finish what is in flight and give back their leases), the queue server last. It puts the parts together and
hands each child what it needs; it opens no connection, and never talks to Redis.

Signal handlers do nothing: Python's wake-up descriptor puts the number into a socket pair, and the loop acts.
SIGTERM, SIGINT: drain; once more: delivery gives back its leases at once, SIGKILL for the rest. SIGUSR1: passed on to
delivery workers. SIGHUP: reload (the steps are in reload.py).
"""

import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from postbackd import __version__, oplog, systemd
from postbackd.admin.facts import DaemonFacts
from postbackd.child_lines import ChildLines
from postbackd.data_dir import DataDir, ProcessRow
from postbackd.errors import ExitCode
from postbackd.host_board import HostBoard
from postbackd.limits import ingest_workers, raise_descriptor_limit, worker_count
from postbackd.queue.embedded import EmbeddedServer
from postbackd.queue_minder import QueueMinder, say_left_behind
from postbackd.reload import Plan, Reloader, State
from postbackd.scoreboard import Phase, Scoreboard, monotonic_ms
from postbackd.server.listener import open_admin, open_listener
from postbackd.settings import Settings
from postbackd.start_message import start_message
from postbackd.start_signals import StartSignals
from postbackd.worker_pool import SlotContext, WorkerPool, node_name

LONGEST_WAIT_MS = 1_000  # a turn a second: heartbeats, back-off, deadlines
CUT_SHORT_MS = 3_000  # for a delivery worker to settle and give back its lease, when the drain is cut short
KILL_MARGIN_MS = 5_000  # workers keep the drain's limit themselves, then settle and leave; this is the net
FAILED_BOOT_MS = 5_000  # for the others to end when one worker could not start at all
SLOW_START_MS = 15_000
START_LOOK_MS = 20  # between looks while the workers start: whoever waits for "ready" is told at once

IngestMain = Callable[[SlotContext, Settings, socket.socket, str], int]
DeliverMain = Callable[[SlotContext, Settings, str, HostBoard, bool], int]
AdminMain = Callable[[SlotContext, Settings, socket.socket, str, DaemonFacts], int]


class Mains(NamedTuple):
    """What the children run."""

    ingest: IngestMain
    deliver: DeliverMain
    admin: AdminMain


def run(settings: Settings, roles: frozenset[str], read_again: Callable[[], Settings]) -> int:
    """Run the daemon in the foreground until it is told to stop; its exit code. Raises BootError.

    `read_again` gives the settings that a reload finds; it raises PostbackdError."""
    # Before any fork, so that the workers share the pages of all these modules.
    from postbackd.children import admin_main, deliver_main, ingest_main

    return Supervisor(settings, roles, Mains(ingest_main, deliver_main, admin_main), read_again).run()


class Supervisor:
    """One daemon."""

    def __init__(
        self, settings: Settings, roles: frozenset[str], mains: Mains, read_again: Callable[[], Settings]
    ) -> None:
        self._roles = roles
        self._mains = mains
        self._data_dir = DataDir(settings.data_dir)
        self._queue: QueueMinder | None = None
        self._listener: socket.socket | None = None
        self._admin_listener: socket.socket | None = None
        self._scoreboard = Scoreboard(0)
        self._pools: list[WorkerPool] = []  # in the order in which they are stopped
        self._signals_out, self._signals_in = socket.socketpair()
        self._lines = ChildLines()
        self._reloader = Reloader(settings, roles, read_again, self._lines, lambda: self._scoreboard)
        self._started_ms = 0
        self._was_ready = False
        self._was_slow = False
        self._draining: WorkerPool | None = None
        self._drain_limit_ms: int | None = None  # None: each stage as long as the settings allow
        self._stage_ends_ms = 0
        self._is_stopping = False
        self._is_over = False
        self._watchdog_ms = systemd.watchdog_period_ms()
        self._watchdog_due_ms = 0
        self._exit_code = ExitCode.OK

    @property
    def _settings(self) -> Settings:
        """Those in force."""
        return self._reloader.settings

    def run(self) -> int:
        oplog.configure(self._settings.log.format, self._settings.log.level)
        oplog.share_changes()
        start_signals = StartSignals()
        try:
            self._boot()
            if start_signals.came:
                self.handle_stop(start_signals.came)
            while not self._is_over:
                self._act_on_signals()
                self._reap()
                self._turn(monotonic_ms())
        except KeyboardInterrupt:
            oplog.info("start_interrupted")
        finally:
            self._leave()
        return self._exit_code

    # Start

    def _boot(self) -> None:
        raise_descriptor_limit(self._settings, self._roles)
        self._data_dir.open()
        if "ingest" in self._roles:
            self._listener = open_listener(self._settings.ingest.host, self._settings.ingest.port)
        if "admin" in self._roles:
            self._admin_listener = open_admin(self._settings.admin)
        data_dir = self._data_dir.path.absolute()
        oplog.info("starting", version=__version__, roles=",".join(sorted(self._roles)), data_dir=data_dir)
        say_left_behind(self._settings.queue.url, data_dir)
        url = self._settings.queue.url or self._start_queue()
        self._make_pools(url)
        self._listen_for_signals()
        gc.collect()
        gc.freeze()  # a collection in a child would write to, and so copy, every page of what is there now
        self._started_ms = monotonic_ms()
        for pool in self._pools:
            pool.start(self._started_ms)

    def _start_queue(self) -> str:
        self._queue = QueueMinder(EmbeddedServer(self._settings.queue, self._data_dir.path))
        return self._queue.start()

    def _make_pools(self, url: str) -> None:
        rows: dict[str, range] = {}
        plans = self._plans(url, rows)
        total = 0
        for plan in sorted(plans, key=lambda plan: plan.role != "deliver"):  # its rows count like the host board's
            rows[plan.role] = range(total, total + plan.rows(self._settings))
            total = rows[plan.role].stop
        self._scoreboard = Scoreboard(total)
        doors = {"ingest": self._listener, "admin": self._admin_listener}
        node = node_name()
        for plan in plans:
            pool = WorkerPool(
                plan.role,
                plan.count(self._settings),
                plan.worker_main(self._settings),
                self._scoreboard,
                rows=rows[plan.role],
                node=node,
                owns_leases=plan.role == "deliver",
                retire_signal=signal.SIGUSR2 if plan.role == "ingest" else signal.SIGTERM,
                in_child=partial(self._shed, doors.get(plan.role)),
                report=self._lines.send,
            )
            self._pools.append(pool)
            self._reloader.add(plan, pool)

    def _plans(self, url: str, rows: dict[str, range]) -> list[Plan]:
        """How each role's pool is made of settings, these and those of a reload. `rows`: of the scoreboard."""
        mains, door, hosts, plans = self._mains, self._admin_listener, HostBoard(0), []
        if listener := self._listener:
            plans.append(
                Plan(
                    "ingest",
                    "ingest.workers",
                    lambda settings: ingest_workers(settings.ingest),
                    lambda settings: lambda context: mains.ingest(context, settings, listener, url),
                )
            )
        if "deliver" in self._roles:
            plan = Plan(
                "deliver",
                "delivery.workers",
                lambda settings: worker_count(settings.delivery.workers, per_core=1),
                lambda settings: lambda context: mains.deliver(context, settings, url, hosts, not door),
                lambda settings: hosts.rates.assign(host for host, own in settings.hosts.items() if own.rate),
            )
            hosts = HostBoard(plan.rows(self._settings))
            plans.append(plan)
        if door:
            facts = DaemonFacts(time.time_ns() // 1_000_000, self._roles, rows, hosts)
            plans.append(
                Plan(
                    "admin",
                    "",
                    lambda settings: 1,
                    lambda settings: lambda context: mains.admin(context, settings, door, url, facts),
                )
            )
        return plans

    def _shed(self, door: socket.socket | None) -> None:
        """In a child: close what is not its own, or a port would seem to be served as long as anybody lives."""
        signal.set_wakeup_fd(-1)
        self._signals_in.close()
        self._signals_out.close()
        self._lines.close_reader()
        for listener in (self._listener, self._admin_listener):
            if listener and listener is not door:
                listener.close()

    def _listen_for_signals(self) -> None:
        self._signals_in.setblocking(False)
        self._signals_out.setblocking(False)
        signal.set_wakeup_fd(self._signals_in.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(signum, lambda _signum, _frame: None)

    # The loop

    def _act_on_signals(self) -> None:
        """Sleep until a signal or the next thing that is due, then do what the signals ask for."""
        poller = select.poll()
        poller.register(self._signals_out, select.POLLIN)
        if not poller.poll(self._wait_ms()):
            return
        for signum in self._signals_out.recv(4096):
            match signum:
                case signal.SIGTERM | signal.SIGINT:
                    self.handle_stop(signal.Signals(signum))
                case signal.SIGUSR1:
                    self.handle_usr1()
                case signal.SIGHUP:
                    self.handle_hup()

    def _wait_ms(self) -> int:
        now_ms = monotonic_ms()
        if self._reloader.state is not State.NONE or (
            not self._was_ready and now_ms - self._started_ms < SLOW_START_MS
        ):
            return START_LOOK_MS
        due_ms = [pool.next_due_ms() for pool in self._pools]
        due_ms += [self._queue.due_ms if self._queue else None, self._watchdog_due_ms if self._watchdog_ms else None]
        return max(0, min([now_ms + LONGEST_WAIT_MS, *(due for due in due_ms if due is not None)]) - now_ms)

    def handle_stop(self, signum: signal.Signals) -> None:
        if not self._is_stopping:
            oplog.info("drain_started", signal=signum.name)
            self._start_drain()
            return
        oplog.warning("drain_cut_short", signal=signum.name, workers=sum(len(pool.pids()) for pool in self._pools))
        is_first = self._drain_limit_ms is None
        self._drain_limit_ms = CUT_SHORT_MS
        self._stage_ends_ms = monotonic_ms() + CUT_SHORT_MS
        for pool in self._pools:
            pool.stop()
            pool.signal(signal.SIGUSR2 if is_first and pool.role == "deliver" else signal.SIGKILL)

    def handle_usr1(self) -> None:
        for pool in self._pools:
            if pool.role == "deliver":
                pool.signal(signal.SIGUSR1)

    def handle_hup(self) -> None:
        self._reloader.ask()

    def _turn(self, now_ms: int) -> None:
        oplog.say_repeats()
        for pool in self._pools:
            pool.turn(now_ms)
        if self._queue:
            self._queue.turn(now_ms)
        if self._is_stopping:
            self._drain_on(now_ms)
        self._data_dir.write_processes(self._processes())
        if not self._is_stopping:
            self._look_if_ready(now_ms)
            if self._was_ready:
                self._reloader.turn(now_ms, KILL_MARGIN_MS)
        if self._watchdog_ms and now_ms >= self._watchdog_due_ms:
            self._watchdog_due_ms = now_ms + self._watchdog_ms
            systemd.notify("WATCHDOG=1")

    def _processes(self) -> list[ProcessRow]:
        rows = [ProcessRow(role="supervisor", pid=os.getpid(), slot=None)]
        if self._queue and self._queue.pid:
            rows.append(ProcessRow(role="queue", pid=self._queue.pid, slot=None))
        for pool in self._pools:
            rows += [ProcessRow(role=slot.role, pid=pid, slot=slot.index) for pid, slot in pool.running()]
        return rows

    # Deaths

    def _reap(self) -> None:
        """The one place where children are waited for, so that nobody takes another's exit status."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            if self._queue and ended.si_pid == self._queue.pid:
                self._queue.died(ended)
                continue
            # Neither ours nor the queue's: an orphan, when we run as process 1 of a container.
            pid, status = os.waitpid(ended.si_pid, 0)
            self._note_worker_death(pid, status)

    def _note_worker_death(self, pid: int, status: int) -> None:
        deaths = (pool.died(pid, status, monotonic_ms()) for pool in self._pools)
        death = next((death for death in deaths if death), None)
        if death is None or death.exit_code != ExitCode.BOOT_FAILURE:
            return
        self._lines.print_new()
        if not self._was_ready and not self._is_stopping:
            # The others would fail alike, and a service that cannot start has to say so. Later the same is a death
            # like others, with its back-off: the workers that run are worth more than none.
            oplog.error("start_failed", role=death.slot.role, slot=death.slot.index)
            self._exit_code = ExitCode.FAILED
            self._drain_limit_ms = FAILED_BOOT_MS
            self._start_drain()

    # Ready

    def _look_if_ready(self, now_ms: int) -> None:
        if self._was_ready:
            return
        waiting_for = [pool.role for pool in self._pools if not pool.is_ready()]
        if not waiting_for:
            self._was_ready = True
            self._scoreboard.set_phase(Phase.RUNNING)
            systemd.notify("READY=1", self._reloader.status())
            oplog.info("ready", after_s=(now_ms - self._started_ms) / 1000)
            if not systemd.is_manager():  # it has no use for sentences, nor for Ctrl-C
                self._announce()
        elif now_ms - self._started_ms > SLOW_START_MS and not self._was_slow:
            self._was_slow = True
            oplog.warning("start_is_slow", waiting_for=",".join(waiting_for))

    def _announce(self) -> None:
        try:
            print(start_message(self._settings, self._roles, self._listener, self._admin_listener), flush=True)
        except OSError as error:  # standard output is closed or full: the daemon works all the same
            oplog.warning("start_message_lost", error=error.strerror)

    # Stop

    def _start_drain(self) -> None:
        self._is_stopping = True
        self._reloader.stop()
        self._scoreboard.set_phase(Phase.DRAINING)
        systemd.notify("STOPPING=1", "draining")
        self._next_stage(monotonic_ms())

    def _next_stage(self, now_ms: int) -> None:
        """Ask the next pool to end; when all have ended, the loop is over."""
        self._draining = next((pool for pool in self._pools if not pool.stopping or pool.pids()), None)
        if self._draining is None:
            self._is_over = True
            return
        delay_s = self._settings.ingest.drain_delay if self._draining.role == "ingest" else 0
        limit_ms = int((delay_s + self._settings.delivery.drain_timeout) * 1000) + KILL_MARGIN_MS
        self._stage_ends_ms = now_ms + (limit_ms if self._drain_limit_ms is None else self._drain_limit_ms)
        self._draining.stop()

    def _drain_on(self, now_ms: int) -> None:
        pool = self._draining
        if pool is None:
            return
        if not pool.pids():
            if pool.role == "ingest" and self._listener:
                self._listener.close()  # what waited unread in its backlog is refused, not left hanging
            self._next_stage(now_ms)
        elif now_ms >= self._stage_ends_ms:
            oplog.warning("drain_overran", role=pool.role, workers=len(pool.pids()))
            pool.signal(signal.SIGKILL)
            self._stage_ends_ms = now_ms + KILL_MARGIN_MS

    def _leave(self) -> None:
        """Whatever happened: no worker, no queue server, no lock is left behind."""
        for pool in self._pools:
            pool.signal(signal.SIGKILL)  # none after a drain; all of them after a fault of our own
            for pid in pool.pids():
                os.waitpid(pid, 0)
        for listener in (self._listener, self._admin_listener):
            if listener:
                listener.close()
        if self._queue:
            self._queue.stop()
        self._data_dir.close()
        if self._started_ms:
            oplog.info("stopped", exit_code=int(self._exit_code))
        oplog.say_repeats(is_end=True)
