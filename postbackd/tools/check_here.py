# SPDX-License-Identifier: MIT
"""The part of `postbackd check` about this machine: data_dir, delivery log, ports; what `run` would refuse there.

A daemon that runs on this very data_dir and holds these ports is no fault: then its own are left out of the search.
Ports are tried by binding them as `run` does; nothing else is changed.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from postbackd.data_dir import foreign_machine, holder_of, read_processes
from postbackd.errors import BootError
from postbackd.queue.check import Finding, check_server, is_away
from postbackd.queue.embedded import running_url, socket_path_fault
from postbackd.server.listener import bind
from postbackd.settings import Settings
from postbackd.suggestion import with_setting
from postbackd.tools.figures import size

LOW_BYTES = 64 * 1024**2  # of a disk: some minutes of a busy delivery log
OWN_NAMES = {"queue", "spool", "numbers", "dead-overflow.jsonl"}  # what a person puts back into an empty one
INIT_PID = 1  # systemd: it holds the port of postbackd.socket and hands it to the service


class Daemon(NamedTuple):
    """The one that holds the data_dir."""

    pid: str
    roles: frozenset[str]  # empty: nothing is known of its processes
    pids: frozenset[int]


class Door(NamedTuple):
    """A port that `run` would listen on."""

    section: str
    role: str
    host: str
    port: int


def look_here(settings: Settings, roles: frozenset[str]) -> list[Finding]:
    """Every finding; a `fail` is what `run` with these roles would refuse."""
    daemon = _daemon(settings)
    silence = _silence(settings) if daemon is not None else None
    ports = _ports(settings, roles, daemon, is_queue_silent=silence is not None)
    return [
        *([Finding("warn", f"queue: {silence}")] if silence else []),
        *_relative(settings),
        *_room(settings, roles),
        *_data_dir(settings, daemon, has_own_ports=not any(finding.level == "fail" for finding in ports)),
        *([_log(settings)] if "deliver" in roles else []),
        *ports,
    ]


def _daemon(settings: Settings) -> Daemon | None:
    try:
        pid = holder_of(settings.data_dir)
        rows = read_processes(settings.data_dir) if pid else []
    except (OSError, ValueError):  # no such folder, or not ours: told by _data_dir
        return None
    if pid is None:
        return None
    return Daemon(pid, frozenset(row["role"] for row in rows), frozenset(row["pid"] for row in rows))


def _silence(settings: Settings) -> str | None:
    """Why the embedded server of the daemon that runs gives no answer. The daemon starts it again by itself, and ingest
    spools: `run`, and a reload, would not refuse for it."""
    if settings.queue.url:
        return None
    try:
        findings = check_server(running_url(settings.queue, settings.data_dir), 1)
    except BootError as error:
        return str(error)
    folder = Path(settings.data_dir).absolute() / "queue"
    text = f"the embedded server does not answer: see {folder}/server.log; it hangs? {_kill(settings)}"
    return text if is_away(findings) else None


def _kill(settings: Settings) -> str:
    pids = [row["pid"] for row in read_processes(settings.data_dir) if row["role"] == "queue"]
    return f"kill -9 {pids[0]}: another is started" if pids else "its pid is the queue_pid of the last queue_started"


def _room(settings: Settings, roles: frozenset[str]) -> Iterator[Finding]:
    """Disks on which nothing can be written soon."""
    needed = max(LOW_BYTES, settings.spool.max_bytes if "ingest" in roles else 0)
    why = f", and the spool may grow to {size(settings.spool.max_bytes)}" if needed > LOW_BYTES else ""
    places = [("data_dir", Path(settings.data_dir).absolute(), needed, why)]
    if "deliver" in roles:
        places.append(("log.path", Path(settings.log.path).absolute().parent, LOW_BYTES, ""))
    for name, path, least, reason in places:
        free = shutil.disk_usage(_nearest(path)).free
        if free < least:
            yield Finding("warn", f"{name}: the disk under {path} has {size(free)} left{reason}: make room (df -h)")


def _nearest(path: Path) -> Path:
    return path if path.exists() else next(parent for parent in path.parents if parent.exists())


def holds_other_things(data_dir: Path) -> bool:
    """Whether it is a folder of something else, as /var is where `data_dir = "var"` is taken from /."""
    try:
        if not data_dir.is_dir() or (data_dir / "postbackd.pid").exists():
            return False
        return bool(set(os.listdir(data_dir)) - OWN_NAMES)
    except OSError:  # not ours to look into
        return True


def _relative(settings: Settings) -> Iterator[Finding]:
    """The same configuration from elsewhere would mean another queue, and another log."""
    for name, text in (("data_dir", settings.data_dir), ("log.path", settings.log.path)):
        if not Path(text).is_absolute():
            path = Path(text).absolute()
            yield Finding("warn", f'{name}: "{text}" is taken from the current directory: here it is {path}')


def _data_dir(settings: Settings, daemon: Daemon | None, has_own_ports: bool) -> Iterator[Finding]:
    path = Path(settings.data_dir).absolute()
    if not path.exists():
        yield _writable("data_dir", _nearest(path), f"{path} will be created", is_folder=True)
        return
    finding = _writable("data_dir", path, f"{path} can be written", is_folder=True)
    if finding.level == "ok":
        names = (path, path / "queue", path / "spool", path / "numbers")
        files = [file for name in names if name.is_dir() for file in sorted(name.iterdir()) if not file.is_socket()]
        finding = next((wrong for file in files if (wrong := _writable("data_dir", file)).level == "fail"), finding)
    yield finding
    if finding.level == "ok" and holds_other_things(path):
        text = f"data_dir: {path} holds files and none of postbackd's: name a folder for it alone, or -c FILE"
        yield Finding("warn", text)
    try:
        if fault := foreign_machine(path):
            yield Finding("fail", fault)
    except OSError:  # told above
        return
    if daemon is not None and has_own_ports:
        yield Finding("ok", f"data_dir: postbackd already runs here (pid {daemon.pid}), with these ports")
    elif daemon is not None:
        other = with_setting(f"data_dir={settings.data_dir}2")
        text = f"data_dir: {path} is in use by a postbackd with other ports (pid {daemon.pid})"
        yield Finding("fail", f"{text}: stop it or take another: {other}")


def _log(settings: Settings) -> Finding:
    path = Path(settings.log.path).absolute()
    if path.is_dir():
        return Finding("fail", f"log.path: {path} is a directory: name a file in it")
    if path.exists():
        return _writable("log.path", path, f"{path} can be written")
    return _writable("log.path", _nearest(path), f"{path} will be created", is_folder=True)


def _writable(setting: str, path: Path, well: str = "", is_folder: bool = False) -> Finding:
    if is_folder and not path.is_dir():
        return Finding("fail", f"{setting}: {path} is no directory: set {setting} to another place")
    if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
        mend = f"run this as the daemon's user, chown it to that one, or set {setting}"
        return Finding("fail", f"{setting}: {path} cannot be written: {mend}")
    return Finding("ok", f"{setting}: {well}")


def _ports(settings: Settings, roles: frozenset[str], daemon: Daemon | None, is_queue_silent: bool) -> list[Finding]:
    doors = [Door("ingest", "ingest", settings.ingest.host, settings.ingest.port)] if "ingest" in roles else []
    if "admin" in roles:
        doors.append(Door("admin", "admin", settings.admin.host, settings.admin.port))
    findings = []
    if not settings.queue.url:
        if not is_queue_silent:  # else its port is free, until the daemon takes it again
            doors.append(Door("queue", "queue", "127.0.0.1", settings.queue.port))
        if fault := socket_path_fault(settings.data_dir):
            findings.append(Finding("fail", f"queue: {fault}"))
    holders = _holders()
    return findings + [_port(door, daemon, holders.get(door.port, frozenset())) for door in doors]


def _port(door: Door, daemon: Daemon | None, holders: frozenset[int]) -> Finding:
    place = f"{door.host}:{door.port}"
    is_known = daemon is not None and (not daemon.roles or door.role in daemon.roles)
    try:
        bind(door.host, door.port, section=door.section).close()
    except BootError as error:
        # Whose port it is only its user and root can see; then the data_dir speaks for it.
        if daemon is not None and is_known and (holders & daemon.pids or not holders):
            return Finding("ok", f"{door.section}: {place} is held by the postbackd that runs here")
        if INIT_PID in holders and door.section == "ingest":
            return Finding("ok", f"ingest: {place} is held by systemd, for the service")
        return Finding("fail", f"{door.section}: {error}")
    if daemon is not None and is_known and daemon.roles:
        return Finding("fail", f"{door.section}: the postbackd that runs here has another port than {door.port}")
    return Finding("ok", f"{door.section}: {place} is free")


def _holders() -> dict[int, frozenset[int]]:
    """Which processes listen on a port, as far as we may see."""
    found: dict[int, frozenset[int]] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid is not None and connection.laddr:
            port = connection.laddr.port
            found[port] = found.get(port, frozenset()) | {connection.pid}
    return found
