# SPDX-License-Identifier: MIT
"""Who may look: Host, mark and token, asked of the real Falcon app without a server."""

import falcon
import falcon.testing
import pytest

from postbackd.admin.door import Door, host_name
from postbackd.settings import Admin


class Echo:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"path": req.path}

    on_post = on_get


def client(**settings: object) -> falcon.testing.TestClient:
    app = falcon.App(middleware=[Door(Admin(**settings), ["/health"])])
    for path in ("/health", "/stats"):
        app.add_route(path, Echo())
    return falcon.testing.TestClient(app)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:8081", "127.0.0.1"),
        ("LocalHost:80", "localhost"),
        ("localhost.", "localhost"),
        ("[::1]:8081", "::1"),
        ("[::1]", "::1"),
        ("", ""),
        ("localhost:80@evil.example", ""),
        ("localhost:", "localhost"),
        ("[]", ""),
    ],
)
def test_host_header_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8081", "LOCALHOST"])
def test_known_host_comes_in(host: str) -> None:
    assert client().simulate_get("/stats", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:8081", "[::1]", "127.0.0.2"]
)
def test_other_host_is_refused(host: str) -> None:
    answer = client().simulate_get("/stats", headers={"Host": host})
    assert answer.status_code == 421
    assert "admin.hosts" in answer.text


def test_ipv6_host_is_named_with_or_without_brackets() -> None:
    for name in ("::1", "[::1]"):
        assert client(hosts=[name]).simulate_get("/stats", headers={"Host": "[::1]:8081"}).status_code == 200


def test_anything_but_reading_needs_the_mark() -> None:
    asked = {"Host": "localhost"}
    assert client().simulate_post("/stats", headers=asked).status_code == 403
    assert client().simulate_post("/stats", headers={**asked, "X-Postbackd": "0"}).status_code == 403
    assert client().simulate_post("/stats", headers={**asked, "X-Postbackd": "1"}).status_code == 200
    assert client().simulate_options("/stats", headers=asked).status_code == 403
    marked = client().simulate_options("/stats", headers={**asked, "X-Postbackd": "1"})
    assert (marked.status_code, marked.headers["Allow"]) == (405, "GET, POST")


def test_token_is_needed_where_one_is_set() -> None:
    secret = client(token="s3cret-s3cret-s3cret")
    asked = {"Host": "localhost"}
    missing = secret.simulate_get("/stats", headers=asked)
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    for wrong in ("Bearer wrong", "Bearer", "Bearer s3cret-s3cret-s3cre"):
        assert secret.simulate_get("/stats", headers={**asked, "Authorization": wrong}).status_code == 403
    assert secret.simulate_get("/stats", headers={**asked, "Authorization": "Basic czNjcmV0"}).status_code == 401
    assert secret.simulate_get("/health", headers=asked).status_code == 200
    for scheme in ("Bearer", "bearer"):
        headers = {**asked, "Authorization": f"{scheme} s3cret-s3cret-s3cret"}
        assert secret.simulate_get("/stats", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_answer_forbids_framing_sniffing_and_foreign_content(host: str) -> None:
    headers = client().simulate_get("/stats", headers={"Host": host}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy and "http" not in policy
