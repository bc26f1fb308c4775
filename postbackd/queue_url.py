# SPDX-License-Identifier: MIT
"""`queue.url` taken apart: one server, a service of Sentinel, or a Cluster. Pure.

    redis://[user:password@]host:port[/db]   rediss://…   unix://[:password@]/path     one server; redis-py reads it
    sentinel://[user:password@]host:port,host:port/service     the master of a service, as these sentinels say
    cluster://[user:password@]host:port,host:port              some nodes of a Cluster; one that answers is enough
    sentinels://…  clusters://…                                the same over TLS, sentinels included

User and password (percent-encoded where they hold @ : / ?) are those of the servers; sentinels are asked without, and
with the same where they want one, unless `?sentinel_username=…&sentinel_password=…` names their own. Over TLS the
options of rediss:// that begin with ssl_ may stand there, too: `?ssl_ca_certs=/etc/postbackd/ca.pem`.
"""

from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

SERVER_SCHEMES = ("redis", "rediss", "unix")
GROUP_SCHEMES = {  # → what it is, whether over TLS
    "sentinel": ("sentinel", False),
    "sentinels": ("sentinel", True),
    "cluster": ("cluster", False),
    "clusters": ("cluster", True),
}
# Those of redis-py's SSLConnection that a url can say.
SSL_OPTIONS = frozenset(
    "ssl_" + name
    for name in ("ca_certs", "ca_path", "certfile", "keyfile", "password", "cert_reqs", "check_hostname", "ciphers")
)
SENTINEL_OPTIONS = frozenset(("sentinel_username", "sentinel_password"))


class Node(NamedTuple):
    """A host and its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class QueueUrl(NamedTuple):
    """The parts. Of a single server only the scheme is known here."""

    scheme: str
    nodes: tuple[Node, ...] = ()
    credentials: str = ""
    service: str = ""
    is_tls: bool = False
    ssl_options: str = ""  # as they stand behind the question mark
    sentinel_credentials: str = ""  # where the sentinels have their own

    def url_of(self, node: Node, credentials: str = "") -> str:
        """What redis-py connects to a node by; `credentials` as `user:password`, percent-encoded."""
        options = f"?{self.ssl_options}" if self.ssl_options else ""
        return f"redis{'s' if self.is_tls else ''}://{credentials}{'@' if credentials else ''}{node}{options}"

    def server_url(self, node: Node) -> str:
        """The same for a server, with its credentials."""
        return self.url_of(node, self.credentials)


def parse_queue_url(url: str) -> QueueUrl:
    """The parts of a url; raises ValueError with one line, which holds no password."""
    scheme, mark, rest = url.partition("://")
    if mark and scheme in SERVER_SCHEMES:
        return QueueUrl(scheme)
    if not mark or scheme not in GROUP_SCHEMES:
        raise ValueError(
            "must begin with redis://, rediss://, unix://, sentinel://, sentinels://, cluster:// or clusters://, or be "
            "empty"
        )
    credentials, _, place = rest.rpartition("@")
    if "?" in credentials:
        raise ValueError("must have @ : / ? percent-encoded in user, password and options")
    place, _, query = place.partition("?")
    places, _, service = place.partition("/")
    kind, is_tls = GROUP_SCHEMES[scheme]
    if kind == "sentinel" and (not service or "/" in service):
        raise ValueError(f"write {scheme}://host:port,host:port/service, with the name of the monitored master behind")
    if kind == "cluster" and service:
        raise ValueError(f"write {scheme}://host:port,host:port: a Cluster has one database only, number 0")
    options = _options(query, scheme)
    user, password = options.get("sentinel_username", ""), options.get("sentinel_password", "")
    return QueueUrl(
        scheme=kind,
        nodes=tuple(_node(text, scheme) for text in places.split(",")),
        credentials=credentials,
        service=service,
        is_tls=is_tls,
        ssl_options=urlencode({name: value for name, value in options.items() if name in SSL_OPTIONS}),
        sentinel_credentials=f"{quote(user, safe='')}:{quote(password, safe='')}" if user or password else "",
    )


def _options(query: str, scheme: str) -> dict[str, str]:
    """What stands behind the question mark."""
    kind, is_tls = GROUP_SCHEMES[scheme]
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError(f"must have name=value, with & between several, behind {scheme}://…?") from None
    for name in options:
        if name in SSL_OPTIONS and not is_tls:
            raise ValueError(f"has {name}: write {scheme}s:// for TLS")
        if name not in SSL_OPTIONS and (kind != "sentinel" or name not in SENTINEL_OPTIONS):
            raise ValueError(f"has the unknown option {name!r}: {scheme}:// takes {_known_options(scheme)}")
    if options.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        raise ValueError("has ssl_cert_reqs: it is none, optional or required")
    return options


def _known_options(scheme: str) -> str:
    kind, is_tls = GROUP_SCHEMES[scheme]
    known = (SENTINEL_OPTIONS if kind == "sentinel" else frozenset()) | (SSL_OPTIONS if is_tls else frozenset())
    return ", ".join(sorted(known)) or "none"


def _node(text: str, scheme: str) -> Node:
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} in {scheme}://… must be host:port, with commas between several")
    return Node(host, int(port))
