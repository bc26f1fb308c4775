# SPDX-License-Identifier: MIT
"""What the terminal commands ask a running daemon: its admin process, by HTTP on the configured address.

Whatever keeps the answer away (no daemon, no admin process, a wrong token) becomes one line that says what to do.
"""

import http.client
import socket
from pathlib import Path
from typing import Any

import msgspec
import psutil

from postbackd.data_dir import read_processes
from postbackd.errors import PostbackdError
from postbackd.settings import Settings
from postbackd.suggestion import command
from postbackd.worker_pool import node_name

TIMEOUT_S = 5.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

Answer = dict[str, Any]


class DaemonAwayError(PostbackdError):
    """No answer: nothing listens, or it does not answer in time."""


def supervisor_pid(settings: Settings) -> int | None:
    """The daemon that runs on this data_dir."""
    try:
        rows = read_processes(settings.data_dir)
    except (OSError, ValueError):
        return None
    pids = (row["pid"] for row in rows if row["role"] == "supervisor")
    return next((pid for pid in pids if psutil.pid_exists(pid)), None)


class AdminClient:
    """Asks the admin process of one daemon."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._host = LOOPBACK.get(settings.admin.host, settings.admin.host)
        self._port = settings.admin.port
        self._headers = {"Host": self._host_header(), "Accept": "application/json"}
        if settings.admin.token:
            self._headers["Authorization"] = f"Bearer {settings.admin.token}"

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def _host_header(self) -> str:
        """A name that it answers to, whatever address it listens on."""
        hosts = self._settings.admin.hosts
        return self.address if not hosts or self._host in hosts else f"{hosts[0]}:{self._port}"

    def get(self, path: str) -> Answer:
        """The JSON object at a path; raises DaemonAwayError or PostbackdError."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DaemonAwayError(self._why_away(error)) from None
        finally:
            connection.close()
        if response.status in (401, 403):
            raise PostbackdError(
                f"the daemon at {self.address} refuses: set admin.token to its token, admin.hosts to its hosts"
            )
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError:
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            raise PostbackdError(
                f"what answers at {self.address} is not this daemon's admin app "
                f"({path} gave {response.status}): set admin.host and admin.port"
            )
        return answer

    def stranger(self, stats: Answer) -> str | None:
        """What to tell when it is another daemon of this machine that answered /stats; None when it is the one meant.

        Of another machine nothing is said: there the same data_dir has another path, and nobody comes there by chance.
        """
        ours, theirs = str(Path(self._settings.data_dir).resolve()), stats.get("data_dir")
        if theirs in (None, ours) or stats["node"] != node_name():
            return None
        return (
            f"another daemon answers at {self.address}: its data_dir is {theirs}, the configured one {ours}; "
            "name its configuration with -c, or set admin.port"
        )

    def _why_away(self, error: Exception) -> str:
        pid = supervisor_pid(self._settings)
        if pid is None:
            data_dir = Path(self._settings.data_dir).absolute()
            return (
                f"no daemon runs: nothing answers at {self.address} and none uses data_dir {data_dir}; "
                f"start one ({command('run')}), or name its configuration with -c"
            )
        why = "in time" if isinstance(error, socket.timeout) else f"({error})"
        return (
            f"a daemon runs (pid {pid}), but its admin app at {self.address} does not answer {why}: "
            "look at its log; it may run without --roles admin"
        )
