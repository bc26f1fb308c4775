# SPDX-License-Identifier: MIT
"""Ingest: the WSGI app that turns one request into queued postbacks and answers after the commit.

In: POST {endpoint, data} on the ingest paths. Out: 202 with the ids once Redis or the spool has them, or one
error of the table in docs/api.md and nothing queued. A Falcon app whose `__call__` takes the POST itself
(a plain Falcon request costs 5 to 10 µs more) and leaves everything else to Falcon; both answer through
`IngestDoor.answer`. Checking an endpoint is endpoint.py, bytes are codec.py, Redis is queue/.
"""

import json
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Protocol

import falcon
import msgspec

from postbackd.codec import IdGenerator, accept_ms, format_id
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.errors import (
    QueueFullError,
    QueueUnavailableError,
    RequestError,
    SpoolError,
)
from postbackd.idempotency import body_hash, format_ids, key_digest, pack_ids
from postbackd.methods import Resource
from postbackd.ndjson import Lines, Prepared
from postbackd.refusal import Answer, error_answer, refusal_of
from postbackd.refusal_count import RefusalCount
from postbackd.request import (
    ITEM_DEPTH,
    MAX_DEPTH,
    Request,
    decode_request,
    explain_rejection,
    is_too_deep,
    raw_items,
    too_deep,
)
from postbackd.request_body import NDJSON_TYPE, read_body
from postbackd.scoreboard import Cell
from postbackd.senders import ANYBODY, Sender, Senders
from postbackd.settings import Ingest as IngestSettings
from postbackd.settings import Template as TemplateSettings
from postbackd.tally import CodeCounter
from postbackd.timing import read_timing

Environ = dict[str, Any]
Respond = Callable[[Environ, Any], Iterable[bytes]]

ENDPOINT_CACHE_SIZE = 4096  # distinct endpoint texts a process keeps compiled; the oldest goes first
ENDPOINT_CACHE_BYTES = 4_000_000  # of those texts; compiled they take about three times as much


class Queue(Protocol):
    """What ingest needs of the queue: `queue.spooling.SpoolingQueue`."""

    def enqueue(self, endpoint_id: bytes, record: bytes, elements: list[bytes]) -> None:
        """Commit one request's postbacks."""

    def enqueue_once(
        self, key: bytes, body_hash: bytes, ids: bytes, endpoint_id: bytes, record: bytes, elements: list[bytes]
    ) -> bytes:
        """Commit a request unless one with the same key was before; the ids that are queued, 8 bytes each."""

    def ping(self) -> None:
        """Return when a request could be acknowledged now; raises QueueFullError or SpoolError."""


class IdSource(Protocol):
    """Where ids come from: ids that no other process gives out, or a QueueUnavailableError."""

    def generator(self) -> IdGenerator:
        """The generator of this process' worker number, as long as that number is ours."""


class IngestDoor:
    """Takes a request's bytes, queues its postbacks, and says what to answer."""

    def __init__(
        self,
        settings: IngestSettings,
        template: TemplateSettings,
        schemes: Sequence[str],
        signing_keys: Container[str],
        expires_after_s: float,
        senders: Senders,
        queue: Queue,
        ids: IdSource,
        cells: "memoryview[int]",
    ) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_items = settings.max_items
        self._template = template
        self._schemes = schemes
        self._signing_keys = signing_keys
        self._expires_after_s = expires_after_s
        self._senders = senders
        self._queue = queue
        self._ids = ids
        self._cells = cells
        self._refusals = RefusalCount(cells)
        self._endpoints: dict[bytes, IngestEndpoint] = {}
        self._endpoint_bytes = 0

    def answer(self, env: Environ) -> Answer:
        """Status, headers and body for one POST. The one place where a request's failures end."""
        try:
            sender = self._senders.find(env.get("HTTP_AUTHORIZATION"), env.get("REMOTE_ADDR", ""))
            body, is_ndjson = read_body(env, self._max_body_bytes)
            idempotency_key = env.get("HTTP_IDEMPOTENCY_KEY")
            if is_ndjson:
                return _ok("200 OK", NDJSON_TYPE, self._accept_lines(body, idempotency_key, sender))
            return _ok("202 Accepted", "application/json", self.accept(body, idempotency_key, sender))
        except Exception as error:  # the top of the request: bjoern would answer with a bare 500
            return self.refused(error)

    def prepare(self, env: Environ) -> Prepared:
        """A plain request checked and encoded, for the caller to commit; raises what is for `refused`."""
        sender = self._senders.find(env.get("HTTP_AUTHORIZATION"), env.get("REMOTE_ADDR", ""))
        return self._prepare(read_body(env, self._max_body_bytes)[0], sender)

    def accepted(self, ids: list[int]) -> bytes:
        """The 202's body for postbacks that are committed now."""
        self._took(len(ids))
        return _accepted_body([format_id(number) for number in ids])

    def refused(self, error: Exception) -> Answer:
        """The answer to a request that ended with this error."""
        refusal = refusal_of(error)
        self._refusals.add(refusal)
        return error_answer(refusal)

    def _took(self, count: int) -> None:
        """So many postbacks more are acknowledged."""
        self._cells[Cell.ACCEPTED] += count
        if self._refusals.refuses:
            self._refusals.end()

    def unready(self) -> str | None:
        """Why no request can be acknowledged now, None when it can."""
        try:
            self._ids.generator()
            self._queue.ping()
        except (QueueUnavailableError, QueueFullError, SpoolError) as error:
            return str(error)
        return None

    def accept(self, body: bytes, idempotency_key: str | None = None, sender: Sender = ANYBODY) -> bytes:
        """Queue the postbacks of one request and return the 202's body; raises RequestError and queue errors.

        Measured on the sample (two postbacks): 3.7 µs for everything here but the round trip to Redis.
        """
        prepared = self._prepare(body, sender)
        endpoint = prepared.endpoint
        if idempotency_key is None:
            self._queue.enqueue(endpoint.id, endpoint.record, prepared.elements)
            return self.accepted(prepared.ids)
        key, digest = key_digest(sender.name, idempotency_key), body_hash(body)
        ids = pack_ids(prepared.ids)
        kept = self._queue.enqueue_once(key, digest, ids, endpoint.id, endpoint.record, prepared.elements)
        texts = format_ids(kept)
        self._took(len(texts))
        return _accepted_body(texts)

    def _accept_lines(self, body: bytes, idempotency_key: str | None, sender: Sender) -> bytes:
        """Queue NDJSON line by line; the answers, one a line."""
        if idempotency_key is not None:
            message = "Idempotency-Key is not taken with NDJSON: send single requests, or leave the header out."
            raise RequestError(422, "invalid_idempotency_key", message)

        def enqueue(endpoint: IngestEndpoint, elements: list[bytes]) -> None:
            self._queue.enqueue(endpoint.id, endpoint.record, elements)
            self._took(len(elements))  # at once: it also shows that this process is not stuck

        lines = Lines(lambda line: self._prepare(line, sender), enqueue)
        answers = lines.take(body)
        if lines.failure is not None:
            self._refusals.add(lines.failure)
        return answers

    def _prepare(self, body: bytes, sender: Sender) -> Prepared:
        """One request checked and encoded; nothing is queued yet."""
        if sender.rate is not None:
            sender.rate.take()
        try:
            request = decode_request(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise explain_rejection(body) from None
        endpoint = self._endpoint(bytes(request.endpoint))
        if sender.hosts is not None:
            sender.refuse_host(endpoint.host)
        data = request.data
        items: list[dict[str, Any]] = data if isinstance(data, list) else [data]
        is_timed = self._check_items(items) or not (
            request.deliver_at is request.delay is request.expires_after is None
        )
        ids = self._ids.generator().next_ids(len(items))
        encode = endpoint.encode
        if is_timed:
            elements = self._timed_elements(request, endpoint, items, ids, body)
        elif endpoint.wants_raw:
            sent = raw_items(body)
            elements = [encode(ids[i], item, i, sent[i]) for i, item in enumerate(items)]
        else:
            elements = [encode(ids[i], item, i, None) for i, item in enumerate(items)]
        return Prepared(endpoint, ids, elements)

    def _endpoint(self, text: bytes) -> IngestEndpoint:
        """The endpoint compiled once per distinct text, never per request."""
        endpoint = self._endpoints.get(text)
        if endpoint is None:
            template = self._template
            endpoint = compile_endpoint(
                text,
                default=template.default,
                unmatched=template.unmatched,
                allow_host=template.allow_host,
                schemes=self._schemes,
                signing_keys=self._signing_keys,
            )
            self._endpoint_bytes += len(text)
            while len(self._endpoints) >= ENDPOINT_CACHE_SIZE or self._endpoint_bytes > ENDPOINT_CACHE_BYTES:
                if not self._endpoints:  # larger than the whole cache
                    self._endpoint_bytes = 0
                    return endpoint
                oldest = next(iter(self._endpoints))
                del self._endpoints[oldest]
                self._endpoint_bytes -= len(oldest)
            self._endpoints[text] = endpoint
        return endpoint

    def _timed_elements(
        self, request: Request, endpoint: IngestEndpoint, items: list[dict[str, Any]], ids: list[int], body: bytes
    ) -> list[bytes]:
        """The elements of a request that says when, with the trail that says so; an item's "@" goes no further."""
        outer = read_timing(request.timing(), "")
        outer_path = "deliver_at" if request.deliver_at is not None else "delay"
        sent = raw_items(body) if endpoint.wants_raw else None
        elements = []
        for i, item in enumerate(items):
            timing, path, raw = outer, outer_path, sent and sent[i]
            if "@" in item:
                path = f"data[{i}].@"
                if not isinstance(item["@"], dict):
                    raise RequestError(422, "invalid_type", '"@" is an object: {"delay": 60}.', path)
                timing = read_timing(item["@"], path).over(outer)
                item = {name: value for name, value in item.items() if name != "@"}
                raw = json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() if sent else None
            trail = timing.trail(accept_ms(ids[i]), self._expires_after_s, path)
            elements.append(endpoint.encode(ids[i], item, i, raw or None) + trail)
        return elements

    def _check_items(self, items: list[dict[str, Any]]) -> bool:
        """Refuse what is no list of items; whether one of them has an "@"."""
        if not items:
            raise RequestError(422, "empty_data", "`data` is empty: it holds one object per postback.", "data")
        if len(items) > self._max_items:
            message = f"`data` has {len(items)} items; at most {self._max_items} are taken: split the request."
            raise RequestError(413, "too_many_items", message, "data")
        has_own_timing = False
        for item in items:
            if "@" in item:
                has_own_timing = True
            for value in item.values():
                kind = type(value)
                if (kind is dict or kind is list) and is_too_deep(value, MAX_DEPTH - ITEM_DEPTH):
                    raise too_deep()
        return has_own_timing


def _accepted_body(texts: list[str]) -> bytes:
    return b'{"accepted":%d,"ids":["%b"]}' % (len(texts), '","'.join(texts).encode())


def _ok(status: str, media_type: str, body: bytes) -> Answer:
    return status, [("Content-Type", media_type), ("Content-Length", str(len(body)))], body


class _IngestResource(Resource):
    """POST through Falcon: the same answer as the short way, for what the short way leaves alone."""

    def __init__(self, door: IngestDoor) -> None:
        self._door = door

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        status, headers, body = self._door.answer(req.env)
        resp.status = status
        resp.set_headers(headers)
        resp.data = body


class _HealthResource(Resource):
    """GET or HEAD /health: this process runs and answers."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = b'{"status":"ok"}'

    on_head = on_get


class _ReadyResource(Resource):
    """GET or HEAD /ready: this machine can acknowledge a request now; 503 with the reason when it cannot."""

    def __init__(self, door: IngestDoor, is_draining: Callable[[], bool]) -> None:
        self._door = door
        self._is_draining = is_draining

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        reasons = self._reasons()
        resp.status = 503 if reasons else 200
        resp.data = msgspec.json.encode({"ready": not reasons, "reasons": reasons})

    on_head = on_get

    def _reasons(self) -> list[str]:
        if self._is_draining():
            return ["draining: this process is stopping"]
        unready = self._door.unready()
        return [] if unready is None else [unready]


def _falcon_error(_req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Falcon's own refusals (404, 405, …) in the form of all our errors."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    message = {
        404: "Nothing is at this path: postbacks are taken by POST /ingest.php.",
        405: "This path does not take this method; the Allow header lists those it takes.",
    }.get(error.status_code, error.description or error.title or "The request cannot be taken.")
    resp.data = msgspec.json.encode({"error": {"code": code, "message": message}})
    resp.content_type = "application/json"


class IngestApp(falcon.App):  # type: ignore[type-arg]
    """Falcon with a short way for the one request that matters."""

    def __init__(
        self, door: IngestDoor, paths: Sequence[str], cells: "memoryview[int]", respond: Respond | None
    ) -> None:
        super().__init__()
        self._door = door
        self._respond = respond
        self._cells = cells
        self._paths = frozenset(paths)
        self._count = CodeCounter(cells)

    def __call__(self, env: Environ, start_response: Any) -> Iterable[bytes]:
        self._cells[Cell.REQUESTS] += 1  # first: it is also the proof that the loop moves
        if env["PATH_INFO"] in self._paths and env["REQUEST_METHOD"] == "POST":
            if self._respond is not None:
                return self._respond(env, start_response)
            status, headers, body = self._door.answer(env)
            start_response(status, headers)
            self._count(status)
            return [body]  # bjoern takes a list of one without iterating over it

        def respond(status: str, headers: Any, exc_info: Any = None, /) -> Any:
            self._count(status)
            return start_response(status, headers)

        return super().__call__(env, respond)


def create_app(
    door: IngestDoor,
    paths: Sequence[str],
    is_draining: Callable[[], bool],
    cells: "memoryview[int]",
    respond: Respond | None = None,
) -> IngestApp:
    """The app an ingest process serves; `cells` is its slot's row of the scoreboard.

    `respond` takes a POST on the ingest paths in the place of `IngestDoor.answer`, and counts its answers.
    """
    app = IngestApp(door, paths, cells, respond)
    app.set_error_serializer(lambda req, resp, error: _falcon_error(req, resp, error))
    resource = _IngestResource(door)
    for path in paths:
        app.add_route(path, resource)
    app.add_route("/health", _HealthResource())
    app.add_route("/ready", _ReadyResource(door, is_draining))
    return app
