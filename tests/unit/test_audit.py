# SPDX-License-Identifier: MIT
"""The audit: lost, duplicated, out of nowhere, told from text and from JSON lines."""

import json
from pathlib import Path

import pytest

from postbackd.errors import PostbackdError
from postbackd.tools.audit import audit

A, B, C = "0123456789abcdef", "fedcba9876543210", "00000000000000aa"


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def seen(postback_id: str, status: int | None = 200, **more: object) -> dict[str, object]:
    return {"url": f"/hit?id={postback_id}", "headers": {}, "body": "", "status": status, **more}


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[object], received: list[object]
) -> tuple[int, dict[str, object]]:
    code = audit([written(tmp_path / "sent", *sent)], [written(tmp_path / "received", *received)], 10, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def test_all_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(tmp_path, capsys, [{"accepted": 2, "ids": [A, B]}], [seen(A), seen(B)])
    assert (code, found["sent"], found["delivered"], found["lost"], found["repeated_deliveries"]) == (0, 2, 2, [], 0)


def test_lost_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(tmp_path, capsys, ["accepted 2", A, B], [seen(A)])
    assert (code, found["lost"]) == (1, [B])


def test_only_what_was_answered_2xx_is_delivered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(tmp_path, capsys, [A, B], [seen(A, 500), seen(A, None), seen(A, 204), seen(B, 500)])
    assert (code, found["lost"], found["duplicated"]) == (1, [B], {})


def test_duplicates_and_strangers_are_told_and_are_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(tmp_path, capsys, [A], [seen(A), seen(A), seen(A), seen(C)])
    assert (code, found["duplicated"], found["repeated_deliveries"]) == (0, {A: 3}, 2)
    assert found["out_of_nowhere"] == [C]


def test_id_is_found_in_headers_and_body_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    received = [seen(C, url="/x", headers={"X-Id": A}), seen(C, url="/x", body=json.dumps({"id": B}))]
    assert run(tmp_path, capsys, [A, B], received)[0] == 0


def test_an_id_that_was_sent_goes_before_one_that_looks_like_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path, capsys, [A], [seen(A, url=f"/{C}?id={A}")])
    assert (code, found["out_of_nowhere"]) == (0, [])


def test_delivery_log_serves_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": A, "outcome": "retry"}, {"id": A, "outcome": "delivered"}, {"id": B, "outcome": "retry"}]
    code, found = run(tmp_path, capsys, [A, B], lines)
    assert (code, found["lost"], found["delivered"]) == (1, [B], 1)


def test_dead_is_told_apart_from_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = {"id": A, "outcome": "dead"}
    code, found = run(tmp_path, capsys, [A, B], [dead, {"id": B, "outcome": "delivered"}, {"id": C, "outcome": "dead"}])
    assert (code, found["lost"], found["dead"], found["out_of_nowhere"]) == (0, [], [A], [])
    code, found = run(tmp_path, capsys, [A], [dead, {"id": A, "outcome": "delivered"}])
    assert (code, found["lost"], found["dead"]) == (0, [], []), "replayed, and delivered then"
    assert audit([written(tmp_path / "s", A)], [written(tmp_path / "r", dead)], 1, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "lost            0\ndead            1\n" in printed and f"dead: {A}  (postbackd explain {A}" in printed


def test_text_names_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([written(tmp_path / "s", A, B)], [written(tmp_path / "r", seen(C))], 1, as_json=False) == 1
    printed = capsys.readouterr().out
    assert f"lost: {A}" in printed and f"lost: {B}" not in printed and f"out of nowhere: {C}" in printed


def test_what_is_no_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PostbackdError, match="r:1: no JSON line"):
        audit([written(tmp_path / "s", A)], [written(tmp_path / "r", "what?", "[1]")], 1, as_json=False)


def test_torn_lines_are_passed_over_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    received = written(tmp_path / "r", seen(A), '{"url":"/hit?id=', "[1]", seen(B))
    assert audit([written(tmp_path / "s", A, B)], [received], 1, as_json=False) == 0
    assert "r: 2 torn lines passed over, the first is 2" in capsys.readouterr().err


def test_audit_of_nothing_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(PostbackdError, match="no id"):
        audit([written(tmp_path / "s", "nothing")], [written(tmp_path / "r", seen(A))], 1, as_json=False)


def test_text_names_what_came_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([written(tmp_path / "s", A)], [written(tmp_path / "r", seen(A), seen(A))], 1, as_json=False) == 0
    assert f"duplicated: {A}" in capsys.readouterr().out


def test_list_of_ids_serves_as_received(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a partner gives it. One of digits alone is a JSON number, too."""
    digits = "1234567890123456"
    (tmp_path / "sent").write_text(f"0cad968533d61c95\n0cad968533d61c96\n{digits}\n")
    (tmp_path / "received").write_text(f"0cad968533d61c95\n\n{digits}\n0cad968533d61c95\n")
    assert audit([tmp_path / "sent"], [tmp_path / "received"], 10, True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["lost"] == ["0cad968533d61c96"]
    assert found["duplicated"] == {"0cad968533d61c95": 2}
