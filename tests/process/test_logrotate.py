# SPDX-License-Identifier: MIT
"""The delivery log under load while the real logrotate moves it: every attempt has its line, whole and once."""

import grp
import gzip
import json
import os
import pwd
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.support.daemon import POSTBACKD, STOP_BOUND_S, Daemon, running_daemon, running_sink, wait_until
from tests.support.load import Load
from tests.support.programs import need

REPOSITORY = Path(__file__).parents[2]
ROTATIONS = 3
BETWEEN = 400  # postbacks


def all_lines(folder: Path) -> list[bytes]:
    """Every line of the log and of what it was renamed to."""
    lines: list[bytes] = []
    for path in folder.glob("deliveries.jsonl*"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert not data or data.endswith(b"\n"), path  # empty: renamed before anything was tried again
        lines += data.splitlines()
    return lines


def wait_for_lines(daemon: Daemon, ids: list[str]) -> None:
    wait_until(lambda: len(all_lines(daemon.folder)) >= len(ids), "every attempt has a line")
    logged = Counter(json.loads(line)["id"] for line in all_lines(daemon.folder))
    assert logged == Counter(ids)


def begins_in(log: Path, shown: Path) -> bool:
    """Whether the first line of the log was shown."""
    first, newline, _ = log.read_bytes().partition(b"\n")
    return bool(newline) and first in shown.read_bytes()


def rotate(config: Path) -> None:
    program = need("logrotate", "logrotate")
    command = [program, "--force", "--state", str(config.with_suffix(".state")), str(config)]
    path = f"{os.environ['PATH']}:/usr/sbin"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert (done.returncode, done.stderr) == (0, "")


def test_logrotate_loses_no_line_and_tail_shows_each(tmp_path: Path) -> None:
    folder = tmp_path / "postbackd"  # as in /var/log
    with running_sink(tmp_path / "sink") as sink, running_daemon(folder, roles="ingest,deliver") as daemon:
        config = tmp_path / "logrotate.conf"
        text = (REPOSITORY / "etc" / "logrotate").read_text()
        me = f"su {pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"
        config.write_text(text.replace("/var/log", str(tmp_path)).replace("su postbackd postbackd", me))
        config.chmod(0o644)
        (folder / "postbackd.log").write_text("said by the init script's daemon\n")
        load = Load(daemon, sink)
        load.wait_for(1)
        shown = tmp_path / "shown"
        settings = [part for setting in daemon.settings for part in ("--set", setting)]
        with shown.open("wb") as output:
            tail = subprocess.Popen(
                [*POSTBACKD, "tail", "--follow", "--lines", "1000000", "--json", *settings],
                stdout=output,
                # What a shell starts in the background ignores SIGINT, and all it starts does too.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )
        try:
            wait_until(lambda: shown.stat().st_size, "tail has begun")
            for _ in range(ROTATIONS):
                load.wait_for(len(load.acknowledged) + BETWEEN)
                was = daemon.log_path.stat().st_ino
                rotate(config)
                wait_until(lambda was=was: daemon.log_path.exists() and daemon.log_path.stat().st_ino != was, "anew")
                rotated_s = int(time.time())  # names go by the second, as logrotate's dates do
                wait_until(lambda before=rotated_s: time.time() >= before + 1, "another name")
                wait_until(lambda: begins_in(daemon.log_path, shown), "tail follows: of two renames it may miss one")
            ids = load.stop()
            wait_for_lines(daemon, ids)
            names = [path.name for path in daemon.folder.glob("deliveries.jsonl*")]
            assert len(names) == ROTATIONS + 1 and sum(name.endswith(".gz") for name in names) == ROTATIONS - 1
            wait_until(lambda: shown.read_bytes().count(b"\n") >= len(ids), "tail has shown every line")
            assert (folder / "postbackd.log").stat().st_size == 0
            assert Counter(json.loads(line)["id"] for line in shown.read_bytes().splitlines()) == Counter(ids)
        finally:
            tail.send_signal(signal.SIGINT)
            assert tail.wait(STOP_BOUND_S) == 0, "Ctrl-C is how it ends"


def test_sigusr1_opens_the_new_file_at_once(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon", roles="ingest,deliver") as daemon:
        load = Load(daemon, sink)
        for number in range(ROTATIONS):
            load.wait_for(len(load.acknowledged) + BETWEEN)
            daemon.log_path.rename(daemon.folder / f"deliveries.jsonl.{number}")
            os.kill(daemon.process.pid, signal.SIGUSR1)
            wait_until(daemon.log_path.exists, "it is made anew")
        wait_for_lines(daemon, load.stop())
