# SPDX-License-Identifier: MIT
"""Signed postbacks on the wire: verified by the receiver's own library, at every attempt, and never sent unsigned."""

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import redis
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from postbackd.codec import ErrorClass, decode_item
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from tests.delivery.test_worker import KEYS, WORKER, Bench
from tests.support.daemon import running_sink
from tests.support.raw_server import raw_server, read_request

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
WITH_KEY = f'security.signing_keys={{k = "{NEW} {OLD}"}}'


def signed(bench: Bench, url: str, **members: Any) -> IngestEndpoint:
    text = json.dumps({"method": "POST", "url": url, "sign": "k", **members}).encode()
    made = compile_endpoint(text, default="", unmatched="empty", allow_host=True, schemes=["http"], signing_keys={"k"})
    bench.server.set(KEYS.endpoint(made.id), made.record)
    return made


def parts(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    return dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:]), body


def test_every_attempt_has_the_same_id_and_a_fresh_time(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, WITH_KEY)
    requests: list[bytes] = []

    def fail_once(client: socket.socket) -> None:
        while request := read_request(client):
            requests.append(request)
            status = b"503 Not Yet" if len(requests) == 1 else b"200 OK"
            client.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    with raw_server(fail_once) as port:
        endpoint = signed(bench, f"http://127.0.0.1:{port}/", retry={"schedule": [1.1]}, headers={"X-Own": "o"})
        sent = bench.enqueue(endpoint, {"k": "é"})
        bench.run_until(lambda: len(bench.log()) == 2, "two attempts")
    (first, body), (second, again) = map(parts, requests)
    assert body == again == b"{}"
    assert first["webhook-id"] == second["webhook-id"] == sent
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    for headers in (first, second):
        assert headers["X-Own"] == "o"
        for secret in (OLD, NEW):
            Webhook(secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(body, {**second, "webhook-timestamp": first["webhook-timestamp"]})


def test_get_is_signed_too(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, WITH_KEY)
    with running_sink(tmp_path / "sink") as sink:
        bench.enqueue(signed(bench, sink.url + "/get?k={k}", method="GET"), {"k": 1})
        bench.run_until_settled(1)
        [request] = sink.received()
    headers = {name.lower(): value for name, value in request["headers"].items()}
    Webhook(NEW).verify("", headers, json_parse=False)


def test_what_cannot_be_signed_waits_and_goes_out_when_the_key_is_back(
    server: redis.Redis, url: str, tmp_path: Path
) -> None:
    with running_sink(tmp_path / "sink") as sink:
        keyless = Bench(server, url, tmp_path)
        keyless.enqueue(signed(keyless, sink.url + "/", retry={"schedule": [3600]}), {})
        [line] = keyless.run_until_settled(1)
        assert (line["outcome"], line["error"], line["response_code"]) == ("retry", "render_error", None)
        assert "security.signing_keys has no 'k'" in line["error_detail"]
        [(item, _)] = keyless.later()
        assert [code for _, code in decode_item(item).attempts] == [ErrorClass.SIGNING_KEY_MISSING]
        assert sink.received() == [], "never unsigned"
        keyless.worker.drain(0, lambda: None, lambda: False)
        server.delete(KEYS.lease(WORKER), KEYS.workers)  # the next worker of this test has its name
        server.zadd(KEYS.later, {item: 0})
        mended = Bench(server, url, tmp_path / "mended", WITH_KEY)
        [line] = mended.run_until_settled(1)
        assert (line["outcome"], line["attempt"]) == ("delivered", 2)
        assert "webhook-signature" in {name.lower() for name in sink.received()[0]["headers"]}


def test_last_attempt_without_the_key_is_a_dead_letter(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path)
    bench.enqueue(signed(bench, "http://127.0.0.1:1/", retry={"max_attempts": 1}), {})
    [line] = bench.run_until_settled(1)
    assert (line["outcome"], line["reason"], line["error"]) == ("dead", "attempts_exhausted", "render_error")
    assert "whsec_" not in bench.log_path.read_text()
