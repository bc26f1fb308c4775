# SPDX-License-Identifier: MIT
"""Endpoints as clients write them: what is refused and where, and what a data object becomes."""

import json
from typing import Any

import pytest

from postbackd import codec
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.errors import RequestError
from postbackd.template import CompiledEndpoint

GET = {"method": "GET", "url": "http://h/"}
POST = {"method": "POST", "url": "http://h/"}


def make(endpoint: dict[str, Any], **options: Any) -> IngestEndpoint:
    chosen: dict[str, Any] = {"default": "", "unmatched": "empty", "allow_host": False, "schemes": ["http", "https"]}
    return compile_endpoint(json.dumps(endpoint).encode(), **{**chosen, **options})


def record_of(endpoint: dict[str, Any], **options: Any) -> codec.EndpointRecord:
    return codec.decode_record(make(endpoint, **options).record)


def values_of(endpoint: dict[str, Any], item: dict[str, Any]) -> list[Any]:
    raw = json.dumps(item).encode()
    return codec.decode_item(make(endpoint).encode(1, item, 0, raw)).values


REFUSED = [
    ({"method": "BREW", "url": "http://h/"}, "invalid_method", "method"),
    ({"method": "GET"}, "missing_member", "url"),
    ({"method": 1, "url": "http://h/"}, "invalid_type", "method"),
    ({**GET, "url": "ftp://h/"}, "invalid_url", "url"),
    ({**GET, "url": "http://h/\x85"}, "invalid_url", "url"),
    ({**GET, "headers": {"X-A": "1", "X-B": 2}}, "invalid_type", "headers.X-B"),
    ({**GET, "url": "http://u@h/"}, "invalid_url", "url"),
    ({**GET, "url": "http://h/{x"}, "invalid_template", "url"),
    ({**GET, "url": "http://h/" + "x" * 70_000}, "invalid_url", "url"),
    ({**GET, "nope": 1}, "unknown_member", "nope"),
    ({**GET, "sign": "k"}, "unknown_signing_key", "sign"),
    ({**GET, "sign": 1}, "invalid_type", "sign"),
    ({**GET, "success": {}}, "invalid_value", "success"),
    ({**GET, "success": []}, "invalid_type", "success"),
    ({**GET, "success": {"code": 200}}, "unknown_member", "success.code"),
    ({**GET, "success": {"status": 200}}, "invalid_type", "success.status"),
    ({**GET, "success": {"status": []}}, "invalid_value", "success.status"),
    ({**GET, "success": {"status": [200, "6xx"]}}, "invalid_value", "success.status"),
    ({**GET, "success": {"status": ["1xx", 101]}}, "invalid_value", "success.status"),
    ({**GET, "success": {"status": [600]}}, "invalid_value", "success.status"),
    ({**GET, "success": {"status": [200.5]}}, "invalid_type", "success.status[0]"),
    ({**GET, "success": {"body_contains": ""}}, "invalid_value", "success.body_contains"),
    ({**GET, "success": {"body_contains": "x" * 1025}}, "invalid_value", "success.body_contains"),
    ({**GET, "method": "HEAD", "success": {"body_contains": "x"}}, "invalid_value", "success.body_contains"),
    ({**GET, "retry": {"max_attempts": 0}}, "invalid_value", "retry.max_attempts"),
    ({**GET, "retry": {"max_attempts": 26}}, "invalid_value", "retry.max_attempts"),
    ({**GET, "retry": {"schedule": []}}, "invalid_value", "retry.schedule"),
    ({**GET, "retry": {"schedule": [1, -1]}}, "invalid_value", "retry.schedule[1]"),
    ({**GET, "retry": {"nope": 1}}, "unknown_member", "retry.nope"),
    ({**GET, "timeout": 0.05}, "invalid_value", "timeout"),
    ({**GET, "timeout": 61}, "invalid_value", "timeout"),
    ({**GET, "unmatched": "drop"}, "invalid_value", "unmatched"),
    ({**GET, "url": "http://h/{k}", "unmatched": "drop_param"}, "invalid_template", "url"),
    ({**GET, "body": "json"}, "invalid_body", "body"),
    ({"method": "HEAD", "url": "http://h/", "body": "form"}, "invalid_body", "body"),
    ({**POST, "body": "xml"}, "invalid_body", "body"),
    ({**POST, "body": {"template": "x"}}, "missing_member", "body.content_type"),
    ({**POST, "body": {"template": "x", "content_type": "a\r\nb"}}, "invalid_body", "body.content_type"),
    ({**POST, "body": {"template": "{", "content_type": "a/b"}}, "invalid_template", "body.template"),
    ({**GET, "headers": {"Host": "x"}}, "invalid_header", "headers.Host"),
    ({**GET, "headers": {"proxy-x": "x"}}, "invalid_header", "headers.proxy-x"),
    ({**GET, "headers": {"a b": "x"}}, "invalid_header", "headers.a b"),
    ({**GET, "headers": {"X-A": "1", "x-a": "2"}}, "invalid_header", "headers.x-a"),
    ({**GET, "headers": {"X": "a\nb"}}, "invalid_template", "headers.X"),
    ({**GET, "headers": {"X": "{"}}, "invalid_template", "headers.X"),
    ({**GET, "headers": {"A": "a", "X": "x" * 8190}}, "invalid_template", "headers.X"),
    ({**GET, "url": "http://h/" + "x" * 8184}, "invalid_template", "url"),
    ({**GET, "url": "http://h/?k={k}&x=" + "é" * 1400}, "invalid_template", "url"),
]


@pytest.mark.parametrize(("endpoint", "code", "member"), REFUSED)
def test_bad_endpoint_is_refused_where_its_fault_is(endpoint: dict[str, Any], code: str, member: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(endpoint)
    error = caught.value
    assert (error.status, error.code, error.path) == (422, code, f"endpoint.{member}"), error.message


@pytest.mark.parametrize(
    "name", ["content-length", "Transfer-Encoding", "Connection", "Expect", "TE", "Upgrade", "Trailer"]
)
def test_headers_of_the_connection_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="leave it out"):
        make({**GET, "headers": {name: "x"}})


@pytest.mark.parametrize("name", ["webhook-id", "Webhook-Timestamp", "WEBHOOK-SIGNATURE", "webhook-anything"])
def test_webhook_headers_are_the_signatures_where_there_is_one(name: str) -> None:
    assert record_of({**GET, "headers": {name: "x"}}).sign is None
    with pytest.raises(RequestError, match="leave it out") as caught:
        make({**GET, "headers": {name: "x"}, "sign": "k"}, signing_keys={"k"})
    assert (caught.value.code, caught.value.path) == ("invalid_header", f"endpoint.headers.{name}")
    assert record_of({**GET, "sign": "k"}, signing_keys={"k"}).sign == "k"


def test_userinfo_is_refused_beside_a_placeholder_in_the_host_too() -> None:
    for url in ("http://{u}@h/", "http://u@{h}/", "http://u:{p}@h/"):
        with pytest.raises(RequestError, match="user name") as caught:
            make({**GET, "url": url}, allow_host=True)
        assert (caught.value.code, caught.value.path) == ("invalid_url", "endpoint.url")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("HTTP://API.Example.:8080/x", "api.example"),
        ("http://bücher.example?x", "xn--bcher-kva.example"),
        ("http://[::0:1]:80/", "[::1]"),
        ("http://h/{k}", "h"),
        ("http://{h}.example/", None),
    ],
)
def test_host_is_the_one_that_is_connected_to(url: str, host: str | None) -> None:
    """A sender that may send to certain hosts only is held to it, however the host is written."""
    assert make({"method": "GET", "url": url}, allow_host=True).host == host


def test_scheme_can_be_forbidden() -> None:
    with pytest.raises(RequestError, match="schemes"):
        make(GET, schemes=["https"])


def test_record_is_complete_and_without_defaults() -> None:
    record = record_of({"method": "post", "url": "http://h/{k}", "retry": {"max_attempts": 2, "schedule": [1]}})
    assert (record.method, record.body, record.fields) == ("POST", "json", ("k",))
    assert (record.max_attempts, record.schedule, record.timeout) == (2, (1.0,), None)


def test_configured_default_and_unmatched_go_into_the_record() -> None:
    assert record_of(GET, default="x", unmatched="keep").default == "x"
    assert record_of({**GET, "default": "y"}, default="x").default == "y"
    assert record_of({**GET, "unmatched": "empty"}, unmatched="keep").unmatched == "empty"


def test_success_rule_goes_into_the_record_as_it_was_written() -> None:
    rule = record_of({**GET, "success": {"status": ["2xx", 302], "body_contains": "OK"}}).success
    assert rule == codec.SuccessRule(("2xx", 302), "OK")
    assert record_of({**GET, "success": {"body_contains": "é"}}).success == codec.SuccessRule(None, "é")


def test_same_endpoint_has_the_same_id_and_another_another() -> None:
    assert make(GET).id == make({"url": "http://h/", "method": "get"}).id
    assert make(GET).id != make({**GET, "default": "x"}).id


def test_exact_key_goes_before_the_dotted_path() -> None:
    endpoint = {**GET, "url": "http://h/?a={u.id}&b={t.0}&c={t.5}&d={u.id.x}&e={n.m}"}
    item = {"u": {"id": 1}, "t": ["x", "y"], "n.m": "exact", "n": {"m": "path"}}
    assert values_of(endpoint, item) == [1, "x", None, None, "exact"]
    assert values_of({**GET, "url": "http://h/{a.b}"}, {"a.b": None, "a": {"b": 1}}) == []


def test_values_travel_in_their_types() -> None:
    endpoint = {**GET, "url": "http://h/?{a}{b}{c}{d}{e}{f}{g}"}
    item = {"a": "t", "b": 2**63, "c": 2**64, "d": -(2**63) - 1, "e": 1.5, "f": True, "g": {"x": [1, None]}}
    assert values_of(endpoint, item) == ["t", 2**63, str(2**64), str(-(2**63) - 1), 1.5, True, b'{"x":[1,null]}']


def test_unused_keys_are_not_sent() -> None:
    assert values_of({**GET, "url": "http://h/{a}"}, {"a": 1, "secret": "x" * 1000}) == [1]


def test_json_body_travels_as_it_was_sent() -> None:
    assert values_of({**POST, "url": "http://h/{a}"}, {"b": 1}) == [None, b'{"b": 1}']


@pytest.mark.parametrize(
    ("unmatched", "body"),
    [("empty", b"a=d&b=x%20y&c=%7B%22z%22%3A1%7D"), ("keep", b"a=%7Ba%7D&b=x%20y&c=%7B%22z%22%3A1%7D"),
     ("drop_param", b"b=x%20y&c=%7B%22z%22%3A1%7D")],
)  # fmt: skip
def test_form_body_is_sorted_and_missing_values_go_by_unmatched(unmatched: str, body: bytes) -> None:
    endpoint = {**POST, "body": "form", "unmatched": unmatched, "default": "d"}
    assert values_of(endpoint, {"c": {"z": 1}, "b": "x y", "a": None}) == [body]


def test_fail_names_the_item_and_the_key() -> None:
    endpoint = make({**GET, "url": "http://h/{a}?b={b|default:1}", "unmatched": "fail"})
    endpoint.encode(1, {"a": 1}, 0, None)
    for item in ({}, {"a": None}):
        with pytest.raises(RequestError) as caught:
            endpoint.encode(1, item, 3, None)
        assert (caught.value.status, caught.value.code, caught.value.path) == (422, "missing_key", "data[3].a")


def test_what_ingest_encodes_delivery_renders() -> None:
    endpoint = make({**POST, "url": "http://h/{a.b}?c={c}", "headers": {"X": "{c}"}, "body": "form"})
    item = codec.decode_item(endpoint.encode(7, {"a": {"b": "x"}, "c": 2**70}, 0, None))
    rendered = CompiledEndpoint(codec.decode_record(endpoint.record)).render(item.values, 7, 1, 0)
    assert rendered.url == f"http://h/x?c={2**70}"
    assert rendered.body == f"a=%7B%22b%22%3A%22x%22%7D&c={2**70}".encode()
    assert list(rendered.headers) == [f"X: {2**70}".encode(), b"Content-Type: application/x-www-form-urlencoded"]
