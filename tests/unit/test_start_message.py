# SPDX-License-Identifier: MIT
"""The lines that greet whoever started the daemon."""

import json
import re
import socket
from contextlib import closing
from pathlib import Path

import pytest

from postbackd.server.listener import bind
from postbackd.settings import Settings
from postbackd.start_message import ingest_url, start_message


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_url_is_one_that_a_client_here_can_use(host: str, shown: str) -> None:
    with closing(bind(host, 0)) as listener:
        port = listener.getsockname()[1]
        assert ingest_url(listener, "/i") == f"http://{shown}:{port}/i"
        with socket.create_connection((shown.strip("[]"), port)):
            pass


def test_request_to_try_is_valid_json() -> None:
    with closing(bind("127.0.0.1", 0)) as listener:
        text = start_message(Settings(), frozenset({"ingest", "deliver"}), listener)
    [sample] = re.findall("-d '(.*?)'", text)
    assert json.loads(sample)["data"] == [{"k": "v"}]
    assert "  log      var/deliveries.jsonl" in text.splitlines()
    data_dir = f'  data     {Path("var").absolute()} (data_dir "var" is taken from the current directory)'
    assert data_dir in text.splitlines()
    assert "are refused as configured" in text
    data_dir = f'  data     {Path("var").absolute()} (data_dir "var" is taken from the current directory)'
    assert data_dir in text.splitlines()
    assert "are refused as configured" in text


def test_delivery_alone_names_no_url() -> None:
    assert "http" not in start_message(Settings(), frozenset({"deliver"}), None)
