# SPDX-License-Identifier: MIT
"""Modifiers: what each does to a value, in chains, with defaults, in every place; and what is refused, and where."""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.codec import BodyTemplate, EndpointRecord
from postbackd.endpoint import compile_endpoint
from postbackd.errors import RequestError
from postbackd.template import CompiledEndpoint, Rendered, placeholders
from postbackd.template_syntax import TemplateError
from postbackd.template_values import RenderError

NOW_MS = 1_700_000_000_123
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.builds(lambda value: msgspec.json.encode({"k": value}), TEXT),  # a container, as it travels
)
CHAINS = st.lists(
    st.sampled_from(["lower", "upper", "trim", "md5", "sha1", "sha256", "b64url", "json", "map:a=b,c=d", "default:é&"]),
    max_size=4,
    unique_by=lambda name: name.startswith("default") or object(),
).map(lambda names: "".join("|" + name for name in names))


def compiled(url: str, **members: Any) -> CompiledEndpoint:
    record = EndpointRecord(method=members.pop("method", "GET"), url=url, **members)
    return CompiledEndpoint(msgspec.structs.replace(record, fields=placeholders(record)))


def render(url: str, item: dict[str, Any], **members: Any) -> Rendered:
    endpoint = compiled(url, **members)
    return endpoint.render([item.get(name) for name in endpoint.record.fields], 1, 1, NOW_MS)


def modified(chain: str, value: Any, **members: Any) -> str:
    """What a placeholder with these modifiers makes of a value, before it is encoded for its place."""
    url = render(f"http://h/?k={{k|{chain}}}", {"k": value}, **members).url
    return unquote(url.partition("?k=")[2])


@pytest.mark.parametrize(
    ("chain", "value", "text"),
    [
        ("lower", "ÀB c", "àb c"),
        ("upper", "straße", "STRASSE"),
        ("trim", " \t a b\n\u00a0", "a b"),
        ("md5", "a@b.c", "5d60d4e28066df254d5452f92c910092"),
        ("sha1", "", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        ("sha256", "é", hashlib.sha256("é".encode()).hexdigest()),
        ("sha256", 1, hashlib.sha256(b"1").hexdigest()),
        ("sha256", True, hashlib.sha256(b"true").hexdigest()),
        ("sha256", b'{"a":1}', hashlib.sha256(b'{"a":1}').hexdigest()),
        ("b64url", "??>", "Pz8-"),
        ("b64url", "a", "YQ"),
        ("b64url", "", ""),
        ("json", 'a"é', '"a\\"é"'),
        ("json", 5, "5"),
        ("json", False, "false"),
        ("json", b"[1,2]", "[1,2]"),
        ("map:a=b,c=d", "a", "b"),
        ("map:a=b,c=d", "c", "d"),
        ("map:a=b,c=d", "e", "e"),
        ("map:1=one,true=yes", 1, "one"),
        ("map:1=one,true=yes", True, "yes"),
        ("map:a=,=x y", "a", ""),
        ("map:a=,=x y", "", "x y"),
        ("map:a=b=c", "a", "b=c"),
        ("date:%Y-%m-%d", 1_700_000_000, "2023-11-14"),
        ("date:%Y-%m-%dT%H:%M:%SZ", "1700000000", "2023-11-14T22:13:20Z"),
        ("date:%Y%m%d %H:%M:%S.%f", 1_700_000_000_123, "20231114 22:13:20.123000"),
        ("date:%s", "2023-11-14T23:13:20+01:00", "1700000000"),
        ("date:%d/%m/%y %%", "2023-11-14", "14/11/23 %"),
        ("date:%H:%M", "2023-11-14T22:13:20.5Z", "22:13"),
        ("date:%Y é", -62_135_596_800, "0001 é"),
        ("trim|lower|sha256", "  A@B.C ", hashlib.sha256(b"a@b.c").hexdigest()),
        ("sha256|upper", "x", hashlib.sha256(b"x").hexdigest().upper()),
        ("json|b64url", "a", "ImEi"),
        ("map:a=B|lower", "a", "b"),
        ("lower|map:a=B", "A", "B"),
    ],
)
def test_each_modifier_does_its_work(chain: str, value: Any, text: str) -> None:
    assert modified(chain, value) == text


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        ("default:X|lower", "x"),
        ("lower|default:X", "X"),
        ("sha256|default:none", "none"),
        ("default:x|map:x=y", "y"),
        ("default:1700000000|date:%Y", "2023"),
        ("default:", ""),
        ("default:a:b,c=d", "a:b,c=d"),
    ],
)
def test_default_enters_the_chain_where_it_stands(chain: str, text: str) -> None:
    assert modified(chain, None) == text


def test_missing_value_without_a_default_of_its_own_goes_through_no_modifier() -> None:
    assert modified("sha256", None) == ""
    assert modified("sha256", None, default="D e") == "D e"
    assert modified("sha256", None, unmatched="keep") == "{k|sha256}"
    assert modified("lower", "", default="D") == ""


def test_raw_may_stand_anywhere_in_the_chain() -> None:
    assert render("http://h/{k|raw|lower}", {"k": "A/B"}).url == "http://h/a/b"
    assert render("http://h/{k|lower|raw}", {"k": "A/B"}).url == "http://h/a/b"


def test_built_ins_take_modifiers() -> None:
    assert render("http://h/?t={@timestamp|date:%Y-%m-%d}&m={@timestamp_ms|date:%f}&i={@id|upper}", {}).url == (
        "http://h/?t=2023-11-14&m=123000&i=0000000000000001"
    )


def test_modifiers_work_in_headers_and_bodies() -> None:
    body = BodyTemplate('{{"s": "{k|upper}", "j": {k|json}, "js": "{k|json}", "h": {k|md5}}}', "application/json")
    rendered = render("http://h/", {"k": 'a"'}, method="POST", headers=(("X", "{k|b64url}"),), body=body)
    assert rendered.headers[0] == b"X: YSI"
    assert json.loads(rendered.body or b"") == {
        "s": 'A"', "j": 'a"', "js": '"a\\""', "h": hashlib.md5(b'a"').hexdigest()
    }  # fmt: skip
    xml = BodyTemplate("<a>{k|json}</a>", "text/xml")
    assert render("http://h/", {"k": "<"}, method="POST", body=xml).body == b"<a>&quot;&lt;&quot;</a>"


@pytest.mark.parametrize("value", ["", "tomorrow", True, b"{}", "99999999999999999", 1e300, "2023-13-01"])
def test_what_is_no_time_is_a_render_error(value: Any) -> None:
    with pytest.raises(RenderError, match="no time"):
        modified("date:%Y", value)


REFUSED = [
    ("{a|lowre}", "no modifier 'lowre'", 4),
    ("{a|}", "no modifier ''", 4),
    ("{a| lower}", "no modifier ' lower'", 4),
    ("{a|Lower}", "no modifier 'Lower'", 4),
    ("{a|lower:x}", "lower takes nothing", 4),
    ("{a|raw:x}", "raw takes nothing", 4),
    ("{a|trim|map}", "map needs its argument", 9),
    ("{a|map:}", "pairs as a=b", 4),
    ("{a|map:a}", "'a' is none", 4),
    ("{a|map:a=b,}", "'' is none", 4),
    ("{a|map:a=b,a=c}", "'a' twice", 4),
    ("{a|date}", "date needs its argument", 4),
    ("{a|date:}", "needs a format", 4),
    ("{a|date:%Q}", "no %Q", 4),
    ("{a|date:%Y%}", "no %", 4),
    ("{a|date:%-d}", "no %-", 4),
    ("{a|default:x|default:y}", "twice", 14),
    ("{a|default}", "default needs its text", 4),
    ("{a|default:x|date:%Y}", "cannot: the value 'x' is no time", 1),
]


@pytest.mark.parametrize(("template", "words", "character"), REFUSED)
def test_wrong_modifier_is_refused_at_ingest_with_its_place(template: str, words: str, character: int) -> None:
    text = json.dumps({"method": "GET", "url": f"http://h/?k={template}"}).encode()
    with pytest.raises(RequestError) as caught:
        compile_endpoint(text, default="", unmatched="empty", allow_host=False, schemes=["http"])
    assert (caught.value.code, caught.value.path) == ("invalid_template", "endpoint.url")
    assert words in caught.value.message
    assert caught.value.message.endswith(f"(at character {len('http://h/?k=') + character}).")


@given(CHAINS, VALUES, CHAINS, VALUES)
def test_no_chain_changes_the_urls_structure(first: str, value: Any, second: str, other: Any) -> None:
    url = render(f"http://h/a/x{{p{first}}}/b?k={{k{second}}}&z=1", {"p": value, "k": other}).url
    parts = urlsplit(url)
    assert (parts.netloc, parts.fragment, parts.path.count("/")) == ("h", "", 3)
    assert [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)] == ["k", "z"]


@given(CHAINS, VALUES)
def test_json_body_stays_json_whatever_the_chain(chain: str, value: Any) -> None:
    body = BodyTemplate(f'{{{{"s": "a {{k{chain}}}", "v": {{k{chain}}}}}}}', "application/json")
    decoded = msgspec.json.decode(render("http://h/", {"k": value}, method="POST", body=body).body or b"")
    assert decoded["s"].startswith("a ") and set(decoded) == {"s", "v"}


@given(CHAINS, VALUES)
def test_header_is_one_line_or_a_render_error(chain: str, value: Any) -> None:
    try:
        [line] = render("http://h/", {"k": value}, headers=(("X", f"{{k{chain}}}"),)).headers
    except RenderError:
        return
    assert not set(line) & set(b"\r\n\x00")


@given(TEXT)
def test_encodings_are_those_of_the_standard_library(value: str) -> None:
    data = value.encode()
    assert base64.urlsafe_b64decode(modified("b64url", value) + "==") == data
    assert json.loads(modified("json", value)) == value
    assert modified("md5", value) == hashlib.md5(data).hexdigest()
    assert modified("sha1", value) == hashlib.sha1(data).hexdigest()
    assert modified("lower|upper|trim", value) == value.lower().upper().strip()


@given(TEXT.filter(lambda text: not set(text) & set("{}")))
def test_any_text_behind_a_bar_is_a_modifier_or_a_template_error(text: str) -> None:
    try:
        compiled(f"http://h/?k={{k|{text}}}")
    except TemplateError as error:
        assert error.message.endswith(".")
