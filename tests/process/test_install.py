# SPDX-License-Identifier: MIT
"""`make install` on this very machine, as root: start, reload, crash, power cut, upgrade, uninstall.

One test in the order of a service's life, since every step stands on the one before. It runs only where postbackd is
not installed, and leaves the machine as it was.
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import free_port, http, read_json_lines, running_sink, wait_until
from tests.support.steady_load import SteadyLoad, names_and_ids

REPOSITORY = Path(__file__).parents[2]
CONFIG = Path("/etc/postbackd/postbackd.toml")
DEFAULTS = Path("/etc/default/postbackd")
OUTPUT = Path("/var/log/postbackd/postbackd.log")
DELIVERIES = Path("/var/log/postbackd/deliveries.jsonl")
PLACES = [Path("/opt/postbackd"), CONFIG.parent, Path("/var/lib/postbackd"), Path("/etc/init.d/postbackd"),
          Path("/usr/lib/systemd/system/postbackd.service"), Path("/usr/local/bin/postbackd")]  # fmt: skip
BOUND_S = 120


def run(*command: str, code: int = 0, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    assert done.returncode == code, f"{command}: exit {done.returncode}, {text[-3000:]}"
    return text


class Machine:
    """This machine with postbackd installed from a copy of the sources."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        shutil.copytree(
            REPOSITORY,
            self.source,
            ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "var", "dist", "*.egg-info"),
        )
        self.port, self.queue_port, self.admin_port = free_port(), free_port(), free_port()

    def install(self, version: str | None = None) -> None:
        if version:
            init = self.source / "postbackd" / "__init__.py"
            init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))
        dist = self.source / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(self.source), cwd=self.source)
        (dist / "requirements.lock").write_text(run(sys.executable, str(REPOSITORY / "scripts" / "runtime_lock.py")))
        self.install_again()

    def install_again(self) -> None:
        """What was built."""
        run("make", "install", cwd=self.source)

    def uninstall(self, **environment: str) -> None:
        run("make", "uninstall", cwd=self.source, **environment)

    def configure(self) -> None:
        """As an operator would edit the installed file."""
        text = CONFIG.read_text()
        for old, new in [
            ("port = 8080", f"port = {self.port}"),
            ("port = 7379", f"port = {self.queue_port}"),
            ("port = 8081", f"port = {self.admin_port}"),
            ("allow_networks = []", 'allow_networks = ["127.0.0.0/8"]'),
        ]:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        CONFIG.write_text(text)

    def init(self, action: str, code: int = 0) -> str:
        return run("/etc/init.d/postbackd", action, code=code)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):  # of others, ended meanwhile
                if process.username() == "postbackd":
                    found.append(process)
        return found

    def roles(self, roles: str) -> None:
        DEFAULTS.write_text(f"ROLES={roles}\n")

    def post(self, target: str, count: int) -> list[str]:
        request = {
            "endpoint": {"method": "GET", "url": target + "/hit?id={@id}&name={name}"},
            "data": [{"name": str(number)} for number in range(count)],
        }
        body, headers = json.dumps(request).encode(), {"Content-Type": "application/json"}
        status, answer = http("POST", f"http://127.0.0.1:{self.port}/ingest.php", body, headers)
        assert status == 202, answer
        return answer["ids"]

    def cut_the_power(self) -> None:
        """SIGKILL for everything at once, the queue server too."""
        processes = self.processes()
        assert any("valkey" in process.name() or "redis" in process.name() for process in processes)
        for process in processes:
            process.suspend()  # so that nobody sees another die
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=BOUND_S)
        assert self.processes() == []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("installs for real, so it needs root")
    there = [str(place) for place in PLACES if place.exists()]
    if there:
        pytest.skip(f"postbackd is installed here: {', '.join(there)}")
    machine = Machine(tmp_path)
    try:
        yield machine
    finally:
        for process in [] if "postbackd" not in {user.pw_name for user in pwd.getpwall()} else machine.processes():
            process.kill()
        subprocess.run(
            ["bash", "scripts/install.sh", "uninstall"], cwd=machine.source, env={**os.environ, "PURGE": "1"}
        )


def mode(path: str | Path) -> tuple[str, str, str]:
    status = os.stat(path)
    return oct(stat.S_IMODE(status.st_mode)), Path(path).owner(), Path(path).group()


def test_life_of_an_installed_service(machine: Machine, tmp_path: Path) -> None:
    machine.install()
    machine.configure()
    assert mode(CONFIG) == ("0o640", "root", "postbackd")
    assert mode("/var/lib/postbackd") == ("0o700", "postbackd", "postbackd")
    assert mode("/var/log/postbackd")[:2] == ("0o750", "postbackd")
    assert "@PASSWORD@" not in Path("/etc/postbackd/valkey.conf").read_text()
    with running_sink(tmp_path / "sink") as sink:
        _starts_and_delivers(machine, sink)
        _answers_as_the_lsb_says(machine)
        _reloads(machine)
        _is_whole_after_a_power_cut(machine, sink)
        _comes_back_from_a_power_cut_under_load(machine, tmp_path)
        _is_upgraded(machine, sink)
    _is_uninstalled(machine)


def _starts_and_delivers(machine: Machine, sink) -> None:
    assert "started" in machine.init("start")
    ids = machine.post(sink.url, 2)
    wait_until(lambda: set(ids) <= set(names_and_ids(sink)[1]), "the sample has arrived")
    wait_until(lambda: len(read_json_lines(DELIVERIES)) == 2, "and is logged")
    assert {process.username() for process in machine.processes()} == {"postbackd"}
    assert len(machine.processes()) >= 4
    assert mode(DELIVERIES)[1] == "postbackd"
    run("/usr/local/bin/postbackd", "check", "-c", str(CONFIG))


def _answers_as_the_lsb_says(machine: Machine) -> None:
    assert "runs (pid" in machine.init("status")
    assert "runs already" in machine.init("start")
    pid = int(Path("/run/postbackd.pid").read_text())
    machine.init("try-restart")
    assert int(Path("/run/postbackd.pid").read_text()) != pid
    machine.init("stop")
    assert machine.processes() == []
    machine.init("status", code=3)
    machine.init("stop")
    machine.init("try-restart")
    machine.init("reload", code=7)
    machine.init("force-reload", code=7)
    machine.init("dance", code=3)
    run("/etc/init.d/postbackd", code=2)
    good = CONFIG.read_text()
    CONFIG.write_text("[delivery\n")
    assert "is not valid TOML" in machine.init("start", code=6)
    CONFIG.write_text(good)
    machine.init("start")
    CONFIG.write_text("[delivery\n")
    machine.init("restart", code=6)
    machine.init("status")
    CONFIG.write_text(good)
    machine.init("restart")
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    run(*nobody, "/etc/init.d/postbackd", "stop", code=4)


def _reloads(machine: Machine) -> None:
    good = CONFIG.read_text()
    CONFIG.write_text(good.replace("per_host = 32", "per_host = 31"))
    machine.init("reload")
    wait_until(lambda: "reload_done" in OUTPUT.read_text(), "it is reloaded")
    assert "changed=delivery.per_host" in OUTPUT.read_text()
    CONFIG.write_text("[delivery\n")
    assert "is not valid TOML" in machine.init("reload", code=6)
    CONFIG.write_text(good)
    machine.init("force-reload")
    wait_until(lambda: OUTPUT.read_text().count("reload_done") == 2, "it is reloaded")


def _is_whole_after_a_power_cut(machine: Machine, sink) -> None:
    """What was acknowledged and not delivered when everything died is delivered, once."""
    machine.init("stop")
    machine.roles("ingest")
    machine.init("start")
    ids = machine.post(sink.url, 1000)
    machine.cut_the_power()
    machine.init("status", code=1)
    machine.roles("ingest,deliver,admin")
    machine.init("start")
    wait_until(lambda: set(ids) <= set(names_and_ids(sink)[1]), "all of them arrive", BOUND_S)
    assert {names_and_ids(sink)[1][one] for one in ids} == {1}


def _comes_back_from_a_power_cut_under_load(machine: Machine, tmp_path: Path) -> None:
    with running_sink(tmp_path / "slow", "--latency", "0.02") as slow:
        load = SteadyLoad(machine.port, slow.url)
        load.wait_for_more(500)
        wait_until(lambda: len(slow.received()) > 100, "delivery is in the middle of it")
        machine.cut_the_power()
        load.stop()
        sent = tmp_path / "sent"
        sent.write_text("".join(f"{one}\n" for one in load.acknowledged))
        machine.init("start")
        wanted = set(load.acknowledged)
        wait_until(lambda: wanted <= set(names_and_ids(slow)[1]), "every acknowledged one arrives", BOUND_S)
        audit = ["audit", "--sent", str(sent), "--received", str(slow.record), "--json"]
        found = json.loads(run("/usr/local/bin/postbackd", *audit))
        assert not found["lost"], found


def _is_upgraded(machine: Machine, sink) -> None:
    edited = CONFIG.read_text()
    machine.init("stop")
    machine.roles("ingest")
    machine.init("start")
    ids = machine.post(sink.url, 50)
    machine.install("9.9.9.dev1")
    assert CONFIG.read_text() == edited
    machine.init("status")
    assert "9.9.9" not in OUTPUT.read_text(), "the old one goes on until it is restarted"
    assert len(list(Path("/opt/postbackd/releases").iterdir())) == 2
    machine.install_again()  # changes nothing
    assert len(list(Path("/opt/postbackd/releases").iterdir())) == 2
    assert CONFIG.read_text() == edited
    machine.roles("ingest,deliver,admin")
    machine.init("restart")
    assert "version=9.9.9.dev1" in OUTPUT.read_text()
    assert "9.9.9.dev1" in run("/usr/local/bin/postbackd", "--version")
    wait_until(lambda: set(ids) <= set(names_and_ids(sink)[1]), "the new one delivers what the old one took", BOUND_S)


def _is_uninstalled(machine: Machine) -> None:
    machine.uninstall()
    assert machine.processes() == []
    assert [str(place) for place in PLACES if place.exists()] == [str(CONFIG.parent), "/var/lib/postbackd"]
    assert DELIVERIES.exists()
    machine.uninstall(PURGE="1")
    assert [str(place) for place in PLACES if place.exists()] == []
    assert not Path("/var/log/postbackd").exists()
    with pytest.raises(KeyError):
        pwd.getpwnam("postbackd")
