# SPDX-License-Identifier: MIT
"""`postbackd check` and `run` judge this machine alike: what the one calls a failure the other refuses."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from postbackd.data_dir import read_processes
from tests.support.daemon import POSTBACKD, STOP_BOUND_S, Daemon, free_port, running_daemon, wait_until


def postbackd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*POSTBACKD, *arguments], capture_output=True, text=True, timeout=STOP_BOUND_S, cwd=cwd)


def settings_for(folder: Path, *more: str) -> list[str]:
    chosen = [f"data_dir={folder}/var", f"log.path={folder}/log", "ingest.workers=1", "delivery.workers=1"]
    chosen += [f"{section}.port={free_port()}" for section in ("ingest", "admin", "queue")]
    return [part for setting in (*chosen, *more) for part in ("--set", setting)]


def of_daemon(daemon: Daemon, *more: str) -> list[str]:
    return [part for setting in (*daemon.settings, *more) for part in ("--set", setting)]


def lines(ended: subprocess.CompletedProcess[str], level: str) -> list[str]:
    return [line for line in ended.stdout.splitlines() if line.startswith(level)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("check")) as running:
        yield running


@pytest.mark.parametrize("fault", ["ingest", "admin", "queue", "folder", "log", "log folder", "machine", "too long"])
def test_what_run_refuses_check_calls_a_failure(tmp_path: Path, fault: str) -> None:
    (tmp_path / "file").write_text("")
    with ExitStack() as stack:
        setting, word = {
            "folder": (f"data_dir={tmp_path}/file", "data_dir"),
            "log": (f"log.path={tmp_path}", "log.path"),
            "log folder": (f"log.path={tmp_path}/file/log", "log.path"),
            "too long": (f"data_dir={tmp_path}/{'x' * 110}", "data_dir"),
            "machine": (f"data_dir={tmp_path}/copied", "made on another machine"),
        }.get(fault, ("", "taken"))
        if not setting:
            taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            setting = f"{fault}.port={taken.getsockname()[1]}"
        if fault == "machine":
            (tmp_path / "copied").mkdir(mode=0o700)
            (tmp_path / "copied" / "machine").write_text("another\n")
        settings = settings_for(tmp_path, setting)
        checked, ran = postbackd("check", *settings), postbackd("run", *settings)
    assert checked.returncode == 1
    [failure] = lines(checked, "fail")
    assert word in failure
    assert ran.returncode == 1
    [refusal] = [line for line in ran.stderr.splitlines() if line.startswith("postbackd: ")]
    assert word in refusal


def test_check_beside_the_daemon_itself_is_well(daemon: Daemon) -> None:
    checks: list[subprocess.CompletedProcess[str]] = []

    def is_well() -> bool:
        checks.append(postbackd("check", *of_daemon(daemon)))
        return (checks[-1].returncode, lines(checks[-1], "fail")) == (0, [])

    wait_until(is_well, "the queue server answers in time")
    checked = checks[-1]
    assert f"postbackd already runs here (pid {daemon.process.pid})" in checked.stdout
    assert checked.stdout.count("held by the postbackd that runs here") == 3


def test_check_fails_where_run_would_meet_that_daemon(daemon: Daemon, tmp_path: Path) -> None:
    checked = postbackd("check", *of_daemon(daemon, f"ingest.port={free_port()}"))
    assert checked.returncode == 1
    assert any(f"in use by a postbackd with other ports (pid {daemon.process.pid})" in line for line in
               lines(checked, "fail")), checked.stdout  # fmt: skip
    checked = postbackd("check", *of_daemon(daemon, f"data_dir={tmp_path}/own"))
    assert (checked.returncode, len(lines(checked, "fail"))) == (1, 3), checked.stdout
    assert "already runs here" not in checked.stdout


def test_check_of_a_role_looks_at_its_own_port_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_for(tmp_path, f"admin.port={taken.getsockname()[1]}")
        assert postbackd("check", *settings).returncode == 1
        assert postbackd("check", "--roles", "ingest,deliver", *settings).returncode == 0


@pytest.mark.parametrize(("roles", "missing"), [("ingest", "deliver"), ("deliver,admin", "ingest"), ("admin", None)])
def test_half_of_a_machine_with_a_queue_of_its_own_is_told(tmp_path: Path, roles: str, missing: str | None) -> None:
    checked = postbackd("check", "--roles", roles, *settings_for(tmp_path))
    assert checked.returncode == 0, checked.stdout
    told = [line for line in lines(checked, "warn") if "set queue.url" in line]
    assert [f"no {missing} runs on it" in line for line in told] == ([] if missing is None else [True])


def test_relative_places_are_told_by_their_whole_path(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "data_dir=here", "log.path=here/log")
    checked = postbackd("check", *settings, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    place = tmp_path.resolve() / "here"
    for name, path in (("data_dir", place), ("log.path", place / "log")):
        assert any(
            line.startswith(f"warn {name}") and "current directory" in line and line.endswith(str(path))
            for line in checked.stdout.splitlines()
        ), checked.stdout
    whole = postbackd("check", *settings_for(tmp_path), cwd=tmp_path)
    assert "current directory" not in whole.stdout


def test_embedded_server_that_hangs_is_told_and_no_reason_to_refuse(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        [queue] = [row["pid"] for row in read_processes(tmp_path / "var") if row["role"] == "queue"]
        os.kill(queue, signal.SIGSTOP)
        try:
            checked = postbackd("check", *of_daemon(daemon))
        finally:
            os.kill(queue, signal.SIGCONT)
    assert (checked.returncode, lines(checked, "fail")) == (0, []), checked.stdout
    assert any("the embedded server does not answer" in line for line in lines(checked, "warn")), checked.stdout
    assert f"it hangs? kill -9 {queue}: another is started" in checked.stdout


def test_folder_of_something_else_is_told_and_not_to_be_closed(tmp_path: Path) -> None:
    """As /var is, where `data_dir = "var"` is taken from /."""
    for number in range(10):
        (tmp_path / f"theirs-{number}").touch(mode=0o644)
    checked = postbackd("check", *settings_for(tmp_path, f"data_dir={tmp_path}"))
    assert any(f"{tmp_path} holds files and none of postbackd's" in line for line in lines(checked, "warn"))
    assert "chmod" not in checked.stdout


def test_disk_that_is_smaller_than_the_spool_may_grow_is_told(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "spool.max_bytes=1000000000000000")
    checked = postbackd("check", *settings)
    assert checked.returncode == 0, checked.stdout
    assert any("the spool may grow to" in line and "make room" in line for line in lines(checked, "warn"))
    assert "the spool may grow" not in postbackd("check", "--roles", "deliver", *settings).stdout


def test_file_that_was_read_is_named_and_that_none_was(tmp_path: Path) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text("[delivery]\nper_host = 7\n")
    read = postbackd("check", "-c", "postbackd.toml", *settings_for(tmp_path), cwd=tmp_path)
    assert lines(read, "ok")[0].endswith(f"configuration: read from {file}, and valid")
    none = postbackd("check", *settings_for(tmp_path), cwd=tmp_path)
    assert "configuration: no file was read (-c FILE, or POSTBACKD_CONFIG, names one)" in lines(none, "ok")[0]
