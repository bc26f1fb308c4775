# SPDX-License-Identifier: MIT
"""`postbackd run` that cannot: one line for the person who started it, in the words of docs/runbook.md."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.daemon import POSTBACKD, free_port
from tests.support.servers import running_server

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
SECTION = RUNBOOK.split("## It does not start, or a reload is refused\n", 1)[1].split("\n## ", 1)[0]


class Case(NamedTuple):
    """A setting that cannot be, or descriptors that are handed over; the runbook's row, and the exit code."""

    row: str
    setting: str = ""
    handed_over: tuple[Callable[[], "socket.socket | int"], ...] = ()
    code: int = 1


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def datagrams() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def no_socket() -> int:
    return os.open("/dev/null", os.O_RDONLY)


# What systemd does: descriptors from 3 on, and variables that name them.
HAND_OVER = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)))
os.execv(sys.argv[2], sys.argv[2:])
"""
CASES = {
    "address": Case("cannot listen on …: this machine has no such address", "ingest.host=203.0.113.7"),
    "data_dir": Case("cannot use data_dir …", "data_dir=FILE/under"),
    "log": Case("the delivery log … cannot be opened", "log.path=FOLDER"),
    "server": Case("no server to start for queue.server = …", "queue.server=/nowhere/valkey-server"),
    "admin": Case("admin.host … is reached by others and admin.token is empty", "admin.host=0.0.0.0", code=2),
    "setting": Case("there is no such setting: …", "delivery.per_hosts=3", code=2),
    "value": Case("Expected …", "delivery.per_host=many", code=2),
    "sockets": Case("systemd handed over …", handed_over=(listening, listening)),
    "no socket": Case("systemd handed over …", handed_over=(no_socket,)),
    "datagrams": Case("the socket from systemd does not listen", handed_over=(datagrams,)),
}


def run(folder: Path, case: Case) -> "subprocess.CompletedProcess[str]":
    """The real command, until it ends by itself."""
    (folder / "file").touch()
    settings = [f"data_dir={folder}/var", f"log.path={folder}/log", "ingest.workers=1", "delivery.workers=1"]
    settings += [f"{section}.port={free_port()}" for section in ("ingest", "admin", "queue")]
    settings += [case.setting.replace("FILE", f"{folder}/file").replace("FOLDER", str(folder))] if case.setting else []
    command = [*POSTBACKD, "run", *(part for setting in settings for part in ("--set", setting))]
    given = [make() for make in case.handed_over]
    numbers = [one if isinstance(one, int) else one.fileno() for one in given]
    if given:
        command = [sys.executable, "-c", HAND_OVER, ",".join(map(str, numbers)), *command]
    try:
        return subprocess.run(command, pass_fds=numbers, capture_output=True, text=True, timeout=60)
    finally:
        for one in given:
            if isinstance(one, int):
                os.close(one)
            else:
                one.close()


@pytest.mark.parametrize("name", CASES)
def test_start_that_is_refused_says_why_in_the_runbooks_words(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    done = run(tmp_path, case)
    said = {line for line in done.stderr.splitlines() if line.startswith("postbackd:")}
    assert len(said) == 1 and done.returncode == case.code, done.stderr
    assert f"`{case.row}`" in SECTION
    assert re.search(".*".join(map(re.escape, case.row.split("…"))), said.pop())
    assert "Traceback" not in done.stderr


def test_wrong_password_at_the_first_start_is_one_line_at_once(tmp_path: Path) -> None:
    with running_server() as (client, url):
        client.config_set("requirepass", "right")
        place = url.removeprefix("unix://")
        for credentials, word in (("", "Authentication required"), (":wrong@", "invalid username-password pair")):
            done = run(tmp_path, Case("", f"queue.url=unix://{credentials}{place}"))
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert f"refuses the user or password: {word}" in done.stderr and "in queue.url." in done.stderr
            assert "wrong" not in done.stderr
