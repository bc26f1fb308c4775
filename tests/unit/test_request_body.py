# SPDX-License-Identifier: MIT
"""What of a body gets to the JSON decoder: types, encodings, lengths, and gzip that never takes more than the limit."""

import gzip
import io
import zlib
from typing import Any

import pytest

from postbackd.errors import RequestError
from postbackd.request_body import MAX_GZIP_MEMBERS, MAX_NDJSON_BYTES, gunzip, read_body

LIMIT = 1000


def environ(body: bytes, **headers: str) -> dict[str, Any]:
    return {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), **headers}


def refused(env: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        read_body(env, LIMIT)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(
    ("media_type", "is_ndjson"),
    [
        ("application/json", False),
        ("", False),
        ("Application/JSON; charset=UTF-8", False),
        ("application/problem+json", False),
        ("application/x-ndjson", True),
        ('application/x-ndjson;charset="utf-8"', True),
    ],
)
def test_types_that_are_taken(media_type: str, is_ndjson: bool) -> None:
    assert read_body(environ(b"{}", CONTENT_TYPE=media_type), LIMIT) == (b"{}", is_ndjson)


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/json;charset=x"]
)
def test_other_types_are_refused(media_type: str) -> None:
    assert refused(environ(b"{}", CONTENT_TYPE=media_type)) == (415, "unsupported_media_type")


def test_length_or_chunked_is_needed() -> None:
    assert refused({"wsgi.input": io.BytesIO(b"")}) == (411, "length_required")
    assert read_body({"wsgi.input": io.BytesIO(b"{}"), "HTTP_TRANSFER_ENCODING": "chunked"}, LIMIT)[0] == b"{}"


@pytest.mark.parametrize(("size", "fits"), [(LIMIT, True), (LIMIT + 1, False)])
def test_size_is_counted_as_sent_and_as_unpacked(size: int, fits: bool) -> None:
    body = b"x" * size
    for env in (environ(body), environ(gzip.compress(body), HTTP_CONTENT_ENCODING="gzip")):
        if fits:
            assert read_body(env, LIMIT) == (body, False)
        else:
            assert refused(env) == (413, "body_too_large")


def test_ndjson_has_a_limit_of_its_own() -> None:
    body = b"x" * (LIMIT + 1)
    assert read_body(environ(body, CONTENT_TYPE="application/x-ndjson"), LIMIT) == (body, True)
    packed = gzip.compress(b"x" * (MAX_NDJSON_BYTES + 1), 1)
    env = environ(packed, CONTENT_TYPE="application/x-ndjson", HTTP_CONTENT_ENCODING="gzip")
    assert refused(env) == (413, "body_too_large")


def test_bomb_is_unpacked_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    unpacked: list[int] = []
    make = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._real = make(wbits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            unpacked.append(len(piece := self._real.decompress(data, limit)))
            return piece

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    with pytest.raises(RequestError) as caught:
        gunzip(bomb, LIMIT)
    assert caught.value.status == 413
    assert sum(unpacked) == LIMIT + 1


def test_joined_members_are_one_body() -> None:
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"") + gzip.compress(b"b"), LIMIT) == b"ab"
    assert gunzip(b"", LIMIT) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        gzip.compress(b"hello")[:-1],
        gzip.compress(b"hello") + b"garbage",
        gzip.compress(b"hello")[:-8] + bytes(8),
        zlib.compress(b"hello"),
    ],
    ids=["no gzip", "cut", "garbage behind", "wrong sum", "zlib"],
)
def test_what_is_no_whole_gzip_is_refused(body: bytes) -> None:
    assert refused(environ(body, HTTP_CONTENT_ENCODING="gzip")) == (400, "malformed_gzip")


def test_too_many_members_are_refused() -> None:
    assert gunzip(gzip.compress(b"a") * MAX_GZIP_MEMBERS, LIMIT) == b"a" * MAX_GZIP_MEMBERS
    with pytest.raises(RequestError) as caught:
        gunzip(gzip.compress(b"") * (MAX_GZIP_MEMBERS + 1), LIMIT)
    assert (caught.value.status, caught.value.code) == (400, "malformed_gzip")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate", "gzipgzip", ""])
def test_other_encodings_are_refused(encoding: str) -> None:
    assert refused(environ(b"{}", HTTP_CONTENT_ENCODING=encoding)) == (415, "unsupported_encoding")
