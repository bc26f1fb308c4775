# SPDX-License-Identifier: MIT
"""Templates: an endpoint record compiled once, rendered for every postback. Pure.

In: the record's url, headers and body with `{key}` placeholders; then values by the record's field list.
Out: the request to send, or a RenderError (dead at once). Compiling raises TemplateError, with what to mend.
The syntax is template_syntax.py, one place of a template template_text.py, the encoding of values template_values.py.

A value never changes the URL's structure: it is percent-encoded, and one that makes a whole dot segment is an error.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from postbackd import url as urls
from postbackd.codec import BodyTemplate, EndpointRecord, ErrorClass, format_id
from postbackd.template_syntax import BUILT_INS, Piece, Placeholder, TemplateError, parse, split_url
from postbackd.template_text import Compiler, Parameters, Text, check_drop, refuse_raw
from postbackd.template_values import (
    CONTROL,
    Encode,
    RenderError,
    header_value,
    host_value,
    json_inside_string,
    json_value,
    url_value,
    value_text,
    xml_value,
)
from postbackd.url import UrlError, encode_uri, encode_value

MAX_URL_BYTES = 8192
MAX_HEADER_BYTES = 8192
FORM_TYPE = "application/x-www-form-urlencoded"
JSON_TYPE = "application/json"

_DOT_SEGMENT = re.compile(r"(?<=/)(?:\.|%2[eE]){1,2}(?=/|$)")


class Rendered(msgspec.Struct, frozen=True, gc=False):
    """A request as it is sent."""

    url: str
    host_key: str
    headers: Sequence[bytes]  # `Name: value` lines; libcurl's `Name;` where the value is empty
    body: bytes | None


def placeholders(record: EndpointRecord) -> tuple[str, ...]:
    """The distinct keys that a record's templates use, in the order of their first use: its field list."""
    texts = [record.url, *(value for _, value in record.headers)]
    if isinstance(record.body, BodyTemplate):
        texts.append(record.body.template)
    names: dict[str, None] = {}
    for text in texts:
        for piece in parse(text):
            if isinstance(piece, Placeholder) and piece.name not in BUILT_INS:
                names[piece.name] = None
    return tuple(names)


def optional_fields(record: EndpointRecord) -> frozenset[str]:
    """Keys whose every placeholder has a default of its own, so that `fail` lets them be missing."""
    texts = [record.url, *(value for _, value in record.headers)]
    if isinstance(record.body, BodyTemplate):
        texts.append(record.body.template)
    found = [piece for text in texts for piece in parse(text) if isinstance(piece, Placeholder)]
    needed = {piece.name for piece in found if piece.default is None}
    return frozenset(piece.name for piece in found) - needed


class _Url:
    """The url of a record: scheme and authority, path, query."""

    def __init__(self, compiler: Compiler, text: str, allow_host: bool) -> None:
        scheme, authority, path, query = split_url(parse(text))
        self.scheme = scheme
        self.host_key = ""
        self._authority: Text | None = None
        head = f"{scheme}://"
        if any(isinstance(piece, Placeholder) for piece in authority):
            if not allow_host:
                position = next(piece.position for piece in authority if isinstance(piece, Placeholder))
                raise TemplateError("A placeholder in the host needs template.allow_host = true.", position)
            if any(isinstance(piece, str) and "@" in piece for piece in authority):
                urls.parse_authority("@", scheme)  # says why not
            refuse_raw(authority, "host")
            self._authority = Text(compiler, authority, str, host_value)
            check_drop(compiler, self._authority, "host")
        else:
            parsed = urls.parse_authority("".join(map(str, authority)), scheme)
            self.host_key = parsed.key
            head += parsed.text()
        self._drops = None
        rest: list[Piece] = [*path]
        if compiler.record.unmatched == "drop_param" and query is not None:
            self._drops = Parameters(compiler, query, encode_uri)
        elif query is not None:
            rest += ["?", *query]
        self._path_has_values = any(isinstance(piece, Placeholder) for piece in path)
        if compiler.record.unmatched == "drop_param":
            check_drop(compiler, Text(compiler, path, encode_uri, url_value), "path")
        literal_path = "".join(encode_uri(piece) if isinstance(piece, str) else "x" for piece in path)
        self._dot_segments = len(_DOT_SEGMENT.findall(literal_path))  # written by the endpoint's owner: theirs
        if self._authority is None:
            rest = [head, *rest]  # nothing but URI characters by now
        self._rest = Text(compiler, rest, encode_uri, url_value)
        if (size := self._rest.literal_size) > MAX_URL_BYTES:
            raise TemplateError(f"The URL has {size} bytes without its values; at most {MAX_URL_BYTES} are sent.")

    @property
    def plain(self) -> Text | None:
        """The whole URL as one text, where its values can neither drop a parameter nor make a dot segment."""
        is_plain = self._authority is None and self._drops is None and not self._path_has_values
        return self._rest if is_plain else None

    def render(self, values: Sequence[Any]) -> tuple[str, str]:
        """The URL and its host key."""
        text, host_key = self._rest.render(values), self.host_key
        if self._authority is not None:
            try:
                parsed = urls.parse_authority(self._authority.render(values), self.scheme)
            except UrlError as error:
                raise RenderError(str(error)) from None
            text, host_key = f"{self.scheme}://{parsed.text()}{text}", parsed.key
        if self._path_has_values and ("/." in text or "%2" in text):
            path = text.split("?", 1)[0]
            if len(_DOT_SEGMENT.findall(path)) > self._dot_segments:
                raise RenderError("a value makes a whole path segment of dots, which servers take for a step up")
        if self._drops is not None and (query := self._drops.render(values)):
            text += "?" + query
        if len(text) > MAX_URL_BYTES:
            raise RenderError(f"the URL has {len(text)} bytes, over {MAX_URL_BYTES}", ErrorClass.TOO_LARGE)
        return text, host_key


class _Body:
    """The body of a record."""

    def __init__(self, compiler: Compiler, body: str | BodyTemplate) -> None:
        self.content_type = (
            {"json": JSON_TYPE, "form": FORM_TYPE}.get(body) if isinstance(body, str) else body.content_type
        )
        self._is_sent = body in ("json", "form")  # one value behind the fields, ready as it is
        self._position = len(compiler.record.fields)
        self._text: Text | None = None
        self._parameters: Parameters | None = None
        if isinstance(body, BodyTemplate):
            self._compile(compiler, body)

    def _compile(self, compiler: Compiler, body: BodyTemplate) -> None:
        pieces = parse(body.template)
        refuse_raw(pieces, "body")
        kind = body.content_type.partition(";")[0].strip().lower()
        if kind == FORM_TYPE:
            if compiler.record.unmatched == "drop_param":
                self._parameters = Parameters(compiler, pieces, str)
            else:
                self._text = Text(compiler, pieces, str, url_value)
            return
        if kind == JSON_TYPE or kind.endswith("+json"):
            self._text = _json_text(compiler, pieces)
        elif kind.endswith(("/xml", "+xml")) or kind == "text/html":
            self._text = Text(compiler, pieces, str, xml_value)
        else:
            self._text = Text(compiler, pieces, str, value_text)
        check_drop(compiler, self._text, "body")

    def render(self, values: Sequence[Any], sent: bytes | None) -> bytes | None:
        if self._is_sent:
            if sent is not None and type(sent) is not bytes:
                raise RenderError("what is queued as the body is none")
            return sent
        if self._text is not None:
            return self._text.render(values).encode()
        if self._parameters is not None:
            return self._parameters.render(values).encode()
        return None


def _json_text(compiler: Compiler, pieces: Sequence[Piece]) -> Text:
    """In a JSON body a placeholder between quotes is part of that string; elsewhere it is a value with its own."""
    inside = False
    encoders: list[Encode] = []
    for piece in pieces:
        if isinstance(piece, str):
            inside ^= len(re.sub(r"\\.", "", piece).split('"')) % 2 == 0
        encoders.append(json_inside_string if inside else json_value)
    return Text(compiler, pieces, str, encoders)


class CompiledEndpoint:
    """An endpoint ready to render. Raises TemplateError or UrlError where its record cannot be compiled."""

    def __init__(self, record: EndpointRecord, *, allow_host: bool = False) -> None:
        compiler = Compiler(record)
        self.record = record
        self._url = _Url(compiler, record.url, allow_host)
        self.host_key = self._url.host_key  # `host` or `host:port`; empty where the host is a placeholder
        self.scheme = self._url.scheme
        self._body = _Body(compiler, record.body)
        self._headers = [self._compile_header(compiler, name, value) for name, value in record.headers]
        names = {name.lower() for name, _ in record.headers}
        if self._body.content_type and "content-type" not in names:
            self._headers.append(f"Content-Type: {self._body.content_type}".encode())
        self._constant_headers = [header for header in self._headers if isinstance(header, bytes)]
        self._headers_are_constant = len(self._constant_headers) == len(self._headers)
        self._field_count = len(record.fields)
        self._uses_built_ins = compiler.uses_built_ins
        self._has_body = record.body != "none"
        is_plain = self._headers_are_constant and not self._uses_built_ins and not self._has_body
        self._plain_url = self._url.plain if is_plain else None

    @property
    def has_constant_headers(self) -> bool:
        """Whether every postback has the same headers."""
        return self._headers_are_constant

    @property
    def constant_headers(self) -> Sequence[bytes]:
        """The header lines that have no placeholder."""
        return self._constant_headers

    def _compile_header(self, compiler: Compiler, name: str, value: str) -> bytes | tuple[str, Text]:
        pieces = parse(value)
        if any(isinstance(piece, str) and CONTROL.search(piece) for piece in pieces):
            raise TemplateError(f"The header {name} has a control character.")
        refuse_raw(pieces, "header " + name)
        text = Text(compiler, pieces, str, header_value)
        check_drop(compiler, text, "header " + name)
        if text.constant is None:
            return name, text
        try:
            return _header_line(name, text.constant)
        except RenderError as error:
            raise TemplateError(f"The header cannot be sent: {error}.") from None

    def render(self, values: Sequence[Any], postback_id: int, attempt: int, now_ms: int) -> Rendered:
        """The request of one postback: values by the record's fields, nils at the end left off. Raises RenderError."""
        count = self._field_count
        if self._plain_url is not None:  # most endpoints: nothing varies but values in the query
            if len(values) < count:
                values = [*values, *[None] * (count - len(values))]
            url = self._plain_url.render(values)
            if len(url) <= MAX_URL_BYTES:
                return Rendered(url, self.host_key, self._constant_headers, None)
        sent = values[count] if len(values) > count else None
        if len(values) != count:
            values = [*values[:count], *[None] * (count - len(values))]
        if self._uses_built_ins:
            values = [*values, format_id(postback_id), now_ms // 1000, now_ms, attempt]
        url, host_key = self._url.render(values)
        headers = self._constant_headers if self._headers_are_constant else self._render_headers(values)
        return Rendered(url, host_key, headers, self._body.render(values, sent) if self._has_body else None)

    def _render_headers(self, values: Sequence[Any]) -> list[bytes]:
        return [
            header if isinstance(header, bytes) else _header_line(header[0], header[1].render(values))
            for header in self._headers
        ]


def _header_line(name: str, value: str) -> bytes:
    """One line for libcurl, which takes `Name:` as the order to leave a header out and `Name;` as an empty one."""
    value = value.strip(" ")
    line = f"{name}: {value}".encode() if value else f"{name};".encode()
    if len(line) > MAX_HEADER_BYTES:
        raise RenderError(f"the header {name} has {len(line)} bytes, over {MAX_HEADER_BYTES}", ErrorClass.TOO_LARGE)
    return line


def render_form(item: dict[str, Any], text_of: Callable[[Any], Any], default: str, unmatched: str) -> bytes:
    """The `form` body: `key=value` pairs sorted by key. A null is a missing value and goes by `unmatched`."""
    pairs = []
    for key in sorted(item):
        value = text_of(item[key])
        if value is None:
            if unmatched == "drop_param":
                continue
            value = f"{{{key}}}" if unmatched == "keep" else default
        pairs.append(f"{encode_value(key)}={url_value(value)}")
    return "&".join(pairs).encode()
