# SPDX-License-Identifier: MIT
"""The real supervisor with small workers, for tests of the supervisor alone.

Run as `python -m tests.support.small_daemon FOLDER ROLES section.key=value…`.

Each thing a worker does is a line of FOLDER/events: `ingest 0 begins`, `deliver 1 told`, `deliver 1 ends` and so on.
A file in FOLDER named after a behaviour (`ignore_term`, `fail_boot`) asks the workers that start from then on for it.
`stop_in_finalizer` sends the supervisor a SIGTERM as it starts.
FOLDER/postbackd.toml is the configuration file, where there is one; delivery workers note its delivery.per_host.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from postbackd.admin.facts import DaemonFacts
from postbackd.errors import BootError, ExitCode, PostbackdError
from postbackd.host_board import HostBoard
from postbackd.scoreboard import Cell
from postbackd.server.listener import serve
from postbackd.settings import Settings
from postbackd.settings_loader import load
from postbackd.supervisor import Mains, Supervisor
from postbackd.worker_pool import SlotContext

FOLDER = Path(sys.argv[1])


def note(context: SlotContext, event: str) -> None:
    with (FOLDER / "events").open("a") as events:
        events.write(f"{context.role} {context.index} {event}\n")


def fail_if_asked() -> None:
    if (FOLDER / "fail_boot").exists():
        raise BootError("cannot write the log: make its folder")


def ingest(context: SlotContext, settings: Settings, listener: socket.socket, _url: str) -> int:
    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        context.cells[Cell.REQUESTS] += 1
        environ["wsgi.input"].read()
        body = str(os.getpid()).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    fail_if_asked()
    note(context, "begins")
    serve(
        listener,
        app,
        lambda: note(context, "told"),
        settings.delivery.drain_timeout,
        beat=context.beat,
        progress=lambda: context.cells[Cell.REQUESTS],
        drain_delay_s=settings.ingest.drain_delay,
    )
    note(context, "ends")
    return ExitCode.OK


def deliver(context: SlotContext, settings: Settings, url: str, _hosts: HostBoard, _keeps_dead: bool) -> int:
    told: list[bool] = []
    ignores = (FOLDER / "ignore_term").exists()
    fail_if_asked()
    note(context, "begins")
    note(context, f"queue at {url}")
    note(context, f"per_host {settings.delivery.per_host}")
    context.handle_signals(
        {
            signal.SIGTERM: lambda: told.append(True),
            signal.SIGUSR1: lambda: note(context, "reopens"),
        }
    )
    seen = 0
    while not told or ignores:
        context.beat()
        seen, names = context.scoreboard.deaths_since(seen)
        for name in names:
            note(context, f"reclaims {name}")
        if told and ignores:  # a signal that comes only now is the loop's to see
            note(context, "ignores")
            told.clear()
        time.sleep(0.02)
    note(context, "told")
    note(context, "ends")
    return ExitCode.OK


def admin(context: SlotContext, settings: Settings, listener: socket.socket, _url: str, _facts: DaemonFacts) -> int:
    return ingest(context, settings, listener, "")


class Daemon(Supervisor):
    """With a signal, where it is asked for, that comes while a finalizer runs: Python drops what is raised there."""

    def _make_pools(self, url: str) -> None:
        if (FOLDER / "stop_in_finalizer").exists():
            SignalInFinalizer()
        super()._make_pools(url)


class SignalInFinalizer:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def read_settings() -> Settings:
    config = FOLDER / "postbackd.toml"
    return load(str(config) if config.exists() else None, {}, sys.argv[3:])


def main() -> int:
    try:
        roles = frozenset(sys.argv[2].split(","))
        return Daemon(read_settings(), roles, Mains(ingest, deliver, admin), read_settings).run()
    except PostbackdError as error:
        print(f"postbackd: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
