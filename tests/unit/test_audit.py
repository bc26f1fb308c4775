# SPDX-License-Identifier: MIT
"""The audit: lost, waiting, dead, duplicated and others, told from text, JSON lines and where else they are."""

import gzip
import json
from pathlib import Path

import click.testing
import pytest

from postbackd.cli import main
from postbackd.codec import parse_id
from postbackd.errors import PostbackdError
from postbackd.tools.audit import audit as audit_with
from postbackd.tools.whereabouts import Whereabouts

A, B, C = "0cad968533d61c95", "0cad968533d61c96", "0cad968533d61caa"
NOWHERE = Whereabouts()


def audit(sent: list[Path], received: list[Path], show: int, as_json: bool, found: Whereabouts = NOWHERE) -> int:
    return audit_with(sent, received, show, as_json, lambda missing: found)


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
    assert found["others"] == [C]


def test_id_is_found_in_headers_and_body_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    received = [seen(C, url="/x", headers={"X-Id": A}), seen(C, url="/x", body=json.dumps({"id": B}))]
    assert run(tmp_path, capsys, [A, B], received)[0] == 0


def test_an_id_that_was_sent_goes_before_one_that_looks_like_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(tmp_path, capsys, [A], [seen(A, url=f"/{C}?id={A}")])
    assert (code, found["others"]) == (0, [])


def test_delivery_log_serves_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"id": A, "outcome": "retry"}, {"id": A, "outcome": "delivered"}, {"id": B, "outcome": "retry"}]
    code, found = run(tmp_path, capsys, [A, B], lines)
    assert (code, found["lost"], found["delivered"]) == (1, [B], 1)


def test_dead_is_told_apart_from_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = {"id": A, "outcome": "dead"}
    code, found = run(tmp_path, capsys, [A, B], [dead, {"id": B, "outcome": "delivered"}, {"id": C, "outcome": "dead"}])
    assert (code, found["lost"], found["dead"], found["others"]) == (0, [], [A], [])
    code, found = run(tmp_path, capsys, [A], [dead, {"id": A, "outcome": "delivered"}])
    assert (code, found["lost"], found["dead"]) == (0, [], []), "replayed, and delivered then"
    assert audit([written(tmp_path / "s", A)], [written(tmp_path / "r", dead)], 1, as_json=False) == 0
    printed = capsys.readouterr().out
    assert (
        "lost            0\nwaiting         0\ndead            1\n" in printed
        and f"dead: {A}  (postbackd explain {A}" in printed
    )


def test_text_names_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([written(tmp_path / "s", A, B)], [written(tmp_path / "r", seen(C))], 1, as_json=False) == 1
    printed = capsys.readouterr().out
    assert f"lost: {A}" in printed and f"lost: {B}" not in printed
    assert "others          1 (delivered, in no file" in printed


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


def test_what_waits_is_not_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written(tmp_path / "s", A, B, C)], [written(tmp_path / "r", seen(A))]
    found = Whereabouts(waiting={parse_id(B)}, dead={parse_id(C)})
    assert audit(*files, 10, False, found) == 0
    printed = capsys.readouterr().out
    assert "delivered       1\nlost            0\nwaiting         1 (not delivered yet)\ndead            1\n" in printed
    assert f"waiting: {B}  (postbackd explain {B}" in printed
    assert audit(*files, 10, True, found) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["waiting"], told["dead"], told["lost"], told["not_asked"]) == ([B], [C], [], [])


def test_only_what_is_missing_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[list[int]] = []

    def look_for(missing: list[int]) -> Whereabouts:
        asked.append(missing)
        return NOWHERE

    sent, all_there = [written(tmp_path / "s", A, B)], [written(tmp_path / "r", seen(A), seen(B))]
    assert audit_with(sent, all_there, 1, True, look_for) == 0 and asked == []
    assert audit_with(sent, [written(tmp_path / "r", seen(A))], 1, True, look_for) == 1 and asked == [[parse_id(B)]]


def test_what_is_delivered_while_the_queue_is_looked_through_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    received = written(tmp_path / "r", seen(A), "torn")

    def look_for(_missing: list[int]) -> Whereabouts:
        received.write_text(received.read_text() + json.dumps(seen(B)) + "\n")
        return NOWHERE

    assert audit_with([written(tmp_path / "s", A, B)], [received], 1, True, look_for) == 0
    assert capsys.readouterr().err.count("torn lines") == 1


def test_queue_that_cannot_be_asked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = Whereabouts(not_asked=["the queue: it is away"])
    files = [written(tmp_path / "s", A, B)], [written(tmp_path / "r", seen(A))]
    assert audit(*files, 1, False, away) == 1
    assert "not looked through, so what is lost may wait there: the queue: it is away" in capsys.readouterr().err


def test_log_that_covers_more_counts_what_was_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [{"id": f"{number:016x}", "outcome": "delivered"} for number in (5, 5, 6, 7)]
    code, found = run(tmp_path, capsys, [A], [{"id": A, "outcome": "delivered"}, *more])
    assert (code, found["delivered"], found["duplicated"], found["repeated_deliveries"]) == (0, 1, {}, 0)
    assert found["others"] == [f"{number:016x}" for number in (5, 6, 7)]


def test_value_of_16_digits_is_an_id_only_where_it_was_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = "9007199254740993"
    received = [seen(A, url=f"/?b={value}&id={A}"), seen(A, url=f"/?b={value}")]
    assert run(tmp_path, capsys, [A], received)[1]["others"] == []
    assert run(tmp_path, capsys, [value], received)[1]["lost"] == []


def test_packed_logs_are_read_and_broken_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "deliveries.jsonl-20261125.gz"
    packed.write_bytes(gzip.compress(json.dumps({"id": A, "outcome": "delivered"}).encode() + b"\n"))
    sent = tmp_path / "sent.gz"
    sent.write_bytes(gzip.compress(A.encode()))
    assert audit([sent], [packed], 1, True) == 0
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(PostbackdError, match=r"20261125\.gz: is no whole gzip file"):
        audit([sent], [packed], 1, True)


def test_several_files_and_patterns_behind_one_option(tmp_path: Path) -> None:
    sent = written(tmp_path / "sent", A, B, C)
    logs = [written(tmp_path / f"log{number}", seen(postback_id)) for number, postback_id in enumerate((A, B, C))]

    def told(*arguments: object) -> click.testing.Result:
        place = ("--set", f"data_dir={tmp_path}/var")
        return click.testing.CliRunner().invoke(main, ["audit", *map(str, arguments), "--json", *place])

    for received in (logs, [f"{tmp_path}/log*"], [logs[0], "--received", logs[1], logs[2]]):
        ended = told("--received", *received, "--show", 3, "--sent", sent)
        assert ended.exit_code == 0, ended.output
        assert json.loads(ended.output)["delivered"] == 3
    ended = told("--sent", sent, "--received", f"{tmp_path}/nothing*")
    assert ended.exit_code == 2 and "there is no such file" in ended.output
