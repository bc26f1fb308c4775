# SPDX-License-Identifier: MIT
"""`postbackd top`: a live view of a running daemon, per host and per worker; keys: q, s, arrows, page up and down.

Draws on the terminal's alternate screen and follows its size. While the daemon does not answer, the last figures stay,
marked with their age.
"""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.text import Text

from postbackd.errors import ExitCode, PostbackdError
from postbackd.settings import Settings
from postbackd.suggestion import command
from postbackd.tools.admin_client import AdminClient
from postbackd.tools.board import SORTS, Stats, headline, host_table, is_in_trouble, sorted_hosts, summary, worker_table
from postbackd.tools.figures import count, rate, resample, span, sparkline

LOOK_S = 0.1  # for keys and the terminal's size
SUMMARY_LINES = 9
FRAME_LINES = 9  # headline, sparklines, blank lines, table heads, foot
KEYS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[5~": "page up", b"\x1b[6~": "page down", b"\x1b[H": "home"}


class View:
    """What is on the screen, as a function of the last answers, the keys and the size."""

    def __init__(self, asked: str) -> None:
        self.asked = asked
        self.stranger: str | None = None
        self.stats: Stats | None = None
        self.points: list[dict[str, Any]] = []
        self.error: str | None = None
        self.answered_s = 0.0
        self.sort = SORTS[0]
        self.first = 0  # host row at the top

    def press(self, key: str) -> bool:
        """Act on a key; whether it is one that ends it."""
        match key:
            case "q" | "Q" | "\x03":
                return True
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "up" | "k":
                self.first -= 1
            case "down" | "j":
                self.first += 1
            case "page up":
                self.first -= 10
            case "page down" | " ":
                self.first += 10
            case "home":
                self.first = 0
        self.first = max(0, self.first)
        return False

    def render(self, size: ConsoleDimensions, now_s: float) -> RenderableType:
        """The whole screen."""
        if self.stats is None:
            return Text(self.error or "asking the daemon …", "bold red" if self.error else "dim")
        workers = self.stats["workers"]
        told = self._headline(now_s)
        headlines = len(told.wrap(Console(width=size.width), size.width))
        room = size.height - SUMMARY_LINES - FRAME_LINES - headlines
        worker_rows = min(len(workers), max(1, room // 3))
        host_rows = max(1, room - worker_rows)
        hosts = sorted_hosts(self.stats["hosts"], self.sort)
        self.first = max(0, min(self.first, len(hosts) - host_rows))
        deliver_first = sorted(
            workers, key=lambda worker: (worker["alive"], worker["role"] != "deliver", worker["slot"])
        )
        return Group(
            told,
            summary(self.stats, self.asked),
            self._lines(size.width),
            Text(""),
            host_table(hosts[self.first : self.first + host_rows]),
            Text(""),
            worker_table(deliver_first[:worker_rows]),
            self._foot(len(hosts), host_rows),
        )

    def _headline(self, now_s: float) -> Text:
        assert self.stats is not None
        if self.error is None:
            text = headline(self.stats)
            return text.append(f"\n{self.stranger}", "bold red") if self.stranger else text
        return Text(f"NO ANSWER for {span(now_s - self.answered_s)}, what follows is old: {self.error}", "bold red")

    def _lines(self, width: int) -> Text:
        room = max(0, (width - 40) // 2)
        text = Text("in  ", "dim")
        for name, label in (("in", "  out  "), ("out", "")):
            values = resample([float(point[name] or 0) for point in self.points], room)
            text.append(sparkline(values, room), "cyan" if name == "in" else "green")
            text.append(f" ≤ {rate(max(values, default=0))}/s" if room else "", "dim").append(label, "dim")
        return text

    def _foot(self, hosts: int, shown: int) -> Text:
        assert self.stats is not None
        trouble = sum(is_in_trouble(host) for host in self.stats["hosts"])
        last = min(hosts, self.first + shown)
        text = Text(f"hosts {self.first + 1 if hosts else 0}-{last} of {count(hosts)}, ", "dim")
        text.append(f"{trouble} in trouble (!)" if trouble else "none in trouble", "bold" if trouble else "dim")
        return text.append(f"   q quit   s sort: {self.sort}   ↑↓ scroll", "dim")


def top(settings: Settings, interval_s: float) -> int:
    """Run until q or Ctrl-C. Raises PostbackdError where no daemon answers at the start."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PostbackdError(f"top needs a terminal: in a pipe use {command('status')} (or --json)")
    client, console = AdminClient(settings), Console(highlight=False)
    view = View(client.address)
    _ask(client, view)
    if view.stats is None:
        raise PostbackdError(view.error or "no answer")
    try:
        with _keys_at_once(), Live(console=console, screen=True, auto_refresh=False) as live:
            _run(client, view, live, interval_s)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _run(client: AdminClient, view: View, live: Live, interval_s: float) -> None:
    console, due_s, drawn = live.console, time.monotonic() + interval_s, None
    while True:
        now_s = time.monotonic()
        is_due = now_s >= due_s
        if is_due:
            _ask(client, view)
            due_s = time.monotonic() + interval_s
        if is_due or drawn != (console.size, view.sort, view.first):
            live.update(view.render(console.size, time.monotonic()), refresh=True)
            drawn = (console.size, view.sort, view.first)
        if any(view.press(key) for key in _pressed()):
            return


def _ask(client: AdminClient, view: View) -> None:
    try:
        view.stats = client.get("/stats")
        view.stranger = client.stranger(view.stats)
        view.points = client.get("/history?range=15m")["points"]
    except PostbackdError as error:
        view.error = str(error)
    else:
        view.error = None
        view.answered_s = time.monotonic()


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys come one by one and unseen; whatever happens, the terminal is given back as it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed() -> list[str]:
    """The keys of the next tenth of a second."""
    if not select.select([sys.stdin], [], [], LOOK_S)[0]:
        return []
    data = os.read(sys.stdin.fileno(), 64)
    if not data:  # the terminal is gone
        return ["q"]
    return [KEYS[data]] if data in KEYS else list(data.decode(errors="replace"))
