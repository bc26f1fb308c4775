# SPDX-License-Identifier: MIT
"""A real Cluster: every shard at its node, redirections, failovers, keys outside the shards."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.failover_parts.cluster import ClusterGroup, cluster_group
from bench.failover_parts.servers import PASSWORD
from postbackd.clock import Clock
from postbackd.errors import QueueUnavailableError
from postbackd.queue import cluster, set_up_anew
from postbackd.queue.check import Finding, check_server, persistence_of, replicas_of
from postbackd.queue.cluster import ClusterRoute, Map, slot_of
from postbackd.queue.dead_letters import DeadLetters
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.figures import FigureReader, QueueFigures
from postbackd.queue.find import Finder
from postbackd.queue.idle_wait import IdleWait
from postbackd.queue.keys import Keys
from postbackd.queue.lease_client import LeaseClient
from postbackd.queue.link import Link
from postbackd.queue.route import route_to
from postbackd.queue.worker_number import WorkerNumber
from postbackd.queue_url import Node, parse_queue_url
from postbackd.scoreboard import monotonic_ms
from postbackd.settings import Queue
from tests.support.daemon import free_port, wait_until

EID, RECORD = bytes(8), b"record"
SHARDS = 3


@pytest.fixture(scope="module")
def group() -> Iterator[ClusterGroup]:
    with cluster_group(3, replicas=True, node_timeout_ms=15_000) as made:  # failovers on order only
        yield made


def fresh_route(group: ClusterGroup) -> ClusterRoute:
    return ClusterRoute(parse_queue_url(group.url))


def link_to(url: str, shard: int) -> Link:
    link = Link(url, Clock(), lambda: None, shard=shard)
    link.on_away = link.come_back
    return link


def test_slots_are_those_of_the_servers(group: ClusterGroup) -> None:
    assert slot_of(b"123456789") == 0x31C3
    for shard in range(20):
        key = Keys("pb", shard).ready
        assert group.nodes[0].client.execute_command("CLUSTER", "KEYSLOT", key) == slot_of(b"%d" % shard)


def test_every_part_finds_its_shards_node_also_after_its_slot_has_moved(group: ClusterGroup) -> None:
    keys = Keys("pb", 1)
    enqueuer = Enqueuer(link_to(group.url, 1), keys, 1000, Durability(Queue(url=group.url)))
    lease = LeaseClient(group.url, keys, "n.0.aa", 30_000, Clock(), lambda: None)
    wait = IdleWait(group.url, keys)
    before = group.owner(1)
    enqueuer.enqueue(EID, RECORD, [b"a", b"b"])
    assert before.client.llen(keys.ready) == 2
    assert lease.connect(monotonic_ms()) and lease.send(1)
    claim = lease.wait()
    assert claim is not None and claim.items == [(0, b"a")]
    assert wait.arm(10)
    wait_until(wait.receive, "the wait is over")
    group.move(1, group.owner(0))
    after = group.owner(1)
    assert after is not before
    enqueuer.enqueue(EID, RECORD, [b"c"])  # MOVED: certainly not run, so tried again where it is now
    lease.settle(0)

    def exchanged() -> bool:
        if not lease.connect(monotonic_ms()) or not lease.send(5):
            return False
        found = lease.wait()
        return found is not None and [item for _, item in found.items] == [b"b", b"c"]

    wait_until(exchanged, "settled and claimed at the new node")
    assert after.client.hgetall(keys.lease("n.0.aa")).keys() == {b"n", b"1", b"2"}
    if wait.arm(10):
        wait_until(wait.receive, "an error ends it, too")
    assert wait.arm(10), "and then it waits where the shard is"
    wait_until(wait.receive, "the wait is over")


def test_shard_whose_slot_is_being_moved_is_away_and_comes_back(group: ClusterGroup) -> None:
    keys, slot = Keys("pb", 2), slot_of(b"2")
    enqueuer = Enqueuer(link_to(group.url, 2), keys, 1000, Durability(Queue(url=group.url)))
    enqueuer.enqueue(EID, RECORD, [b"a"])
    source, to = group.owner(2), group.owner(0)
    to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
    command = ["MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", keys.endpoint(EID)]
    source.client.execute_command(*command)
    other = Enqueuer(link_to(group.url, 2), keys, 1000, Durability(Queue(url=group.url)))
    with pytest.raises(QueueUnavailableError, match=r"ASK|TRYAGAIN"):
        other.enqueue(EID, RECORD, [b"b"])
    group.move(2, to)
    other.enqueue(EID, RECORD, [b"b"])
    assert to.client.lrange(keys.ready, 0, -1) == [b"a", b"b"]


def test_worker_numbers_lie_where_their_own_slots_are(group: ClusterGroup, tmp_path: Path) -> None:
    link = link_to(group.url, 0)
    numbers = [WorkerNumber(tmp_path / str(n), Keys("pb"), Clock()) for n in range(6)]
    for number in numbers:
        number.renew(link)
        number.renew(link)
    found = {number.generator().next_ids(1)[0] >> 10 & 0xFFF for number in numbers}
    assert len(found) == 6
    for number in found:
        key = Keys("pb").number(number)
        with_key = [node for node in group.nodes if node.is_master() and key in node.client.keys("pb:num:*")]
        assert len(with_key) == 1


def test_node_that_has_not_heard_is_not_believed(group: ClusterGroup) -> None:
    route = fresh_route(group)
    route.look_up()
    route._epoch += 5
    with pytest.raises(QueueUnavailableError, match="not heard"):
        route.look_up()


def test_cluster_restored_from_a_copy_is_believed_after_a_while(
    group: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = fresh_route(group)
    route.look()
    route._epoch += 5
    monkeypatch.setattr(cluster, "TELL_EVERY_S", -1)
    with pytest.raises(QueueUnavailableError, match="not heard"):
        route.look()
    monkeypatch.setattr(set_up_anew, "ANEW_S", 0)
    wait_until(lambda: has_looked(route), "a majority has answered in time")
    assert route.open(0, 5).call("ROLE")[0] == b"master"


def has_looked(route: ClusterRoute) -> bool:
    try:
        route.look()
    except QueueUnavailableError:
        return False
    return True


def test_watch_cuts_connections_to_who_has_lost_the_slot(group: ClusterGroup) -> None:
    route = fresh_route(group)
    wire = route.open(0, 5)
    route.look()
    assert not wire.has_gone()
    wire.node = Node("127.0.0.1", 1)
    route.look()
    wait_until(wire.has_gone, "it is cut")


def test_one_node_that_lives_is_enough_and_none_is_said(group: ClusterGroup) -> None:
    away = f"127.0.0.1:{free_port()}"
    alive = f"cluster://:{PASSWORD}@{away},127.0.0.1:{group.nodes[4].port}"
    for shard in range(SHARDS):
        assert route_to(alive).open(shard, 5).call("ROLE")[0] == b"master"
    with pytest.raises(QueueUnavailableError, match="No node of the Cluster answers") as caught:
        route_to(f"cluster://:{PASSWORD}@{away}").open(0, 5)
    assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


def test_slot_without_a_node_is_said() -> None:
    assert Map(1, [(0, 10, Node("h", 1))], []).owner(11) is None


def are_told(group: ClusterGroup, word: str, *levels: str) -> str:
    """What check says of it, once and at one of these levels; asked again where a node is slow to answer."""
    about: list[Finding] = []

    def is_so() -> bool:
        about[:] = [finding for finding in check_server(group.url, SHARDS) if word in finding.text]
        return len(about) == 1 and about[0].level in levels

    wait_until(is_so, f"check says {word}")
    return about[0].text


def test_tools_and_check_see_every_shard(group: ClusterGroup) -> None:
    assert DeadLetters(group.url, "pb", SHARDS).count() == 0
    assert Finder(group.url, "pb", SHARDS).waiting() >= 0
    are_told(group, "Cluster, shards at 127.0.0.1:", "ok", "warn")  # tests before may have moved all to one node
    assert not [finding.text for finding in check_server(group.url, SHARDS) if finding.level == "fail"]
    for node in group.nodes:
        node.client.config_set("cluster-require-full-coverage", "yes")
    try:
        are_told(group, "full-coverage", "warn")
    finally:
        for node in group.nodes:
            node.client.config_set("cluster-require-full-coverage", "no")


def test_check_names_the_node_that_is_set_wrong_master_or_replica(group: ClusterGroup) -> None:
    master = group.owner(1)
    replica = group.replica_of(master)
    for node, level in ((master, "fail"), (replica, "warn")):
        node.client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            about = are_told(group, "allkeys-lru", level)
        finally:
            node.client.config_set("maxmemory-policy", "noeviction")
        assert about.startswith(f"queue: 127.0.0.1:{node.port}: ")
    are_told(group, "should they become one", "ok")
    wait_until(lambda: replicas_of(group.url, SHARDS) == 1, "each master has one")
    assert persistence_of(group.url, SHARDS) == "everysec"
    master.client.config_set("appendonly", "no")
    try:
        assert persistence_of(group.url, SHARDS) is None, "of the one that may lose most"
    finally:
        master.client.config_set("appendonly", "yes")


def test_node_that_the_others_call_failed_is_cut_and_left_alone() -> None:
    """Without a replica nobody takes its slots: its shard is away, and is known to be, also while it is silent."""
    with cluster_group(3, replicas=False) as group:
        route = fresh_route(group)
        wires = [route.open(shard, 5) for shard in range(SHARDS)]
        group.owner(1).fail("stop")
        wait_until(lambda: route.look() or wires[1].has_gone(), "it is cut")
        with pytest.raises(QueueUnavailableError, match=r"has failed|has not answered"):
            route.open(1, 5)
        for shard in (0, 2):
            wait_until(lambda shard=shard: is_left_alone(route, shard), "the others go on")
        enqueuer = Enqueuer(link_to(group.url, 2), Keys("pb", 2), 1000, Durability(Queue(url=group.url)))
        enqueuer.enqueue(EID, RECORD, [b"a"])
        reader = FigureReader(group.url, [Keys("pb", shard) for shard in range(SHARDS)])
        found: list[QueueFigures] = []
        wait_until(lambda: found.append(reader.read()) or found[-1].shards_away == 1, "the others answer")
        figures = found[-1]
        assert (figures.reachable, figures.ready) == (True, 1), "those of the shards that answer"
        assert figures.error is not None
        assert "failed" in figures.error or "not answered" in figures.error


def is_left_alone(route: ClusterRoute, shard: int) -> bool:
    """Asked again where the machine has stood still: then every node was silent for a moment."""
    try:
        with contextlib.closing(route.open(shard, 5)) as wire:
            for _ in range(3):
                route.look()
            return not wire.has_gone()
    except QueueUnavailableError:
        return False
