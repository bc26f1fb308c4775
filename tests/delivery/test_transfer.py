# SPDX-License-Identifier: MIT
"""Transfers against real targets: results, classes of errors, reuse without leaks, descriptors past 1024."""

import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from postbackd.codec import ErrorClass
from postbackd.delivery.curl_options import CurlOptions, Profile
from postbackd.delivery.egress import Policy
from postbackd.delivery.transfer import Result, Transfers
from postbackd.settings import Delivery
from tests.support.daemon import Sink, free_port, running_sink
from tests.support.gated_target import gated_target
from tests.support.raw_server import Script, raw_server, read_request, reset

BOUND_S = 60
LOOPBACK = Policy(["127.0.0.0/8", "::1/128"], [])


def transfers(policy: Policy = LOOPBACK, max_response_bytes: int = 65_536, in_flight: int = 256) -> Transfers[object]:
    return Transfers(in_flight, max_response_bytes, CurlOptions(Delivery()), policy.verdict)


def finish(subject: Transfers[object]) -> dict[object, Result]:
    """Poll until every transfer has ended."""
    results: dict[object, Result] = {}
    deadline_s = time.monotonic() + BOUND_S
    while subject.in_flight:
        assert time.monotonic() < deadline_s, f"{subject.in_flight} transfers never ended"
        results.update(subject.poll(1000))
    return results


def get(
    subject: Transfers[object],
    url: str,
    timeout_ms: int = 10_000,
    method: str = "GET",
    headers: tuple[bytes, ...] = (),
    body: bytes | None = None,
    resolve: str | None = None,
) -> Result:
    profile = Profile(method, headers, body is not None, timeout_ms)
    subject.start(url, profile, url, body, resolve)
    return finish(subject)[url]


def answer(data: bytes) -> Script:
    def script(client: socket.socket) -> None:
        while read_request(client):
            client.sendall(data)

    return script


def hear(client: socket.socket) -> None:
    read_request(client)


def hear_and_wait(client: socket.socket) -> None:
    read_request(client)
    client.recv(1)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with running_sink(tmp_path_factory.mktemp("sink")) as started:
        yield started


def test_answer_comes_with_status_body_and_timings(sink: Sink) -> None:
    subject = transfers()
    first, second = get(subject, sink.url + "/a"), get(subject, sink.url + "/b")
    assert (first.error, first.status, first.body, first.truncated) == (None, 200, b"ok\n", False)
    assert (first.remote_ip, first.reused, second.reused) == ("127.0.0.1", False, True)
    assert 0 < first.connect_ms <= first.ttfb_ms <= first.total_ms
    assert (second.connect_ms, second.remote_ip) == (0.0, "127.0.0.1")


def test_every_method_and_its_body_arrive(sink: Sink) -> None:
    subject = transfers()
    for number, (method, body) in enumerate(
        [("GET", None), ("POST", b"\x00\xff"), ("HEAD", None), ("PUT", b"x"), ("DELETE", None), ("PATCH", b"y"),
         ("POST", None), ("DELETE", b"z"), ("GET", None)]
    ):  # fmt: skip
        url = f"{sink.url}/method{number}"
        assert get(subject, url, method=method, body=body, headers=(b"X-A: b",)).status == 200
        request = next(request for request in sink.received() if request["url"] == f"/method{number}")
        assert request["method"] == method
        assert request.get("body", "binary") == ("binary" if body == b"\x00\xff" else (body or b"").decode())
        assert request["headers"]["X-A"] == "b"
        assert "Expect" not in request["headers"]


def test_no_option_of_a_request_is_in_the_next(sink: Sink) -> None:
    """One handle takes all of them: the pool has none other."""
    subject = transfers()
    get(subject, sink.url + "/first", method="POST", body=b"secret", headers=(b"X-Secret: s", b"Content-Type: a/b"))
    get(subject, sink.url + "/second")
    get(subject, sink.url + "/third", method="PUT")
    get(subject, sink.url + "/fourth", method="HEAD")
    get(subject, sink.url + "/fifth")
    seen = {request["url"]: request for request in sink.received()}
    for path, method in [("/second", "GET"), ("/third", "PUT"), ("/fourth", "HEAD"), ("/fifth", "GET")]:
        names = set(seen[path]["headers"]) - {"Host", "User-Agent", "Accept", "Content-Length"}
        assert (seen[path]["method"], seen[path]["body"], names) == (method, "", set()), path
    assert len(subject._free) == 1


def test_connect_time_out_of_one_host_is_not_the_next_ones(sink: Sink) -> None:
    """A listener whose backlog is full answers no SYN: how long libcurl waits for it is what the profile says."""
    subject = transfers()
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    full = [socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(4)]
    for client in full:
        client.connect_ex(listener.getsockname())
    deaf, well = f"http://127.0.0.1:{listener.getsockname()[1]}/", sink.url + "/after"
    for connect_ms, timeout_ms, url in [(150, 60_000, deaf), (10_000, 60_000, well), (60_000, 300, deaf)]:
        subject.start(url, Profile("GET", (), False, timeout_ms, connect_ms), url, None)
        result = finish(subject)[url]
        assert result.status == (200 if url == well else None)
        if url == deaf:
            assert result.error is ErrorClass.TIMEOUT
            assert "Connection timed out" in str(result.error_detail)
    for opened in [listener, *full]:
        opened.close()


def test_proxies_from_the_environment_are_ignored(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    assert get(transfers(), sink.url + "/direct").status == 200


def test_redirect_is_an_answer_and_not_followed() -> None:
    with raw_server(
        answer(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    ) as port:
        result = get(transfers(), f"http://127.0.0.1:{port}/")
    assert (result.status, result.error) == (302, None)


def test_long_body_is_cut_and_judged_by_its_status() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    with raw_server(answer(data)) as port:
        result = get(transfers(max_response_bytes=1000), f"http://127.0.0.1:{port}/")
    assert (result.error, result.status, len(result.body), result.truncated) == (None, 200, 1000, True)


def test_body_of_exactly_the_limit_is_whole() -> None:
    with raw_server(answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)) as port:
        result = get(transfers(max_response_bytes=1000), f"http://127.0.0.1:{port}/")
    assert (len(result.body), result.truncated) == (1000, False)


def test_retry_after_is_read() -> None:
    with raw_server(answer(b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n")) as port:
        assert get(transfers(), f"http://127.0.0.1:{port}/").retry_after_s == 7


# Errors


def test_refused_connection() -> None:
    result = get(transfers(), f"http://127.0.0.1:{free_port()}/")
    assert result.error is ErrorClass.CONNECTION_REFUSED
    assert (result.status, result.remote_ip, result.total_ms, result.body) == (None, None, 0.0, b"")


def test_close_without_an_answer_is_a_reset() -> None:
    with raw_server(hear) as port:
        assert get(transfers(), f"http://127.0.0.1:{port}/").error is ErrorClass.CONNECTION_RESET


def test_reset_is_a_reset() -> None:
    def script(client: socket.socket) -> None:
        read_request(client)
        reset(client)

    with raw_server(script) as port:
        assert get(transfers(), f"http://127.0.0.1:{port}/").error is ErrorClass.CONNECTION_RESET


def test_silence_is_a_timeout() -> None:
    with raw_server(hear_and_wait) as port:
        result = get(transfers(), f"http://127.0.0.1:{port}/", timeout_ms=200)
    assert (result.error, result.status) == (ErrorClass.TIMEOUT, None)


def test_silence_on_a_connection_in_use_again_is_a_timeout_with_a_connection() -> None:
    def script(client: socket.socket) -> None:
        read_request(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        hear_and_wait(client)

    with raw_server(script) as port:
        subject, url = transfers(), f"http://127.0.0.1:{port}/"
        assert get(subject, url).status == 200
        result = get(subject, url, timeout_ms=200)
    assert (result.error, result.status) == (ErrorClass.TIMEOUT, None)
    assert (result.reused, result.remote_ip) == (True, "127.0.0.1")
    assert result.total_ms >= 200, "its host is not taken for a fast one"


def test_unfinished_body_at_the_timeout_is_a_timeout() -> None:
    def script(client: socket.socket) -> None:
        read_request(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        client.recv(1)

    with raw_server(script) as port:
        for timeout_ms in (200, 1000, 5000, 25_000):  # until the beginning has come in time
            result = get(transfers(), f"http://127.0.0.1:{port}/", timeout_ms=timeout_ms)
            assert result.error is ErrorClass.TIMEOUT
            if result.body:
                break
    assert (result.status, result.body) == (200, b"abc")


def test_body_cut_short_by_the_server_is_a_network_error() -> None:
    def script(client: socket.socket) -> None:
        read_request(client)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    with raw_server(script) as port:
        assert get(transfers(), f"http://127.0.0.1:{port}/").error is ErrorClass.NETWORK_ERROR


def test_what_is_no_http_is_a_network_error() -> None:
    with raw_server(answer(b"SSH-2.0-OpenSSH\r\n")) as port:
        assert get(transfers(), f"http://127.0.0.1:{port}/").error is ErrorClass.NETWORK_ERROR


def test_no_tls_at_the_other_end_is_a_tls_error() -> None:
    def script(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with raw_server(script) as port:
        assert get(transfers(), f"https://127.0.0.1:{port}/").error is ErrorClass.TLS_ERROR


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "127.1", "[::ffff:127.0.0.1]"]
)
def test_forbidden_address_is_blocked_however_it_is_written(sink: Sink, host: str) -> None:
    before = len(sink.received())
    result = get(transfers(Policy([], [])), f"http://{host}:{sink.port}/blocked")
    assert result.error is ErrorClass.BLOCKED and result.status is None
    assert "not a public address" in (result.error_detail or "")
    assert len(sink.received()) == before


def test_resolved_address_is_used_and_replaced(sink: Sink) -> None:
    subject = transfers()
    url = f"http://name.invalid:{sink.port}/resolved"
    assert get(subject, url, resolve=f"+name.invalid:{sink.port}:127.0.0.1").status == 200
    assert get(subject, url).status == 200
    assert sink.received()[-1]["headers"]["Host"] == f"name.invalid:{sink.port}"


# Many


def test_1500_slow_transfers_in_one_process() -> None:
    """Past descriptor 1024, where select() and fdset end; all are in flight at the same time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.fail(f"this machine allows {hard} descriptors: the test needs 8192 (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
    try:
        with gated_target() as slow:
            subject = transfers(in_flight=1500)
            profile = Profile("GET", (), False, 60_000, 60_000)
            for number in range(1500):
                subject.start(number, profile, f"{slow.url}/{number}", None)
            results: dict[object, Result] = {}
            deadline_s = time.monotonic() + BOUND_S
            while slow.received < 1500:
                assert time.monotonic() < deadline_s, f"only {slow.received} have arrived"
                results.update(subject.poll(100))
            assert results == {}
            assert max(int(name) for name in os.listdir("/proc/self/fd")) > 1024, "all of them are open at once"
            slow.open()
            results = finish(subject)
            assert {(result.error, result.status) for result in results.values()} == {(None, 200)}
            assert len(results) == 1500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_watched_descriptor_ends_the_wait() -> None:
    subject = transfers()
    reader, writer = os.pipe()
    subject.watch(reader)
    subject.poll(0)
    assert not subject.ready
    os.write(writer, b"x")
    subject.poll(60_000)
    assert subject.ready == {reader}
    os.close(reader)
    os.close(writer)
    subject.poll(0)
    assert not subject.ready
