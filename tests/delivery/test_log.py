# SPDX-License-Identifier: MIT
"""The delivery log: the contract of a line, bodies, and a file that is renamed, torn or full."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.codec import ErrorClass
from postbackd.delivery.log import NULL, DeliveryLog, Formatter, TimeText, body_json
from postbackd.delivery.transfer import Result
from postbackd.errors import BootError

FIELDS = ["time", "id", "attempt", "outcome", "reason", "method", "host", "url", "response_code", "response_time_ms",
          "response_body", "body_truncated", "error", "error_detail", "next_attempt_at", "timings_ms", "remote_ip",
          "endpoint", "worker"]  # fmt: skip
FORMATTER = Formatter("node.0", 4096)
TIME = TimeText().format(1_700_000_000_123)


def answered(body: bytes = b"ok", truncated: bool = False, status: int = 200, reused: bool = False) -> Result:
    return Result(
        None, None, status, body, truncated, "10.0.0.1", reused, 1.25, 1.5, *([] if reused else [0.1, 0.2, 0.3])
    )


def delivered(result: Result) -> dict:
    line_format = FORMATTER.delivered_format(b'"GET"', b'"h:81"', b'"00ff"')
    return json.loads(FORMATTER.delivered(line_format, TIME, 0xABC, 2, "http://h:81/?a=%22", result))


def general(result: Result | None, error: str | None = None, outcome: str = "delivered", **more) -> dict:
    url = more.get("url", "http://h:81/?a=%22")
    return json.loads(
        FORMATTER.line(
            TIME, 0xABC, 2, outcome, more.get("reason"), b'"GET"', b'"h:81"', url, result, error, more.get("detail"),
            more.get("next_at", NULL), b'"00ff"',
        )
    )  # fmt: skip


@pytest.mark.parametrize("body", [b"ok", b"", b'"\\\n', "é€".encode(), b"\xff\x00", b"x" * 5000])
@pytest.mark.parametrize("truncated", [False, True])
def test_short_way_and_general_way_make_the_same_line(body: bytes, truncated: bool) -> None:
    for _ in range(2):  # the second time from what is kept of the first
        line = delivered(answered(body, truncated))
        assert line == general(answered(body, truncated))
        assert list(line)[:19] == FIELDS
    assert (line["id"], line["time"], line["attempt"]) == ("0000000000000abc", "2023-11-14T22:13:20.123Z", 2)
    assert line["timings_ms"] == {"dns": 0.1, "connect": 0.2, "tls": 0.3, "ttfb": 1.25, "total": 1.5}
    reused = answered(body, truncated, reused=True)
    assert delivered(reused) == general(reused)
    assert line["body_truncated"] == (truncated or len(body) > 4096)


def test_without_a_connection_everything_of_the_answer_is_null() -> None:
    failed = Result(ErrorClass.DNS_ERROR, "no such name", None, b"", False, None, False, 0.0, 0.0)
    line = general(failed, "dns_error", "retry", detail="no such name", next_at=b'"2026-01-01T00:00:00.000Z"')
    nulls = ["response_code", "response_time_ms", "response_body", "remote_ip", "reason"]
    assert [line[name] for name in nulls] == [None] * 5
    assert set(line["timings_ms"].values()) == {0.0}
    assert (line["error"], line["error_detail"], line["outcome"]) == ("dns_error", "no such name", "retry")
    assert line["next_attempt_at"] == "2026-01-01T00:00:00.000Z"


def test_unrendered_postback_has_no_url() -> None:
    assert general(None, "render_error", "dead", reason="render_error", url=None)["url"] is None


def test_binary_body_is_base64() -> None:
    line = delivered(answered(b"\xff\xfe"))
    assert (line["response_body"], line["response_body_b64"]) == (None, "//4=")


def test_character_cut_in_two_is_left_off() -> None:
    assert body_json("ab€".encode(), False, 4) == (b'"ab"', b"true", b"")
    assert body_json("ab€".encode()[:4], False, 4)[0] == NULL  # not cut by us: the partner sent it so
    assert body_json("ab€".encode()[:4], True, 4)[0] == b'"ab"'


@given(st.binary(max_size=50), st.integers(0, 60))
def test_any_body_makes_json(body: bytes, limit: int) -> None:
    text, truncated, more = body_json(body, False, limit)
    decoded = json.loads(b'{"t":%b,"u":%b%b}' % (text, truncated, more))
    assert decoded["u"] == (len(body) > limit)
    if decoded["t"] is not None:
        assert body[:limit].startswith(decoded["t"].encode())


def test_lines_are_appended_in_one_write(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log"
    first, second = DeliveryLog(str(path)), DeliveryLog(str(path))
    for log, text in ((first, b"a"), (second, b"b"), (first, b"c")):
        log.add(text)
        log.add(text)
        log.flush(0)
    assert path.read_bytes() == b"a\na\nb\nb\nc\nc\n"


def test_renamed_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DeliveryLog(str(path))
    log.add(b"before")
    log.flush(0)
    path.rename(tmp_path / "log.1")
    log.add(b"same second")
    log.flush(500)
    log.add(b"after")
    log.flush(1500)
    assert (tmp_path / "log.1").read_bytes() == b"before\nsame second\n"
    assert path.read_bytes() == b"after\n"


def test_reopen_takes_the_path_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DeliveryLog(str(path))
    path.rename(tmp_path / "log.1")
    log.reopen(0)
    log.add(b"after")
    log.flush(0)
    assert path.read_bytes() == b"after\n"


def test_full_disk_counts_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the file's size stands in for the disk: the write comes back short, then fails."""
    path = tmp_path / "log"
    log = DeliveryLog(str(path))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        log.add(b"12345")
        log.add(b"67890")
        log.flush(0)
        log.add(b"lost")
        log.flush(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert log.take_lines_lost() == 2
    assert log.take_lines_lost() == 0
    log.add(b"whole")
    log.flush(2)
    assert path.read_bytes() == b"12345\n6789\nwhole\n"
    said = capsys.readouterr().err
    assert said.count("delivery_log_failed") == 1


def test_missing_rights_end_the_start_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BootError, match=r"set log\.path"):
        DeliveryLog(str(tmp_path / "file" / "log"))


def test_device_full_is_survived() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = DeliveryLog("/dev/full")
    log.add(b"x")
    log.flush(0)
    assert log.take_lines_lost() == 1
