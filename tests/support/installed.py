# SPDX-License-Identifier: MIT
"""postbackd installed in a Debian root: what an operator does there, and looks at."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import Sink, http, running_sink, wait_until
from tests.support.debian_root import DebianRoot
from tests.support.steady_load import SteadyLoad, names_and_ids

REPOSITORY = Path(__file__).parents[2]
SOURCE = "/root/postbackd"
WHEELS = "/opt/wheelhouse"
CONFIG = "/etc/postbackd/postbackd.toml"
PORT, ADMIN_PORT, DELIVER_ADMIN_PORT = (
    8080,
    8081,
    8082,
)  # those of the installed files: the network is the machine's own
BOUND_S = 120
LOOK_EVERY_S = 0.25
# Of each of the load's clients: what counts is that requests never stop and some postbacks are always under way.
PAUSE_S = 0.05
TARGET_TAKES_S = 0.1
NOT_SOURCES = (".git", ".venv", ".*_cache", ".hypothesis", "var", "dist", "build", "*.egg-info")


class Installation:
    """The machine, the sources on it, and what becomes of them."""

    def __init__(self, root: DebianRoot, folder: Path) -> None:
        self.root = root
        self._folder = folder
        self._sinks = 0
        self.wheels: dict[str, str] = {}
        shutil.copytree(REPOSITORY, self.path(SOURCE), ignore=shutil.ignore_patterns(*NOT_SOURCES))

    def path(self, name: str) -> Path:
        """A file of the machine, from outside."""
        return Path(f"{self.root.root}{name}")

    def make(self, *targets: str, **variables: str) -> str:
        """In the sources, with the way to the registries open."""
        return self.root.run("make", *targets, cwd=SOURCE, online=True, **self.wheels, **variables)

    def keep_wheels(self) -> None:
        """What `make dist` has locked is fetched once, for every installation from now on."""
        self.root.run(f"{SOURCE}/.venv/bin/pip", "download", "--no-deps", "--require-hashes", "-r",
                      f"{SOURCE}/dist/requirements.lock", "--dest", WHEELS, online=True)  # fmt: skip
        self.wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}

    def set_version(self, version: str) -> None:
        init = self.path(f"{SOURCE}/postbackd/__init__.py")
        init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text()))

    def edit(self, old: str, new: str, name: str = CONFIG) -> None:
        """One line of a file, which must be there once."""
        text = self.path(name).read_text()
        assert text.count(old) == 1, f"{old!r} in {name}"
        self.path(name).write_text(text.replace(old, new))

    def configure(self) -> None:
        """What an operator would look at first."""
        self.edit("allow_networks = []", 'allow_networks = ["127.0.0.0/8"]')
        self.edit("lease_timeout = 30", "lease_timeout = 10")  # what a crash left is delivered sooner

    def drop_in(self, unit: str, text: str) -> None:
        """As `systemctl edit` does it; an empty text takes it away again."""
        folder = self.path(f"/etc/systemd/system/{unit}.d")
        shutil.rmtree(folder, ignore_errors=True)
        if text:
            folder.mkdir()
            (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.systemctl("daemon-reload")

    def files(self) -> list[str]:
        """Everything on its disk that has our name, but what systemd itself clears away at the next boot."""
        places = ["/etc", "/opt", "/usr", "/var"]
        found = self.root.run("find", *places, "-xdev", "-path", "*postbackd*", "!", "-path", "*/systemd-private-*")
        return sorted(found.splitlines())

    # systemd

    def systemctl(self, *arguments: str, code: int | None = 0) -> str:
        return self.root.run("systemctl", "--no-pager", *arguments, code=code)

    def show(self, what: str, unit: str = "postbackd") -> str:
        return self.systemctl("show", "--value", f"--property={what}", unit).strip()

    def wait_until_active(self, unit: str) -> None:
        self.wait_for(lambda: self.show("ActiveState", unit) == "active", f"{unit} is active")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """For what a program in there is asked, or a long file: not fifty times a second."""

        def slowly() -> object:
            time.sleep(LOOK_EVERY_S)
            return condition()

        wait_until(slowly, what, BOUND_S)

    def journal(self, unit: str = "postbackd", *options: str) -> str:
        self.root.run("journalctl", "--sync")  # what was said before is in it, however busy the machine
        return self.root.run("journalctl", "--no-pager", "--unit", unit, *options)

    def restarts(self, unit: str = "postbackd") -> int:
        """By systemd, since somebody started it."""
        return int(self.show("NRestarts", unit))

    def pids(self, unit: str = "postbackd") -> list[int]:
        """Of the unit's cgroup, as the machine numbers them."""
        group = self.show("ControlGroup", unit)
        return (
            [int(pid) for pid in self.root.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()] if group else []
        )

    def programs(self, unit: str) -> Counter[str]:
        """What runs in a unit."""
        return Counter(self.root.run("cat", f"/proc/{pid}/comm").strip() for pid in self.pids(unit))

    def is_alive(self, pid: int) -> bool:
        return self.root.is_there(f"/proc/{pid}")

    def cut_and_boot(self) -> None:
        self.root.cut_the_power()
        self.root.boot()

    # Requests

    def post(self, target: str, count: int, port: int = PORT) -> list[str]:
        """One request for so many postbacks; their ids."""
        endpoint = {"method": "GET", "url": target + "/hit?id={@id}&name={name}"}
        body = json.dumps({"endpoint": endpoint, "data": [{"name": str(number)} for number in range(count)]})
        url = f"http://127.0.0.1:{port}/ingest.php"
        status, answer = http("POST", url, body.encode(), {"Content-Type": "application/json"})
        assert status == 202, answer
        return list(answer["ids"])

    def delivers(self, count: int = 2) -> list[str]:
        """A request now, and all of it arrives; the ids."""
        with self.target() as sink:
            ids = self.post(sink.url, count)
            self.wait_for(lambda: set(ids) <= set(names_and_ids(sink)[1]), "it has arrived")
            return ids

    @contextmanager
    def load(self) -> Iterator[SteadyLoad]:
        """Requests all the time; in the end everything that was acknowledged has arrived at least once."""
        with self.target() as sink:
            load = SteadyLoad(PORT, sink.url, pause_s=PAUSE_S)
            try:
                load.wait_for_more()
                yield load
            finally:
                load.stop()
            wanted = set(load.acknowledged)
            self.wait_for(lambda: wanted <= set(names_and_ids(sink)[1]), "every acknowledged one arrives")

    @contextmanager
    def target(self) -> Iterator[Sink]:
        """A target for postbacks, beside the machine."""
        self._sinks += 1
        with running_sink(self._folder / f"sink-{self._sinks}", "--latency", str(TARGET_TAKES_S)) as sink:
            yield sink
