# SPDX-License-Identifier: MIT
"""queue.url: what is read from it, and what is refused in one line."""

import pytest

from postbackd.queue.wire import mask
from postbackd.queue_url import Node, parse_queue_url


@pytest.mark.parametrize(
    ("url", "nodes", "credentials", "service"),
    [
        ("sentinel://a:1/s", [("a", 1)], "", "s"),
        ("sentinel://u:p%40w@a:1,b:65535/my-service", [("a", 1), ("b", 65535)], "u:p%40w", "my-service"),
        ("sentinel://:p@w@[::1]:26379,10.0.0.1:26379/s", [("::1", 26379), ("10.0.0.1", 26379)], ":p@w", "s"),
        ("cluster://:p@a:1, b:2", [("a", 1), ("b", 2)], ":p", ""),
        ("cluster://a:1/", [("a", 1)], "", ""),
    ],
)
def test_parts(url: str, nodes: list[tuple[str, int]], credentials: str, service: str) -> None:
    parts = parse_queue_url(url)
    assert (list(parts.nodes), parts.credentials, parts.service) == (nodes, credentials, service)


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///s"])
def test_one_server_is_left_to_redis_py(url: str) -> None:
    assert parse_queue_url(url).nodes == ()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://a:1", "must begin"),
        ("a:1", "must begin"),
        ("sentinel://:secret@a:1", "/service"),
        ("sentinel://a:1/", "/service"),
        ("sentinel://a:1/s/0", "/service"),
        ("sentinel://a/s", "host:port"),
        ("sentinel://a:0/s", "host:port"),
        ("sentinel://a:65536/s", "host:port"),
        ("sentinel://a:1,/s", "host:port"),
        ("sentinel://a:1/s?db=1", "unknown option 'db'"),
        ("sentinel://a:1/s?ssl_ca_certs=/ca", "sentinels://"),
        ("cluster://a:1?ssl_ca_certs=/ca", "clusters://"),
        ("clusters://a:1?ssl_cert_reqs=maybe", "none, optional or required"),
        ("clusters://a:1?sentinel_password=secret", "unknown option 'sentinel_password'"),
        ("clusters://a:1?secret", "name=value"),
        ("cluster://:sec?ret@a:1", "percent-encoded"),
        ("sentinel://a:1/s?sentinel_password=secret@b", "percent-encoded"),
        ("cluster://:secret@a:1/1", "one database"),
        ("cluster://", "host:port"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        parse_queue_url(url)
    assert "secret" not in str(caught.value)


def test_nodes_are_urls_of_their_own() -> None:
    parts = parse_queue_url("sentinel://u:p@h:1/s")
    assert parts.url_of(Node("::1", 7), "u:p") == parts.server_url(Node("::1", 7)) == "redis://u:p@[::1]:7"
    assert parts.url_of(Node("h", 7)) == "redis://h:7"


def test_tls_goes_to_every_node_with_its_options() -> None:
    for scheme, behind in (("sentinels", "/s"), ("clusters", "")):
        parts = parse_queue_url(f"{scheme}://u:p@h:1{behind}?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false")
        options = "ssl_ca_certs=%2Fetc%2Fca.pem&ssl_check_hostname=false"
        assert parts.server_url(Node("h", 2)) == f"rediss://u:p@h:2?{options}"
        assert parts.url_of(Node("h", 2)) == f"rediss://h:2?{options}"
        assert f"{parts.scheme}s" == scheme
    assert parse_queue_url("clusters://h:1").server_url(Node("h", 2)) == "rediss://h:2"


def test_sentinels_may_have_credentials_of_their_own() -> None:
    parts = parse_queue_url("sentinel://u:p@h:1/s?sentinel_username=w&sentinel_password=a%40b")
    assert (parts.credentials, parts.sentinel_credentials) == ("u:p", "w:a%40b")
    assert parse_queue_url("sentinels://h:1/s?sentinel_password=x&ssl_cert_reqs=none").sentinel_credentials == ":x"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h/0?password=s3cret&db=1", "redis://h/0?password=***&db=1"),
        ("sentinel://:s3cret@h:1/s?sentinel_password=s3cret", "sentinel://:***@h:1/s?sentinel_password=***"),
        ("clusters://h:1?ssl_password=s3cret", "clusters://h:1?ssl_password=***"),
    ],
)
def test_password_in_an_option_is_masked_too(url: str, masked: str) -> None:
    assert mask(url) == masked


@pytest.mark.parametrize("rest", ["a:1,b:2/postbacks", "[::1]:1,b:2"])
def test_password_is_masked_in_messages(rest: str) -> None:
    scheme = "sentinel" if "/" in rest else "cluster"
    assert mask(f"{scheme}://user:s3c@ret@{rest}") == f"{scheme}://user:***@{rest}"
    assert mask(f"{scheme}://{rest}") == f"{scheme}://{rest}"
