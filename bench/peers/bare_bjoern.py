# SPDX-License-Identifier: MIT
"""The floor of ingest: bjoern with an app that reads the body and answers, nothing else. Argument: port."""

import sys
from collections.abc import Callable
from typing import Any

import bjoern

from postbackd.server.listener import bind

ANSWER = b'{"accepted":2,"ids":["0000000000000000","0000000000000001"]}'
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


def app(env: dict[str, Any], start_response: Callable[..., object]) -> tuple[bytes]:
    """Read, answer."""
    env["wsgi.input"].read()
    start_response("202 Accepted", HEADERS)
    return (ANSWER,)


if __name__ == "__main__":
    bjoern.server_run(bind("127.0.0.1", int(sys.argv[1])), app)
