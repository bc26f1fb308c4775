# SPDX-License-Identifier: MIT
"""Ingest and delivery agree: whatever ingest takes, delivery can send, and nothing that ingest is given makes it fail.

Endpoints are put together from pieces that have a meaning somewhere, right and wrong ones.
"""

import json
from typing import Any
from urllib.parse import urlsplit

from hypothesis import given, settings
from hypothesis import strategies as st

from postbackd import codec
from postbackd.delivery.endpoints import Endpoint
from postbackd.endpoint import compile_endpoint
from postbackd.errors import RequestError
from postbackd.settings_loader import load
from postbackd.signing import SigningKeys
from postbackd.template_values import RenderError

KEY = 'security.signing_keys={k = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}'
CLOSED, OPEN = load(None, {}, [KEY]), load(None, {}, [KEY, "template.allow_host=true"])
KEYS = SigningKeys(CLOSED.security.signing_keys)
RIGHT = [
    "/", "?", "&", "=", ":", ";", ".", "..", "%2e", "%", "%zz", "h", "-", "{{", "}}", "{a}", "{b.c}",
    "{a|lower|sha256}", "{a|default:..}", "{a|default:x|upper}", "{a|map:x=y,1=}", "{a|json}", "{a|b64url}", "{@id}",
    "{@timestamp|date:%s}",
    "'", "<", "é", "😀", "x" * 300,
]  # fmt: skip
WRONG = [
    "http://", "//", "#", "@", "[", "]", "[::1]", ":80", ":0", ":99999", " ", "\\", "\n", "\x00", "\x7f", "\u0085",
    "\u2028",
    "{", "}", "{@now}", "{|}", "{a|no}", "{a|raw}", "{a|date:%Y}", '"',
]  # fmt: skip


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=8).map("".join)


def endpoints(text: st.SearchStrategy[str], wrong: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Endpoints of such texts; `wrong`: with other wrong members as well."""

    def some(right: list[Any], *others: Any) -> st.SearchStrategy[Any]:
        return st.sampled_from([*right, *others] if wrong else right)

    starts = some(["http://h/", "https://h.example:8443/p?", "http://{a}/"], "http://h", "ftp://h/", "")
    types = [
        "application/json",
        "a/b+json",
        "text/xml; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
    ]
    body = st.fixed_dictionaries({"template": text, "content_type": some(types, "no")})
    status = st.lists(some(["2xx", "5xx", 302, 201], "9xx", 99), min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {
            "method": some(["post", "PUT", "PATCH", "DELETE"], "GET", "HEAD", "BREW"),
            "url": st.builds(str.__add__, starts, text),
        },
        optional={
            "headers": st.dictionaries(
                some(["X", "Y", "Accept", "Content-Type"], "x", "Host", "webhook-id", "a b", "é"), text, max_size=3
            ),
            "body": st.one_of(some(["json", "form", "none"], "no"), body),
            "default": text,
            "unmatched": some(["empty", "keep"], "drop_param", "fail", "no"),
            "timeout": some([0.1, 60], 61, "1"),
            "retry": some([{"max_attempts": 1}, {"schedule": [5, 0.5]}], {"schedule": []}, {}),
            "sign": some(["k"], "other"),
            "success": st.fixed_dictionaries({"status": status}, optional={"body_contains": some(["OK", "é"], "")}),
        },
    )


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts(RIGHT + WRONG)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("bc"), inner, max_size=2)),
    max_leaves=4,
)
ITEMS = st.dictionaries(st.sampled_from(["a", "b", "b.c", "other"]), JSON_VALUES, max_size=3)


@settings(max_examples=150, deadline=None)
@given(endpoints(texts(RIGHT + WRONG), wrong=True), ITEMS, st.booleans())
def test_ingest_takes_or_refuses_and_delivery_sends(
    endpoint: dict[str, Any], item: dict[str, Any], allow: bool
) -> None:
    check(endpoint, item, allow)


@settings(max_examples=150, deadline=None)
@given(endpoints(texts(RIGHT), wrong=False), ITEMS)
def test_what_ingest_takes_delivery_sends(endpoint: dict[str, Any], item: dict[str, Any]) -> None:
    check(endpoint, item, True)


def check(endpoint: dict[str, Any], item: dict[str, Any], allow_host: bool) -> None:
    try:
        made = compile_endpoint(
            json.dumps(endpoint).encode(),
            default="",
            unmatched="empty",
            allow_host=allow_host,
            schemes=["http", "https"],
            signing_keys={"k"},
        )
        element = made.encode(1, item, 0, json.dumps(item).encode())
    except RequestError as error:
        assert error.status == 422 and error.message.endswith(".")
        return
    queued = codec.decode_item(element)
    stored = Endpoint(made.id, made.record, OPEN if allow_host else CLOSED, KEYS)
    assert stored.compiled is not None, stored.fault
    try:
        rendered = stored.compiled.render(queued.values, queued.postback_id, queued.attempt, 1_700_000_000_000)
    except RenderError:
        return
    profile = stored.constant_profile or stored.profile(rendered, queued.postback_id, 1_700_000_000_000)
    parts = urlsplit(rendered.url)
    assert (
        rendered.url.isascii() and rendered.url.isprintable() and " " not in rendered.url and len(rendered.url) <= 8192
    )
    assert parts.scheme in ("http", "https") and not parts.fragment and "@" not in parts.netloc
    assert rendered.host_key in (parts.netloc, parts.netloc.rpartition(":")[0]), "the lane and the target are the same"
    for header in profile.headers:
        assert not set(header) & set(b"\r\n\x00")
    names = [header.partition(b":")[0].rstrip(b";").lower() for header in profile.headers]
    assert len(names) == len(set(names))
    assert (b"webhook-signature" in names) == ("sign" in endpoint)
