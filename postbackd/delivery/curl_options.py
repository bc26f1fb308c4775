# SPDX-License-Identifier: MIT
"""Options of a libcurl handle: those set once when it is made, and those of one request.

A handle is reused for request after request, so an option set for one must not be in the next: what differs
between requests is set each time or compared with what the handle has; a handle that changes its method is reset
and set up anew, since libcurl's method options undo each other only in part.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pycurl

from postbackd import __version__
from postbackd.settings import Delivery

CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
SENDS_NOTHING, SENDS_BODY, SENDS_HEAD = "nothing", "body", "head"  # libcurl's ways of sending a request
_URL = pycurl.URL


class Profile:
    """What the requests of an endpoint have in common: all but the URL and the body."""

    __slots__ = ("connect_timeout_ms", "headers", "kind", "method", "timeout_ms")

    def __init__(
        self,
        method: str,
        headers: Sequence[bytes],
        sends_body: bool,
        timeout_ms: int,
        connect_timeout_ms: int = 3000,
    ) -> None:
        self.method = method
        self.timeout_ms = timeout_ms
        self.connect_timeout_ms = connect_timeout_ms
        self.headers = list(headers)
        if method == "HEAD":
            self.kind = SENDS_HEAD
        elif sends_body or method in ("POST", "PUT", "PATCH"):
            self.kind = SENDS_BODY
            self.headers += _body_headers(headers)
        else:
            self.kind = SENDS_NOTHING


def _body_headers(headers: Sequence[bytes]) -> list[bytes]:
    """Without `Expect: 100-continue` (a round trip more, and some servers hang on it) and without libcurl's own
    Content-Type of a form where the caller gave none."""
    if any(header[:13].lower() in (b"content-type:", b"content-type;") for header in headers):
        return [b"Expect:"]
    return [b"Expect:", b"Content-Type:"]


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

    __slots__ = ("_handle", "_profile", "_set_up")

    def __init__(self, handle: Any, set_up: Callable[[], None]) -> None:
        """`set_up` gives a fresh or reset handle the options that no request changes."""
        self._handle = handle
        self._set_up = set_up
        self._profile: Profile | None = None
        set_up()

    def apply(self, profile: Profile, url: str, body: bytes | None, resolve: str | None) -> None:
        """Set what this request needs. 0.3 µs for a GET of the same endpoint as before: its URL."""
        handle = self._handle
        if profile is not self._profile:
            self._change(profile)
        handle.setopt(_URL, url)
        if profile.kind is SENDS_BODY:
            handle.setopt(pycurl.POSTFIELDS, body or b"")
        if resolve is not None:  # `host:port:address,…`: told once, and kept by the multi
            handle.setopt(pycurl.RESOLVE, [resolve])

    def _change(self, profile: Profile) -> None:
        handle, old = self._handle, self._profile
        if old is not None and (old.kind, old.method) != (profile.kind, profile.method):
            handle.reset()
            self._set_up()
            old = None
        if old is None:
            if profile.kind is SENDS_HEAD:
                handle.setopt(pycurl.NOBODY, 1)
            elif profile.kind is SENDS_BODY or profile.method != "GET":
                handle.setopt(pycurl.CUSTOMREQUEST, profile.method)
        if old is None or old.timeout_ms != profile.timeout_ms:
            handle.setopt(pycurl.TIMEOUT_MS, profile.timeout_ms)
        if old is None or old.connect_timeout_ms != profile.connect_timeout_ms:
            handle.setopt(pycurl.CONNECTTIMEOUT_MS, profile.connect_timeout_ms)
        if old is None or old.headers != profile.headers:
            handle.setopt(pycurl.HTTPHEADER, profile.headers)
        self._profile = profile
