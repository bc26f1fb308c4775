# SPDX-License-Identifier: MIT
"""`queue.url` taken apart: one server, a service of Sentinel, or a Cluster. Pure.

    redis://[user:password@]host:port[/db]   rediss://…   unix://[:password@]/path     one server; redis-py reads it
    sentinel://[user:password@]host:port,host:port/service     the master of a service, as these sentinels say
    cluster://[user:password@]host:port,host:port              some nodes of a Cluster; one that answers is enough

User and password (percent-encoded where they hold @ : / ?) are those of the servers; sentinels are asked without, and
with the same where they want one.
"""

from typing import NamedTuple

SERVER_SCHEMES = ("redis", "rediss", "unix")
SCHEMES = (*SERVER_SCHEMES, "sentinel", "cluster")


class Node(NamedTuple):
    """A host and its port."""

    host: str
    port: int

    def url(self, credentials: str = "") -> str:
        """Its redis:// url; `credentials` as `user:password`, percent-encoded."""
        return f"redis://{credentials}{'@' if credentials else ''}{self}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class QueueUrl(NamedTuple):
    """The parts. Of a single server only the scheme is known here."""

    scheme: str
    nodes: tuple[Node, ...] = ()
    credentials: str = ""
    service: str = ""


def parse_queue_url(url: str) -> QueueUrl:
    """The parts of a url; raises ValueError with one line, which holds no password."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError("must begin with redis://, rediss://, unix://, sentinel:// or cluster://, or be empty")
    if scheme in SERVER_SCHEMES:
        return QueueUrl(scheme)
    credentials, _, place = rest.rpartition("@")
    places, _, service = place.partition("/")
    if "?" in place:
        raise ValueError(f"{scheme}:// takes no options behind a question mark")
    if scheme == "sentinel" and (not service or "/" in service):
        raise ValueError("write sentinel://host:port,host:port/service, with the name of the monitored master behind")
    if scheme == "cluster" and service:
        raise ValueError("write cluster://host:port,host:port: a Cluster has one database only, number 0")
    return QueueUrl(scheme, tuple(_node(text, scheme) for text in places.split(",")), credentials, service)


def _node(text: str, scheme: str) -> Node:
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} in {scheme}://… must be host:port, with commas between several")
    return Node(host, int(port))
