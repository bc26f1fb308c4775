# SPDX-License-Identifier: MIT
"""Templates: syntax, encoding of values, what a missing key does, and that no value changes a URL's structure."""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbackd.codec import BodyTemplate, EndpointRecord, ErrorClass
from postbackd.template import CompiledEndpoint, Rendered, placeholders
from postbackd.template_syntax import Placeholder, TemplateError, parse
from postbackd.template_values import RenderError
from postbackd.url import UrlError

POSTBACK_ID = 0x0123456789ABCDEF
NOW_MS = 1_700_000_000_123
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


def compiled(url: str, *, allow_host: bool = False, **members: Any) -> CompiledEndpoint:
    record = EndpointRecord(method=members.pop("method", "GET"), url=url, **members)
    return CompiledEndpoint(msgspec.structs.replace(record, fields=placeholders(record)), allow_host=allow_host)


def render(url: str, item: dict[str, Any], *, allow_host: bool = False, **members: Any) -> Rendered:
    endpoint = compiled(url, allow_host=allow_host, **members)
    values = [item.get(name) for name in endpoint.record.fields]
    return endpoint.render(values, POSTBACK_ID, 3, NOW_MS)


def url_of(url: str, item: dict[str, Any], **members: Any) -> str:
    return render(url, item, **members).url


def test_sample_gives_exactly_its_url() -> None:
    url = "http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}"
    rendered = render(url, {"key": "Phyllobates", "value": "Terribilis"})
    assert rendered.url == "http://sample_domain_endpoint.com/data?key=Phyllobates&value=Terribilis&foo="
    assert (rendered.host_key, rendered.body, list(rendered.headers)) == ("sample_domain_endpoint.com", None, [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "a%20b"),
        ("é", "%C3%A9"),
        ("-._~", "-._~"),
        ("a&b=c#d?e/f", "a%26b%3Dc%23d%3Fe%2Ff"),
        ("{key}", "%7Bkey%7D"),
        ("100%", "100%25"),
        ("\x00\n", "%00%0A"),
        (12345678901234567890, "12345678901234567890"),
        (-1, "-1"),
        (1.5, "1.5"),
        (1e22, "1e%2B22"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        ("", ""),
        (b'{"a":1}', "%7B%22a%22%3A1%7D"),
    ],
)
def test_value_is_percent_encoded(value: object, text: str) -> None:
    assert url_of("http://h/p?k={k}&z=1", {"k": value}) == f"http://h/p?k={text}&z=1"


@given(TEXT, TEXT)
def test_no_value_changes_the_urls_structure(first: str, second: str) -> None:
    url = url_of("http://h/a/x{p}/b?k={k}&z=1", {"p": first, "k": second})
    parts = urlsplit(url)
    assert parts.netloc == "h" and parts.fragment == ""
    assert [unquote(part) for part in parts.path.split("/")] == ["", "a", "x" + first, "b"]
    assert parse_qsl(parts.query, keep_blank_values=True) == [("k", second), ("z", "1")]


@given(TEXT)
def test_any_text_is_a_template_or_a_template_error(text: str) -> None:
    try:
        pieces = parse(text)
    except TemplateError as error:
        assert error.message.endswith(".")
        return
    again = "".join(
        piece.source if isinstance(piece, Placeholder) else piece.replace("{", "{{").replace("}", "}}")
        for piece in pieces
    )
    assert again == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("http://h/{a", "lone {"),
        ("http://h/a}", "lone }"),
        ("http://h/{}", "without a name"),
        ("http://h/{a{b}}", "lone {"),
        ("http://h/{@now}", "no built-in"),
        ("http://h/{a|nope}", "no modifier"),
        ("http://h/{a|default}", r"as in default:x \(at character 13\)"),
        ("http://{h}/", "allow_host"),
        ("http://h{x}.example/", "allow_host"),
        ("http://h:{port}/", "allow_host"),
        ("{scheme}://h/", "scheme"),
    ],
)
def test_bad_template_is_refused_with_its_reason(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        compiled(template)


def test_braces_are_doubled_for_themselves() -> None:
    assert url_of("http://h/{{x}}/{{{k}}}", {"k": "v"}) == "http://h/%7Bx%7D/%7Bv%7D"


def test_value_with_a_placeholder_is_not_filled_again() -> None:
    assert url_of("http://h/?a={a}&b={b}", {"a": "{b}", "b": "secret"}) == "http://h/?a=%7Bb%7D&b=secret"


def test_written_escapes_stay_and_other_characters_are_encoded() -> None:
    assert url_of("http://h/%41/ä?q=100%&r=%zz|", {}) == "http://h/%41/%C3%A4?q=100%25&r=%25zz%7C"


def test_names_are_exact_and_not_trimmed() -> None:
    assert url_of("http://h/?a={Key}&b={ key }&c={key}", {"key": 1}) == "http://h/?a=&b=&c=1"


def test_raw_keeps_what_a_uri_may_hold_and_encodes_the_rest() -> None:
    assert url_of("http://h/{p|raw}?q={q|raw}", {"p": "a/b%41 c#d", "q": "x=1&y=%é"}) == (
        "http://h/a/b%41%20c%23d?q=x=1&y=%25%C3%A9"
    )


@given(TEXT, TEXT)
def test_no_raw_value_leaves_the_host_or_adds_a_fragment(first: str, second: str) -> None:
    try:
        url = url_of("http://h/{p|raw}?q={q|raw}", {"p": first, "q": second})
    except RenderError:
        return
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("http", "h", "")
    assert url.isascii() and not set(url) & set(' "<>\\^`{|}\r\n\t\x00')


@pytest.mark.parametrize("place", ["http://h/", "header", "body"])
def test_raw_is_for_path_and_query_only(place: str) -> None:
    if place == "http://h/":
        assert url_of("http://h/{k|raw}", {"k": "a/b"}) == "http://h/a/b"
        return
    headers = (("X", "{k|raw}"),) if place == "header" else ()
    body: Any = BodyTemplate("{k|raw}", "text/plain") if place == "body" else "none"
    with pytest.raises(TemplateError, match="raw"):
        compiled("http://h/", method="POST", headers=headers, body=body)


# What a missing key does


@pytest.mark.parametrize("value", [None, "absent"])
def test_missing_key_takes_the_nearest_default(value: str | None) -> None:
    item: dict[str, Any] = {"k": None} if value is None else {}
    assert url_of("http://h/?k={k|default:x y}", item, default="d") == "http://h/?k=x%20y"
    assert url_of("http://h/?k={k}", item, default="d&") == "http://h/?k=d%26"
    assert url_of("http://h/?k={k}", item) == "http://h/?k="


def test_keep_leaves_the_placeholder_itself() -> None:
    assert url_of("http://h/{a}?k={k}", {"a": 1}, unmatched="keep") == "http://h/1?k=%7Bk%7D"


@pytest.mark.parametrize(
    ("template", "item", "url"),
    [
        ("http://h/?a={a}&b={b}&c={c}", {"a": 1, "c": 3}, "http://h/?a=1&c=3"),
        ("http://h/?a={a}&b={b}", {"b": 2}, "http://h/?b=2"),
        ("http://h/?a={a}&b={b}", {"a": 1}, "http://h/?a=1"),
        ("http://h/p?a={a}", {}, "http://h/p"),
        ("http://h?a={a}", {}, "http://h/"),
        ("http://h/?a={a}-{b}&z=1", {"a": 1}, "http://h/?z=1"),
        ("http://h/?a={a|default:9}&b={b}", {}, "http://h/?a=9"),
        ("http://h/?a={a}", {"a": ""}, "http://h/?a="),
        ("http://h/?{name}=1&z", {}, "http://h/?z"),
    ],
)
def test_drop_param_takes_the_parameter_and_one_separator(template: str, item: dict[str, Any], url: str) -> None:
    assert url_of(template, item, unmatched="drop_param") == url


def test_drop_param_is_for_parameters_only() -> None:
    for members in ({"url": "http://h/{k}"}, {"url": "http://h/", "headers": (("X", "{k}"),)}):
        with pytest.raises(TemplateError, match="drop_param"):
            compiled(unmatched="drop_param", **members)
    assert url_of("http://h/{k|default:1}", {}, unmatched="drop_param") == "http://h/1"


# Dot segments, caps, hosts


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("http://h/a/{k}/b", ".."),
        ("http://h/a/{k}", "."),
        ("http://h/a/.{k}/b", "."),
        ("http://h/a/{k|raw}", "x/../../y"),
        ("http://h/a/{k|raw}/", "%2e%2E"),
        ("http://h/../{k}", ".."),
    ],
)
def test_value_that_makes_a_dot_segment_is_a_render_error(template: str, value: str) -> None:
    with pytest.raises(RenderError, match="segment"):
        url_of(template, {"k": value})


@pytest.mark.parametrize("value", ["...", "a.", ".a", "..x"])
def test_dots_that_are_no_segment_are_sent(value: str) -> None:
    assert url_of("http://h/a/{k}/../b?q=/../", {"k": value}) == f"http://h/a/{value}/../b?q=/../"


def test_url_over_its_cap_is_too_large() -> None:
    fits = "x" * (8192 - len("http://h/?k="))
    assert len(url_of("http://h/?k={k}", {"k": fits})) == 8192
    with pytest.raises(RenderError) as caught:
        url_of("http://h/?k={k}", {"k": fits + "x"})
    assert caught.value.error_class is ErrorClass.TOO_LARGE


def test_templated_host_is_checked_when_it_is_rendered() -> None:
    url = "http://{h}.example:{p}/x?k={k}"
    rendered = render(url, {"h": "API", "p": 8080, "k": 1}, allow_host=True)
    assert (rendered.url, rendered.host_key) == ("http://api.example:8080/x?k=1", "api.example:8080")
    assert render("http://{h}/", {"h": "Bücher.example"}, allow_host=True).url == "http://xn--bcher-kva.example/"
    for item in ({"h": "a/b", "p": 1}, {"h": "u@h", "p": 1}, {"h": "a", "p": 0}, {"h": "", "p": 1}, {"p": 1}):
        with pytest.raises(RenderError):
            render(url, item, allow_host=True)


@pytest.mark.parametrize(
    ("url", "key", "sent"),
    [
        ("HTTP://Example.COM./x", "example.com", "http://example.com/x"),
        ("http://h:80/", "h", "http://h:80/"),
        ("https://h:80/", "h:80", "https://h:80/"),
        ("http://h:0000080/", "h", "http://h:80/"),
        ("http://h:/x", "h", "http://h/x"),
        ("http://h", "h", "http://h/"),
        ("http://bücher.example/", "xn--bcher-kva.example", "http://xn--bcher-kva.example/"),
        ("http://[::0:1]:81/", "[::1]:81", "http://[::1]:81/"),
        ("http://a_b.example/", "a_b.example", "http://a_b.example/"),
    ],
)
def test_host_is_normalised(url: str, key: str, sent: str) -> None:
    rendered = render(url, {})
    assert (rendered.host_key, rendered.url) == (key, sent)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h/x",
        "http:///x",
        "http://u:p@h/",
        "http://h/#f",
        "http://h/a b",
        "http://h/\\x",
        "http://h/\n",
        "http://h:0/",
        "http://h:65536/",
        "http://h:165536/",
        "http://h:0000165536/",
        "http://h:000/",
        "http://h:-1/",
        "http://h:8_0/",
        "http://h:٨٠/",
        "http://h:x/",
        "http://[::1%25eth0]/",
        "http://[::1/",
        "http://a..b/",
        "http://-a/",
        "http://" + "a" * 64 + "/",
        "http://" + "a." * 127 + "aa/",
        "http://h%41/",
        "http://*/",
    ],
)
def test_bad_url_is_refused(url: str) -> None:
    with pytest.raises(UrlError):
        compiled(url)


# Headers and bodies


def test_header_values_are_utf8_and_controls_are_refused() -> None:
    headers = (("X-A", "v {k}"), ("X-B", "fixed"), ("X-E", "{e}"))
    rendered = render("http://h/", {"k": "a b/é"}, headers=headers)
    assert list(rendered.headers) == ["X-A: v a b/é".encode(), b"X-B: fixed", b"X-E;"]
    for control in ("\r\nX: y", "\n", "\x00", "\x7f", "\t", "\x85"):
        with pytest.raises(RenderError, match="control"):
            render("http://h/", {"k": control}, headers=headers)


def test_json_body_goes_out_as_it_came() -> None:
    endpoint = compiled("http://h/{k}", method="POST", body="json")
    rendered = endpoint.render(["v", b'{"k": "v"}'], POSTBACK_ID, 1, NOW_MS)
    assert (rendered.body, list(rendered.headers)) == (b'{"k": "v"}', [b"Content-Type: application/json"])


def test_callers_content_type_replaces_ours() -> None:
    endpoint = compiled("http://h/", method="POST", body="json", headers=(("content-type", "application/x"),))
    assert list(endpoint.render([b"{}"], POSTBACK_ID, 1, NOW_MS).headers) == [b"content-type: application/x"]


@given(TEXT)
def test_json_body_template_is_json_whatever_the_value(value: str) -> None:
    template = '{{"s": "a {k}", "v": {k}, "n": {n}, "o": {o}, "q": "\\"{k}"}}'
    body = BodyTemplate(template, "application/json")
    rendered = render("http://h/", {"k": value, "n": 5, "o": b'{"x":[1]}'}, method="POST", body=body)
    assert rendered.body is not None
    decoded = msgspec.json.decode(rendered.body)
    assert decoded == {"s": "a " + value, "v": value, "n": 5, "o": {"x": [1]}, "q": '"' + value}


def test_body_template_is_escaped_for_its_type() -> None:
    item = {"k": "<a> & 'b' \"c\" é"}

    def body(template: str, content_type: str) -> bytes | None:
        return render("http://h/", item, method="POST", body=BodyTemplate(template, content_type)).body

    assert body("<x>{k}</x>", "text/xml") == "<x>&lt;a&gt; &amp; &#39;b&#39; &quot;c&quot; é</x>".encode()
    assert body("{k}", "text/plain; charset=utf-8") == item["k"].encode()
    assert body("k={k}&z={z}", "application/x-www-form-urlencoded") == (
        b"k=%3Ca%3E%20%26%20%27b%27%20%22c%22%20%C3%A9&z="
    )


def test_drop_param_works_in_a_form_body_template() -> None:
    body = BodyTemplate("a={a}&b={b}", "application/x-www-form-urlencoded")
    assert render("http://h/", {"b": 2}, method="POST", body=body, unmatched="drop_param").body == b"b=2"


def test_built_ins_are_filled() -> None:
    url = url_of("http://h/{@id}?t={@timestamp}&m={@timestamp_ms}&n={@attempt}&k={k}", {"k": 1})
    assert url == "http://h/0123456789abcdef?t=1700000000&m=1700000000123&n=3&k=1"


def test_fields_are_the_keys_in_order_of_first_use() -> None:
    record = EndpointRecord(
        method="POST",
        url="http://h/{b}?{a}={b}&i={@id}",
        headers=(("X", "{c.d}"),),
        body=BodyTemplate("{e}", "text/plain"),
    )
    assert placeholders(record) == ("b", "a", "c.d", "e")
