# SPDX-License-Identifier: MIT
"""`postbackd send`: post one request to a running daemon and print what it answered."""

import http.client
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from postbackd.errors import ExitCode, PostbackdError
from postbackd.senders import secret_of
from postbackd.settings import Settings
from postbackd.suggestion import command

TIMEOUT_S = 30


def send(settings: Settings, file: str, url: str | None, as_json: bool) -> int:
    """Post `file` (`-` is standard input); exit code 0 when all of it was accepted."""
    try:
        body = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise PostbackdError(f"{file}: cannot be read: {error.strerror}") from None
    target = url or _ingest_url(settings)
    status, answer = _post(target, body, settings.ingest.tokens[0] if settings.ingest.tokens else None)
    if as_json:
        print(answer.decode(errors="replace"))
    elif status == 202:
        decoded = json.loads(answer)
        print(f"accepted {decoded['accepted']}")
        print("\n".join(decoded["ids"]))
    else:
        print(f"postbackd: {target} answered {status}: {_explain(answer)}", file=sys.stderr)
    return ExitCode.OK if status == 202 else ExitCode.FAILED


def _ingest_url(settings: Settings) -> str:
    ingest = settings.ingest
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ingest.host, ingest.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{ingest.port}{ingest.paths[0]}"


def _post(url: str, body: bytes, token: str | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PostbackdError(f"--url {url}: write it as http://host:port/ingest.php")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {secret_of(token)}"
        connection.request("POST", parts.path or "/", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PostbackdError(f"{url} cannot be reached: {reason}; does the daemon run? ({command('run')})") from None
    finally:
        connection.close()


def _explain(answer: bytes) -> str:
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace")[:200]
    place = f" ({error['path']})" if "path" in error else ""
    return f"{error['message']}{place}"
