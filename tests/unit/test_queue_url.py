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
        ("sentinel://a:1/s?db=1", "question mark"),
        ("cluster://:secret@a:1/1", "one database"),
        ("cluster://", "host:port"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        parse_queue_url(url)
    assert "secret" not in str(caught.value)


def test_nodes_are_urls_of_their_own() -> None:
    assert Node("::1", 7).url("u:p") == "redis://u:p@[::1]:7"
    assert Node("h", 7).url() == "redis://h:7"


@pytest.mark.parametrize("rest", ["a:1,b:2/postbacks", "[::1]:1,b:2"])
def test_password_is_masked_in_messages(rest: str) -> None:
    scheme = "sentinel" if "/" in rest else "cluster"
    assert mask(f"{scheme}://user:s3c@ret@{rest}") == f"{scheme}://user:***@{rest}"
    assert mask(f"{scheme}://{rest}") == f"{scheme}://{rest}"
