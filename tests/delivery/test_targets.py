# SPDX-License-Identifier: MIT
"""Where a postback may go: every way known to point one at the inside of a network, against the real worker.

Each attempt goes through a real queue, the worker, libcurl and real sockets; listeners on loopback stand for the inside
and count whoever connects. The same spellings reach them where the address is allowed, so a pass is no accident.
docs/security.md shows the table: `python -m tests.delivery.test_targets` prints it.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from postbackd import codec
from postbackd.codec import BodyTemplate, EndpointRecord
from postbackd.delivery.resolver import KEPT_MS, STALE_MS
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.errors import RequestError
from tests.delivery.test_worker import KEYS, Bench
from tests.support.daemon import free_port
from tests.support.dns_server import name_server
from tests.support.raw_server import read_request

CLOSED = "security.allow_networks=[]"
SECOND_ONLY = 'security.allow_networks=["127.0.0.2/32"]'

# Addresses of the inside, as people write them. Where it is loopback, the same URL is delivered once that is allowed.
WRITTEN = [
    ("IPv4", "127.0.0.1"),
    ("IPv4, this network", "0.0.0.0"),
    ("IPv4, private", "10.0.0.1"),
    ("IPv4, private", "172.16.0.1"),
    ("IPv4, private", "192.168.0.1"),
    ("IPv4, carrier-grade NAT", "100.64.0.1"),
    ("IPv4, link-local: cloud metadata", "169.254.169.254"),
    ("IPv4, multicast", "224.0.0.1"),
    ("IPv4, broadcast", "255.255.255.255"),
    ("IPv4 as one number", "2130706433"),
    ("IPv4 in hex", "0x7f000001"),
    ("IPv4 in octal", "017700000001"),
    ("IPv4 with hex parts", "0x7f.0.0.0x1"),
    ("IPv4 with octal parts", "0177.0.0.01"),
    ("IPv4 with parts left out", "127.1"),
    ("IPv4 as 0", "0"),
    ("IPv4 with a dot at its end", "127.0.0.1."),
    ("IPv4 in full-width digits", "\uff11\uff12\uff17.\uff10.\uff10.\uff11"),
    ("IPv4 with ideographic dots", "127\u30020\u30020\u30021"),
    ("IPv6 loopback", "[::1]"),
    ("IPv6 loopback, written out", "[0:0:0:0:0:0:0:1]"),
    ("IPv6, unspecified", "[::]"),
    ("IPv4 mapped", "[::ffff:127.0.0.1]"),
    ("IPv4 mapped, in hex", "[::ffff:7f00:1]"),
    ("IPv4 compatible", "[::127.0.0.1]"),
    ("NAT64", "[64:ff9b::127.0.0.1]"),
    ("NAT64, local", "[64:ff9b:1::7f00:1]"),
    ("6to4", "[2002:7f00:1::]"),
    ("Teredo", "[2001:0:7f00:1::]"),
    ("IPv6, unique local", "[fd00::1]"),
    ("IPv6, link-local", "[fe80::1]"),
    ("IPv6, site-local", "[fec0::1]"),
    ("IPv6, multicast", "[ff02::1]"),
    ("IPv6, documentation", "[2001:db8::1]"),
    ("the name localhost", "localhost"),
]
REACHES_LOOPBACK = {
    "127.0.0.1", "2130706433", "0x7f000001", "017700000001", "0x7f.0.0.0x1", "0177.0.0.01", "127.1", "127.0.0.1.",
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127\u30020\u30020\u30021", "localhost",
}  # fmt: skip

# What a name says, and what comes of it where only 127.0.0.2 is allowed. Zone: one list of addresses a look-up.
NAMES: list[tuple[str, str, list[list[str]], str]] = [
    ("name of a forbidden address", "one.test", [["127.0.0.1"]], "blocked"),
    ("name of forbidden addresses", "all.test", [["127.0.0.1", "10.0.0.1", "::1"]], "blocked"),
    ("alias of a forbidden name", "alias.test", [["one.test"]], "blocked"),
    ("name of a mapped address", "mapped.test", [["::ffff:127.0.0.1"]], "blocked"),
    ("name of a NAT64 address", "nat64.test", [["64:ff9b::7f00:1"]], "blocked"),
    ("name of the metadata service", "metadata.test", [["169.254.169.254"]], "blocked"),
    ("name of several, the forbidden one first", "first.test", [["127.0.0.1", "127.0.0.2"]], "delivered"),
    ("name of several, the forbidden one last", "last.test", [["127.0.0.2", "127.0.0.1"]], "delivered"),
    ("name that changes behind the look-up", "rebinding.test", [["127.0.0.2"], ["127.0.0.1"]], "delivered"),
]

# Refused at ingest with a 422, and dead as `blocked` when such a record stands in Redis all the same.
FORGED: list[tuple[str, dict[str, Any]]] = [
    ("user name in the URL", {"url": "http://u@127.0.0.1:{port}/"}),
    ("user name and password", {"url": "http://u:p@127.0.0.1:{port}/"}),
    ("another host behind an @", {"url": "http://example.com@127.0.0.1:{port}/"}),
    ("another host behind a backslash", {"url": "http://example.com\\@127.0.0.1:{port}/"}),
    ("scheme file", {"url": "file:///etc/passwd"}),
    ("scheme gopher", {"url": "gopher://127.0.0.1:{port}/_x"}),
    ("scheme ftp", {"url": "ftp://127.0.0.1:{port}/"}),
    ("scheme dict", {"url": "dict://127.0.0.1:{port}/x"}),
    ("no scheme", {"url": "//127.0.0.1:{port}/"}),
    ("line break in the URL", {"url": "http://127.0.0.1:{port}/\r\nX: y"}),
    ("NUL in the URL", {"url": "http://127.0.0.1:{port}/\x00"}),
    ("tab in the host", {"url": "http://127.0.\t0.1:{port}/"}),
    ("space in the URL", {"url": "http://127.0.0.1:{port}/ HTTP/1.1"}),
    ("fragment", {"url": "http://127.0.0.1:{port}/#@example.com"}),
    ("zone id", {"url": "http://[fe80::1%25eth0]:{port}/"}),
    ("port 0", {"url": "http://127.0.0.1:0/"}),
    ("port beyond 65535", {"url": "http://127.0.0.1:65536/"}),
    ("line break in a header", {"headers": {"X": "a\r\nHost: inside"}}),
    ("line break in a header's name", {"headers": {"X: a\r\nHost": "inside"}}),
    ("header Host", {"headers": {"Host": "inside"}}),
    ("header Transfer-Encoding", {"headers": {"Transfer-Encoding": "chunked"}}),
    ("header Content-Length", {"headers": {"Content-Length": "0"}}),
    ("header Proxy-Authorization", {"headers": {"Proxy-Authorization": "x"}}),
    ("line break in the method", {"method": "GET / HTTP/1.1\r\nX: y"}),
    ("method CONNECT", {"method": "CONNECT"}),
    ("line break in the content type", {"body": {"template": "x", "content_type": "a/b\r\nX: y"}, "method": "POST"}),
]

OTHERS = [
    ("redirect to the inside", "302 with `Location: http://127.0.0.1/`", "not followed: dead, `refused_status`"),
    ("proxy from the environment", "`http_proxy`, `https_proxy`, `ALL_PROXY`", "ignored: connected to the target"),
    ("look-up that was fooled", "an answer that the policy did not see", "`blocked` when the socket is opened"),
    ("answer kept past its time", "the name is looked up again, and forbidden by now", "`blocked`"),
    ("`Alt-Svc` of an answer", "the target names another address for itself", "ignored"),
    ("scheme that is forbidden by now", '`security.schemes = ["https"]`, a stored http record', "`blocked`"),
    ("allowed and denied", "a network in `allow_networks` and in `deny_networks`", "delivered: allow wins"),
    ("denied public address", "8.8.8.8 in `deny_networks`", "`blocked`"),
]


def table() -> str:
    """The table as docs/security.md has it."""
    rows = ["| attempt | written as | what happens |", "|---|---|---|"]
    rows += [f"| {what} | `http://{host}/` | `blocked` |" for what, host in WRITTEN]
    for what, name, zone, outcome in NAMES:
        answers = ", then ".join(" ".join(answer) for answer in zone)
        ends = "`blocked`" if outcome == "blocked" else "only 127.0.0.2, which is allowed, is connected to"
        rows.append(f"| {what} | `{name}` → {answers} | {ends} |")
    for what, members in FORGED:
        written = json.dumps(next(iter(members.values())), ensure_ascii=False).replace("{port}", "80")
        rows.append(f"| {what} | `{written}` | 422 at ingest; `blocked` when it was forged |")
    rows += [f"| {what} | {how} | {ends} |" for what, how, ends in OTHERS]
    return "\n".join(rows) + "\n"


class Inside:
    """Listeners on one port of several loopback addresses, that answer 200 and count."""

    def __init__(self, *addresses: str, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") -> None:
        self.connections: list[str] = []
        self.requests: list[bytes] = []
        self._answer = answer
        self._listeners: list[socket.socket] = []
        self.port = 0
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, self.port), family=family)
            self.port = listener.getsockname()[1]
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, address), daemon=True).start()

    def _accept(self, listener: socket.socket, address: str) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections.append(address)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while request := read_request(client):
                    self.requests.append(request)
                    client.sendall(self._answer)
            except OSError:
                return

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@contextmanager
def inside(*addresses: str, **options: Any) -> Iterator[Inside]:
    found = Inside(*addresses, **options)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def loopback() -> Iterator[Inside]:
    with inside("127.0.0.1", *(["::1"] if has_ipv6() else [])) as found:
        yield found


def send(bench: Bench, urls: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Queue one postback a URL and wait for all; their log lines by what the URLs are called."""
    names = {bench.enqueue(bench.endpoint(url), {}, number): what for number, (what, url) in enumerate(urls.items())}
    return {names[line["id"]]: line for line in bench.run_until_settled(len(urls))}


def verdict(line: dict[str, Any]) -> tuple[str, str | None, str | None]:
    return line["outcome"], line["reason"], line["error"]


BLOCKED = ("dead", "blocked", "blocked")


def test_no_spelling_of_an_inner_address_is_connected_to(
    server: redis.Redis, url: str, tmp_path: Path, loopback: Inside
) -> None:
    bench = Bench(server, url, tmp_path, CLOSED, "delivery.per_host=1000")
    lines = send(bench, {host: f"http://{host}:{loopback.port}/" for _, host in WRITTEN})
    assert {host: verdict(line) for host, line in lines.items()} == {host: BLOCKED for _, host in WRITTEN}
    for line in lines.values():
        assert (line["remote_ip"], line["response_code"]) == (None, None)
        assert "security.allow_networks can allow it" in line["error_detail"]
    assert loopback.connections == []


def test_the_same_spellings_are_delivered_where_the_address_is_allowed(
    server: redis.Redis, url: str, tmp_path: Path, loopback: Inside
) -> None:
    """Else the test above would pass with a listener that nobody can reach."""
    hosts = set(REACHES_LOOPBACK) | ({"[::1]", "[0:0:0:0:0:0:0:1]"} if has_ipv6() else set())
    bench = Bench(server, url, tmp_path, 'security.allow_networks=["127.0.0.0/8", "::1/128"]')
    lines = send(bench, {host: f"http://{host}:{loopback.port}/" for host in hosts})
    assert {host: line["outcome"] for host, line in lines.items()} == dict.fromkeys(hosts, "delivered")


def test_a_name_is_judged_by_the_addresses_it_has(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = {name: answers for _, name, answers, _ in NAMES}
    with inside("127.0.0.1", "127.0.0.2") as targets, name_server(zone, monkeypatch) as names:
        bench = Bench(server, url, tmp_path, SECOND_ONLY)
        lines = send(bench, {name: f"http://{name}:{targets.port}/" for name in zone})
        for _, name, _, outcome in NAMES:
            assert (lines[name]["outcome"], lines[name]["reason"]) == (
                ("dead", "blocked") if outcome == "blocked" else ("delivered", None)
            ), name
        reached = sum(outcome == "delivered" for *_, outcome in NAMES)
        assert targets.connections == ["127.0.0.2"] * reached
        assert {line["remote_ip"] for line in lines.values() if line["outcome"] == "delivered"} == {"127.0.0.2"}
        assert names.asked["rebinding.test A"] == 1, "libcurl looked nothing up: it connects to what was judged"


def test_a_name_that_is_forbidden_at_the_next_look_up_is_blocked(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = {"rebinding.test": [["127.0.0.2"], ["127.0.0.1"]]}
    with inside("127.0.0.1", "127.0.0.2") as targets, name_server(zone, monkeypatch):
        bench = Bench(server, url, tmp_path, SECOND_ONLY)
        endpoint = bench.endpoint(f"http://rebinding.test:{targets.port}/")
        bench.enqueue(endpoint, {}, 1)
        assert bench.run_until_settled(1)[0]["outcome"] == "delivered"
        answers = bench.worker._names._resolver._answers
        old_ms = answers["rebinding.test"].looked_up_ms - KEPT_MS - STALE_MS - 1
        answers["rebinding.test"] = answers["rebinding.test"]._replace(looked_up_ms=old_ms)
        bench.enqueue(endpoint, {}, 2)
        assert verdict(bench.run_until_settled(2)[1]) == BLOCKED
        assert targets.connections == ["127.0.0.2"]


def test_a_look_up_that_was_fooled_is_caught_when_the_socket_is_opened(
    server: redis.Redis, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inside("127.0.0.1") as targets, name_server({"fooled.test": [["127.0.0.1"]]}, monkeypatch):
        bench = Bench(server, url, tmp_path, CLOSED)
        monkeypatch.setattr(bench.worker._names._resolver, "_verdict", lambda _address: None)
        [line] = send(bench, {"fooled": f"http://fooled.test:{targets.port}/"}).values()
        assert verdict(line) == BLOCKED
        assert "127.0.0.1 is not a public address" in line["error_detail"]
        assert targets.connections == []


@pytest.mark.parametrize(("what", "members"), FORGED, ids=[what for what, _ in FORGED])
def test_what_ingest_refuses_is_blocked_when_it_was_forged(
    server: redis.Redis, url: str, tmp_path: Path, loopback: Inside, what: str, members: dict[str, Any]
) -> None:
    endpoint = {"method": "GET", "url": "http://127.0.0.1:{port}/", **members}
    endpoint["url"] = endpoint["url"].replace("{port}", str(loopback.port))
    with pytest.raises(RequestError) as caught:
        compile_endpoint(
            json.dumps(endpoint).encode(), default="", unmatched="empty", allow_host=False, schemes=["http", "https"]
        )
    assert caught.value.status == 422
    body = endpoint.get("body", "none")
    record = EndpointRecord(
        method=endpoint["method"],
        url=endpoint["url"],
        headers=tuple(endpoint.get("headers", {}).items()),
        body=body if isinstance(body, str) else BodyTemplate(**body),
    )
    bench = Bench(server, url, tmp_path)  # loopback is allowed: the record alone is at fault
    forged = codec.encode_record(record)
    server.set(KEYS.endpoint(codec.endpoint_id(forged)), forged)
    server.rpush(KEYS.ready, codec.encode_element(codec.endpoint_id(forged), 1 << 62, []))
    [line] = bench.run_until_settled(1)
    assert verdict(line) == BLOCKED, line
    assert loopback.connections == []


def test_forged_numbers_stop_no_worker(server: redis.Redis, url: str, tmp_path: Path, loopback: Inside) -> None:
    bench = Bench(server, url, tmp_path)
    plain = codec.decode_record(bench.endpoint(f"http://127.0.0.1:{loopback.port}/").record)
    for timeout in (1e300, -1.0, float("nan"), float("inf"), 0.0):
        forged = codec.encode_record(msgspec.structs.replace(plain, timeout=timeout))
        server.set(KEYS.endpoint(codec.endpoint_id(forged)), forged)
        server.rpush(KEYS.ready, codec.encode_element(codec.endpoint_id(forged), 1 << 62, []))
    posting = bench.endpoint(f"http://127.0.0.1:{loopback.port}/", method="POST")
    server.rpush(KEYS.ready, codec.encode_element(posting.id, 1 << 62, [5]))
    lines = bench.run_until_settled(6)
    assert sorted(line["reason"] for line in lines) == ["blocked"] * 5 + ["render_error"]
    assert loopback.connections == []


def test_redirects_are_not_followed(server: redis.Redis, url: str, tmp_path: Path, loopback: Inside) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % loopback.port
    with inside("127.0.0.2", answer=answer) as target:
        [line] = send(Bench(server, url, tmp_path), {"a": f"http://127.0.0.2:{target.port}/"}).values()
    assert verdict(line) == ("dead", "refused_status", "http_3xx")
    assert loopback.connections == []


def test_alternatives_that_an_answer_names_are_ignored(
    server: redis.Redis, url: str, tmp_path: Path, loopback: Inside
) -> None:
    answer = (
        b'HTTP/1.1 200 OK\r\nAlt-Svc: h2="127.0.0.1:%d"; ma=3600\r\n'
        b"Strict-Transport-Security: max-age=3600\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % loopback.port
    )
    with inside("127.0.0.2", answer=answer) as target:
        bench = Bench(server, url, tmp_path)
        for number in (1, 2):
            bench.enqueue(bench.endpoint(f"http://127.0.0.2:{target.port}/{number}"), {}, number)
            assert bench.run_until_settled(number)[-1]["outcome"] == "delivered"
        assert len(target.connections) == 2
    assert loopback.connections == []


def test_proxies_of_the_environment_are_ignored(
    server: redis.Redis, url: str, tmp_path: Path, loopback: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{loopback.port}")
    with inside("127.0.0.2") as target:
        [line] = send(Bench(server, url, tmp_path), {"a": f"http://127.0.0.2:{target.port}/"}).values()
        assert (line["outcome"], line["remote_ip"]) == ("delivered", "127.0.0.2")
        assert len(target.connections) == 1
    assert loopback.connections == []


def test_stored_scheme_is_judged_again(server: redis.Redis, url: str, tmp_path: Path, loopback: Inside) -> None:
    bench = Bench(server, url, tmp_path, 'security.schemes=["https"]')
    [line] = send(bench, {"a": f"http://127.0.0.1:{loopback.port}/"}).values()
    assert verdict(line) == BLOCKED and "security.schemes" in line["error_detail"]
    assert loopback.connections == []


def test_allow_wins_over_deny(server: redis.Redis, url: str, tmp_path: Path) -> None:
    settings = 'security.deny_networks=["127.0.0.0/8", "8.8.8.0/24"]', 'security.allow_networks=["127.0.0.3/32"]'
    with ExitStack() as stack:
        targets = stack.enter_context(inside("127.0.0.1", "127.0.0.3"))
        urls = {host: f"http://{host}:{targets.port}/" for host in ("127.0.0.1", "127.0.0.3", "8.8.8.8")}
        lines = send(Bench(server, url, tmp_path, *settings), urls)
        assert verdict(lines["127.0.0.3"]) == ("delivered", None, None)
        assert verdict(lines["127.0.0.1"]) == verdict(lines["8.8.8.8"]) == BLOCKED
        assert "deny_networks" in lines["8.8.8.8"]["error_detail"]
        assert targets.connections == ["127.0.0.3"]


def test_refused_postback_keeps_its_record(server: redis.Redis, url: str, tmp_path: Path) -> None:
    """A dead letter can be replayed once the network is allowed."""
    bench = Bench(server, url, tmp_path, CLOSED)
    endpoint: IngestEndpoint = bench.endpoint(f"http://127.0.0.1:{free_port()}/")
    bench.enqueue(endpoint, {})
    bench.run_until_settled(1)
    assert [dead[b"record"] for dead in bench.dead()] == [endpoint.record]


def test_the_documentation_has_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert table() in page, "run: python -m tests.delivery.test_targets, and put what it prints into docs/security.md"


if __name__ == "__main__":
    print(table(), end="")
