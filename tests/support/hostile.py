# SPDX-License-Identifier: MIT
"""Hostile requests for ingest, made from a seed: the same seed and number make the same bytes.

A `Case` is what goes out on one connection, in pieces. What comes back has to be answers of docs/api.md's table or a
closed connection; `judge` says what else it was.
"""

import gzip
import json
import random
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# docs/api.md; 200 is NDJSON or /health, 417 the server's bare answer to an unknown Expect
TABLE = frozenset({200, 202, 400, 401, 403, 404, 405, 409, 411, 413, 415, 417, 422, 429, 503})
ENDPOINT_URL = "http://127.0.0.1:9/data?key={key}"
ANSWER_TIMEOUT_S = 30.0
BOMB = gzip.compress(bytes(20_000_000))
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Case(NamedTuple):
    """One connection's worth."""

    kind: str
    pieces: list[bytes]
    resets: bool = False  # the client closes with a reset instead of waiting


class Hostile:
    """Cases without end."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)
        self._kinds: list[Callable[[], Case]] = [
            self._well_behaved,
            self._mutated_json,
            self._special_json,
            self._nasty_endpoint,
            self._mutated_http,
            self._framing,
            self._pipelined,
            self._chunked,
            self._headers,
            self._gzip,
            self._ndjson,
            self._noise,
            self._broken_off,
            self._methods_and_paths,
        ]

    def cases(self, count: int) -> Iterator[Case]:
        for _ in range(count):
            yield self._random.choice(self._kinds)()

    # Bodies

    def _request(self) -> dict[str, Any]:
        endpoint: dict[str, Any] = {"method": self._random.choice(["GET", "POST"]), "url": ENDPOINT_URL}
        items = [
            {"key": self._text(12), "n": self._random.randrange(1 << 70)} for _ in range(self._random.choice([1, 2, 9]))
        ]
        return {"endpoint": endpoint, "data": items}

    def _text(self, length: int) -> str:
        alphabet = "ab{}|:%&/\\\"'\0\n\x7f é\u2028😀"
        return "".join(self._random.choice(alphabet) for _ in range(self._random.randrange(length + 1)))

    def _body(self) -> bytes:
        return json.dumps(self._request()).encode()

    def _mutate(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.choice([1, 1, 2, 5, 20])):
            place = self._random.randrange(len(changed) + 1)
            match self._random.randrange(4):
                case 0 if place < len(changed):
                    changed[place] = self._random.randrange(256)
                case 1:
                    changed[place:place] = self._random.randbytes(self._random.choice([1, 3, 40]))
                case 2:
                    del changed[place : place + self._random.choice([1, 2, 10])]
                case _:
                    changed[place:place] = changed[place : place + 30]
        return bytes(changed)

    def _post(self, body: bytes, *headers: bytes, path: bytes = b"/i") -> bytes:
        lines = [b"POST %b HTTP/1.1" % path, b"Host: a", *headers, b"Content-Length: %d" % len(body)]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def _cut(self, data: bytes) -> list[bytes]:
        """In one to four pieces."""
        places = sorted(self._random.randrange(len(data) + 1) for _ in range(self._random.choice([0, 0, 0, 1, 3])))
        return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]

    # Kinds

    def _well_behaved(self) -> Case:
        return Case("well behaved", self._cut(self._post(self._body())))

    def _mutated_json(self) -> Case:
        return Case("mutated JSON", self._cut(self._post(self._mutate(self._body()))))

    def _special_json(self) -> Case:
        depth = self._random.choice([10, 63, 64, 65, 1000, 100_000])
        open_, close = self._random.choice([("[", "]"), ('{"a":', "}")])
        number = self._random.choice(
            ["1e400", "-1e400", "1" * 5000, "1e-9999", "0.1" + "0" * 2000 + "1", "-", "01", "NaN"]
        )
        value = self._random.choice(
            [
                open_ * depth + "1" + close * depth,
                open_ * depth,
                number,
                '"\\ud800"',
                '"\\udc00\\ud800"',
                '"\\u0000"',
                '{"a":1,"a":2}',
                '"' + "x" * self._random.choice([100_000, 900_000]) + '"',
            ]
        )
        template = '{"endpoint":{"method":"GET","url":"http://127.0.0.1:9/{key}"},"data":[{"key":VALUE}]}'
        body = self._random.choice([template.replace("VALUE", value), value]).encode()
        broken = [
            b"\xef\xbb\xbf" + body,
            body.replace(b"GET", b"\xff\xfe"),
            body + b"\0",
            body[:-1],
            b"",
            b" " * 1000,
            b"\0",
        ]
        return Case("special JSON", self._cut(self._post(self._random.choice([body, body, *broken]))))

    def _nasty_endpoint(self) -> Case:
        request = self._request()
        endpoint = request["endpoint"]
        host = self._random.choice(
            ["127.0.0.1", "[::1]", "a..b", "xn--", "é.example", "0x7f.1", "a" * 300, "", "{key}"]
        )
        endpoint["url"] = f"{self._random.choice(['http', 'https', 'ftp', 'HTTP', ''])}://{host}/{self._text(30)}"
        if self._random.random() < 0.5:
            name = self._random.choice(
                ["method", "headers", "body", "default", "unmatched", "retry", "timeout", "sign", "x"]
            )
            endpoint[name] = self._random.choice(
                [None, 1, -1.5, "", self._text(30), [], {}, {"a": self._text(9)}, {"Host": "x"}, {"max_attempts": 99}]
            )
        if self._random.random() < 0.3:
            request[self._random.choice(["delay", "deliver_at", "expires_after", "data", "y"])] = self._random.choice(
                [None, -1, 1e300, "2026-13-45", [], {}, [[]], [1], "x" * 1000]
            )
        return Case("nasty endpoint", self._cut(self._post(json.dumps(request).encode())))

    def _mutated_http(self) -> Case:
        head, _, body = self._post(self._body()).partition(b"\r\n\r\n")
        return Case("mutated HTTP", self._cut(self._mutate(head) + b"\r\n\r\n" + body))

    def _framing(self) -> Case:
        body = self._body()
        size = len(body)
        lines = self._random.choice(
            [
                [b"Content-Length: %d" % size] * 2,
                [b"Content-Length: 0", b"Content-Length: %d" % size],
                [b"Content-Length: %d" % (size + 5)],
                [b"Content-Length: %d" % max(size - 5, 0)],
                [b"Content-Length: -1"],
                [b"Content-Length: 99999999999999999999999"],
                [b"Content-Length: %d" % ((1 << 64) + size)],
                [b"Content-Length:"],
                [b"Content-Length: 0x10"],
                [b"Content-Length : %d" % size],
                [b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"],
                [b"Content-Length: %d" % size, b"Transfer-Encoding : chunked"],
                [
                    b"Transfer-Encoding: "
                    + self._random.choice([b"identity", b"gzip", b"chunked, chunked", b"\x0bchunked"])
                ],
                [b"Content-Length: %d" % size, b"Expect: " + self._random.choice([b"100-continue", b"1", b"", b"x"])],
                [b"Expect: 100-continue"],
                [b"Upgrade: h2c", b"Connection: upgrade"],
                [b"Content-Length: %d" % size, b"Connection: " + self._random.choice([b"close", b"keep-alive", b"x"])],
                [],
            ]
        )
        version = self._random.choice([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9999.9", b""])
        return Case(
            "framing", self._cut(b"\r\n".join([b"POST /i " + version, b"Host: a", *lines]) + b"\r\n\r\n" + body)
        )

    def _pipelined(self) -> Case:
        parts = [
            self._random.choice(
                [
                    self._post(self._body()),
                    b"GET /health HTTP/1.1\r\n\r\n",
                    b"GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
                ]
            )
            for _ in range(self._random.choice([2, 3, 30]))
        ]
        sent = b"".join(parts)
        if self._random.random() < 0.5:
            sent = sent[: -self._random.randrange(1, 30)]
        if self._random.random() < 0.2:
            sent = self._mutate(sent)
        return Case("pipelined", [*self._cut(sent), *self._random.choice([[], [b"X: y\r\n\r\n"], [b"\0"]])])

    def _chunked(self) -> Case:
        body = self._body()
        chunks = b""
        while body:
            size = self._random.choice([1, 7, 500])
            piece, body = body[:size], body[size:]
            shown = self._random.choice([b"%x", b"%X", b"000%x", b"%x;a=b", b"%x ;" + b"e" * 50]) % len(piece)
            chunks += shown + b"\r\n" + piece + b"\r\n"
        tail = self._random.choice(
            [
                b"0\r\n\r\n",
                b"0\r\nX-A: b\r\n\r\n",
                b"0\r\nContent-Length: 5\r\n\r\n",
                b"-1\r\n\r\n",
                b"0",
                b"10000000000000000\r\n\r\n",
                b"zz\r\n",
            ]
        )
        sent = b"POST /i HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + tail
        return Case("chunked", self._cut(self._mutate(sent) if self._random.random() < 0.3 else sent))

    def _headers(self) -> Case:
        size = self._random.choice([100, 8_000, 79_000, 81_000, 200_000])
        kind = self._random.randrange(5)
        if kind == 0:
            lines = [b"X-Big: " + b"a" * size]
        elif kind == 1:
            lines = [b"%x: b" % number for number in range(size // 8)]
        elif kind == 2:
            lines = [b"Same: b"] * (size // 9)
        elif kind == 3:
            lines = [b"X" * size + b": b"]
        else:
            lines = [b"X-A: " + self._random.randbytes(40), b" folded", b"Y\0: z", b": empty", b"NoColon"]
        if self._random.random() < 0.3:
            lines.append(b"Authorization: Bearer " + self._random.randbytes(20).hex().encode())
        if self._random.random() < 0.2:
            lines.append(b"Idempotency-Key: " + self._random.choice([b"", b"a" * 300, b"\xff", b"k"]))
        return Case("headers", self._cut(self._post(self._body(), *lines)))

    def _gzip(self) -> Case:
        packed = gzip.compress(self._body(), 1)
        body = self._random.choice(
            [packed, BOMB, packed[:-3], self._mutate(packed), packed * 3, packed + b"x", zlib.compress(b"x"), b""]
        )
        encoding = self._random.choice([b"gzip"] * 6 + [b"x-gzip", b"GZIP", b"br", b"gzip, gzip", b"deflate"])
        kind = self._random.choice([b"application/json", b"application/x-ndjson"])
        return Case("gzip", self._cut(self._post(body, b"Content-Encoding: " + encoding, b"Content-Type: " + kind)))

    def _ndjson(self) -> Case:
        makers = [
            self._body,
            self._body,
            lambda: self._mutate(self._body()),
            lambda: b"",
            lambda: b" \r",
            lambda: b"\xff",
            lambda: b"[" * 5000,
        ]
        lines = [self._random.choice(makers)() for _ in range(self._random.choice([0, 1, 5, 40]))]
        end = self._random.choice([b"", b"\n", b"\r\n"])
        return Case("NDJSON", self._cut(self._post(b"\n".join(lines) + end, b"Content-Type: application/x-ndjson")))

    def _noise(self) -> Case:
        data = self._random.choice(
            [
                self._random.randbytes(self._random.choice([1, 100, 70_000])),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self._random.randbytes(300),  # TLS
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\r\n" * self._random.choice([1, 1000, 50_000]),
                b"GET",
                b"",
            ]
        )
        return Case("noise", self._cut(data))

    def _broken_off(self) -> Case:
        sent = self._post(self._body() + b" " * self._random.choice([0, 200_000]))
        return Case("broken off", self._cut(sent[: self._random.randrange(len(sent))]), self._random.random() < 0.5)

    def _methods_and_paths(self) -> Case:
        method = self._random.choice(
            [
                b"GET",
                b"HEAD",
                b"PUT",
                b"DELETE",
                b"OPTIONS",
                b"TRACE",
                b"CONNECT",
                b"PATCH",
                b"MKCOL",
                b"M-SEARCH",
                b"post",
                b"FOO",
            ]
        )
        path = self._random.choice(
            [b"/i", b"/ingest.php", b"/health", b"/ready", b"/", b"*", b"//i", b"/i?x=%zz", b"/%", b"/%00",
             b"/%2e%2e/i", b"/\xff", b"http://a/i", b"http://a", b"a:1", b"/" + b"a" * 70_000, b"/i#f",
             b"/../../etc/passwd", b""]
        )  # fmt: skip
        return Case("methods and paths", self._cut(b"%b %b HTTP/1.1\r\nHost: a\r\n\r\n" % (method, path)))


def send(port: int, case: Case) -> bytes:
    """All that the server sends before it closes; it is told that nothing more comes."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        try:
            for piece in case.pieces:
                client.sendall(piece)
            if case.resets:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                answer += piece
        except TimeoutError:
            return answer + b"(no end)"
        except OSError:  # reset: what came before it counts
            while True:
                try:
                    piece = client.recv(65536)
                except OSError:
                    return answer
                if not piece:
                    return answer
                answer += piece
        return answer


def judge(answer: bytes) -> str | None:
    """What is wrong with all that came back; None for answers of the table, also cut off ones, or nothing."""
    while answer:
        found = _STATUS.match(answer)
        if found is None:
            return f"no HTTP answer: {answer[:80]!r}"
        status = int(found.group(1))
        head, _, rest = answer.partition(b"\r\n\r\n")
        if status == 100:
            answer = rest
            continue
        if status not in TABLE:
            return f"status {status}: {answer[:300]!r}"
        length = _LENGTH.search(head + b"\r\n")
        if length is None:
            # bjoern answers broken HTTP behind `Expect` with two bare 400s, one for each read
            if rest and not (status == 400 and rest.startswith(b"HTTP/1.1 400 ")):
                return f"bytes behind a bare {status}: {rest[:80]!r}"
            answer = rest
            continue
        size = int(length.group(1))
        if status >= 400 and len(rest) >= size > 0:
            error = json.loads(rest[:size])["error"]
            if not error["code"] or not error["message"]:
                return f"an error without its words: {rest[:200]!r}"
        answer = rest[size:]
    return None
