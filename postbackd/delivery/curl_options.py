# SPDX-License-Identifier: MIT
"""Options of a libcurl handle: those set once when it is made, and those of one request.

A handle is reused for request after request, so an option set for one must not be in the next: what differs
between requests is set each time or compared with what the handle has; a handle that changes between kinds of
request (no body, body, HEAD) is reset and made anew, since libcurl's method options undo each other only in part.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pycurl

from postbackd import __version__
from postbackd.settings import Delivery

CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
SENDS_NOTHING, SENDS_BODY, SENDS_HEAD = "nothing", "body", "head"


class Request(NamedTuple):
    """One request to be made."""

    method: str
    url: str
    headers: Sequence[bytes]
    body: bytes | None
    timeout_ms: int
    resolve: str | None = None  # `+host:port:address,…` for CURLOPT_RESOLVE, when libcurl has not been told yet


def find_ca_bundle() -> str | None:
    """The machine's CA certificates: the wheel of pycurl has none of its own. SSL_CERT_FILE goes first."""
    candidates = (os.environ.get("SSL_CERT_FILE", ""), *CA_BUNDLES)
    return next((path for path in candidates if path and os.path.isfile(path)), None)


class CurlOptions:
    """What all handles of a worker have in common."""

    def __init__(self, settings: Delivery) -> None:
        version = pycurl.CURL_HTTP_VERSION_2TLS if settings.http2 else pycurl.CURL_HTTP_VERSION_1_1
        self._common: list[tuple[int, Any]] = [
            (pycurl.NOSIGNAL, 1),  # no SIGALRM for time-outs: signals are the worker's
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.PROXY, ""),  # an empty one switches off http_proxy and its kin from the environment
            (pycurl.NOPROXY, "*"),
            (pycurl.PATH_AS_IS, 1),  # or libcurl would fold /../ that the endpoint's owner wrote
            (pycurl.HTTP_VERSION, version),
            (pycurl.CONNECTTIMEOUT_MS, int(settings.connect_timeout * 1000)),
            (pycurl.USERAGENT, settings.user_agent or f"postbackd/{__version__}"),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.SSL_VERIFYPEER, int(settings.tls_verify)),
            (pycurl.SSL_VERIFYHOST, 2 if settings.tls_verify else 0),
        ]
        if bundle := find_ca_bundle():
            self._common.append((pycurl.CAINFO, bundle))

    def apply_common(self, handle: Any) -> None:
        """Everything that no request changes."""
        for option, value in self._common:
            handle.setopt(option, value)


class RequestOptions:
    """The options of one handle that differ by request, and what they are now."""

    __slots__ = ("_handle", "_headers", "_kind", "_method", "_timeout_ms")

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.forget()

    def forget(self) -> None:
        """The handle was reset."""
        self._kind = SENDS_NOTHING
        self._method = "GET"
        self._headers: Sequence[bytes] = ()
        self._timeout_ms = 0

    def fits(self, request: Request) -> bool:
        """Whether the handle can take the request without a reset."""
        return self._kind == kind_of(request) or (self._kind == SENDS_NOTHING and self._method == "GET")

    def apply(self, request: Request) -> None:
        """Set what this request needs. 0.5 µs for a GET of the same endpoint as before: its URL."""
        handle = self._handle
        kind = kind_of(request)
        handle.setopt(pycurl.URL, request.url)
        if request.timeout_ms != self._timeout_ms:
            handle.setopt(pycurl.TIMEOUT_MS, request.timeout_ms)
            self._timeout_ms = request.timeout_ms
        if kind != self._kind:
            if kind == SENDS_HEAD:
                handle.setopt(pycurl.NOBODY, 1)
            self._kind = kind
        if kind == SENDS_BODY:
            handle.setopt(pycurl.POSTFIELDS, request.body or b"")
        if request.method != self._method:
            if kind != SENDS_HEAD:
                handle.setopt(pycurl.CUSTOMREQUEST, request.method)
            self._method = request.method
        if kind == SENDS_BODY:
            handle.setopt(pycurl.HTTPHEADER, _with_body_headers(request.headers))
            self._headers = ()
        elif request.headers is not self._headers:  # constant headers are one object per endpoint
            handle.setopt(pycurl.HTTPHEADER, list(request.headers))
            self._headers = request.headers
        if request.resolve is not None:
            handle.setopt(pycurl.RESOLVE, [request.resolve])


def kind_of(request: Request) -> str:
    """Which of libcurl's ways of sending a request needs."""
    if request.method == "HEAD":
        return SENDS_HEAD
    if request.body is not None or request.method in ("POST", "PUT", "PATCH"):
        return SENDS_BODY
    return SENDS_NOTHING


def _with_body_headers(headers: Sequence[bytes]) -> list[bytes]:
    """Without `Expect: 100-continue` (a round trip more, and some servers hang on it) and without libcurl's own
    Content-Type of a form where the caller gave none."""
    found = [*headers, b"Expect:"]
    if not any(header[:13].lower() in (b"content-type:", b"content-type;") for header in headers):
        found.append(b"Content-Type:")
    return found
