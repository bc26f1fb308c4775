# SPDX-License-Identifier: MIT
"""`postbackd render`: what a request would send, item by item, and what is wrong with it. Sends and queues nothing.

The request goes through the very door that ingest has, with a queue that only keeps it; what that queue kept is read
and rendered as a delivery worker would. Names are not looked up; hosts that are addresses are judged.
"""

import socket
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from postbackd.clock import Clock, format_ms
from postbackd.codec import EndpointRecord, IdGenerator, Item, decode_item, decode_record, format_id
from postbackd.delivery.egress import Policy
from postbackd.errors import ExitCode, PostbackdError, RequestError
from postbackd.ingest import IngestDoor
from postbackd.request import decode_request
from postbackd.scoreboard import Cell
from postbackd.senders import Senders
from postbackd.settings import Settings
from postbackd.signing import SigningKeys
from postbackd.template import CompiledEndpoint
from postbackd.template_values import RenderError

Shown = dict[str, Any]


class _KeepingQueue:
    """What stands for Redis: it keeps the one request."""

    def __init__(self) -> None:
        self.record = b""
        self.elements: list[bytes] = []

    def enqueue(self, _endpoint_id: bytes, record: bytes, elements: list[bytes]) -> None:
        self.record, self.elements = record, elements

    def enqueue_once(
        self, _key: bytes, _hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        self.enqueue(endpoint_id, record, elements)
        return ids

    def ping(self) -> None:
        return None


class _ExampleIds:
    """Ids as ingest would give them now; they are given to nobody."""

    def generator(self) -> IdGenerator:
        return IdGenerator(0, Clock().now_ms)


def render(settings: Settings, file: str, as_json: bool) -> int:
    """Show the requests of `file` (`-` is standard input); exit code 1 when ingest would refuse it, or an item would
    be dead at once."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise PostbackdError(f"{file}: cannot be read: {error.strerror}") from None
    queue = _KeepingQueue()
    try:
        _accept(settings, body, queue)
    except RequestError as error:
        _refused(file, error, as_json)
        return ExitCode.FAILED
    record = decode_record(queue.record)
    items = list(_requests(settings, record, queue.elements))
    warnings = _warnings(record, body, items)
    if as_json:
        shown = {"accepted": True, "error": None, "items": items, "warnings": warnings}
        click.echo(msgspec.json.encode(shown))
    else:
        for number, item in enumerate(items, 1):
            click.echo("\n".join(_told(item, number, len(items))))
        for warning in warnings:
            click.echo(click.style("warning", fg="yellow") + f"  {warning}", err=True)
    return ExitCode.FAILED if any(item["error"] for item in items) else ExitCode.OK


def _accept(settings: Settings, body: bytes, queue: _KeepingQueue) -> None:
    if len(body) > settings.ingest.max_body_bytes:
        message = f"The body has {len(body)} bytes; at most {settings.ingest.max_body_bytes} are taken."
        raise RequestError(413, "body_too_large", message)
    door = IngestDoor(
        settings.ingest,
        settings.template,
        settings.security.schemes,
        SigningKeys(settings.security.signing_keys),
        settings.retry.expires_after,
        Senders([]),
        queue,
        _ExampleIds(),
        memoryview(array("q", bytes(8 * len(Cell)))),
    )
    door.accept(body)


def _refused(file: str, error: RequestError, as_json: bool) -> None:
    if as_json:
        found = {"code": error.code, "message": error.message, "path": error.path}
        click.echo(msgspec.json.encode({"accepted": False, "error": found, "items": [], "warnings": []}))
    else:
        place = f"{error.path}: " if error.path else ""
        click.echo(f"postbackd: {file}: {error.status} {error.code}: {place}{error.message}", err=True)


def _requests(settings: Settings, record: EndpointRecord, elements: list[bytes]) -> Iterator[Shown]:
    compiled = CompiledEndpoint(record, allow_host=settings.template.allow_host)
    keys = SigningKeys(settings.security.signing_keys)
    policy = Policy(settings.security.allow_networks, settings.security.deny_networks)
    for index, element in enumerate(elements):
        item = decode_item(element)
        not_before = None if item.start_ms is None else format_ms(item.start_ms)
        shown: Shown = {"index": index, "id": format_id(item.postback_id), "not_before": not_before}
        shown |= {"method": record.method, "url": None, "headers": [], "body": None, "error": None}
        try:
            _render(compiled, item, keys, shown)
        except RenderError as error:
            shown["error"] = f"{error.error_class.name.lower()}: {error}"
        else:
            shown["error"] = _blocked(policy, shown.pop("host"))
        yield shown


def _render(compiled: CompiledEndpoint, item: Item, keys: SigningKeys, shown: Shown) -> None:
    now_ms = int(time.time() * 1000)
    rendered = compiled.render(item.values, item.postback_id, 1, now_ms)
    headers = [*rendered.headers]
    if compiled.record.sign is not None:
        headers += keys.headers(compiled.record.sign, shown["id"], now_ms // 1000, rendered.body)
    shown["host"], shown["url"] = rendered.host_key, rendered.url
    # libcurl's form of an empty header is `Name;`
    shown["headers"] = [f"{text[:-1]}:" if text.endswith(";") and ":" not in text else text
                        for text in (header.decode() for header in headers)]  # fmt: skip
    shown["body"] = None if rendered.body is None else rendered.body.decode()


def _blocked(policy: Policy, host_key: str) -> str | None:
    """Why an address, however it is written, is not connected to; None for a name, which only delivery looks up."""
    host = host_key.rpartition(":")[0] if not host_key.endswith("]") and ":" in host_key else host_key
    try:
        [found, *_] = socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    reason = policy.verdict(str(found[4][0]))
    return None if reason is None else f"blocked: {reason}"


def _warnings(record: EndpointRecord, body: bytes, shown: list[Shown]) -> list[str]:
    """Keys that nothing uses, and placeholders that no item fills: most are misspelt."""
    data = decode_request(body).data
    items = data if isinstance(data, list) else [data]
    unused: Counter[str] = Counter()
    if record.body not in ("json", "form"):  # those send every key
        roots = set(record.fields) | {name.partition(".")[0] for name in record.fields}
        for item in items:
            unused.update(key for key in item if key not in roots and key != "@")
    count = len(items)
    found = [f"the key {key!r} is used by no placeholder ({_share(number, count)})" for key, number in unused.items()]
    for position, name in enumerate(record.fields):
        missing = sum(not _has(item, name) for item in items)
        if missing:
            found.append(f"{{{name}}} (placeholder {position + 1}) is filled by no key in {_share(missing, count)}")
    if any(item["error"] for item in shown):
        found.append("an item that cannot be sent is a dead letter at once: ingest accepts it all the same")
    return found


def _share(number: int, count: int) -> str:
    return f"{number} of {count} items" if count > 1 else "the item"


def _has(item: dict[str, Any], name: str) -> bool:
    value: Any = item
    if name in item:
        return item[name] is not None
    for part in name.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (LookupError, ValueError, TypeError):
            return False
    return value is not None


def _told(item: Shown, number: int, count: int) -> Iterator[str]:
    when = f"  not before {item['not_before']}" if item["not_before"] else ""
    yield click.style(f"item {number} of {count}{when}", bold=True)
    if item["url"] is not None:
        yield f"{item['method']} {item['url']}"
        yield from item["headers"]
    if item["body"]:
        yield f"\n{item['body']}"
    if item["error"]:
        yield click.style("dead", fg="red") + f"  {item['error']}"
    yield ""
