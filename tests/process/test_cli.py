# SPDX-License-Identifier: MIT
"""The command line as a user meets it: one line and an exit code for everything that can go wrong."""

import json
import os
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from postbackd.settings import declarations
from postbackd.tools.settings_doc import page
from tests.support.daemon import POSTBACKD, STOP_BOUND_S, free_port, http, running_daemon, running_sink, wait_until

REPOSITORY = Path(__file__).parents[2]
SAMPLE = {"endpoint": {"method": "GET", "url": "http://127.0.0.1:1/{k}"}, "data": [{"k": 1}]}


def postbackd(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*POSTBACKD, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=STOP_BOUND_S,
        env={**os.environ, **environment},
    )


def settings_for(folder: Path, *more: str) -> list[str]:
    chosen = [f"data_dir={folder}/var", f"log.path={folder}/log", f"ingest.port={free_port()}"]
    chosen += [
        f"queue.port={free_port()}",
        f"admin.port={free_port()}",
        "ingest.workers=1",
        "delivery.workers=1",
        *more,
    ]
    return [part for setting in chosen for part in ("--set", setting)]


def assert_one_line(ended: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line of ours on standard error (events of the log beside it), no traceback, and it says what to do."""
    ours = [line for line in ended.stderr.splitlines() if line.startswith("postbackd: ")]
    assert len(ours) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == code
    for word in words:
        assert word in ours[0], ours[0]


def test_taken_ingest_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = postbackd("run", *settings_for(tmp_path, f"ingest.port={port}"))
    assert_one_line(ended, 1, str(port), "taken", "ingest.port")


def test_make_run_passes_arguments_and_says_how_to_take_another_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = f"--set data_dir={tmp_path}/var --set ingest.port={port}"
        ended = subprocess.run(
            ["make", "run", f"ARGS={given}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=STOP_BOUND_S
        )
    assert_one_line(ended, 2, "taken", f'make run ARGS="{given} --set ingest.port=')


def test_unreachable_redis_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    ended = postbackd("run", *settings_for(tmp_path, f"queue.url=redis://:secret@127.0.0.1:{port}"))
    assert_one_line(ended, 1, f"127.0.0.1:{port}", "queue.url")
    assert "secret" not in ended.stderr


def test_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = postbackd("run", *settings_for(tmp_path, f"log.path={tmp_path}/file/log"))
    assert_one_line(ended, 1, "log.path")


def test_missing_log_folder_is_made(tmp_path: Path) -> None:
    with running_daemon(tmp_path, [f"log.path={tmp_path}/new/folder/log"]):
        wait_until((tmp_path / "new" / "folder" / "log").exists, "a delivery worker has made it")


def test_data_dir_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = postbackd("run", *settings_for(tmp_path, f"data_dir={tmp_path}/file"))
    assert_one_line(ended, 1, "data_dir")


def test_network_that_is_none_is_one_line(tmp_path: Path) -> None:
    ended = postbackd("run", *settings_for(tmp_path, 'security.allow_networks=["10.0.0.1/8"]'))
    assert_one_line(ended, 2, "security.allow_networks", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "--set", "ingest.prot=1"], ["ingest.prot", "ingest.port"]),
        (["config", "--set", "ingest.port=x"], ["ingest.port", "--set ingest.port=x"]),
        (["config", "--set", "ingest.ack=never"], ["ingest.ack", "'never'", "commit, group"]),
        (["config", "--set", 'security.schemes=["ftp"]'], ["security.schemes", "'ftp'", "http, https"]),
        (["config", "--set", "retry.statuses=[700]"], ["retry.statuses", "700"]),
        (["config", "-c", "/nowhere.toml"], ["/nowhere.toml"]),
        (["run", "--roles", "cook"], ["--roles", "ingest"]),
    ],
)
def test_wrong_configuration_is_one_line_and_exit_code_2(arguments: list[str], words: list[str]) -> None:
    assert_one_line(postbackd(*arguments), 2, *words)


def test_environment_and_set_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[ingest]\nport = 1001\nworkers = 7\nmax_items = 5\n")
    arguments = ["config", "-c", str(file), "--set", "ingest.port=1003"]
    found = tomllib.loads(postbackd(*arguments, POSTBACKD_INGEST__PORT="1002", POSTBACKD_INGEST__WORKERS="8").stdout)
    assert (found["ingest"]["port"], found["ingest"]["workers"], found["ingest"]["max_items"]) == (1003, 8, 5)


def test_file_may_be_named_by_the_environment_and_hints_repeat_what_was_given(tmp_path: Path) -> None:
    file, other = tmp_path / "c.toml", tmp_path / "d.toml"
    file.write_text("[ingest]\nmax_items = 5\n")
    other.write_text("[ingest]\nmax_items = 6\n")
    assert "max_items = 5 " in postbackd("config", POSTBACKD_CONFIG=str(file)).stdout
    assert "max_items = 6 " in postbackd("config", "-c", str(other), POSTBACKD_CONFIG=str(file)).stdout
    settings = settings_for(tmp_path, f"admin.port={free_port()}")
    ended = postbackd("status", "-c", str(other), *settings)
    assert f"postbackd run -c {other} --set data_dir={tmp_path}/var" in ended.stderr
    told = postbackd("--help").stdout
    assert "-c FILE" in told and "POSTBACKD_CONFIG" in told and "--set ingest.port=9000" in told


def test_config_prints_every_setting_and_can_be_read_again(tmp_path: Path) -> None:
    printed = postbackd("config").stdout
    found = tomllib.loads(printed)
    for declaration in declarations():
        table = found[declaration.section] if declaration.section else found
        assert table[declaration.name] == declaration.default
    file = tmp_path / "c.toml"
    file.write_text(printed)
    assert postbackd("config", "-c", str(file)).stdout == printed


def test_example_file_is_current_and_dev_file_loads() -> None:
    assert (REPOSITORY / "etc" / "postbackd.toml").read_text() == postbackd("config").stdout


def test_configuration_page_is_what_the_settings_declare() -> None:
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == page(), "run: make config"
    found = postbackd("config", "-c", str(REPOSITORY / "etc" / "dev.toml"))
    assert found.returncode == 0, found.stderr


def test_secrets_are_masked_in_config() -> None:
    printed = postbackd("config", "--set", "queue.url=redis://:geheim@h:7000").stdout
    assert "geheim" not in printed


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    well = postbackd("check", *settings_for(tmp_path))
    assert well.returncode == 0, well.stdout + well.stderr
    assert not [line for line in well.stdout.splitlines() if line.startswith("fail")]
    assert "power cut of the queue server: nothing" in well.stdout
    answer = json.loads(postbackd("check", "--json", *settings_for(tmp_path)).stdout)
    assert answer["ok"] and {"level", "text"} == set(answer["findings"][0])
    assert "power cut of the queue server: nothing" in answer["losses"]
    ill = postbackd("check", *settings_for(tmp_path, f"queue.url=redis://127.0.0.1:{free_port()}"))
    assert ill.returncode == 1
    told = postbackd("check", "--json", *settings_for(tmp_path, f"queue.url=redis://127.0.0.1:{free_port()}"))
    assert (told.returncode, json.loads(told.stdout)["ok"]) == (1, False)
    assert "queue" in next(line for line in ill.stdout.splitlines() if line.startswith("fail"))


def test_check_refuses_admin_off_loopback_without_a_token(tmp_path: Path) -> None:
    port = f"admin.port={free_port()}"
    found = postbackd("check", *settings_for(tmp_path, "admin.host=0.0.0.0", port))
    assert found.returncode == 1 and "set admin.token" in found.stdout
    found = postbackd(
        "check", *settings_for(tmp_path, "admin.host=0.0.0.0", "admin.token=a-token-of-16-characters", port)
    )
    assert "set admin.token" not in found.stdout


def test_check_warns_of_open_doors(tmp_path: Path) -> None:
    def warnings(*settings: str, config: str = "") -> str:
        arguments = settings_for(tmp_path, *settings)
        found = postbackd("check", *(["-c", config] if config else []), *arguments)
        return "\n".join(line for line in found.stdout.splitlines() if line.startswith("warn"))

    assert "ingest.tokens" in warnings("ingest.host=0.0.0.0")
    assert "ingest.tokens" not in warnings("ingest.host=0.0.0.0", 'ingest.tokens=["a-token-that-is-long-enough"]')
    assert "characters" in warnings('ingest.tokens=["short"]')
    assert "10.0.0.0/8" in warnings('security.allow_networks=["10.0.0.0/8"]')
    assert "tls_verify" in warnings("delivery.tls_verify=false")
    for network in ("0.0.0.0/0", "::/0", "8.0.0.0/5", "::ffff:0:0/96"):
        assert network in warnings(f'security.allow_networks=["{network}"]')
    assert "allow_networks" not in warnings('security.allow_networks=["8.8.8.0/24", "2606:4700::/32"]')
    short = 'security.signing_keys={k = "whsec_c2hvcnQ="}'
    assert "signing_keys: k: a secret has under 24 bytes" in warnings(short)
    assert "c2hvcnQ" not in warnings(short)
    (tmp_path / "var").mkdir(mode=0o755)
    file = tmp_path / "c.toml"
    file.write_text('[ingest]\ntokens = ["a-token-that-is-long-enough"]\n')
    file.chmod(0o644)
    found = warnings(config=str(file))
    assert f"{file} can be read or written by others" in found and "var can be read or written by others" in found
    (tmp_path / "var" / "postbackd.pid").touch(0o600)  # or it would count as a folder of others
    (tmp_path / "var" / "secret").touch()
    (tmp_path / "var" / "secret").chmod(0o604)
    (tmp_path / "log.1").touch()
    (tmp_path / "log.1").chmod(0o602)
    found = warnings()
    assert "var/secret can be" in found and "log.1 can be" in found
    (tmp_path / "var").chmod(0o700)
    assert "var" not in warnings(), "whoever cannot enter a folder reads nothing in it"
    file.chmod(0o640)
    assert str(file) not in warnings(config=str(file))


def test_tokens_let_in_and_keep_out(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(SAMPLE))
    tokens = 'ingest.tokens=["tracker:the-secret-of-the-tracker", "another-secret"]'
    with running_daemon(tmp_path / "daemon", [tokens]) as daemon:
        url, body = daemon.url + "/i", json.dumps(SAMPLE).encode()
        plain = {"Content-Type": "application/json"}
        assert http("POST", url, body, plain)[0] == 401
        assert http("POST", url, body, {**plain, "Authorization": "Bearer wrong"})[0] == 403
        for secret in ("the-secret-of-the-tracker", "another-secret"):
            key = {"Idempotency-Key": "same"}  # its scope is the sender
            status, answer = http("POST", url, body, {**plain, **key, "Authorization": f"Bearer {secret}"})
            assert (status, answer["accepted"]) == (202, 1), answer
        assert http("GET", daemon.url + "/ready")[0] == 200
        sent = postbackd("send", str(file), "--set", f"ingest.port={daemon.port}", "--set", tokens)
        assert sent.returncode == 0, sent.stderr
        assert "token_refused" in daemon.output.read_text()
        wait_until(lambda: daemon.log(), "something is tried")
        assert len({line["id"] for line in daemon.log()}) <= 3, "each sender's request once, and that of send"
        assert "the-secret-of-the-tracker" not in daemon.output.read_text()


def test_send_posts_a_file_and_prints_the_ids(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(SAMPLE))
    with running_daemon(tmp_path / "daemon") as daemon:
        sent = postbackd("send", str(file), "--url", daemon.url + "/i")
        assert (sent.returncode, sent.stdout.splitlines()[0]) == (0, "accepted 1")
        as_json = postbackd("send", "-", "--json", "--set", f"ingest.port={daemon.port}", stdin=json.dumps(SAMPLE))
        assert json.loads(as_json.stdout)["accepted"] == 1
        refused = postbackd("send", "-", "--url", daemon.url + "/i", stdin="{}")
        assert refused.returncode == 1
        assert "endpoint" in refused.stderr


def test_send_without_a_daemon_is_one_line() -> None:
    ended = postbackd("send", "-", "--url", f"http://127.0.0.1:{free_port()}/i", stdin="{}")
    assert_one_line(ended, 1, "cannot be reached")
    assert_one_line(postbackd("send", "/nowhere.json"), 1, "/nowhere.json")


def test_sink_fails_and_drops_on_order(tmp_path: Path) -> None:
    import http.client

    def status_of(sink_port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", sink_port, timeout=STOP_BOUND_S)
        try:
            connection.request("POST", "/x", b"body")
            return connection.getresponse().status
        except http.client.HTTPException:
            return 0
        finally:
            connection.close()

    with running_sink(tmp_path / "a", "--fail-rate", "1") as sink:
        assert status_of(sink.port) == 500
    with running_sink(tmp_path / "b", "--drop-rate", "1") as sink:
        assert status_of(sink.port) == 0
        wait_until(lambda: sink.received(), "what is dropped is recorded all the same")
        assert (sink.received()[0]["body"], sink.received()[0]["method"]) == ("body", "POST")
    with running_sink(tmp_path / "c", "--status", "204", "--latency", "0.05") as sink:
        assert status_of(sink.port) == 204


def test_sink_asks_for_a_pause_on_order(tmp_path: Path) -> None:
    import http.client

    for options, expected in [
        (("--retry-after", "7"), (200, None)),
        (("--status", "429", "--retry-after", "7"), (429, "7")),
        (("--fail-rate", "1", "--fail-status", "503", "--retry-after", "36000"), (503, "36000")),
    ]:
        with running_sink(tmp_path / str(expected[0]), *options) as sink:
            connection = http.client.HTTPConnection("127.0.0.1", sink.port, timeout=STOP_BOUND_S)
            connection.request("GET", "/x")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Retry-After")) == expected
            connection.close()


@pytest.mark.parametrize("quiet", [False, True])
def test_sink_shows_each_request_at_once_unless_quiet(tmp_path: Path, quiet: bool) -> None:
    port, shown = free_port(), tmp_path / "shown"
    with shown.open("wb") as output:
        command = [*POSTBACKD, "sink", "--port", str(port), *(["--quiet"] if quiet else [])]
        process = subprocess.Popen(command, stdout=output)
    try:
        wait_until(lambda: "sink listens" in shown.read_text(), "it listens")
        for _ in range(2):
            assert http("POST", f"http://127.0.0.1:{port}/a?k=v", b"four", {"Content-Type": "a/b"})[0] == 200
        if not quiet:
            wait_until(lambda: shown.read_text().count("POST /a?k=v 200, body 4 bytes") == 2, "both are shown")
    finally:
        process.terminate()
        process.wait(STOP_BOUND_S)
    lines = shown.read_text().splitlines()
    assert (len(lines), lines[-1]) == (2 if quiet else 4, "sink received 2 requests")


def test_record_goes_on_behind_what_a_killed_sink_has_torn(tmp_path: Path) -> None:
    """Its next line stood on the torn one: what was delivered first after a restart counted as lost."""
    record = tmp_path / "received.jsonl"
    record.write_bytes(b'{"time":1}\n{"time":2')
    with running_sink(tmp_path) as sink:
        assert http("GET", sink.url)[0] == 200
    first, torn, answered = record.read_bytes().splitlines()
    assert (json.loads(first), torn) == ({"time": 1}, b'{"time":2')
    assert json.loads(answered)["status"] == 200


def test_sink_on_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert_one_line(postbackd("sink", "--port", str(taken.getsockname()[1])), 1, "listen")


def test_demo_shows_the_sample() -> None:
    import sys

    ended = subprocess.run([sys.executable, "-m", "postbackd.tools.demo"], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "/data?key=Phyllobates&value=Terribilis&foo=" in ended.stdout
