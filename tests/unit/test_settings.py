# SPDX-License-Identifier: MIT
"""Settings: three sources, the later one winning, and errors that name the setting, its source and the mend."""

import tomllib
from pathlib import Path

import pytest

from postbackd.errors import ConfigError
from postbackd.settings import Settings, declarations
from postbackd.settings_loader import load, render_toml


def test_defaults_need_no_source() -> None:
    settings = load(None, {}, [])
    assert settings == Settings()
    assert (settings.ingest.port, settings.queue.port, settings.delivery.per_host) == (8080, 7379, 32)
    assert settings.retry.schedule == [5, 30, 120, 600, 1800, 7200, 21600, 43200]


def test_later_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text('data_dir = "a"\n[ingest]\nport = 1001\nhost = "::1"\n[hosts."api.example"]\nper_host = 4\n')
    environ = {"POSTBACKD_INGEST__PORT": "1002", "POSTBACKD_QUEUE__PREFIX": "x", "POSTBACKD_DEBUG": "1", "HOME": "/"}
    settings = load(str(file), environ, ["ingest.port=1003", 'security.allow_networks=["127.0.0.0/8"]', "data_dir=b"])
    assert (settings.ingest.port, settings.ingest.host, settings.queue.prefix) == (1003, "::1", "x")
    assert (settings.data_dir, settings.security.allow_networks) == ("b", ["127.0.0.0/8"])
    assert settings.hosts["api.example"].per_host == 4
    assert load(None, {}, ['hosts."a.b".timeout=2']).hosts["a.b"].timeout == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ingest.prot=1", ["ingest.prot", "ingest.port", "--set"]),
        ("ingets.port=1", ["ingets", "ingest"]),
        ("ingest.port=0", ["ingest.port", ">= 1"]),
        ("ingest.port=65536", ["ingest.port", "<= 65535"]),
        ("ingest.port=web", ["ingest.port", "`int`", "`str`"]),
        ("delivery.http2=1", ["delivery.http2", "`bool`"]),
        ("delivery.timeout=61", ["delivery.timeout", "60"]),
        ("queue.lease_timeout=9.9", ["queue.lease_timeout", "10"]),
        ("queue.port=6379", ["queue.port", "6379"]),
        ("queue.url=http://a", ["queue.url", "redis://"]),
        ("queue.url=sentinel://a:1", ["queue.url", "/service"]),
        ("queue.shards=0", ["queue.shards", "1"]),
        ("ingest.ack=never", ["ingest.ack", "never"]),
        ("retry.schedule=[]", ["retry.schedule"]),
        ('ingest.paths=["x"]', ["ingest.paths", "'x'"]),
        ("port", ["section.key=value"]),
        ('hosts."a".speed=1', ["rate", "per_host"]),
        ("data_dir=", ["data_dir"]),
        ("delivery.timeout=nan", ["delivery.timeout", "finite", "--set"]),
        ("retry.schedule=[1, inf]", ["retry.schedule[1]", "finite"]),
        ("retry.schedule=[-1]", ["retry.schedule", ">= 0"]),
        ("ingest.paths=[]", ["ingest.paths"]),
        ('ingest.paths=["/i", "/ready"]', ["ingest.paths", "'/ready'"]),
        ("security.schemes=[]", ["security.schemes"]),
        ("admin.hosts=[]", ["admin.hosts"]),
        ("delivery.user_agent=a\tb", ["delivery.user_agent"]),
        ('hosts={"A.example" = {rate = 1}}', ["A.example", "a.example"]),
    ],
)
def test_wrong_setting_is_one_line_that_names_it(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, [override])
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(("variable", "right"), [("INGEST__PROT", "ingest.port"), ("DATADIR", "data_dir")])
def test_wrong_environment_names_its_variable(variable: str, right: str) -> None:
    with pytest.raises(ConfigError, match=rf"did you mean {right}\?.*POSTBACKD_{variable}"):
        load(None, {f"POSTBACKD_{variable}": "1"}, [])


@pytest.mark.parametrize("text", ['{ k = "whsec_x" }', '{"k": "whsec_x"}'])
def test_table_in_the_environment_is_toml_or_json(text: str) -> None:
    settings = load(None, {"POSTBACKD_SECURITY__SIGNING_KEYS": text, "POSTBACKD_HOSTS": '{"a.b": {"rate": 5}}'}, [])
    assert settings.security.signing_keys == {"k": "whsec_x"}
    assert settings.hosts["a.b"].rate == 5


@pytest.mark.parametrize(("text", "word"), [("[ingest", "TOML"), ("ingest = 1", "table")])
def test_broken_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=word) as caught:
        load(str(file), {}, [])
    assert str(file) in str(caught.value)
    with pytest.raises(ConfigError, match=r"missing.toml.*No such file"):
        load(str(tmp_path / "missing.toml"), {}, [])


def test_printed_settings_are_read_again_as_the_same(tmp_path: Path) -> None:
    settings = load(None, {}, ["retry.schedule=[0.5]", 'log.path=a "b"', "ingest.max_items=7"])
    file = tmp_path / "printed.toml"
    file.write_text(render_toml(settings))
    assert load(str(file), {}, []) == settings


def test_every_setting_is_printed_once_with_its_meaning() -> None:
    printed = tomllib.loads(render_toml(Settings()))
    assert printed.pop("data_dir") == "var"
    names = [f"{section}.{key}" for section, table in printed.items() for key in table]
    assert names == [f"{d.section}.{d.name}" for d in declarations() if d.section]
    assert all(d.text for d in declarations())


def test_allowed_values_are_printed_where_the_type_names_them() -> None:
    lines = {line.partition(" = ")[0]: line for line in render_toml(Settings()).splitlines() if " = " in line}
    for name, choices in {
        "durability": "server | fsync | replica",
        "unmatched": "empty | keep | drop_param | fail",
        "appendfsync": "always | everysec | no",
        "format": "plain | json",
        "level": "info | warning | error",
        "ack": "commit | group",
        "schemes": "http | https",
    }.items():
        assert f": {choices}" in lines[name], lines[name]
    assert [d.name for d in declarations() if d.choices and d.name not in lines] == []
    assert "|" not in lines["port"]


def test_secrets_are_masked() -> None:
    text = render_toml(load(None, {}, ["queue.url=redis://:hunter2@127.0.0.1:7000"]))
    assert "hunter2" not in text
    assert 'url = "***"' in text


@pytest.mark.parametrize(
    ("secret", "name"),
    [
        ('[ingest]\ntokens = ["***"]\n', "ingest.tokens"),
        ('[ingest]\ntokens = ["good:0123456789abcdef", "tracker:***"]\n', "ingest.tokens"),
        ('[queue]\nurl = "***"\n', "queue.url"),
        ('[queue]\nurl = "redis://default:***@10.0.0.1:7000"\n', "queue.url"),
        ('[queue]\nurl = "sentinel://a:1/m?sentinel_password=***"\n', "queue.url"),
        ('[admin]\ntoken = "***"\n', "admin.token"),
        ('[security]\nsigning_keys = { main = "***" }\n', "security.signing_keys"),
        ('[security]\nsigning_keys = { main = ["whsec_MDEyMzQ1Njc4OWFiY2RlZg==", "***"] }\n', "security.signing_keys"),
    ],
)
def test_mask_is_no_secret(tmp_path: Path, secret: str, name: str) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text(secret)
    with pytest.raises(ConfigError, match=rf"{name}: \*\*\* is a masked value.*put the secret in \(.*postbackd.toml\)"):
        load(str(file), {}, [])


def test_configuration_printed_with_secrets_is_refused_as_a_file_and_one_without_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text(render_toml(load(None, {}, ["ingest.tokens=['a:0123456789abcdef']"])))
    assert "put them in" in file.read_text()
    with pytest.raises(ConfigError, match="masked value"):
        load(str(file), {}, [])
    file.write_text(render_toml(Settings()))
    assert load(str(file), {}, []) == Settings() and "masked" not in file.read_text()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[hosts."a.example"]\nrate = 2\n[hosts."b.example"]\nspeed = 1\n', r'hosts\."b\.example"'),
        ('[hosts."a.example"]\nrate = 2\n[hosts."b.example"]\nrate = "x"\n', r'hosts\."b\.example"\.rate'),
        ("[ingest.senders]\none = { rate = 1 }\ntwo = { rate = 0 }\n", r'ingest\.senders\."two"\.rate'),
        ("[security.signing_keys]\none = 1\n", r'security\.signing_keys\."one"'),
    ],
)
def test_fault_below_a_name_of_ones_own_is_told_with_that_name(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "postbackd.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{name}: .*\(from {file}\)"):
        load(str(file), {}, [])
