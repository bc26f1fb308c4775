# SPDX-License-Identifier: MIT
"""`tail`: which lines it wants, the last of them, and what is appended over renames, truncation and torn lines."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from postbackd.tools import tail
from postbackd.tools.tail import LINGER_MS, Filter, Follower, last_lines, render

ID = "0cabdc98cbb61800"


def line(number: int = 0, outcome: str = "delivered", host: str = "a.example", **members: Any) -> bytes:
    entry = {
        "time": "2026-11-24T01:02:03.456Z", "id": f"{int(ID, 16) + number:016x}", "attempt": 1, "outcome": outcome,
        "reason": None, "method": "GET", "host": host, "url": f"http://{host}/{number}", "response_code": 200,
        "response_time_ms": 12.345, "response_body": "ok", "body_truncated": False, "error": None,
        "error_detail": None, "next_attempt_at": None, **members,
    }  # fmt: skip
    return json.dumps(entry, separators=(",", ":")).encode()


def ids(lines: list[bytes]) -> list[int]:
    return [int(json.loads(one)["id"], 16) - int(ID, 16) for one in lines]


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        (Filter(), line(), True),
        (Filter(), b'{"outcome":"deliv', False),
        (Filter(), b"{}", False),
        (Filter(), b"", False),
        (Filter(failed=True), line(), False),
        (Filter(failed=True), line(outcome="retry", response_body='{"outcome":"delivered"}'), True),
        (Filter(postback_id=ID), line(), True),
        (Filter(postback_id=ID), line(1, url=f"http://a.example/{ID}"), False),
        (Filter(host="a.example"), line(host="a.example:8443"), True),
        (Filter(host="a.example:8443"), line(host="a.example:8443"), True),
        (Filter(host="a.example:8443"), line(host="a.example"), False),
        (Filter(host="[::1]"), line(host="[::1]:8080"), True),
        (Filter(host="[::1]"), line(host="[::1]"), True),
        (Filter(host="a.example"), line(host="b.example", url="http://b.example/a.example"), False),
    ],
)
def test_wanted_lines(wanted: Filter, text: bytes, expected: bool) -> None:
    assert (wanted.entry(text) is not None) is expected


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, [7, 9]), (None, [1, 3, 5, 7, 9])])
def test_last_lines_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, count: int | None, expected: list[int]
) -> None:
    monkeypatch.setattr(tail, "BLOCK_BYTES", block)
    path = tmp_path / "log"
    path.write_bytes(b"".join(line(n, "retry" if n % 2 else "delivered") + b"\n" for n in range(10)) + line(11)[:50])
    with path.open("rb") as file:
        found = last_lines(file, path.stat().st_size, Filter(failed=True), count)
    assert ids([text for text, _ in found]) == expected


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(lines))


def test_follower_goes_with_a_rename_and_reads_the_old_file_on(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    follower = Follower(path, None)
    assert follower.read(0) == [] and follower.read(0) == [], "there is none yet"
    append(path, line(1) + b"\n", line(2)[:40])
    assert follower.read(0) == []
    assert ids(follower.read(0)) == [1], "a line is given when it is whole"
    append(path, line(2)[40:] + b"\n")
    assert ids(follower.read(0)) == [2]
    path.rename(old)
    append(old, line(3) + b"\n")
    assert ids(follower.read(100)) == [3], "nothing is at the path for a moment"
    append(path, line(4) + b"\n")
    assert ids(follower.read(200) + follower.read(200)) == [4]
    assert follower.read(300) == []
    append(old, line(5) + b"\n")
    assert ids(follower.read(LINGER_MS)) == [5], "a worker that has not looked yet"
    append(old, line(6) + b"\n")
    assert ids(follower.read(9 * LINGER_MS)) == [6], "whatever is there before it is closed"
    assert follower.read(9 * LINGER_MS) == []
    append(old, line(7) + b"\n")
    assert follower.read(9 * LINGER_MS) == [], "closed"
    append(path, line(8) + b"\n")
    assert ids(follower.read(9 * LINGER_MS)) == [8]


def test_follower_begins_anew_where_a_file_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, line(1) + b"\n", line(2)[:40])
    file = path.open("rb")
    follower = Follower(path, file)
    assert ids(follower.read(0)) == [1]
    os.truncate(path, 0)
    append(path, line(3) + b"\n")
    assert ids(follower.read(0)) == [3]


def test_attempt_is_one_line_without_what_a_terminal_obeys() -> None:
    entry = json.loads(
        line(
            outcome="dead",
            reason="attempts_exhausted",
            error="http_5xx",
            response_code=503,
            response_body="no\x1b[2J\n\x9b" + "x" * 200,
            url="http://a.example/\x07",
        )
    )
    told = render(entry, "2026-11-24").plain
    assert told.startswith(f"01:02:03.456Z dead      503    12.3 ms  {ID} #1 GET http://a.example/\\x07  ")
    assert "attempts_exhausted: http_5xx, answered “no\\x1b[2J\\n\\x9bxxx" in told and told.endswith("x…”")
    assert told.isprintable()
    assert render(entry, "2026-11-25").plain.startswith("2026-11-24 01:02:03.456Z dead ")


def test_retry_says_when_it_comes_again() -> None:
    entry = json.loads(
        line(
            outcome="retry",
            error="timeout",
            error_detail="after 10 s",
            response_code=None,
            response_time_ms=None,
            response_body=None,
            next_attempt_at="2026-11-24T01:02:09.000Z",
        )
    )
    told = render(entry, "2026-11-24").plain
    assert " retry       -            " in told and told.endswith("timeout: after 10 s, again 01:02:09.000Z")
