# SPDX-License-Identifier: MIT
"""docs/openapi.yaml against a running daemon: requests it allows are taken, every answer is as it says."""

import base64
import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from openapi_spec_validator import validate

from tests.support.daemon import Daemon, running_daemon

DOCUMENT = yaml.safe_load((Path(__file__).parents[2] / "docs" / "openapi.yaml").read_text())
SAMPLE = {
    "endpoint": {"method": "GET", "url": "http://127.0.0.1:9/data?key={key}&value={value}&foo={bar}"},
    "data": [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}],
}
TAKEN: list[Any] = [
    SAMPLE,
    {**SAMPLE, "data": {"key": "one"}},
    {**SAMPLE, "delay": 3600, "expires_after": 60},
    {**SAMPLE, "deliver_at": "2026-01-01T00:00:00Z"},
    {**SAMPLE, "data": [{"key": "k", "@": {"delay": 100}}]},
    *(
        {"endpoint": {**SAMPLE["endpoint"], **more}, "data": [{"key": "k"}]}  # type: ignore[dict-item]
        for more in (
            {"method": "post"},
            {"method": "PUT", "body": "form"},
            {"method": "PATCH", "body": {"template": "{key}", "content_type": "text/plain"}},
            {"method": "DELETE", "body": "none"},
            {"headers": {"X-Key": "{key}"}, "default": "-", "unmatched": "keep"},
            {"retry": {"max_attempts": 2, "schedule": [0.5, 60]}, "timeout": 0.1},
            {"success": {"status": ["2xx", 302], "body_contains": "OK"}},
            {"sign": "partner"},
        )
    ),
]
REFUSED: list[tuple[int, bytes, dict[str, str]]] = [
    (400, b"", {}),
    (400, b"{", {}),
    (401, json.dumps(SAMPLE).encode(), {"Authorization": ""}),
    (403, json.dumps(SAMPLE).encode(), {"Authorization": "Bearer wrong"}),
    (413, json.dumps({**SAMPLE, "data": [{}] * 1001}).encode(), {}),
    (415, json.dumps(SAMPLE).encode(), {"Content-Type": "text/html"}),
    (422, json.dumps({**SAMPLE, "data": []}).encode(), {}),
    (422, json.dumps({**SAMPLE, "endpoint": {"method": "FETCH", "url": "http://h/"}}).encode(), {}),
    (422, json.dumps({**SAMPLE, "endpoint": {"method": "GET", "url": "http://h/", "colour": 1}}).encode(), {}),
    (422, json.dumps({**SAMPLE, "colour": 1}).encode(), {}),
]
KEY = "whsec_" + base64.b64encode(bytes(24)).decode()
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    settings = [
        'ingest.tokens=["app:secret"]',
        'security.signing_keys={partner="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}',
    ]
    with running_daemon(tmp_path_factory.mktemp("openapi"), settings) as made:
        yield made


def ask(daemon: Daemon, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.status, response.headers, response.read()
    connection.close()
    return answer


def resolved(node: Any) -> Any:
    while "$ref" in node:
        found = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def schema_check(name: str, value: object) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def hold_against(path: str, method: str, answer: tuple[int, Any, bytes]) -> None:
    """The answer's status, headers and body are those of the document."""
    status, headers, body = answer
    response = resolved(DOCUMENT["paths"][path][method.lower()]["responses"][str(status)])
    media_type = headers["Content-Type"].partition(";")[0]
    schema = response["content"][media_type]["schema"]
    for name, header in response.get("headers", {}).items():
        assert not header.get("required") or headers[name] is not None, name
    if media_type == "application/json":
        whole = {**schema, "components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(whole).validate(json.loads(body))


def test_document_is_openapi() -> None:
    validate(DOCUMENT)


@pytest.mark.parametrize("path", ["/ingest.php", "/i"])
@pytest.mark.parametrize("request_", TAKEN, ids=str)
def test_what_the_document_allows_is_taken(daemon: Daemon, path: str, request_: Any) -> None:
    schema_check("Request", request_)
    answer = ask(daemon, "POST", path, json.dumps(request_).encode(), {"Content-Type": "application/json", **TOKEN})
    assert answer[0] == 202, answer[2]
    hold_against(path, "POST", answer)


@pytest.mark.parametrize(("status", "body", "headers"), REFUSED)
def test_refusals_are_as_the_document_says(daemon: Daemon, status: int, body: bytes, headers: dict[str, str]) -> None:
    answer = ask(daemon, "POST", "/i", body, {"Content-Type": "application/json", **TOKEN, **headers})
    assert answer[0] == status, answer[2]
    hold_against("/i", "POST", answer)


def test_key_with_another_body_is_a_conflict(daemon: Daemon) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": "openapi", **TOKEN}
    first, second = ({**SAMPLE, "data": {"key": key}} for key in "ab")
    assert ask(daemon, "POST", "/i", json.dumps(first).encode(), headers)[0] == 202
    answer = ask(daemon, "POST", "/i", json.dumps(second).encode(), headers)
    assert answer[0] == 409
    hold_against("/i", "POST", answer)


def test_compressed_and_by_lines(daemon: Daemon) -> None:
    body = json.dumps(SAMPLE).encode()
    zipped = ask(daemon, "POST", "/i", gzip.compress(body), {"Content-Encoding": "gzip", **TOKEN})
    assert zipped[0] == 202, zipped[2]
    lines = ask(daemon, "POST", "/i", body + b"\n" + body, {"Content-Type": "application/x-ndjson", **TOKEN})
    assert lines[0] == 200, lines[2]
    hold_against("/i", "POST", lines)
    for line in lines[2].splitlines():
        found = json.loads(line)
        assert found.pop("status") == 202
        schema_check("Accepted", found)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_ready(daemon: Daemon, path: str) -> None:
    answer = ask(daemon, "GET", path, None, {})
    assert answer[0] == 200
    hold_against(path, "GET", answer)
