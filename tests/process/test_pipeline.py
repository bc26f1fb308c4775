# SPDX-License-Identifier: MIT
"""A POST at /ingest.php becomes delivered, logged HTTP requests: real processes from end to end."""

import base64
import json
import signal
import subprocess
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from postbackd.codec import accept_ms
from tests.support.daemon import POSTBACKD, Daemon, Sink, free_port, http, running_daemon, running_sink, wait_until

SAMPLE_DATA = [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}]
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
LOG_FIELDS = [
    "time",
    "id",
    "attempt",
    "outcome",
    "reason",
    "method",
    "host",
    "url",
    "response_code",
    "response_time_ms",
    "response_body",
    "body_truncated",
    "error",
    "error_detail",
    "next_attempt_at",
    "timings_ms",
    "remote_ip",
    "endpoint",
    "worker",
]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory):
    with running_sink(tmp_path_factory.mktemp("sink")) as started:
        yield started


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory):
    settings = ["retry.schedule=[0.2]", f'security.signing_keys={{partner = "{SECRET}"}}']
    with running_daemon(tmp_path_factory.mktemp("daemon"), settings) as started:
        yield started


def deliver(daemon: Daemon, request: dict) -> list[str]:
    """Post a request, wait until every one of its ids has left the daemon, return the ids."""
    status, answer = daemon.post(request)
    assert status == 202, answer
    ids = answer["ids"]
    ended = {"delivered", "dead"}
    wait_until(
        lambda: set(ids) <= {line["id"] for line in daemon.log() if line["outcome"] in ended},
        "every postback is delivered or dead",
    )
    return ids


def test_signed_postback_is_verified_by_its_receiver(daemon: Daemon, sink: Sink) -> None:
    for method, path in [("POST", "/signed/post"), ("GET", "/signed/get")]:
        endpoint = {"method": method, "url": sink.url + path, "sign": "partner"}
        [postback_id] = deliver(daemon, {"endpoint": endpoint, "data": {"k": "é"}})
        wait_until(lambda path=path: requests_to(sink, path), "the sink has it")
        [request] = requests_to(sink, path)
        assert request["headers"]["webhook-id"] == postback_id
        Webhook(SECRET).verify(request["body"], request["headers"], json_parse=method == "POST")
    assert SECRET not in daemon.output.read_text() + daemon.log_path.read_text()


def test_signing_key_is_rotated_by_sighup(tmp_path: Path, sink: Sink) -> None:
    """Old, then new and old, then new: a receiver with either secret verifies what is sent in between."""
    new = "whsec_" + base64.b64encode(bytes(32)).decode()
    file = tmp_path / "postbackd.toml"

    def keys(*secrets: str) -> None:
        file.write_text(f"[security]\nsigning_keys = {{ k = {json.dumps(secrets)} }}\n")

    def headers_of_next(path: str) -> dict[str, str]:
        deliver(daemon, {"endpoint": {"method": "POST", "url": sink.url + path, "sign": "k"}, "data": {}})
        wait_until(lambda: requests_to(sink, path), "the sink has it")
        return requests_to(sink, path)[0]["headers"]

    keys(SECRET)
    with running_daemon(tmp_path / "daemon", config=file) as daemon:
        Webhook(SECRET).verify("{}", headers_of_next("/rotated/1"))
        for number, secrets in enumerate([(new, SECRET), (new,)], 1):
            keys(*secrets)
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda n=number: daemon.output.read_text().count("reload_done") == n, "it is reloaded")
            headers = headers_of_next(f"/rotated/{number + 1}")
            assert headers["webhook-signature"].count("v1,") == len(secrets)
            for secret in secrets:
                Webhook(secret).verify("{}", headers)
        output = daemon.output.read_text()
        assert "changed=security.signing_keys" in output
        assert SECRET not in output and new not in output


def lines_of(daemon: Daemon, postback_id: str) -> list[dict]:
    return [line for line in daemon.log() if line["id"] == postback_id]


def requests_to(sink: Sink, path: str) -> list[dict]:
    return [request for request in sink.received() if request["url"].startswith(path)]


def test_sample_is_delivered_and_logged(daemon: Daemon, sink: Sink) -> None:
    url = sink.url + "/data?key={key}&value={value}&foo={bar}"
    status, answer = daemon.post({"endpoint": {"method": "GET", "url": url}, "data": SAMPLE_DATA})
    assert status == 202
    assert answer["accepted"] == 2
    ids = answer["ids"]
    assert all(len(i) == 16 and int(i, 16) > 0 and i == i.lower() for i in ids)
    wait_until(lambda: set(ids) <= set(daemon.delivered_ids()), "both postbacks are delivered")
    wait_until(lambda: len(requests_to(sink, "/data")) == 2, "the sink has recorded both")
    assert sorted((r["method"], r["url"]) for r in requests_to(sink, "/data")) == [
        ("GET", "/data?key=Azureus&value=Dendrobates&foo="),
        ("GET", "/data?key=Phyllobates&value=Terribilis&foo="),
    ]
    line = lines_of(daemon, ids[1])[0]
    assert list(line) == LOG_FIELDS
    assert line["attempt"] == 1
    assert line["outcome"] == "delivered"
    assert line["reason"] is None
    assert line["method"] == "GET"
    assert line["host"] == f"127.0.0.1:{sink.port}"
    assert line["url"] == sink.url + "/data?key=Phyllobates&value=Terribilis&foo="
    assert line["response_code"] == 200
    assert line["response_time_ms"] > 0
    assert line["remote_ip"] == "127.0.0.1"
    assert line["error"] is None
    assert set(line["timings_ms"]) == {"dns", "connect", "tls", "ttfb", "total"}


def test_json_body_arrives_as_it_was_sent(daemon: Daemon, sink: Sink) -> None:
    body = (
        b'{"endpoint": {"method": "post", "url": "%s/json?id={id}", "headers": {"X-Id": "n{id}"}},'
        b' "data": {"id": 12345678901234567890123, "x": [1.50, {"y" : "\\u00e9"}]}}'
    ) % sink.url.encode()
    status, answer = daemon.post(body)
    assert status == 202, answer
    wait_until(lambda: requests_to(sink, "/json"), "the sink has it")
    [request] = requests_to(sink, "/json")
    assert request["method"] == "POST"
    assert request["url"] == "/json?id=12345678901234567890123"
    assert request["body"] == '{"id": 12345678901234567890123, "x": [1.50, {"y" : "\\u00e9"}]}'
    headers = {name.lower(): value for name, value in request["headers"].items()}
    assert headers["content-type"] == "application/json"
    assert headers["x-id"] == "n12345678901234567890123"
    assert "expect" not in headers


def test_form_body_is_sorted_and_encoded(daemon: Daemon, sink: Sink) -> None:
    endpoint = {"method": "POST", "url": sink.url + "/form", "body": "form"}
    deliver(daemon, {"endpoint": endpoint, "data": {"b": "x y&z", "a": 1}})
    wait_until(lambda: requests_to(sink, "/form"), "the sink has it")
    [request] = requests_to(sink, "/form")
    assert request["body"] == "a=1&b=x%20y%26z"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD"])
def test_every_method_is_sent(daemon: Daemon, sink: Sink, method: str) -> None:
    path = f"/method/{method}"
    [postback_id] = deliver(daemon, {"endpoint": {"method": method, "url": sink.url + path}, "data": {"k": 1}})
    assert lines_of(daemon, postback_id)[-1]["outcome"] == "delivered"
    wait_until(lambda: requests_to(sink, path), "the sink has it")
    assert requests_to(sink, path)[0]["method"] == method


def test_refused_connection_is_retried_by_schedule_then_dead(daemon: Daemon) -> None:
    port = free_port()
    endpoint = {
        "method": "GET",
        "url": f"http://127.0.0.1:{port}/",
        "retry": {"max_attempts": 3, "schedule": [0.1]},
    }
    [postback_id] = deliver(daemon, {"endpoint": endpoint, "data": [{}]})
    lines = lines_of(daemon, postback_id)
    assert [(line["attempt"], line["outcome"]) for line in lines] == [(1, "retry"), (2, "retry"), (3, "dead")]
    assert {line["error"] for line in lines} == {"connection_refused"}
    assert lines[0]["next_attempt_at"] > lines[0]["time"]
    assert lines[-1]["reason"] == "attempts_exhausted"
    assert lines[-1]["next_attempt_at"] is None
    assert lines[0]["response_code"] is None
    assert lines[0]["remote_ip"] is None


def test_refused_status_is_dead_at_once(daemon: Daemon, tmp_path: Path) -> None:
    with running_sink(tmp_path, "--status", "404") as refusing:
        [postback_id] = deliver(daemon, {"endpoint": {"method": "GET", "url": refusing.url + "/"}, "data": [{}]})
    [line] = lines_of(daemon, postback_id)
    assert (line["outcome"], line["reason"]) == ("dead", "refused_status")
    said = f"reason=refused_status error=http_4xx status=404 id={postback_id}"
    wait_until(lambda: said in daemon.output.read_text(), "the operational log says so")
    assert (line["response_code"], line["error"]) == (404, "http_4xx")


def test_dead_letter_is_found_replayed_and_delivered(tmp_path: Path) -> None:
    """By the command line, beside a running daemon with an embedded server."""

    def dead(*arguments: str) -> str:
        command = [*POSTBACKD, "dead", *arguments, "--set", f"data_dir={daemon.data_dir}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    port = free_port()
    with running_daemon(tmp_path / "daemon") as daemon:
        endpoint = {"method": "GET", "url": f"http://127.0.0.1:{port}/{{k}}", "retry": {"max_attempts": 1}}
        ids = deliver(daemon, {"endpoint": endpoint, "data": [{"k": 1}, {"k": 2}]})
        wait_until(lambda: ids[0] in dead("list") and ids[1] in dead("list"), "both are dead letters")
        assert json.loads(dead("show", "--json", ids[0]))["reason"] == "attempts_exhausted"
        assert json.loads(dead("replay", "--dry-run", "--json")) == {"replayed": 2, "dry_run": True}
        assert dead("purge", "--dry-run") == "2 would be purged\n"
        assert dead("replay", "--host", f"127.0.0.1:{port}", "--dry-run") == "2 would be replayed\n"
        assert dead("replay", "--host", "elsewhere") == "0 replayed\n"
        sink_process = Sink(tmp_path / "sink", port=port)
        try:
            assert dead("replay", "--id", ids[0]) == "1 replayed\n"
            wait_until(lambda: daemon.delivered_ids() == [ids[0]], "the replayed one is delivered")
        finally:
            sink_process.stop()
        assert lines_of(daemon, ids[0])[-1]["attempt"] == 1
        assert json.loads(dead("purge", "--all", "--json")) == {"purged": 1, "dry_run": False}
        assert dead("list", "--json") == ""


def test_server_error_is_retried_until_it_ends(daemon: Daemon, tmp_path: Path) -> None:
    with running_sink(tmp_path, "--status", "503") as failing:
        endpoint = {"method": "GET", "url": failing.url + "/", "retry": {"max_attempts": 2, "schedule": [0.1]}}
        [postback_id] = deliver(daemon, {"endpoint": endpoint, "data": [{}]})
    lines = lines_of(daemon, postback_id)
    assert [line["outcome"] for line in lines] == ["retry", "dead"]
    assert lines[-1]["error"] == "http_5xx"


def test_private_address_is_blocked_unless_allowed(tmp_path: Path) -> None:
    settings = ["security.allow_networks=[]"]
    with running_daemon(tmp_path / "closed", settings) as closed, running_sink(tmp_path / "sink") as sink:
        request = {"endpoint": {"method": "GET", "url": sink.url + "/"}, "data": [{}]}
        [postback_id] = deliver(closed, request)
        [line] = lines_of(closed, postback_id)
        assert (line["outcome"], line["reason"], line["error"]) == ("dead", "blocked", "blocked")
        assert sink.received() == []


def test_one_bad_item_queues_nothing(daemon: Daemon, sink: Sink) -> None:
    endpoint = {"method": "GET", "url": sink.url + "/strict?k={k}", "unmatched": "fail"}
    status, answer = daemon.post({"endpoint": endpoint, "data": [{"k": 1}, {"other": 2}]})
    assert status == 422
    assert answer["error"]["path"] == "data[1].k"
    deliver(daemon, {"endpoint": {"method": "GET", "url": sink.url + "/after"}, "data": [{}]})
    assert requests_to(sink, "/strict") == []


# ruff: noqa: E501 (the table below reads best with one request a line)
REFUSED = [
    (b"", 400, "empty_body", None),
    (b"{", 400, "malformed_json", None),
    (b'{"endpoint":{},"data":[]}x', 400, "malformed_json", None),
    (b'\xef\xbb\xbf{"endpoint":{},"data":[{}]}', 400, "malformed_json", None),
    (b'{"endpoint":{},"data":[{"a":1e999}]}', 400, "malformed_json", None),
    (b'{"endpoint":{"method":1,"timeout":1e999},"data":[{}]}', 400, "malformed_json", None),
    (b'{"endpoint":{"headers":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b'},"data":[{}]}', 400, "malformed_json", None),
    (b'{"endpoint":{},"data":[{"a":"\\ud800"}]}', 400, "malformed_json", None),
    (b'{"endpoint":{},"data":[{"a":"\xff"}]}', 400, "malformed_json", None),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":' + b"[" * 70 + b"]" * 70 + b"}", 400, "malformed_json", None),
    (b"[" * 100_000 + b"]" * 100_000, 400, "malformed_json", None),
    (b'{"data":[{}]}', 422, "missing_member", "endpoint"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"}}', 422, "missing_member", "data"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[]}', 422, "empty_data", "data"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[1]}', 422, "invalid_type", "data[0]"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[{}],"dtaa":1}', 422, "unknown_member", "dtaa"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[{"@":1}]}', 422, "invalid_type", "data[0].@"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[{},{"@":{"delay":-1}}]}', 422, "invalid_value", "data[1].@.delay"),
    (b'{"endpoint":{"method":"GET","url":"http://a/"},"data":[{}],"delay":2500000}', 422, "too_far_ahead", "delay"),
    (b'{"endpoint":{"method":"GET","url":"http://a/","sign":"k"},"data":[{}]}', 422, "unknown_signing_key", "endpoint.sign"),
    (b'{"endpoint":{"method":"GET","url":"http://a/","success":{}},"data":[{}]}', 422, "invalid_value", "endpoint.success"),
    (b'{"endpoint":{"method":"BREW","url":"http://a/"},"data":[{}]}', 422, "invalid_method", "endpoint.method"),
    (b'{"endpoint":{"method":"GET","url":"ftp://a/"},"data":[{}]}', 422, "invalid_url", "endpoint.url"),
    (b'{"endpoint":{"method":"GET","url":"http://u:p@a/"},"data":[{}]}', 422, "invalid_url", "endpoint.url"),
    (b'{"endpoint":{"method":"GET","url":"http://a/{k"},"data":[{}]}', 422, "invalid_template", "endpoint.url"),
    (b'{"endpoint":{"method":"GET","url":"http://a/","nope":1},"data":[{}]}', 422, "unknown_member", "endpoint.nope"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "path"), REFUSED)
def test_bad_request_gets_its_clear_error(
    daemon: Daemon, body: bytes, status: int, code: str, path: str | None
) -> None:
    got_status, answer = daemon.post(body)
    assert (got_status, answer["error"]["code"]) == (status, code), answer
    assert answer["error"].get("path") == path, answer
    assert answer["error"]["message"]


def test_too_large_requests_are_refused(daemon: Daemon) -> None:
    endpoint = {"method": "GET", "url": "http://a/"}
    assert daemon.post({"endpoint": endpoint, "data": [{}] * 1001})[0] == 413
    assert daemon.post({"endpoint": endpoint, "data": [{"k": "x" * (1 << 20)}]})[0] == 413


def test_wrong_type_path_and_method_are_refused(daemon: Daemon) -> None:
    url = daemon.url + "/ingest.php"
    body = json.dumps({"endpoint": {"method": "GET", "url": "http://a/"}, "data": [{}]}).encode()
    assert http("POST", url, body, {"Content-Type": "text/plain"})[0] == 415
    assert http("POST", url, body, {"Content-Type": "application/json", "Content-Encoding": "br"})[0] == 415
    for method, path in (("GET", "/ingest.php"), ("OPTIONS", "/i"), ("OPTIONS", "/health"), ("PUT", "/ready")):
        status, answer = http(method, daemon.url + path)
        assert (status, answer["error"]["code"]) == (405, "method_not_allowed")
    status, answer = http("POST", daemon.url + "/nowhere", body)
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_idempotency_key_enqueues_once(daemon: Daemon, sink: Sink) -> None:
    def post(body: bytes, key: str) -> tuple[int, dict]:
        return http("POST", daemon.url + "/i", body, {"Content-Type": "application/json", "Idempotency-Key": key})

    body = b'{"endpoint": {"method": "GET", "url": "%s/once?k={k}"}, "data": [{"k": 1}, {"k": 2}]}' % sink.url.encode()
    status, first = post(body, "order 66")
    assert status == 202
    reordered = json.dumps(dict(reversed(json.loads(body).items())), indent=2).encode()
    assert post(body, "order 66") == post(reordered, "order 66") == (202, first)
    status, answer = post(body.replace(b"2", b"3"), "order 66")
    assert (status, answer["error"]["code"]) == (409, "idempotency_conflict")
    status, other = post(body, "order 67")
    assert status == 202 and not set(other["ids"]) & set(first["ids"])
    for wrong in ("", "x" * 256, "t\u00e9"):
        status, answer = post(body, wrong)
        assert (status, answer["error"]["code"]) == (422, "invalid_idempotency_key"), wrong
    wanted = {*first["ids"], *other["ids"]}
    wait_until(lambda: wanted <= set(daemon.delivered_ids()), "all are delivered")
    wait_until(lambda: len(requests_to(sink, "/once")) >= 4, "the sink has them")
    assert len(requests_to(sink, "/once")) == 4


def test_postback_waits_for_its_time_and_expires_by_its_own(daemon: Daemon, sink: Sink) -> None:
    endpoint = {"method": "POST", "url": sink.url + "/timed?id={@id}"}
    own = {"endpoint": endpoint, "data": [{"n": 1, "@": {"delay": 0}}, {"n": 2}], "delay": 3600}
    status, answer = daemon.post(own)
    assert status == 202, answer
    wait_until(lambda: answer["ids"][0] in daemon.delivered_ids(), "its own delay goes before the request's")
    waiting = answer["ids"][1]
    items = [{"n": 10**30}, {"n": 3, "@": {"delay": 1.5, "expires_after": 90}}]
    status, answer = daemon.post({"endpoint": endpoint, "data": items, "delay": 1, "expires_after": 60})
    assert status == 202, answer
    wait_until(lambda: set(answer["ids"]) <= set(daemon.delivered_ids()), "all are delivered")
    arrived = {request["url"].split("id=")[1]: request for request in sink.received() if "/timed" in request["url"]}
    # By the sink's clock: a worker's own is behind the server's, which says what is due, by what an answer took.
    after_ms = [arrived[text]["time"] * 1000 - accept_ms(int(text, 16)) for text in answer["ids"]]
    assert after_ms[0] >= 1000 and after_ms[1] >= 1500, after_ms
    assert [json.loads(arrived[text]["body"]) for text in answer["ids"]] == [{"n": 10**30}, {"n": 3}]
    assert waiting not in arrived
    unheard = {"method": "GET", "url": f"http://127.0.0.1:{free_port()}/", "retry": {"schedule": [5]}}
    status, answer = daemon.post({"endpoint": unheard, "data": {}, "expires_after": 0.5})
    assert status == 202
    wait_until(lambda: [line for line in daemon.log() if line["id"] == answer["ids"][0]], "it is tried")
    [line] = [line for line in daemon.log() if line["id"] == answer["ids"][0]]
    assert (line["outcome"], line["reason"]) == ("dead", "expired"), "its retry would fall past its expiry"


def test_short_path_is_the_same(daemon: Daemon, sink: Sink) -> None:
    body = json.dumps({"endpoint": {"method": "GET", "url": sink.url + "/short"}, "data": {}}).encode()
    status, answer = http("POST", daemon.url + "/i", body, {"Content-Type": "application/json; charset=utf-8"})
    assert (status, answer["accepted"]) == (202, 1)
    wait_until(lambda: requests_to(sink, "/short"), "the sink has it")


def test_health_and_ready_answer(daemon: Daemon) -> None:
    assert http("GET", daemon.url + "/health")[0] == 200
    assert http("GET", daemon.url + "/ready") == (200, {"ready": True, "reasons": []})
    assert http("HEAD", daemon.url + "/health") == http("HEAD", daemon.url + "/ready") == (200, "")
