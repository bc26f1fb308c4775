# SPDX-License-Identifier: MIT
"""Is the queue server fit? Version, eviction, persistence; what `check` prints and what `run` refuses."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from postbackd.clock import HINT, WARN_SKEW_MS
from postbackd.errors import BootError, QueueAwayError, QueueDeniedError, QueueUnavailableError
from postbackd.queue.cluster import ClusterRoute
from postbackd.queue.route import Route, ServerRoute, route_to
from postbackd.queue.sentinel import SentinelRoute
from postbackd.queue.wire import Wire, mask, parse_info
from postbackd.queue_url import Node

OLDEST_MAJOR = 7
TIMEOUT_S = 5.0
DENIED_TIMEOUT_S = 1.0
OTHER_TIMEOUT_S = 1.0
LOADING_PAUSE_S = 0.5
MEND_AWAY = "Start it, or mend queue.url."


class Finding(NamedTuple):
    """One thing looked at: ok, warn (works, may lose) or fail (refused)."""

    level: Literal["ok", "warn", "fail"]
    text: str


REPLICA = Finding(
    "fail", "queue: this server is a replica, which takes no writes: name the master, or sentinel://host:port/service."
)


def check_server(url: str, shards: int = 1) -> list[Finding]:
    """What there is to say about the servers behind a url; a single `fail` when one of them cannot be reached."""
    try:
        return [*look_at_servers(url, shards), *_clocks(route_to(url), shards), *_look_at_others(route_to(url))]
    except QueueUnavailableError as error:
        return [Finding("fail", f"queue: {error} {MEND_AWAY}")]


def is_away(findings: list[Finding]) -> bool:
    """Whether `check_server` found none that can be reached."""
    return len(findings) == 1 and findings[0].level == "fail" and findings[0].text.endswith(MEND_AWAY)


def look_at_servers(url: str, shards: int = 1) -> list[Finding]:
    """What there is to say about the servers behind a url; raises QueueUnavailableError when one is away."""
    route = route_to(url)
    findings = _sentinels(route) if isinstance(route, SentinelRoute) else []
    if isinstance(route, ClusterRoute):
        findings = [_shards(route, shards)]
    about: dict[Finding, list[Node | None]] = {}
    for wire in _masters(route, shards):
        for finding in _server(wire, route):
            about.setdefault(finding, []).append(wire.node)
    for finding, nodes in about.items():
        is_named = isinstance(route, ClusterRoute) and finding.level != "ok" and finding != REPLICA
        findings.append(_of(nodes, finding) if is_named else finding)
    return findings


def _masters(route: Route, shards: int) -> Iterator[Wire]:
    """A connection to each server that has shards, one after the other."""
    seen = set()
    for shard in range(shards):
        with contextlib.closing(route.open(shard, TIMEOUT_S, TIMEOUT_S)) as wire:
            if wire.node not in seen:
                yield wire
            seen.add(wire.node)
        if not isinstance(route, ClusterRoute):
            return  # one server has them all


def _of(nodes: Sequence[Node | None], finding: Finding) -> Finding:
    """The same, with whom it is about."""
    return finding._replace(text=finding.text.replace("queue:", f"queue: {', '.join(map(str, nodes))}:", 1))


def _clocks(route: Route, shards: int) -> list[Finding]:
    """Servers whose time is far from this machine's; a daemon says so itself (`clock_skew`)."""
    findings = []
    for wire in _masters(route, shards):
        seconds, micros = wire.call("TIME")
        ahead_ms = int(seconds) * 1000 + int(micros) // 1000 - time.time_ns() // 1_000_000
        if abs(ahead_ms) > WARN_SKEW_MS:
            where = "ahead of" if ahead_ms > 0 else "behind"
            text = f"queue: the server's clock is {round(abs(ahead_ms) / 1000)} s {where} this machine's: {HINT}."
            findings.append(_of([wire.node], Finding("warn", text)) if wire.node else Finding("warn", text))
    return findings


def _look_at_others(route: Route) -> list[Finding]:
    """The servers that have no shard now and may have one after a failover: what of them would lose postbacks then."""
    if isinstance(route, ServerRoute):
        return []
    assert isinstance(route, SentinelRoute | ClusterRoute)
    findings: list[Finding] = []
    others = route.standbys()
    for node in others:
        try:
            with contextlib.closing(route.open_node(node, OTHER_TIMEOUT_S)) as wire:
                findings += [_of([node], finding) for finding in _standby(wire, route)]
        except QueueUnavailableError as error:
            findings.append(Finding("warn", f"queue: {node} can take no master's place: {error}"))
    if others and not findings:
        names = ", ".join(map(str, others))
        return [Finding("ok", f"queue: set as a master must be, should they become one: {names}")]
    return findings


def _standby(wire: Wire, route: Route) -> list[Finding]:
    """What is wrong with a server that is no master."""
    info = _info(wire)
    findings = [_version(info), _eviction(_config(wire, "maxmemory-policy") or info.get("maxmemory_policy", ""))]
    if info.get("aof_enabled") != "1":
        findings.append(_persistence(info, None))
    if info.get("master_link_status", "up") != "up":
        text = "queue: it is not in step with its master (master_link_status down): look at its log."
        findings.append(Finding("warn", text))
    if isinstance(route, SentinelRoute):
        if info.get("slave_priority") == "0":
            findings.append(Finding("warn", "queue: replica-priority 0: the sentinels never make it master."))
        if _config(wire, "min-replicas-to-write") == "0":
            text = "queue: min-replicas-to-write 0: as a master that is cut off it goes on. CONFIG SET it to 1."
            findings.append(Finding("warn", text))
    return [Finding("warn", finding.text) for finding in findings if finding.level != "ok"]


def _server(wire: Wire, route: Route) -> list[Finding]:
    info = _info(wire)
    policy = _config(wire, "maxmemory-policy") or info.get("maxmemory_policy", "")
    findings = [_version(info), _eviction(policy), _persistence(info, _fsyncs(wire)), *_room(info)]
    if info.get("role") == "slave":
        return [*findings, REPLICA]
    if isinstance(route, ClusterRoute):
        return [*findings, _failover(info, None), *_coverage(_config(wire, "cluster-require-full-coverage"))]
    if isinstance(route, SentinelRoute):
        return [*findings, _failover(info, _config(wire, "min-replicas-to-write"))]
    return findings


def _failover(info: dict[str, str], min_replicas: str | None) -> Finding:
    """Whether a failover can go well; asked only where there may be one."""
    count = int(info.get("connected_slaves", 0))
    if not count:
        return Finding("warn", "queue: the master has no replica, so nothing can take its place. Add one.")
    if min_replicas == "0":
        return Finding(
            "warn",
            f"queue: {count} replica(s), min-replicas-to-write 0: a master cut off from the others goes on taking "
            "postbacks that the next master never sees. CONFIG SET min-replicas-to-write 1, and "
            "min-replicas-max-lag 10, on each server.",
        )
    known = "" if min_replicas is None else f", min-replicas-to-write {min_replicas}"
    return Finding("ok", f"queue: {count} replica(s){known}")


def _shards(route: ClusterRoute, shards: int) -> Finding:
    places = [str(route.owner(shard)) for shard in range(shards)]
    text = f"queue: Cluster, shards at {', '.join(places)}"
    if len(set(places)) == 1:
        return Finding("warn", f"{text}: one node does all the work. Raise queue.shards, or move their slots.")
    return Finding("ok", text)


def _coverage(required: str | None) -> list[Finding]:
    if required != "yes":
        return []
    text = "queue: cluster-require-full-coverage yes: one node away stops all shards. CONFIG SET it to no on each."
    return [Finding("warn", text)]


def _sentinels(route: SentinelRoute) -> list[Finding]:
    states = route.sentinels()
    answering = sum(wrong is None for wrong in states.values())
    findings = [
        Finding("warn", f"queue: sentinel {node} is of no use: {wrong}") for node, wrong in states.items() if wrong
    ]
    if answering:
        text = f"queue: {answering} of {len(states)} sentinels name {route.master()} as master of {route.service}"
        findings.insert(0, Finding("ok", text))
    return findings


def _info(wire: Wire) -> dict[str, str]:
    return parse_info(wire.call("INFO", "everything"))


def _config(wire: Wire, name: str) -> str | None:
    """A setting of the server; None where managed services hide CONFIG."""
    try:
        reply = wire.call("CONFIG", "GET", name)
    except QueueUnavailableError:
        if not wire.is_open:
            raise
        return None
    return reply[1].decode() if reply else None


def _version(info: dict[str, str]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "0")
    if int(version.split(".")[0]) < OLDEST_MAJOR:
        return Finding("fail", f"queue: {name} {version} is too old: {OLDEST_MAJOR}.0 or newer is needed.")
    return Finding("ok", f"queue: {name} {version}")


def _eviction(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("ok", "queue: maxmemory-policy noeviction")
    if not policy:
        return Finding("warn", "queue: maxmemory-policy cannot be read here: make sure that it is noeviction.")
    return Finding(
        "fail",
        f"queue: maxmemory-policy is {policy}, which throws postbacks away when memory is full: "
        "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration.",
    )


def _fsyncs(wire: Wire) -> str | None:
    """When the server fsyncs its append-only file: its appendfsync, or `no` where it stops doing so for the length of
    each rewrite and snapshot; None where managed services hide CONFIG."""
    return "no" if _config(wire, "no-appendfsync-on-rewrite") == "yes" else _config(wire, "appendfsync")


def _persistence(info: dict[str, str], appendfsync: str | None) -> Finding:
    if info.get("aof_enabled") != "1":
        return Finding("warn", "queue: appendonly is off: a restart of the server loses the queue. Set appendonly yes.")
    if appendfsync == "always":
        return Finding("ok", "queue: appendonly yes, appendfsync always: an acknowledged postback is on its disk")
    named = "no (or no-appendfsync-on-rewrite yes)" if appendfsync == "no" else appendfsync or "unknown"
    return Finding(
        "warn",
        f"queue: appendfsync is {named}: a power cut of the server can lose "
        f"{'some 30 s' if appendfsync == 'no' else 'up to 2 s'} of acknowledged postbacks. Set appendfsync always for "
        "none.",
    )


def _room(info: dict[str, str]) -> list[Finding]:
    """Why it would take no more just now."""
    found = []
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if 0 < limit <= used:
        text = f"queue: its memory is full ({used} bytes of maxmemory {limit}): requests get 503. Raise maxmemory."
        found.append(Finding("warn", text))
    if info.get("aof_last_write_status", "ok") != "ok":
        text = "queue: its append-only file cannot be written, so it takes no writes: look at the disk of the server."
        found.append(Finding("warn", text))
    return found


# What a disaster costs of the acknowledged postbacks, by how the server persists (None: no append-only file).
_SERVER_KILLED = {
    "always": "nothing",
    "no": "nothing: the system has what was acknowledged",
    None: "all since its last snapshot",
}
_POWER_CUT = {"always": "nothing", "no": "what the system had not written yet, some 30 s", None: _SERVER_KILLED[None]}


def losses(persistence: str | None, durability: str, has_failover: bool) -> list[str]:
    """What each disaster can cost, one line each; `persistence` is appendfsync, or None without append-only file."""
    killed = _SERVER_KILLED.get(persistence, "up to 2 s, if an fsync was running")
    power_cut = _POWER_CUT.get(persistence, "up to 2 s")
    failover = "what the replica lacked; what it had not been told of deliveries arrives again"
    if durability == "replica":
        failover = "nothing, if a replica that had it is promoted"
        killed, power_cut = (
            cost if cost.startswith("nothing") else f"{failover}; else {cost}" for cost in (killed, power_cut)
        )
    return [
        "ingest process killed: nothing",
        "delivery worker killed, or stopped past queue.lease_timeout: nothing; what it had in flight arrives again",
        f"queue server killed (-9): {killed}",
        f"power cut of the queue server: {power_cut}",
        *([f"failover to a replica: {failover}"] if has_failover else []),
    ]


def replicas_of(url: str, shards: int = 1) -> int:
    """How many replicas are connected, at the master with fewest; raises QueueUnavailableError."""
    return min(int(_info(wire).get("connected_slaves", 0)) for wire in _masters(route_to(url), shards))


def persistence_of(url: str, shards: int = 1) -> str | None:
    """appendfsync, None without append-only file, of the server that may lose most; raises QueueUnavailableError.
    `no` also where rewrites stop it."""
    found = [
        (_fsyncs(wire) or "unknown") if _info(wire).get("aof_enabled") == "1" else None
        for wire in _masters(route_to(url), shards)
    ]
    worst_first = (None, "no", "unknown", "everysec", "always")
    return min(found, key=worst_first.index)


def refuse_evicting(wire: Wire) -> None:
    """Raise QueueUnavailableError when the server throws keys away: asked on each connection of ingest."""
    finding = _eviction(_config(wire, "maxmemory-policy") or "")
    if finding.level == "fail":
        raise QueueUnavailableError(finding.text)


def refuse_denied(url: str) -> None:
    """Raise BootError when the server refuses the password: asked once by whoever starts the daemon, before it forks,
    so that one line says so and not one of each worker. Everything else is found out by the workers, who wait for it;
    so is what the nodes of a Cluster or Sentinel say."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return
    try:
        with contextlib.closing(Wire(url, DENIED_TIMEOUT_S)) as wire:
            wire.call("PING")
    except QueueDeniedError as error:
        raise BootError(f"queue: {error} Mend the password in queue.url.") from None
    except QueueUnavailableError:
        return


def refuse_unfit(url: str, wait_s: float, beat: Callable[[], None], shards: int = 1) -> list[Finding]:
    """What to warn of. Raises BootError for a server that must not be used, QueueAwayError for none in `wait_s`."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            findings = look_at_servers(url, shards)
            if REPLICA not in findings:
                break
            away = REPLICA.text  # perhaps for the length of a failover: as if it could not be reached
        except QueueUnavailableError as error:
            away = f"queue: {error} {MEND_AWAY}"
        if time.monotonic() > deadline_s:
            raise QueueAwayError(f"{away} (queue.url = {mask(url)})")
        beat()
        time.sleep(LOADING_PAUSE_S)
    for finding in findings:
        if finding.level == "fail":
            raise BootError(f"{finding.text} (queue.url = {mask(url)})")
    return [finding for finding in findings if finding.level == "warn"]
