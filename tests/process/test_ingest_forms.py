# SPDX-License-Identifier: MIT
"""The other forms of a request, and who may send it, on a real daemon: gzip, NDJSON, rates and hosts of senders."""

import gzip
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.daemon import Daemon, Sink, running_daemon, running_sink, wait_until

SETTINGS = [
    'ingest.tokens=["tracker:token-of-the-tracker", "slow:token-of-the-slow", "narrow:token-of-the-narrow"]',
    'ingest.senders={slow={rate=0.01, burst=20}, narrow={hosts=["127.0.0.1", "*.allowed.example"]}}',
    "ingest.workers=3",
]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with running_sink(tmp_path_factory.mktemp("sink")) as started:
        yield started


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), SETTINGS) as started:
        yield started


def post(
    daemon: Daemon, body: bytes, token: str = "token-of-the-tracker", **headers: str
) -> tuple[int, bytes, str | None]:
    """Status, body and Retry-After."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"{daemon.url}/i", body, {"Content-Type": "application/json", "Authorization": f"Bearer {token}", **given}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers["Retry-After"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Retry-After"]


def one(url: str, **data: object) -> bytes:
    return json.dumps({"endpoint": {"method": "GET", "url": url}, "data": data}).encode()


def paths(sink: Sink, prefix: str) -> list[str]:
    return sorted(request["url"] for request in sink.received() if request["url"].startswith(prefix))


def test_gzip_is_unpacked(daemon: Daemon, sink: Sink) -> None:
    body = gzip.compress(one(sink.url + "/gzip?k={k}", k="v"))
    assert post(daemon, body, Content_Encoding="gzip")[0] == 202
    wait_until(lambda: paths(sink, "/gzip") == ["/gzip?k=v"], "it is delivered")


def test_gzip_bomb_is_a_413(daemon: Daemon) -> None:
    status, body, _ = post(daemon, gzip.compress(bytes(100_000_000)), Content_Encoding="gzip")
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


def test_ndjson_is_taken_line_by_line(daemon: Daemon, sink: Sink) -> None:
    lines = [
        one(sink.url + "/line?n={n}", n=1),
        b"",
        b'{"endpoint": 1}',
        one(sink.url + "/line?n={n}", n=2),
        b"{nonsense",
    ]
    status, body, _ = post(daemon, b"\r\n".join(lines), Content_Type="application/x-ndjson")
    answers = [json.loads(line) for line in body.splitlines()]
    assert status == 200
    assert [answer["status"] for answer in answers] == [202, 422, 202, 400]
    assert answers[0]["accepted"] == 1 and len(answers[0]["ids"]) == 1
    wait_until(lambda: paths(sink, "/line") == ["/line?n=1", "/line?n=2"], "both are delivered")


def test_much_ndjson_goes_through_compressed(daemon: Daemon) -> None:
    """More lines than a batch holds, more bytes than a JSON request may have."""
    line = one("http://127.0.0.1:9/many?pad=" + "x" * 300 + "&n={n}", n=1) + b"\n"
    body = gzip.compress(line * 5000, 1)
    status, answers, _ = post(daemon, body, Content_Type="application/x-ndjson", Content_Encoding="gzip")
    assert status == 200
    assert [json.loads(answer)["status"] for answer in answers.splitlines()] == [202] * 5000


def test_idempotency_key_with_ndjson_is_refused(daemon: Daemon, sink: Sink) -> None:
    body = one(sink.url + "/never")
    status, answer, _ = post(daemon, body, Content_Type="application/x-ndjson", Idempotency_Key="k")
    assert (status, json.loads(answer)["error"]["code"]) == (422, "invalid_idempotency_key")


def test_rate_holds_over_all_processes(daemon: Daemon) -> None:
    statuses: list[int] = []
    waits: list[str | None] = []

    def send() -> None:
        for _ in range(10):
            status, _, wait = post(daemon, one("http://127.0.0.1:9/rate"), "token-of-the-slow")
            statuses.append(status)
            waits.append(wait)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {202, 429}
    assert (
        20 <= statuses.count(202) <= 20 + 3
    )  # one more a process may slip in at the same moment; a refill takes 100 s
    assert all(wait is None or int(wait) >= 1 for wait in waits)
    status, answers, _ = post(
        daemon, one("http://127.0.0.1:9/r"), "token-of-the-slow", Content_Type="application/x-ndjson"
    )
    assert (status, json.loads(answers)["status"]) == (200, 429)
    assert post(daemon, one("http://127.0.0.1:9/rate"))[0] == 202  # nobody else is held up


def test_sender_with_hosts_reaches_no_other(daemon: Daemon) -> None:
    token = "token-of-the-narrow"
    assert post(daemon, one("http://127.0.0.1:9/"), token)[0] == 202
    assert post(daemon, one("http://x.allowed.example/"), token)[0] == 202
    status, body, _ = post(daemon, one("http://allowed.example/"), token)
    assert (status, json.loads(body)["error"]["code"], json.loads(body)["error"]["path"]) == (
        403,
        "host_not_allowed",
        "endpoint.url",
    )
    assert post(daemon, one("http://127.0.0.1:9@evil.example/"), token)[0] == 422
