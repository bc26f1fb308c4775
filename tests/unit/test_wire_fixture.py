# SPDX-License-Identifier: MIT
"""What earlier versions wrote to Redis is read by this one: bytes kept in tests/fixtures/wire-N.json.

A queue outlives an upgrade, so a file here is never changed. When the format grows, a new one is added:

    python -m tests.unit.test_wire_fixture "0.3.0: what is new in it" > tests/fixtures/wire-3.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from postbackd import codec
from postbackd.endpoint import IngestEndpoint, compile_endpoint
from postbackd.template import CompiledEndpoint

FOLDER = Path(__file__).parent.parent / "fixtures"
FIXTURES = sorted(FOLDER.glob("wire-*.json"))
NOW_MS = 1_764_000_000_123
FIRST_ID = 0x0CABDC98CBB61800

# Every kind of record and value that the first version can write.
ENDPOINTS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (
        {"method": "GET", "url": "http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}"},
        [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}],
    ),
    (
        {"method": "get", "url": "https://h.example/{p|raw}?a={a}&b={b.c}&i={@id}&t={@timestamp_ms}&n={@attempt}"},
        [
            {"p": "x/y", "a": 2**63, "b": {"c": -1}},
            {"p": "é", "a": 2**70, "b": {"c": [1, {"d": None}]}},
            {"p": "", "a": 1.5, "b": {"c": True}},
            {"a": False},
        ],
    ),
    ({"method": "POST", "url": "http://h/{k}", "headers": {"X-K": "k {k}"}}, [{"k": "a b", "n": {"x": [1.50]}}]),
    ({"method": "PUT", "url": "http://h/", "body": "form", "default": "d"}, [{"b": "x y&z", "a": None, "c": {"z": 1}}]),
    ({"method": "PATCH", "url": "http://h:8080/", "body": "none", "timeout": 2.5}, [{}]),
    (
        {
            "method": "POST",
            "url": "http://h/",
            "body": {"template": '{{"a": "{k}", "b": {n}}}', "content_type": "application/json"},
            "retry": {"max_attempts": 3, "schedule": [0.5, 60]},
        },
        [{"k": '"', "n": 5}],
    ),
    ({"method": "GET", "url": "http://h/?a={a}&b={b}", "unmatched": "drop_param"}, [{"b": 1}]),
    ({"method": "GET", "url": "http://h/?a={a}", "unmatched": "keep"}, [{}]),
    ({"method": "DELETE", "url": "http://h/{a}?b={b|default:x y}", "unmatched": "fail"}, [{"a": 1}]),
]

# What came after it, and stands in wire-2.json.
ENDPOINTS += [
    ({"method": "POST", "url": "http://h/", "sign": "k", "success": {"status": ["2xx", 302]}}, [{"a": 1}]),
    ({"method": "GET", "url": "http://h/?a={a}", "success": {"body_contains": "é OK"}}, [{"a": 1}, {}]),
    (
        {
            "method": "GET",
            "url": "http://h/{p|raw|lower}?s={e|trim|lower|sha256}&m={m|map:a=b,c=d}&d={@timestamp|date:%Y-%m-%d}",
            "headers": {"X-Json": "{j|json|b64url}", "X-Digests": "{e|md5}{e|sha1}", "X-Up": "{n|default:x|upper}"},
        },
        [{"p": "A/b", "e": " A@b.c ", "m": "a", "j": {"k": [1, None]}}],
    ),
]

# A reclaim, attempts with an answer and without, a start, an expiry: the trail of codec.py.
TRAILS = ["", "c0", "92cf0000019ab697e87bcd01f7", "92cf0000019ab697e87b05c0", "cf0000019ab697e87b", "81a1783c"]


def write(name: str) -> dict[str, Any]:
    """The fixture as this version writes it."""
    endpoints, number = [], 0
    for endpoint, data in ENDPOINTS:
        made = compiled(endpoint)
        items = []
        for item in data:
            element = made.encode(FIRST_ID + number, item, 0, json.dumps(item).encode())
            queued = element + bytes.fromhex(TRAILS[number % len(TRAILS)])
            items.append({"data": item, "queued": queued.hex(), "read": read(made.record, queued)})
            number += 1
        endpoints.append({"endpoint": endpoint, "id": made.id.hex(), "record": made.record.hex(), "items": items})
    return {"written_by": name, "endpoints": endpoints}


def compiled(endpoint: dict[str, Any]) -> IngestEndpoint:
    text = json.dumps(endpoint).encode()
    schemes = ["http", "https"]
    return compile_endpoint(text, default="", unmatched="empty", allow_host=False, schemes=schemes, signing_keys={"k"})


def read(record: bytes, queued: bytes) -> dict[str, Any]:
    """What a delivery worker makes of a record and an item."""
    item = codec.decode_item(queued)
    endpoint = CompiledEndpoint(codec.decode_record(record))
    sent = endpoint.render(item.values, item.postback_id, item.attempt, NOW_MS)
    rules = {
        "sign": endpoint.record.sign,
        "success": json.loads(msgspec.json.encode(endpoint.record.success)),
    }
    return {name: rule for name, rule in rules.items() if rule is not None} | {
        "id": codec.format_id(item.postback_id),
        "attempts": [list(attempt) for attempt in item.attempts],
        "reclaims": item.reclaims,
        "start_ms": item.start_ms,
        "expires_after_s": item.expires_after_s,
        "method": endpoint.record.method,
        "retry": [endpoint.record.max_attempts, list(endpoint.record.schedule or ()), endpoint.record.timeout],
        "url": sent.url,
        "headers": [header.decode() for header in sent.headers],
        "body": None if sent.body is None else sent.body.decode(),
    }


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_what_a_version_wrote_is_read_as_it_was_meant(path: Path) -> None:
    for endpoint in json.loads(path.read_text())["endpoints"]:
        record = bytes.fromhex(endpoint["record"])
        assert codec.endpoint_id(record).hex() == endpoint["id"]
        for item in endpoint["items"]:
            queued = bytes.fromhex(item["queued"])
            assert codec.decode_item(queued).endpoint_id.hex() == endpoint["id"]
            assert read(record, queued) == item["read"]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_an_endpoint_keeps_its_bytes_and_so_its_id(path: Path) -> None:
    """Else each upgrade would store every endpoint a second time, and `--endpoint <hex>` would name another."""
    for endpoint in json.loads(path.read_text())["endpoints"]:
        made = compiled(endpoint["endpoint"])
        assert made.record.hex() == endpoint["record"], endpoint["endpoint"]
        for item in endpoint["items"]:
            fresh = made.encode(int(item["read"]["id"], 16), item["data"], 0, json.dumps(item["data"]).encode())
            assert item["queued"].startswith(fresh.hex())


def test_there_is_a_fixture_of_the_first_version() -> None:
    assert FOLDER / "wire-1.json" in FIXTURES


if __name__ == "__main__":
    print(json.dumps(write(sys.argv[1]), indent=1, ensure_ascii=False))
