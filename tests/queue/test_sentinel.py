# SPDX-License-Identifier: MIT
"""Real sentinels, a master and its replica: every part of the queue follows the master."""

import time
from collections.abc import Iterator

import pytest

from bench.failover_parts.sentinels import SentinelGroup, port_of, sentinel_group
from bench.failover_parts.servers import PASSWORD
from postbackd.clock import Clock
from postbackd.errors import BootError, QueueUnavailableError
from postbackd.queue import set_up_anew
from postbackd.queue.check import check_server, refuse_unfit
from postbackd.queue.dead_letters import DeadLetters
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.find import Finder
from postbackd.queue.idle_wait import IdleWait
from postbackd.queue.keys import Keys
from postbackd.queue.lease_client import LeaseClient
from postbackd.queue.link import Link
from postbackd.queue.route import route_to
from postbackd.queue.sentinel import Answer, SentinelRoute
from postbackd.queue_url import Node, parse_queue_url
from postbackd.scoreboard import monotonic_ms
from postbackd.settings import Queue
from tests.support.daemon import free_port, wait_until

KEYS = Keys("pb")
EID, RECORD = bytes(8), b"record"


@pytest.fixture(scope="module")
def group() -> Iterator[SentinelGroup]:
    with sentinel_group(1) as made:
        yield made


def enqueuer_of(url: str) -> Enqueuer:
    link = Link(url, Clock(), lambda: None)
    link.on_away = link.come_back
    return Enqueuer(link, KEYS, 1000, Durability(Queue(url=url)))


def fresh_route(group: SentinelGroup) -> SentinelRoute:
    return SentinelRoute(parse_queue_url(group.url))


def test_every_part_follows_the_master(group: SentinelGroup) -> None:
    group.master().client.flushall()
    enqueuer = enqueuer_of(group.url)
    lease = LeaseClient(group.url, KEYS, "n.0.aa", 30_000, Clock(), lambda: None, in_background=True)
    wait = IdleWait(group.url, KEYS)
    enqueuer.enqueue(EID, RECORD, [b"a", b"b"])
    wait_until(lambda: lease.connect(monotonic_ms()), "connected")
    assert lease.send(1)
    claim = lease.wait()
    assert claim is not None and claim.items == [(0, b"a")]
    assert wait.arm(60_000)
    group.hand_over()
    wait_until(wait.receive, "the wait has ended with its server's role")
    wait.arm(10)
    wait_until(wait.receive, "the wait has ended on the new master")
    enqueuer.enqueue(EID, RECORD, [b"c"])
    assert group.master().client.get(KEYS.endpoint(EID)) == RECORD, "a new connection stores the record again"
    lease.settle(0)

    def exchanged() -> bool:
        if not lease.connect(monotonic_ms()) or not lease.send(5):
            return False
        found = lease.wait()
        return found is not None and [item for _, item in found.items] in ([b"b", b"c"], [b"c", b"b"])

    wait_until(exchanged, "settled and claimed at the new master")
    assert group.master().client.hgetall(KEYS.lease("n.0.aa")).keys() == {b"n", b"1", b"2"}
    assert DeadLetters(group.url, "pb").count() == 0
    assert Finder(group.url, "pb").waiting() == 0


def test_server_that_says_it_is_no_master_is_not_used(group: SentinelGroup) -> None:
    route = fresh_route(group)
    replica = next(server for server in group.servers if server is not group.master())
    route._known, route._known_s = Answer(0, Node("127.0.0.1", port_of(replica))), time.monotonic() + 3600  # fresh
    with pytest.raises(QueueUnavailableError, match="says that it is a slave") as caught:
        route.open(0, 5)
    assert PASSWORD not in str(caught.value)
    assert route.open(0, 5).call("ROLE")[0] == b"master", "asked again"


def test_sentinel_that_lives_in_the_past_is_not_believed(group: SentinelGroup) -> None:
    route = fresh_route(group)
    master = route.master()
    assert route._known is not None
    route._learn(Answer(route._known.epoch - 1, Node("127.0.0.1", 1)))
    assert route.master() == master
    route._learn(Answer(route._known.epoch + 1, Node("127.0.0.1", 1)))
    assert route.master() == Node("127.0.0.1", 1)


def test_sentinels_set_up_anew_are_believed_after_a_while(
    group: SentinelGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SENTINEL REMOVE and MONITOR begin with epoch 0: processes kept to the master of before until their restart."""
    route = fresh_route(group)
    route.look()
    assert route._known is not None
    real, before = route._known, Answer(route._known.epoch + 5, Node("127.0.0.1", 1))
    route._known = before
    for _ in range(2):
        route.look()
    assert route._known == before, "perhaps they are only behind"
    monkeypatch.setattr(set_up_anew, "ANEW_S", 0)
    wait_until(lambda: route.look() or route._known == real, "a majority has answered in time, twice")


def test_watch_cuts_connections_to_who_is_master_no_more(group: SentinelGroup) -> None:
    route = fresh_route(group)
    route.look()
    wire = route.open(0, 5)
    route.look()
    assert not wire.has_gone()
    wire.node = Node("127.0.0.1", 1)  # as if the sentinels named another
    route.look()
    wait_until(wire.has_gone, "it is cut")


def test_one_sentinel_that_lives_is_enough_and_none_is_said(group: SentinelGroup) -> None:
    away = f"127.0.0.1:{free_port()}"
    alive = f"sentinel://:{PASSWORD}@{away},127.0.0.1:{group.sentinels[1].port}/postbacks"
    assert route_to(alive).open(0, 5).call("PING") == b"PONG"
    for url, word in (
        (f"sentinel://:{PASSWORD}@{away}/postbacks", "refused"),
        (f"sentinel://:{PASSWORD}@127.0.0.1:{group.sentinels[0].port}/other", "No such master|does not monitor"),
    ):
        with pytest.raises(QueueUnavailableError, match=word) as caught:
            route_to(url).open(0, 5)
        assert PASSWORD not in str(caught.value) and "\n" not in str(caught.value)


def test_check_tells_of_sentinels_and_replicas(group: SentinelGroup) -> None:
    sentinels = f"queue: 3 of 3 sentinels name 127.0.0.1:{port_of(group.master())} as master of postbacks"

    def are_told(level: str, replicas: str) -> bool:  # asked again where one is slow to answer
        found = [(finding.level, finding.text) for finding in check_server(group.url)]
        return ("ok", sentinels) in found and [have for have, text in found if replicas in text] == [level]

    wait_until(lambda: are_told("warn", "1 replica(s), min-replicas-to-write 0"), "check tells of all")
    group.master().client.config_set("min-replicas-to-write", 1)
    try:
        wait_until(lambda: are_told("ok", "1 replica(s), min-replicas-to-write 1"), "check tells of all")
    finally:
        group.master().client.config_set("min-replicas-to-write", 0)


def test_check_looks_at_the_replicas_too(group: SentinelGroup) -> None:
    replica = next(server for server in group.servers if server is not group.master())
    place = f"queue: 127.0.0.1:{port_of(replica)}:"
    for name, bad, good, word in (
        ("maxmemory-policy", "allkeys-lru", "noeviction", "maxmemory-policy is allkeys-lru"),
        ("appendonly", "no", "yes", "appendonly is off"),
        ("replica-priority", "0", "100", "replica-priority 0"),
    ):
        replica.client.config_set(name, bad)

        def is_told(word: str = word) -> bool:  # asked again where it is slow to answer
            told = [f.level for f in check_server(group.url) if f.text.startswith(place) and word in f.text]
            return told == ["warn"]

        try:
            wait_until(is_told, f"check says {word}")
        finally:
            replica.client.config_set(name, good)
    for server in group.servers:
        server.client.config_set("min-replicas-to-write", 1)

    def is_well() -> bool:
        well = f"become one: 127.0.0.1:{port_of(replica)}"
        return any(f.level == "ok" and f.text.endswith(well) for f in check_server(group.url))

    try:
        wait_until(is_well, "the replica may become master")
    finally:
        for server in group.servers:
            server.client.config_set("min-replicas-to-write", 0)


def test_replica_named_as_the_server_is_refused(group: SentinelGroup) -> None:
    replica = next(server for server in group.servers if server is not group.master())
    with pytest.raises(BootError, match="is a replica"):
        refuse_unfit(f"redis://:{PASSWORD}@127.0.0.1:{port_of(replica)}", 0, lambda: None)
