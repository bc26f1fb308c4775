# SPDX-License-Identifier: MIT
"""An endpoint as a client wrote it → checked, compiled, ready to encode its postbacks. Pure.

In: the JSON text of `endpoint`. Out: an `IngestEndpoint`, made once per distinct text; or a RequestError that names
the member (`endpoint.url`) and how to mend it. Rendering is template.py's, at delivery; here a record is compiled
only to see that it can be.
"""

import re
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

import msgspec

from postbackd import codec
from postbackd.codec import BodyTemplate, EndpointRecord, SuccessRule
from postbackd.errors import RequestError
from postbackd.outgoing import (
    LEAST_TIMEOUT_S,
    MOST_TIMEOUT_S,
    OutgoingError,
    check_header_name,
    check_media_type,
    check_method,
    check_scheme,
)
from postbackd.request import MAX_DEPTH, json_fault
from postbackd.statuses import parse_statuses
from postbackd.template import CompiledEndpoint, optional_fields, placeholders, render_form
from postbackd.template_syntax import TemplateError
from postbackd.url import UrlError, parse_authority

METHODS_WITH_JSON = frozenset({"POST", "PUT", "PATCH"})
METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD"})
UNMATCHED = ("empty", "keep", "drop_param", "fail")
MAX_HEADERS = 64
MAX_TEMPLATE_BYTES = 65_536
MAX_CONTAINED = 1024  # characters of success.body_contains
MAX_WAIT_S = 2_505_600  # 29 days: the record's own life is 30
INT64_MIN, UINT64_MAX = -(1 << 63), (1 << 64) - 1

_MSGSPEC_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_UNKNOWN_MEMBER = re.compile(r"unknown field `([^`]*)`")
_MISSING_MEMBER = re.compile(r"missing required field `([^`]*)`")


class RetrySpec(msgspec.Struct, forbid_unknown_fields=True):
    """`endpoint.retry`: what is different for this endpoint's postbacks."""

    max_attempts: int | None = None
    schedule: list[float] | None = None


class EndpointSpec(msgspec.Struct, forbid_unknown_fields=True):
    """`endpoint` as it is sent; checks beyond the types are below."""

    method: str
    url: str
    headers: dict[str, str] = {}
    body: str | BodyTemplate | None = None
    default: str | None = None
    unmatched: str | None = None
    retry: RetrySpec | None = None
    timeout: float | None = None
    sign: str | None = None
    success: SuccessRule | None = None


class IngestEndpoint:
    """A compiled endpoint: its stored record and the way from a data object to a queue element."""

    def __init__(self, record: EndpointRecord) -> None:
        self.fields = record.fields
        self.record = codec.encode_record(record)
        self.id = codec.endpoint_id(self.record)
        self.host = _host_of(record.url)
        self.wants_raw = record.body == "json"
        self._is_form = record.body == "form"
        self._default = record.default
        self._unmatched = record.unmatched
        optional = optional_fields(record)
        self._required = [name not in optional for name in record.fields] if record.unmatched == "fail" else None

    def encode(self, postback_id: int, item: dict[str, Any], index: int, raw: bytes | None) -> bytes:
        """The queue element of one data object; `raw` is its JSON as it was sent, wanted where `wants_raw`.

        Raises RequestError 422 under `unmatched = fail`. 1 µs for two flat values.
        """
        values: list[object] = []
        for name in self.fields:
            value = item.get(name)
            if type(value) is not str:
                value = _wire_value(value if name in item else _look_up(item, name))
            values.append(value)
        if self._required is not None:
            self._refuse_missing(values, item, index)
        if self.wants_raw:
            values.append(raw)
        elif self._is_form:
            values.append(render_form(item, _wire_value, self._default, self._unmatched))
        return codec.encode_element(self.id, postback_id, values)

    def _refuse_missing(self, values: list[object], item: dict[str, Any], index: int) -> None:
        missing = [
            name
            for name, value, required in zip(self.fields, values, self._required or (), strict=True)
            if value is None and required
        ]
        if self._is_form:
            missing += [key for key, value in item.items() if value is None]
        if missing:
            message = f"The endpoint needs the key {missing[0][:80]!r} (unmatched is fail) and this item has none."
            raise RequestError(422, "missing_key", message, f"data[{index}].{missing[0]}")


def _host_of(url: str) -> str | None:
    """The host of a checked URL template as it is connected to, without its port; None where a placeholder is in it."""
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0].partition("?")[0]
    return None if "{" in authority else parse_authority(authority, scheme.lower()).host


def _look_up(item: dict[str, Any], name: str) -> object:
    """A dotted path into nested objects and lists; None where it leads nowhere."""
    value: object = item
    for part in name.split("."):
        if type(value) is dict:
            value = value.get(part)
        elif type(value) is list and part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _wire_value(value: Any) -> object:
    """A JSON value as it travels: integers beyond 64 bits as text, containers as compact JSON in bytes."""
    kind = type(value)
    if kind is int:
        return value if INT64_MIN <= value <= UINT64_MAX else str(value)
    if kind is dict or kind is list:
        return msgspec.json.encode(value)
    return value


_decode_spec = msgspec.json.Decoder(EndpointSpec).decode


def compile_endpoint(
    text: bytes,
    *,
    default: str,
    unmatched: str,
    allow_host: bool,
    schemes: Sequence[str],
    signing_keys: Container[str] = (),
) -> IngestEndpoint:
    """Check an endpoint and make its record; all but the text is the configuration's. Raises RequestError."""
    try:
        spec = _decode_spec(text)
    except msgspec.ValidationError as error:
        # What the request's decoder only skipped may be no JSON that is taken, which goes before a wrong type.
        raise json_fault(text, MAX_DEPTH - 1) or _validation_error(error, text) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, "malformed_json", f"The endpoint is not JSON in UTF-8: {error}.", "endpoint") from None
    if spec.sign is not None and spec.sign not in signing_keys:
        _refuse("unknown_signing_key", "sign", f"There is no key {spec.sign[:80]!r} in security.signing_keys.")
    record = _record(spec, default, unmatched)
    if len(record.url) > MAX_TEMPLATE_BYTES:
        _refuse("invalid_url", "url", f"The URL template is over {MAX_TEMPLATE_BYTES} characters.")
    record = msgspec.structs.replace(record, fields=_check("url", lambda: placeholders(record), record))
    _check("url", lambda: CompiledEndpoint(record, allow_host=allow_host), record)
    _allow("invalid_url", "url", check_scheme, record.url.partition("://")[0].lower(), schemes)
    return IngestEndpoint(record)


def _check(member: str, compile_it: Callable[[], Any], record: EndpointRecord) -> Any:
    """Compile; a failure is the fault of the member whose template it is."""
    try:
        return compile_it()
    except UrlError as error:
        _refuse("invalid_url", "url", str(error))
    except TemplateError as error:
        _refuse("invalid_template", _guilty_member(record, error, member), error.message)


def _guilty_member(record: EndpointRecord, error: TemplateError, fallback: str) -> str:
    """Which template a TemplateError is about: the first that does not compile alone."""
    alone = [("url", msgspec.structs.replace(record, headers=(), body="none"))]
    plain = msgspec.structs.replace(record, url="http://x/", headers=(), body="none")
    alone += [
        (f"headers.{name}", msgspec.structs.replace(plain, headers=((name, value),))) for name, value in record.headers
    ]
    if isinstance(record.body, BodyTemplate):
        alone.append(("body.template", msgspec.structs.replace(plain, body=record.body)))
    for member, candidate in alone:
        try:
            CompiledEndpoint(msgspec.structs.replace(candidate, fields=placeholders(candidate)), allow_host=True)
        except UrlError:
            continue
        except TemplateError as found:
            if found.message == error.message:
                return member
    return fallback


def _record(spec: EndpointSpec, default: str, unmatched: str) -> EndpointRecord:
    """Everything but the templates, checked."""
    method = spec.method.upper()
    _allow("invalid_method", "method", check_method, method)
    if spec.unmatched is not None and spec.unmatched not in UNMATCHED:
        _refuse("invalid_value", "unmatched", f"`unmatched` is one of {', '.join(UNMATCHED)}.")
    if spec.timeout is not None and not LEAST_TIMEOUT_S <= spec.timeout <= MOST_TIMEOUT_S:
        _refuse("invalid_value", "timeout", "`timeout` is 0.1 to 60 seconds.")
    max_attempts, schedule = _retry(spec.retry)
    return EndpointRecord(
        method=method,
        url=spec.url,
        headers=_headers(spec.headers, spec.sign is not None),
        body=_body(spec.body, method),
        default=default if spec.default is None else spec.default,
        unmatched=unmatched if spec.unmatched is None else spec.unmatched,
        max_attempts=max_attempts,
        schedule=schedule,
        timeout=spec.timeout,
        sign=spec.sign,
        success=_success(spec.success, method),
    )


def _success(rule: SuccessRule | None, method: str) -> SuccessRule | None:
    if rule is None:
        return None
    if rule.status is None and rule.body_contains is None:
        _refuse("invalid_value", "success", '`success` has `status`, as ["2xx", 302], or `body_contains`, or both.')
    if rule.status is not None:
        try:
            is_met = any(status >= 200 for status in parse_statuses(rule.status))
        except ValueError as error:
            _refuse("invalid_value", "success.status", f"{error}.")
        if not is_met:
            _refuse("invalid_value", "success.status", "No final answer has such a status: list some from 200 to 599.")
    if rule.body_contains is not None:
        if not 1 <= len(rule.body_contains) <= MAX_CONTAINED:
            _refuse("invalid_value", "success.body_contains", f"It has 1 to {MAX_CONTAINED} characters.")
        if method == "HEAD":
            _refuse("invalid_value", "success.body_contains", "An answer to HEAD has no body.")
    return rule


def _retry(spec: RetrySpec | None) -> tuple[int | None, tuple[float, ...] | None]:
    if spec is None:
        return None, None
    if spec.max_attempts is not None and not 1 <= spec.max_attempts <= 25:
        _refuse("invalid_value", "retry.max_attempts", "`max_attempts` is 1 to 25; 1 means no retry.")
    if spec.schedule is None:
        return spec.max_attempts, None
    if not 1 <= len(spec.schedule) <= 25:
        _refuse("invalid_value", "retry.schedule", "`schedule` lists 1 to 25 waits in seconds.")
    for index, wait_s in enumerate(spec.schedule):
        if not 0 <= wait_s <= MAX_WAIT_S:
            _refuse("invalid_value", f"retry.schedule[{index}]", f"A wait is 0 to {MAX_WAIT_S} seconds.")
    return spec.max_attempts, tuple(spec.schedule)


def _headers(headers: dict[str, str], is_signed: bool) -> tuple[tuple[str, str], ...]:
    if len(headers) > MAX_HEADERS:
        _refuse("invalid_header", "headers", f"There are {len(headers)} headers; at most {MAX_HEADERS} are taken.")
    seen: set[str] = set()
    for name in headers:
        path, lower = f"headers.{name[:80]}", name.lower()
        _allow("invalid_header", path, check_header_name, name, is_signed)
        if lower in seen:
            _refuse("invalid_header", path, f"The header {name} stands there twice (names differ in case only).")
        seen.add(lower)
    return tuple(headers.items())


def _body(body: str | BodyTemplate | None, method: str) -> str | BodyTemplate:
    if body is None:
        return "json" if method in METHODS_WITH_JSON else "none"
    if isinstance(body, str) and body not in ("json", "form", "none"):
        _refuse("invalid_body", "body", "`body` is json, form, none or {template, content_type}.")
    if body != "none" and method in METHODS_WITHOUT_BODY:
        _refuse("invalid_body", "body", f"A {method} request has no body: leave `body` out.")
    if isinstance(body, BodyTemplate):
        _allow("invalid_body", "body.content_type", check_media_type, body.content_type)
        if len(body.template) > MAX_TEMPLATE_BYTES:
            _refuse("invalid_body", "body.template", f"The template is over {MAX_TEMPLATE_BYTES} characters.")
    return body


def _allow(code: str, member: str, check: Callable[..., None], *arguments: object) -> None:
    """Run a check of outgoing.py; what it refuses is a 422."""
    try:
        check(*arguments)
    except OutgoingError as error:
        _refuse(code, member, str(error))


def _refuse(code: str, member: str, message: str) -> NoReturn:
    raise RequestError(422, code, message, f"endpoint.{member}")


def _validation_error(error: msgspec.ValidationError, sent: bytes) -> RequestError:
    """Name the member that is unknown, missing or of the wrong type."""
    text = str(error)
    found = _MSGSPEC_PATH.search(text)
    parent = f"endpoint.{found.group(1)}" if found and found.group(1) else "endpoint"
    if parent == "endpoint.headers[...]":  # msgspec does not say which
        headers = msgspec.json.decode(sent)["headers"]
        parent = "endpoint.headers." + next(name for name, value in headers.items() if not isinstance(value, str))[:80]
    text = _MSGSPEC_PATH.sub("", text)
    if unknown := _UNKNOWN_MEMBER.search(text):
        path = f"{parent}.{unknown.group(1)}"
        return RequestError(422, "unknown_member", f"`{parent}` has no member `{unknown.group(1)}`.", path)
    if missing := _MISSING_MEMBER.search(text):
        path = f"{parent}.{missing.group(1)}"
        return RequestError(422, "missing_member", f"`{parent}` needs a member `{missing.group(1)}`.", path)
    return RequestError(422, "invalid_type", f"{text}.", parent)
