# SPDX-License-Identifier: MIT
"""`postbackd status`, `top` and `tail` beside a real daemon, and without one."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import POSTBACKD, STOP_BOUND_S, Daemon, free_port, running_daemon, running_sink, wait_until

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def settings_of(daemon: Daemon, *more: str) -> list[str]:
    return [part for setting in (*daemon.settings, *more) for part in ("--set", setting)]


def postbackd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POSTBACKD, *arguments],
        capture_output=True,
        text=True,
        timeout=STOP_BOUND_S,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str, str]]:
    """A daemon that has delivered one postback and given up another; their ids."""
    folder = tmp_path_factory.mktemp("terminal")
    with (
        running_sink(folder / "sink") as sink,
        running_sink(folder / "gone", "--status", "410") as gone,
        running_daemon(folder / "daemon", ["admin.token=opensesame"]) as daemon,
    ):
        ids = []
        for target in (sink, gone):
            status, answer = daemon.post({"endpoint": {"method": "GET", "url": target.url + "/{n}"}, "data": {"n": 1}})
            assert status == 202
            ids += answer["ids"]
        wait_until(lambda: len(daemon.log()) == 2, "both are tried")
        yield daemon, *ids


def test_status_tells_a_running_daemon(busy: tuple[Daemon, str, str]) -> None:
    daemon, _, _ = busy
    wait_until(lambda: postbackd("status", *settings_of(daemon)).returncode == 0, "it is ready")

    def told() -> subprocess.CompletedProcess[str]:
        return postbackd("status", *settings_of(daemon))

    wait_until(lambda: "1 dead" in told().stdout, "the queue's figures are in")
    text = told().stdout
    assert "running, ready" in text and "ingest 2 of 2   deliver 1 of 1" in text, text
    assert "deliver 0" in text and "\x1b" not in text


def test_status_and_top_say_when_another_daemon_answers(busy: tuple[Daemon, str, str], tmp_path: Path) -> None:
    daemon, _, _ = busy
    theirs, ours = (str(Path(path).resolve()) for path in (daemon.data_dir, tmp_path / "other"))
    told = postbackd("status", *settings_of(daemon))
    assert f"127.0.0.1:{daemon.admin_port}, data_dir {theirs}"[:100] in told.stdout and told.stderr == ""
    elsewhere = settings_of(daemon, f"data_dir={ours}")
    for options in ([], ["--json"], ["--cluster"]):
        told = postbackd("status", *options, *elsewhere)
        [line] = told.stderr.splitlines()
        assert "another daemon answers" in line and theirs in line and ours in line
        assert told.stdout
    terminal = Terminal("top", *elsewhere, columns=160, rows=40)
    try:
        assert "another daemon answers" in terminal.wait_for("q quit")
        terminal.end("q")
    finally:
        terminal.close()


def test_status_as_json_is_what_the_admin_app_says(busy: tuple[Daemon, str, str]) -> None:
    daemon, _, _ = busy
    ended = postbackd("status", "--json", *settings_of(daemon))
    told = json.loads(ended.stdout)
    assert ended.returncode == (0 if told["ready"] else 1)
    assert (told["state"], told["totals"]["delivered"], told["totals"]["dead"]) == ("running", 1, 1)
    [node] = json.loads(postbackd("status", "--json", "--cluster", *settings_of(daemon)).stdout)
    assert node["node"] == told["node"]
    assert told["node"] in postbackd("status", "--cluster", *settings_of(daemon)).stdout


def test_whoever_cannot_ask_is_told_why(busy: tuple[Daemon, str, str], tmp_path: Path) -> None:
    daemon, _, _ = busy
    nothing = ["--set", f"data_dir={tmp_path}", "--set", f"admin.port={free_port()}"]
    ingest_port = settings_of(daemon, f"admin.port={daemon.port}")
    for arguments, words in (
        (("status", *nothing), "no daemon runs"),
        (("status", "--json", *nothing), "no daemon runs"),
        (("status", *settings_of(daemon, f"admin.port={free_port()}")), "a daemon runs (pid "),
        (("status", *settings_of(daemon, "admin.token=wrong")), "set admin.token"),
        (("status", *ingest_port), "is not this daemon's admin app"),
        (("top", *settings_of(daemon)), "top needs a terminal"),
        (("tail", *nothing, "--set", f"log.path={tmp_path}/none"), "there is no delivery log"),
    ):
        ended = postbackd(*arguments)
        assert (ended.returncode, ended.stdout) == (1, ""), arguments
        assert words in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr
        assert "opensesame" not in ended.stderr


def test_tail_shows_what_is_asked_for(busy: tuple[Daemon, str, str]) -> None:
    daemon, delivered, dead = busy
    lines = postbackd("tail", *settings_of(daemon)).stdout.splitlines()
    assert len(lines) == 2, "no line is broken at a width"
    well, given_up = sorted(lines, key=lambda line: dead in line)  # two attempts at once end in any order
    assert delivered in well and dead in given_up
    assert "\x1b" not in "".join(lines)
    assert " dead " in given_up and "refused_status: http_4xx" in given_up
    log = daemon.log()
    failed = next(entry for entry in log if entry["id"] == dead)
    for options, entry in (
        (["--failed"], failed),
        (["--id", dead], failed),
        (["--host", "127.0.0.1", "-n", "1"], log[-1]),
    ):
        [line] = postbackd("tail", "--json", *options, *settings_of(daemon)).stdout.splitlines()
        assert json.loads(line) == entry, options
    assert postbackd("tail", "--host", "elsewhere", *settings_of(daemon)).stdout == ""
    ended = postbackd("tail", "--id", "no", *settings_of(daemon))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    ended = postbackd("tail", "--id", "00000000000000aa", *settings_of(daemon))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"no line of id 00000000000000aa in {daemon.log_path}" in ended.stderr


class Terminal:
    """A command on a pseudo-terminal of a size."""

    def __init__(self, *arguments: str, columns: int, rows: int) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*POSTBACKD, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment,
            start_new_session=True,
        )
        self.raw = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, words: str) -> str:
        """What was written since the last call, up to where the words are and on."""
        deadline_s = time.monotonic() + STOP_BOUND_S
        text = self.raw = ""
        while words not in text:
            assert time.monotonic() < deadline_s, f"never {words!r} in {text[-3000:]}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.raw += os.read(self.master, 65536).decode(errors="replace")
                text = CONTROL.sub("", self.raw)
        return text

    def end(self, keys: str) -> int:
        """Press what ends it; its exit code. Read on meanwhile, or it would wait for room to write."""
        self.press(keys)
        deadline_s = time.monotonic() + STOP_BOUND_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, "it ends"
            if select.select([self.master], [], [], 0.1)[0]:
                os.read(self.master, 65536)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait(STOP_BOUND_S)
        os.close(self.master)
        os.close(self.slave)


def widest(text: str) -> int:
    """Of the lines of the last whole frame in it."""
    return max(len(line) for line in text.rpartition("q quit")[0].rpartition("postbackd ")[2].splitlines())


def test_top_lives_in_a_terminal(busy: tuple[Daemon, str, str]) -> None:
    daemon, _, _ = busy
    terminal = Terminal("top", "--interval", "0.5", *settings_of(daemon), columns=160, rows=40)
    try:
        told = terminal.wait_for("q quit")
        assert "postbackd" in told and "deliver 1 of 1" in told
        assert "\x1b[?1049h" in terminal.raw, "on the alternate screen"
        terminal.press("s")
        terminal.wait_for("sort: rate")
        terminal.resize(70, 30)
        wait_until(lambda: widest(terminal.wait_for("q quit")) <= 70, "a frame drawn after it is as narrow")
        assert terminal.end("q") == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before, "the terminal is as it was"
    finally:
        terminal.close()


def test_top_stays_when_the_daemon_goes(tmp_path: Path) -> None:
    with running_daemon(tmp_path, roles="ingest,admin") as daemon:
        terminal = Terminal("top", "--interval", "0.5", *settings_of(daemon), columns=160, rows=40)
        try:
            terminal.wait_for("q quit")
            daemon.stop()
            terminal.wait_for("NO ANSWER for ")
            assert terminal.end("q") == 0
        finally:
            terminal.close()


def test_tail_is_coloured_in_a_terminal_and_waits_without_a_daemon(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ["--set", f"log.path={log}", "--set", f"data_dir={tmp_path}"]
    terminal = Terminal("tail", "-f", *arguments, columns=60, rows=20)
    try:
        terminal.wait_for("no daemon runs on data_dir")
        log.write_text(
            json.dumps({"time": None, "outcome": "dead", "attempt": 1, "url": "http://a/" + "x" * 99}) + "\n"
        )
        terminal.wait_for(" dead ")
        assert "\x1b[1;31m" in terminal.raw
        assert terminal.process.poll() is None
    finally:
        terminal.close()
