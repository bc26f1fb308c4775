# SPDX-License-Identifier: MIT
"""What the daemon prints once it is ready: where to post, what to try, where the log is, how to stop."""

import os
import socket
import string
from pathlib import Path

from postbackd.delivery.egress import Policy
from postbackd.settings import Settings
from postbackd.suggestion import command, program

SINK_PORT = 8888
ALLOW = """--set 'security.allow_networks=["127.0.0.0/8"]'"""
_SAMPLE = string.Template(
    """{"endpoint": {"method": "GET", "url": "http://127.0.0.1:$port/?k={k}"}, "data": [{"k": "v"}]}"""
).substitute(port=SINK_PORT)


def start_message(
    settings: Settings,
    roles: frozenset[str],
    listener: socket.socket | None,
    admin_listener: socket.socket | None = None,
) -> str:
    """A few lines for a person at a terminal; they do no harm in a service's log."""
    lines = ["postbackd is ready."]
    token = " -H 'Authorization: Bearer TOKEN'" if settings.ingest.tokens else ""
    if listener:
        url = ingest_url(listener, settings.ingest.paths[0])
        lines += [
            f"  post to  {url}",
            f"  try      curl -H 'Content-Type: application/json'{token} -d '{_SAMPLE}' {url}",
            f"           ({program()} sink --port {SINK_PORT} in another terminal shows what arrives)",
        ]
        if Policy(settings.security.allow_networks, settings.security.deny_networks).verdict("127.0.0.1"):
            lines.append(f"           (targets on this machine are refused as configured; to try it: {ALLOW})")
    if admin_listener:
        lines.append(f"  look at  {ingest_url(admin_listener, '/')}")
        lines.append(f"  ask      {command('status')}")
    if "deliver" in roles:
        lines.append(f"  log      {settings.log.path}")
    data_dir = Path(settings.data_dir)
    relative = "" if data_dir.is_absolute() else f' (data_dir "{data_dir}" is taken from the current directory)'
    lines.append(f"  data     {data_dir.absolute()}{relative}")
    lines.append(f"  stop     Ctrl-C, or kill {os.getpid()}")
    return "\n".join(lines)


def ingest_url(listener: socket.socket, path: str) -> str:
    """Where to post, as an address that a client on this machine can use."""
    if listener.family == socket.AF_UNIX:
        return f"{path} on the unix socket {listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
