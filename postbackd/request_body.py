# SPDX-License-Identifier: MIT
"""A request's headers and bytes → its JSON, unpacked and within the limits, or why it is refused. Pure.

In: a WSGI environ whose body has arrived whole. Out: the bytes of one JSON document, or of NDJSON.
"""

import zlib
from typing import Any

from postbackd.errors import RequestError

MAX_NDJSON_BYTES = 16 * 1024 * 1024
MAX_GZIP_MEMBERS = 64  # a gzip body may be several joined ones; thousands of empty ones only cost time
NDJSON_TYPE = "application/x-ndjson"
JSON_TYPES = frozenset({"", "application/json"})
_GZIP = 31  # of zlib: the largest window, with gzip's header


def read_body(env: dict[str, Any], max_body_bytes: int) -> tuple[bytes, bool]:
    """The body, and whether it is NDJSON; raises RequestError (400, 411, 413, 415)."""
    media_type = env.get("CONTENT_TYPE", "")
    is_ndjson = media_type != "application/json" and _is_ndjson(media_type)
    limit = MAX_NDJSON_BYTES if is_ndjson else max_body_bytes
    encoding = env["HTTP_CONTENT_ENCODING"].strip().lower() if "HTTP_CONTENT_ENCODING" in env else "identity"
    if encoding not in ("identity", "gzip", "x-gzip"):
        message = f"Content-Encoding {encoding[:80]} is not taken: send gzip, or the JSON as it is."
        raise RequestError(415, "unsupported_encoding", message)
    if "CONTENT_LENGTH" not in env and "HTTP_TRANSFER_ENCODING" not in env:
        raise RequestError(411, "length_required", "Send Content-Length or Transfer-Encoding: chunked.")
    body: bytes = env["wsgi.input"].read()
    if len(body) > limit:
        raise _too_large(f"has {len(body)} bytes", limit)
    return (body if encoding == "identity" else gunzip(body, limit)), is_ndjson


def gunzip(body: bytes, limit: int) -> bytes:
    """What comes out, at most `limit` bytes; never unpacks more than one beyond it."""
    pieces: list[bytes] = []
    size = 0
    while body:
        unpacker = zlib.decompressobj(_GZIP)
        try:
            piece = unpacker.decompress(body, limit - size + 1)
        except zlib.error as error:
            raise RequestError(400, "malformed_gzip", f"The body is not gzip: {error}.") from None
        size += len(piece)
        if size > limit:
            raise _too_large("is larger when it is unpacked", limit)
        if not unpacker.eof:
            raise RequestError(400, "malformed_gzip", "The gzip body ends too early.")
        pieces.append(piece)
        if len(pieces) > MAX_GZIP_MEMBERS:
            raise RequestError(400, "malformed_gzip", f"The gzip body has over {MAX_GZIP_MEMBERS} members.")
        body = unpacker.unused_data
    return b"".join(pieces)


def _too_large(what: str, limit: int) -> RequestError:
    return RequestError(413, "body_too_large", f"The body {what}; at most {limit} are taken: split the request.")


def _is_ndjson(value: str) -> bool:
    """Whether a media type is NDJSON; one that is neither that nor JSON in UTF-8 is refused.

    Form and text types are not taken on trust: a web page may send those to any address without asking
    the browser's user, but these types only after a preflight that this server does not answer.
    """
    media_type, _, parameters = value.partition(";")
    media_type = media_type.strip().lower()
    charset = parameters.strip().lower().replace(" ", "").replace('"', "")
    if charset not in ("", "charset=utf-8", "charset=utf8"):
        raise RequestError(415, "unsupported_media_type", "The body must be UTF-8: send charset=utf-8 or none.")
    if media_type == NDJSON_TYPE:
        return True
    if media_type in JSON_TYPES or (media_type.startswith("application/") and media_type.endswith("+json")):
        return False
    message = f"Content-Type {media_type[:80]} is not taken: send application/json or {NDJSON_TYPE}."
    raise RequestError(415, "unsupported_media_type", message)
