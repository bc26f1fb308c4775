# SPDX-License-Identifier: MIT
"""`postbackd check`: configuration, queue server, limits and folders; what is wrong and how to mend it.

Starts nothing and changes nothing. The configuration itself was checked when it was loaded.
"""

import contextlib
import json
import ssl
import stat
from pathlib import Path

import click

from postbackd.delivery.egress import reaches_inside
from postbackd.errors import BootError, ExitCode, QueueUnavailableError
from postbackd.limits import raise_descriptor_limit
from postbackd.queue.check import Finding, check_server, is_away, losses, persistence_of, replicas_of
from postbackd.queue.embedded import find_server
from postbackd.queue.left_behind import left_behind, what_to_do
from postbackd.queue.worker_number import has_numbers
from postbackd.senders import secret_of
from postbackd.server.listener import is_loopback
from postbackd.settings import Settings
from postbackd.signing import SHORT_SECRET_BYTES, SigningKeys
from postbackd.tools.check_here import holds_other_things, look_here

SHORT_TOKEN = 16
MAX_FILES = 5  # named of those that others can read
READ, WRITE, EXECUTE = stat.S_IROTH, stat.S_IWOTH, stat.S_IXOTH  # of others
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def check(settings: Settings, config: str | None, roles: frozenset[str], as_json: bool = False) -> int:
    """Print one line a finding; exit code 1 when `run` with these roles would refuse. `config` is their file."""
    findings = [
        Finding("ok", f"configuration: {_which(config)}, and valid"),
        *_queue(settings),
        *_whose_queue(settings, roles),
        *_left_behind(settings),
        _limits(settings, roles),
        *look_here(settings, roles),
        *([_tls()] if "deliver" in roles else []),
        *_doors(settings, config, roles),
    ]
    is_refused = any(finding.level == "fail" for finding in findings)
    costs: list[str] = []
    if not is_refused:
        with contextlib.suppress(QueueUnavailableError):  # away, as was said
            costs = losses(_persistence(settings), settings.queue.durability, bool(settings.queue.url))
    if as_json:
        shown = [{"level": finding.level, "text": finding.text} for finding in findings]
        click.echo(json.dumps({"ok": not is_refused, "findings": shown, "losses": costs}))
        return ExitCode.FAILED if is_refused else ExitCode.OK
    for finding in findings:
        click.echo(click.style(f"{finding.level:<4}", fg=COLOURS[finding.level]) + f" {finding.text}")
    if costs:
        click.echo("what acknowledged postbacks a disaster can cost:")
        for line in costs:
            click.echo(f"     {line}")
    return ExitCode.FAILED if is_refused else ExitCode.OK


def _which(config: str | None) -> str:
    if config is None:
        return "no file was read (-c FILE, or POSTBACKD_CONFIG, names one), so the defaults, the environment and --set"
    return f"read from {Path(config).absolute()}"


def _queue(settings: Settings) -> list[Finding]:
    if settings.queue.url:
        findings = check_server(settings.queue.url, settings.queue.shards)
        if is_away(findings) and has_numbers(Path(settings.data_dir)):
            return [Finding("warn", f"{findings[0].text} run starts all the same here: ingest spools, delivery waits.")]
        has_failed = any(finding.level == "fail" for finding in findings)
        if settings.queue.durability == "fsync" and not has_failed and _persistence(settings) != "always":
            needed = "appendonly yes, appendfsync always and no-appendfsync-on-rewrite no"
            findings.append(Finding("fail", f"queue: durability fsync needs {needed}."))
        if settings.queue.durability == "replica" and not has_failed:
            findings.append(_replicas(settings))
        return findings
    if settings.queue.durability == "fsync" and settings.queue.appendfsync != "always":
        return [Finding("fail", "queue: durability fsync needs queue.appendfsync = always.")]
    try:
        return [Finding("ok", f"queue: embedded server {find_server(settings.queue.server)}")]
    except BootError as error:
        return [Finding("fail", f"queue: {error}")]


def _whose_queue(settings: Settings, roles: frozenset[str]) -> list[Finding]:
    missing = {"ingest", "deliver"} - roles
    if settings.queue.url or len(missing) != 1:
        return []
    text = f"queue: the embedded server is this machine's alone, and no {missing.pop()} runs on it: set queue.url."
    return [Finding("warn", text)]


def _left_behind(settings: Settings) -> list[Finding]:
    folder = left_behind(settings.queue.url, settings.data_dir)
    if folder is None:
        return []
    text = f"queue: {folder}, of the embedded server, may hold postbacks that nobody delivers: {what_to_do(folder)}"
    return [Finding("warn", text)]


def _replicas(settings: Settings) -> Finding:
    connected, wanted = replicas_of(settings.queue.url, settings.queue.shards), settings.queue.replicas
    text = f"queue: durability replica waits for {wanted} replica(s), {connected} connected"
    if connected < wanted:
        return Finding("fail", f"{text}: every request would get 503. Connect them, or lower queue.replicas.")
    return Finding("ok", text)


def _persistence(settings: Settings) -> str | None:
    return (
        persistence_of(settings.queue.url, settings.queue.shards) if settings.queue.url else settings.queue.appendfsync
    )


def _limits(settings: Settings, roles: frozenset[str]) -> Finding:
    try:
        raise_descriptor_limit(settings, roles)
    except BootError as error:
        return Finding("fail", f"limits: {error}")
    return Finding("ok", "limits: enough file descriptors")


def _doors(settings: Settings, config: str | None, roles: frozenset[str]) -> list[Finding]:
    """What stands open that a stranger could use."""
    found = []
    if "ingest" in roles and not settings.ingest.tokens and not is_loopback(settings.ingest.host):
        text = f"ingest: {settings.ingest.host} is open to everybody who reaches it: set ingest.tokens."
        found.append(Finding("warn", text))
    if any(len(secret_of(token)) < SHORT_TOKEN for token in settings.ingest.tokens):
        found.append(Finding("warn", f"ingest.tokens: one has under {SHORT_TOKEN} characters: openssl rand -hex 16"))
    if short := SigningKeys(settings.security.signing_keys).short():
        text = f"security.signing_keys: {', '.join(short)}: a secret has under {SHORT_SECRET_BYTES} bytes"
        found.append(Finding("warn", f'{text}: echo "whsec_$(openssl rand -base64 32)"'))
    inside = [network for network in settings.security.allow_networks if reaches_inside(network)]
    if inside:
        text = f"security.allow_networks: postbacks may go to {', '.join(inside)}, the inside of a network."
        found.append(Finding("warn", text))
    if not settings.delivery.tls_verify:
        found.append(
            Finding("warn", "delivery.tls_verify is false: whoever is in between reads and answers postbacks.")
        )
    if "admin" in roles and not settings.admin.token and not is_loopback(settings.admin.host):
        text = (
            f"admin: {settings.admin.host} is reached by others: set admin.token or admin.host, or run without admin."
        )
        found.append(Finding("fail", text))
    readable = [path for path in _private_files(settings, config) if _others_may(path)]
    for path in readable[:MAX_FILES]:
        found.append(Finding("warn", f"{path} can be read or written by others on this machine: chmod o= {path}"))
    if len(readable) > MAX_FILES:
        text = f"{len(readable) - MAX_FILES} more files can be read or written by others: chmod -R o= there"
        found.append(Finding("warn", text))
    return found or [Finding("ok", "doors: none stands open")]


def _private_files(settings: Settings, config: str | None) -> list[Path]:
    """What holds values, answers or secrets: data_dir and what lies in it, the log and its rotated files, and the
    configuration, where it has a secret. A folder that holds other things than ours is not to be closed."""
    data_dir, log = Path(settings.data_dir), Path(settings.log.path)
    files = [log, *sorted(log.parent.glob(f"{log.name}.*"))]
    if holds_other_things(data_dir):
        return [*files, *([Path(config)] if config and _has_secrets(settings) else [])]
    files.insert(0, data_dir)
    if not _others_may(data_dir, EXECUTE):  # whoever cannot enter it reads nothing in it
        return [*files, *([Path(config)] if config and _has_secrets(settings) else [])]
    inside = [path for path in sorted(data_dir.rglob("*")) if path not in files and not path.is_socket()]
    return [*files, *inside, *([Path(config)] if config and _has_secrets(settings) else [])]


def _has_secrets(settings: Settings) -> bool:
    security, admin = settings.security, settings.admin
    return bool(settings.ingest.tokens or security.signing_keys or admin.token or "@" in settings.queue.url)


def _others_may(path: Path, what: int = READ | WRITE) -> bool:
    try:
        return bool(path.stat().st_mode & what)
    except OSError:
        return False


def _tls() -> Finding:
    from postbackd.delivery.curl_options import find_ca_bundle

    bundle = find_ca_bundle()
    if bundle is None:
        return Finding("warn", "tls: no CA certificates found, so https targets fail: apt-get install ca-certificates")
    return Finding("ok", f"tls: {ssl.OPENSSL_VERSION.split()[0]} certificates from {bundle}")
