# SPDX-License-Identifier: MIT
"""An endpoint's own rule for success, against real answers: what is delivered, retried and dead by it."""

import socket
from pathlib import Path
from typing import Any

import pytest
import redis

from postbackd.codec import ErrorClass, decode_item
from tests.delivery.test_worker import Bench
from tests.support.raw_server import raw_server, read_request

BOTH = {"status": ["2xx", 302], "body_contains": "OK"}


def outcome_of(bench: Bench, rule: dict[str, Any] | None, status: int, body: bytes) -> dict[str, Any]:
    """Send one postback to a target that gives this answer; its log line."""

    def script(client: socket.socket) -> None:
        while read_request(client):
            client.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

    with raw_server(script) as port:
        members = {} if rule is None else {"success": rule}
        bench.enqueue(bench.endpoint(f"http://127.0.0.1:{port}/", **members), {})
        return bench.run_until_settled(1)[-1]


@pytest.mark.parametrize(
    ("rule", "status", "body", "outcome", "reason", "error"),
    [
        (BOTH, 200, b"it is OK", "delivered", None, None),
        (BOTH, 302, b"OK", "delivered", None, None),
        (BOTH, 200, b"ok", "dead", "unexpected_body", "unexpected_body"),
        (BOTH, 204, b"", "dead", "unexpected_body", "unexpected_body"),
        (BOTH, 301, b"OK", "dead", "refused_status", "http_3xx"),
        (BOTH, 503, b"OK", "retry", None, "http_5xx"),
        ({"status": [302]}, 302, b"", "delivered", None, None),
        ({"status": [302]}, 200, b"", "dead", "refused_status", "http_2xx"),
        ({"status": ["5xx"]}, 503, b"", "delivered", None, None),
        ({"body_contains": "é"}, 201, "café".encode(), "delivered", None, None),
        ({"body_contains": "é"}, 201, b"\xff", "dead", "unexpected_body", "unexpected_body"),
        (None, 302, b"OK", "dead", "refused_status", "http_3xx"),
    ],
)
def test_answer_is_judged_by_the_endpoints_rule(
    server: redis.Redis,
    url: str,
    tmp_path: Path,
    rule: dict[str, Any] | None,
    status: int,
    body: bytes,
    outcome: str,
    reason: str | None,
    error: str | None,
) -> None:
    line = outcome_of(Bench(server, url, tmp_path), rule, status, body)
    assert (line["outcome"], line["reason"], line["error"]) == (outcome, reason, error)
    assert line["response_code"] == status


def test_unexpected_body_is_kept_with_its_answer(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path)
    line = outcome_of(bench, {"body_contains": "OK"}, 200, b"FAILED")
    assert line["response_body"] == "FAILED" and line["error_detail"] == "the body does not contain 'OK'"
    [dead] = bench.dead()
    assert decode_item(dead[b"item"]).attempts[0][1] == ErrorClass.UNEXPECTED_BODY


def test_what_was_cut_off_is_not_looked_through(server: redis.Redis, url: str, tmp_path: Path) -> None:
    bench = Bench(server, url, tmp_path, "delivery.max_response_bytes=1000")
    line = outcome_of(bench, {"body_contains": "OK"}, 200, b"x" * 1000 + b"OK")
    assert (line["reason"], line["body_truncated"]) == ("unexpected_body", True)
    assert "what was read of the body (1000 bytes)" in line["error_detail"]
