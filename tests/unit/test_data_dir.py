# SPDX-License-Identifier: MIT
"""The data directory: who may use it, and what it tells of the daemon."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from postbackd import data_dir as module
from postbackd.data_dir import DataDir, ProcessRow, read_processes
from postbackd.errors import BootError

ROWS = [ProcessRow(role="supervisor", pid=1, slot=None), ProcessRow(role="deliver", pid=2, slot=0)]


@pytest.fixture
def machine_id(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("etc") / "machine-id"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    return path


def refusal(path: Path, *machine_id: Path) -> str:
    with pytest.raises(BootError) as caught:
        DataDir(path, *machine_id).open()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    DataDir(tmp_path / "a" / "var").open()
    assert (tmp_path / "a" / "var").stat().st_mode & 0o777 == 0o700


def test_second_daemon_is_refused_and_told_who_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0)
    first = DataDir(tmp_path)
    first.open()
    assert f"in use by another postbackd (pid {os.getpid()})" in refusal(tmp_path)
    first.close()
    DataDir(tmp_path).open()


def test_lock_of_a_killed_daemon_is_free(tmp_path: Path) -> None:
    code = "import sys, os, signal; from postbackd.data_dir import DataDir; d = DataDir(sys.argv[1]); d.open()"
    killed = subprocess.run([sys.executable, "-c", code + "; os.kill(os.getpid(), signal.SIGKILL)", str(tmp_path)])
    assert killed.returncode < 0
    DataDir(tmp_path).open()


def test_orphans_of_a_killed_supervisor_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was in an fsync kept the lock for longer than two seconds: the next start was refused."""
    orphan = DataDir(tmp_path)
    orphan.open()
    (tmp_path / "postbackd.pid").write_text(f"{dead_pid()}\n")
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0)
    monkeypatch.setattr(module.time, "sleep", lambda _s: os.close(orphan._lock_fd))  # its end
    DataDir(tmp_path).open()


def dead_pid() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_copy_from_another_machine_is_refused(tmp_path: Path, machine_id: Path) -> None:
    first = DataDir(tmp_path, machine_id)
    first.open()
    first.close()
    machine_id.write_text("another\n")
    assert "was made on another machine" in refusal(tmp_path, machine_id)
    (tmp_path / "machine").unlink()  # as the message says
    DataDir(tmp_path, machine_id).open()


def test_machine_id_itself_is_not_written_down(tmp_path: Path, machine_id: Path) -> None:
    DataDir(tmp_path, machine_id).open()
    assert machine_id.read_text().strip() not in (tmp_path / "machine").read_text()


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_machine_without_an_id_is_not_checked(tmp_path: Path, machine_id: Path, content: str | None) -> None:
    if content is None:
        machine_id.unlink()
    else:
        machine_id.write_text(content)
    directory = DataDir(tmp_path, machine_id)
    directory.open()
    assert not (tmp_path / "machine").exists()
    directory.close()
    machine_id.write_text("an id after all\n")
    DataDir(tmp_path, machine_id).open()


def test_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "set data_dir" in refusal(tmp_path / "file")
    assert "set data_dir" in refusal(tmp_path / "file" / "below")


def test_refusal_leaves_no_lock_behind(tmp_path: Path, machine_id: Path) -> None:
    (tmp_path / "machine").write_text("another")
    refusal(tmp_path, machine_id)
    (tmp_path / "machine").unlink()
    DataDir(tmp_path, machine_id).open()


def test_processes_are_read_back_and_gone_when_it_is_closed(tmp_path: Path) -> None:
    assert read_processes(tmp_path) == []
    directory = DataDir(tmp_path)
    directory.open()
    directory.write_processes(ROWS)
    assert read_processes(tmp_path) == ROWS
    directory.write_processes(ROWS[:1])
    assert read_processes(tmp_path) == ROWS[:1]
    assert (tmp_path / "postbackd.pid").read_text() == f"{os.getpid()}\n"
    directory.close()
    assert read_processes(tmp_path) == []
    assert (tmp_path / "postbackd.pid").read_text() == ""
    directory.close()


def test_unchanged_processes_are_not_written_again(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    directory.open()
    directory.write_processes(ROWS)
    before = (tmp_path / "processes.json").stat().st_ino
    directory.write_processes(list(ROWS))
    assert (tmp_path / "processes.json").stat().st_ino == before


def test_full_disk_stops_nobody_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chaos found a supervisor that died of a full disk, and then did not start on it."""
    DataDir(tmp_path).open()

    def fail(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    directory = DataDir(tmp_path / "below")
    directory.open()
    monkeypatch.setattr(module, "write_whole", fail)
    directory.write_processes(ROWS)
    directory.write_processes(ROWS)
    errors = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert ["data_dir_full" in line or "processes_not_written" in line for line in errors] == [True, True]
    monkeypatch.undo()
    directory.write_processes(ROWS)
    assert read_processes(tmp_path / "below") == ROWS
