# SPDX-License-Identifier: MIT
"""The operational log: its two forms, its level, and what it holds back when the same thing repeats."""

import json
import os
from pathlib import Path

import pytest

from postbackd import oplog
from postbackd.oplog_limit import NAMED_A_WINDOW, SAME_A_WINDOW, WINDOW_MS, WINDOWS_KEPT, Repeats, Summary


def admitted(repeats: Repeats, count: int, now_ms: int = 0, event: str = "redis_lost", **fields: object) -> int:
    return sum(repeats.admits("WARNING", event, {"n": number, **fields}, now_ms) for number in range(count))


def test_json_lines_keep_numbers_and_make_text_of_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    oplog.configure("json", "info")
    oplog.warning("redis_lost", error=OSError("gone\nfar"), unsettled=3, path=Path("/x"), ratio=0.5, host=None)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z") and line.pop("pid") == os.getpid()
    assert line == {
        "level": "warning",
        "event": "redis_lost",
        "error": "gone\nfar",
        "unsettled": 3,
        "path": "/x",
        "ratio": 0.5,
        "host": None,
    }


def test_what_ends_a_process_is_one_line_in_either_form(capsys: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        try:
            raise ValueError("broken")
        except ValueError:
            oplog.crash()

    oplog.message("postbackd: no")
    assert capsys.readouterr().err == "postbackd: no\n"
    crash()
    assert capsys.readouterr().err.endswith("ValueError: broken\n")
    oplog.configure("json", "info")
    oplog.message("postbackd: no")
    crash()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in told] == ["message", "crashed"]
    assert told[0]["text"] == "postbackd: no" and "ValueError: broken" in told[1]["traceback"]


def test_level_leaves_out_what_is_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    oplog.configure("plain", "error")
    oplog.info("worker_started")
    oplog.warning("redis_lost")
    assert capsys.readouterr().err == ""
    oplog.error("queue_died")
    assert " ERROR queue_died " in capsys.readouterr().err


def test_repeats_are_held_back_and_summed_up_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(SAME_A_WINDOW + 7):
        oplog.warning("breaker_opened", host="a.example", for_s=number)
    oplog.say_repeats()
    assert len(capsys.readouterr().err.splitlines()) == SAME_A_WINDOW
    oplog.say_repeats(is_end=True)
    oplog.say_repeats(is_end=True)
    [line] = capsys.readouterr().err.splitlines()
    assert " WARNING repeated " in line and line.endswith(" what=breaker_opened more=7 in_s=0 host=a.example")


def test_child_begins_with_nothing_counted(capfd: pytest.CaptureFixture[str]) -> None:
    oplog.configure("json", "info")
    for _ in range(SAME_A_WINDOW + 1):
        oplog.info("worker_started")
    capfd.readouterr()
    pid = os.fork()
    if pid == 0:
        oplog.say_repeats(is_end=True)
        oplog.info("worker_started")
        os._exit(0)
    os.waitpid(pid, 0)
    [line] = capfd.readouterr().err.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["pid"]) == ("worker_started", pid)


def test_same_means_the_same_words() -> None:
    repeats = Repeats()
    assert admitted(repeats, SAME_A_WINDOW + 3, error="refused") == SAME_A_WINDOW
    assert admitted(repeats, 1, error="timed out") == 1
    assert admitted(repeats, 1, event="redis_found") == 1
    assert admitted(repeats, 3, error="refused", slot=1) == 3, "a slot says which one"
    assert [repeats.admits("INFO", "dead_letter", {"id": str(n)}, 0) for n in range(9)].count(True) == SAME_A_WINDOW


@pytest.mark.parametrize(("now_ms", "expected"), [(WINDOW_MS - 1, 0), (WINDOW_MS, SAME_A_WINDOW)])
def test_minute_begins_with_the_first_of_them(now_ms: int, expected: int) -> None:
    repeats = Repeats()
    admitted(repeats, SAME_A_WINDOW + 2, 0)
    assert admitted(repeats, SAME_A_WINDOW, now_ms) == expected


def test_summary_comes_once_when_the_minute_is_over() -> None:
    repeats = Repeats()
    assert repeats.is_quiet
    admitted(repeats, SAME_A_WINDOW + 2, 0, error="refused")
    assert not repeats.is_quiet and list(repeats.take(WINDOW_MS - 1)) == []
    expected = Summary("WARNING", "redis_lost", (("error", "refused"),), 2, WINDOW_MS)
    assert list(repeats.take(WINDOW_MS)) == [expected]
    assert list(repeats.take(WINDOW_MS)) == [] and repeats.is_quiet


def test_summary_comes_too_where_the_next_minute_has_begun() -> None:
    repeats = Repeats()
    admitted(repeats, SAME_A_WINDOW + 2, 0)
    admitted(repeats, 1, WINDOW_MS * 2)
    assert [(told.held_back, told.for_ms) for told in repeats.take(WINDOW_MS * 2)] == [(2, WINDOW_MS * 2)]


def test_thousand_hosts_are_no_thousand_lines_and_no_memory() -> None:
    repeats = Repeats()
    told = sum(admitted(repeats, 1, host=f"{number}.example") for number in range(WINDOWS_KEPT * 2))
    assert NAMED_A_WINDOW <= told <= NAMED_A_WINDOW * 3, "once more for each time that the window had to make room"
    assert len(repeats._windows) <= WINDOWS_KEPT
    assert told + sum(summary.held_back for summary in repeats.take(0, is_end=True)) == WINDOWS_KEPT * 2


def test_what_all_processes_find_out_is_said_by_the_first() -> None:
    changes = oplog.Changes()
    child = os.fork()
    if child == 0:  # what it says is known here, too
        os._exit(0 if changes.changed("shard 0", "away") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not changes.changed("shard 0", "away")
    assert changes.changed("shard 1", "away"), "another subject"
    assert changes.changed("shard 0", "back"), "another state"
    assert changes.changed("shard 0", "away"), "and again"
    assert oplog.changed("shard 0", "away"), "a process on its own says everything"
    assert oplog.changed("shard 0", "away")


def test_journal_is_told_the_priority_of_every_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def written() -> list[str]:
        log = oplog._OpLog()
        log.event("WARNING", "redis_lost", {})
        log.line("ERROR", "Traceback\n  line")
        return [line[:3] for line in capfd.readouterr().err.splitlines()]

    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert written() == ["<4>", "<3>", "<3>"]
    # Standard error that leads elsewhere, as a terminal in a service's environment.
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert not [line for line in written() if line.startswith("<")]
