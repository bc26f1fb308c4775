# SPDX-License-Identifier: MIT
"""Who may look: the checks before every answer of the admin app, and the headers of every answer.

Host must be one of `admin.hosts` (a page elsewhere whose name was made to point here has another one), anything but
GET and HEAD needs `X-Postbackd: 1` (which no page elsewhere can send without being asked), and `admin.token` where it
is set. Open without a token are /health and the dashboard's own files, which hold no data.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any

import falcon

from postbackd.methods import methods_of
from postbackd.settings import Admin

SAFE_METHODS = frozenset({"GET", "HEAD"})
MARK = "X-Postbackd"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]*))(?::\d*)?")


class Door:
    """Falcon middleware."""

    def __init__(self, settings: Admin, open_paths: Sequence[str]) -> None:
        self._hosts = frozenset(host.strip("[]").lower() for host in settings.hosts)
        self._token = _digest(settings.token) if settings.token else None
        self._open_paths = frozenset(open_paths)

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Refuse what must not come in, before any resource sees it."""
        if host_name(req.get_header("Host") or "") not in self._hosts:
            raise falcon.HTTPError(
                421,
                title="wrong_host",
                description="This Host is none of admin.hosts: add it there, or ask by another.",
            )
        if req.method not in SAFE_METHODS and req.get_header(MARK) != "1":
            raise falcon.HTTPForbidden(
                title="mark_missing", description=f"Send the header {MARK}: 1 with {req.method}."
            )
        if self._token is not None and req.path not in self._open_paths:
            self._check_token(req.get_header("Authorization") or "")

    def process_resource(self, req: falcon.Request, _resp: falcon.Response, resource: Any, _params: Any) -> None:
        """Falcon answers OPTIONS by itself, which nobody is to take for a leave to come from elsewhere."""
        if req.method == "OPTIONS":
            raise falcon.HTTPMethodNotAllowed(methods_of(resource))

    def _check_token(self, authorization: str) -> None:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise falcon.HTTPUnauthorized(
                title="token_missing",
                description="Send the token of admin.token: Authorization: Bearer <token>.",
                challenges=["Bearer"],
            )
        if self._token is None or not hmac.compare_digest(_digest(secret.strip()), self._token):
            raise falcon.HTTPForbidden(title="token_unknown", description="This is not admin.token.")

    def process_response(self, _req: falcon.Request, resp: falcon.Response, *_: Any) -> None:
        """Whatever is answered: no sniffing, no framing, nothing from elsewhere."""
        resp.set_headers(HEADERS)
        if resp.get_header("Cache-Control") is None:
            resp.set_header("Cache-Control", "no-store")


def host_name(header: str) -> str:
    """The host of a Host header, without its port, lower case; IPv6 without its brackets."""
    found = _HOST.fullmatch(header.strip().lower())
    if found is None:
        return ""
    return found.group("v6") or found.group("name").removesuffix(".")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
