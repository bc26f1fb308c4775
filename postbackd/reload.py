# SPDX-License-Identifier: MIT
"""Reload: the configuration is read and judged anew, tried by one worker of each role, then taken up by all.

    judged    wrong, or asks for what only a restart can change: refused, nothing has happened.
    trial     the first successor of every role starts with it, beside the worker it is to replace (rollover.py).
              One that cannot start: refused, nothing has happened.
    rolling   in force: all workers are replaced, one of each role at a time.

The supervisor calls with the time; systemd and the operational log are told here.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from postbackd import __version__, oplog, systemd
from postbackd.child_lines import ChildLines
from postbackd.errors import ConfigError, PostbackdError
from postbackd.limits import raise_descriptor_limit
from postbackd.rollover import Rollover
from postbackd.scoreboard import Scoreboard
from postbackd.settings import Declaration, Settings, declarations
from postbackd.worker_pool import SlotContext, WorkerMain, WorkerPool

LEAST_ROOM = 4  # workers of a role that a reload may always ask for
SLOW_MS = 120_000


class Plan(NamedTuple):
    """How the settings make a role's pool."""

    role: str
    setting: str  # that says how many workers
    count: Callable[[Settings], int]
    main: Callable[[Settings], WorkerMain]
    prepare: Callable[[Settings], None] = lambda _settings: None  # in the supervisor, before workers with these fork

    def worker_main(self, settings: Settings) -> WorkerMain:
        """What a worker with these settings runs."""
        self.prepare(settings)
        main = self.main(settings)

        def run(context: SlotContext) -> int:
            oplog.configure(settings.log.format, settings.log.level)
            return main(context)

        return run

    def rows(self, settings: Settings) -> int:
        """Of the scoreboard, whose size is fixed at the start: room for a reload that asks for more workers, and one
        row for the successor that starts before its predecessor stops."""
        return max(2 * self.count(settings), LEAST_ROOM) + 1


class State(Enum):
    """Of a reload."""

    NONE = "none"
    TRIAL = "trial"
    ROLLING = "rolling"


class Reloader:
    """The settings in force, and the way to the next ones."""

    def __init__(
        self,
        settings: Settings,
        roles: frozenset[str],
        read_again: Callable[[], Settings],
        lines: ChildLines,
        scoreboard: Callable[[], Scoreboard],
    ) -> None:
        """`scoreboard` gives the one that shows others what was refused."""
        self.settings = settings
        self.state = State.NONE
        self._roles = roles
        self._read_again = read_again
        self._lines = lines
        self._scoreboard = scoreboard
        self._pools: list[tuple[Plan, WorkerPool]] = []
        self._next = settings
        self._changed = ""  # names of settings; their values may be secrets
        self._rollovers: list[Rollover] = []
        self._started_ms = 0
        self._was_slow = False
        self._asked = False

    def status(self) -> str:
        """For `systemctl status`: which release runs, for it may be another than the one installed by now."""
        return f"postbackd {__version__}: {', '.join(plan.role for plan, _ in self._pools)}"

    def add(self, plan: Plan, pool: WorkerPool) -> None:
        """One more pool that takes part."""
        self._pools.append((plan, pool))

    def ask(self) -> None:
        """A reload is wanted; it begins in a turn. Asked for in a trial, it begins when the trial is over."""
        self._asked = True

    def stop(self) -> None:
        """The daemon ends: whatever is under way, nothing more is replaced."""
        self.state, self._asked, self._rollovers = State.NONE, False, []

    def turn(self, now_ms: int, drain_margin_ms: int) -> None:
        """Go on as far as it goes without waiting."""
        if self._asked and self.state is not State.TRIAL:
            self._asked = False
            self._begin(now_ms, drain_margin_ms)
        for rollover in self._rollovers:
            rollover.turn(now_ms)
        if self.state is State.TRIAL:
            self._judge_trial(now_ms)
        elif self.state is State.ROLLING:
            self._look_if_done(now_ms)

    # Judged

    def _begin(self, now_ms: int, drain_margin_ms: int) -> None:
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._lines.forget()
        try:
            settings = self._read_again()
            self._refuse_what_needs_a_restart(settings)
            raise_descriptor_limit(settings, self._roles)
        except PostbackdError as error:
            self._refuse(str(error))
            return
        if self.state is State.ROLLING:  # this one takes over: what was replaced is replaced once more
            self._abandon(now_ms)
        changed, _ = changes(self.settings, settings)
        self._changed = ",".join(changed) or "nothing"
        oplog.info("reload_started", changed=self._changed)
        limit_ms = int(max(self.settings.delivery.drain_timeout, settings.delivery.drain_timeout) * 1000)
        self._rollovers = [
            Rollover(pool, plan.worker_main(settings), plan.count(settings), limit_ms + drain_margin_ms)
            for plan, pool in self._pools
        ]
        self.state, self._next, self._started_ms, self._was_slow = State.TRIAL, settings, now_ms, False

    def _refuse_what_needs_a_restart(self, settings: Settings) -> None:
        _, by_restart = changes(self.settings, settings)
        for plan, pool in self._pools:
            most = len(pool.rows) - 1
            if plan.count(settings) > most:
                by_restart.append(f"{plan.setting} beyond {most}")
        if by_restart:
            raise ConfigError(f"only a restart can change {', '.join(by_restart)}: set it back, or restart")

    def _refuse(self, error: str) -> None:
        oplog.error("reload_refused", error=error, hint="the configuration in force goes on; mend it and reload again")
        self._scoreboard().set_reload_refused(error)
        if self.state is State.NONE:  # else the one under way will say so
            systemd.notify("READY=1", f"{self.status()}; reload refused: {error}")

    # On trial, rolling

    def _judge_trial(self, now_ms: int) -> None:
        failed = [rollover.pool.role for rollover in self._rollovers if rollover.trial_has_failed()]
        if failed:
            self._abandon(now_ms)
            self.state = State.NONE
            self._refuse(f"a worker ({', '.join(failed)}) could not start with it, as the lines above say")
        elif all(rollover.trial_is_up() for rollover in self._rollovers):
            self.state, self.settings = State.ROLLING, self._next
            for rollover in self._rollovers:
                rollover.commit()
            oplog.configure(self.settings.log.format, self.settings.log.level)
            self._scoreboard().set_reload_refused("")
            oplog.info("reload_in_force")

    def _look_if_done(self, now_ms: int) -> None:
        if all(rollover.is_over() for rollover in self._rollovers):
            self._rollovers, self.state = [], State.NONE
            took_s = round((now_ms - self._started_ms) / 1000, 1)
            oplog.info("reload_done", changed=self._changed, took_s=took_s)
            systemd.notify("READY=1", self.status())
        elif now_ms - self._started_ms > SLOW_MS and not self._was_slow:
            self._was_slow = True
            waiting_for = ",".join(rollover.pool.role for rollover in self._rollovers if not rollover.is_over())
            oplog.warning("reload_is_slow", waiting_for=waiting_for)

    def _abandon(self, now_ms: int) -> None:
        for rollover in self._rollovers:
            rollover.abandon(now_ms)
        self._rollovers = []


def changes(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Names of the settings that differ: those a reload can change, and those only a restart can."""
    by_reload: list[str] = []
    by_restart: list[str] = []
    for declaration in declarations():
        if _value(old, declaration) != _value(new, declaration):
            name = f"{declaration.section}.{declaration.name}".lstrip(".")
            (by_reload if declaration.reload else by_restart).append(name)
    by_reload += [f"hosts.{name}" for name in sorted(old.hosts.keys() | new.hosts.keys())
                  if old.hosts.get(name) != new.hosts.get(name)]  # fmt: skip
    return by_reload, by_restart


def _value(settings: Settings, declaration: Declaration) -> object:
    return getattr(getattr(settings, declaration.section) if declaration.section else settings, declaration.name)
