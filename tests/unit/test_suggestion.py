# SPDX-License-Identifier: MIT
"""Commands that we suggest: they can be pasted, and hold no secret."""

import os
from pathlib import Path

import pytest

from postbackd import suggestion


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion, "_config", None)
    monkeypatch.setattr(suggestion, "_settings", ())
    monkeypatch.setattr("sys.argv", ["-m"])
    monkeypatch.delenv("POSTBACKD_CONFIG", raising=False)


def test_what_was_given_is_repeated_as_a_shell_wants_it() -> None:
    assert suggestion.command("status") == "postbackd status"
    suggestion.remember("my file.toml", ("ingest.port=9000", 'security.allow_networks=["127.0.0.0/8"]'))
    assert suggestion.command("status") == (
        "postbackd status -c 'my file.toml' --set ingest.port=9000 --set 'security.allow_networks=[\"127.0.0.0/8\"]'"
    )
    suggestion.remember(None, ('hosts."a.b".rate=2',))
    assert suggestion.command("status") == "postbackd status --set 'hosts.\"a.b\".rate=2'"


def test_secrets_are_left_out() -> None:
    suggestion.remember(None, ("queue.url=redis://:geheim@h", "admin.token=geheim", "quue.url=geheim"))
    assert suggestion.command("run") == "postbackd run --set queue.url=… --set admin.token=… --set quue.url=…"


def test_a_file_that_the_environment_names_needs_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACKD_CONFIG", "a.toml")
    suggestion.remember("a.toml", ())
    assert suggestion.command("run") == "postbackd run"
    assert suggestion.options_anywhere().startswith("-c /"), "elsewhere it may be another environment"
    suggestion.remember("b.toml", ())
    assert suggestion.command("run") == "postbackd run -c b.toml"


def test_another_setting_goes_where_the_first_ones_went(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suggestion.with_other_port("ingest.port", 8080) == "--set ingest.port=9080"
    assert suggestion.with_other_port("ingest.port", 65535) == "--set ingest.port=64535"
    monkeypatch.setenv("POSTBACKD_RUN_BY", "make run")
    suggestion.remember("etc/dev.toml", ("admin.port=9081",))
    assert suggestion.with_setting("data_dir=a b") == "make run ARGS=\"--set admin.port=9081 --set 'data_dir=a b'\""


def test_who_reads_it_elsewhere_gets_the_whole_path() -> None:
    assert suggestion.options_anywhere() == ""
    suggestion.remember("my file.toml", ("ingest.port=1",))
    assert suggestion.options_anywhere() == f"-c '{Path('my file.toml').absolute()}' --set ingest.port=1"
    suggestion.remember(None, ("ingest.port=1",))
    assert suggestion.options_anywhere() == "--set ingest.port=1"


def test_program_is_named_so_that_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, link = tmp_path / "venv" / "postbackd", tmp_path / "bin" / "postbackd"
    for folder in (ours.parent, link.parent):
        folder.mkdir()
    ours.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(ours)])
    monkeypatch.setenv("PATH", os.fspath(link.parent))
    assert suggestion.command("run") == f"{ours} run"
    link.symlink_to(ours)
    assert suggestion.command("run") == "postbackd run"
