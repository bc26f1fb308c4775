# SPDX-License-Identifier: MIT
"""The way to the server that has a shard: one server, Sentinel's master of now, or a Cluster's node.

Every connection is opened here, and looked up anew each time: whatever a broken connection, READONLY or MOVED meant,
its owner closes it and opens another, which leads to the right server as soon as there is one.
"""

import functools
from typing import Protocol

from postbackd.errors import QueueUnavailableError
from postbackd.queue.cluster import ClusterRoute
from postbackd.queue.sentinel import SentinelRoute
from postbackd.queue.wire import CONNECT_TIMEOUT_S, Wire
from postbackd.queue_url import parse_queue_url


class Route(Protocol):
    """What connections are opened by."""

    def open(self, shard: int, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        """A connection to the server that has a shard; raises QueueUnavailableError."""

    def open_for(self, key: bytes, timeout_s: float) -> Wire:
        """A connection to the server that has a key outside every shard; raises QueueUnavailableError."""

    def watch(self) -> None:
        """Begin to look out for a change of master, in a thread, where nothing else would tell of it."""


class ServerRoute:
    """One server has all shards."""

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self, shard: int, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        """A connection to it."""
        return Wire(self._url, timeout_s, connect_timeout_s)

    def open_for(self, key: bytes, timeout_s: float) -> Wire:
        """The same."""
        return self.open(0, timeout_s)

    def watch(self) -> None:
        """There is only one."""


@functools.cache
def route_to(url: str) -> Route:
    """The route of a `queue.url`: one in a process, so that all its connections learn of a new master together."""
    try:
        parts = parse_queue_url(url)
    except ValueError as error:
        raise QueueUnavailableError(f"queue.url {error}.") from None
    if parts.scheme == "sentinel":
        return SentinelRoute(parts)
    if parts.scheme == "cluster":
        return ClusterRoute(parts)
    return ServerRoute(url)
