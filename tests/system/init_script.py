# SPDX-License-Identifier: MIT
"""init/postbackd.init on a machine where systemd does not run: what the LSB asks of it, crash, power cut, removal."""

from tests.support.daemon import wait_until
from tests.support.installed import BOUND_S, CONFIG, Installation
from tests.support.steady_load import names_and_ids

DEFAULTS = "/etc/default/postbackd"
OUTPUT = "/var/log/postbackd/postbackd.log"
PID_FILE = "/run/postbackd.pid"
SCRIPT = "/etc/init.d/postbackd"


class InitScript:
    """The script, and what its daemon says."""

    def __init__(self, machine: Installation) -> None:
        self.machine = machine
        self._run = machine.root.run

    def __call__(self, *action: str, code: int = 0) -> str:
        return self._run(SCRIPT, *action, code=code)

    def pid(self) -> str:
        return self._run("cat", PID_FILE).strip()

    def output(self) -> str:
        return self.machine.path(OUTPUT).read_text()

    def roles(self, roles: str) -> None:
        self.machine.path(DEFAULTS).write_text(f"ROLES={roles}\n")

    def nothing_runs(self) -> bool:
        return self._run("pgrep", "--euid", "postbackd", code=None) == ""


def obeys_its_init_script(machine: Installation) -> None:
    machine.root.cut_the_power()
    machine.root.boot(systemd=False)
    script = InitScript(machine)
    _is_installed(machine)
    _answers_as_the_lsb_says(script)
    _reloads(script)
    _starts_after_a_crash(script)
    _is_whole_after_a_power_cut(script)
    _is_removed(script)


def _is_installed(machine: Installation) -> None:
    """Where no init runs now, nobody can know which one will: both are told."""
    machine.make("install")
    machine.root.run("sh", "-c", "test -e /etc/rc3.d/S*postbackd && test -e /etc/rc0.d/K*postbackd")
    machine.root.run("systemctl", "is-enabled", "postbackd")


def _answers_as_the_lsb_says(script: InitScript) -> None:
    machine = script.machine
    script("status", code=3)
    assert "started" in script("start")
    machine.delivers()
    assert "runs (pid" in script("status")
    assert "runs already" in script("start")
    pid = script.pid()
    script("try-restart")
    assert script.pid() != pid
    script("stop")
    assert script.nothing_runs()
    script("status", code=3)
    script("stop")
    script("try-restart")
    script("reload", code=7)
    script("force-reload", code=7)
    script("dance", code=3)
    script(code=2)
    good = machine.path(CONFIG).read_text()
    machine.path(CONFIG).write_text("[delivery\n")
    assert "is not valid TOML" in script("start", code=6)
    machine.path(CONFIG).write_text(good)
    script("start")
    machine.path(CONFIG).write_text("[delivery\n")
    script("restart", code=6)
    script("status")
    machine.path(CONFIG).write_text(good)
    script("restart")
    machine.root.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", SCRIPT, "stop", code=4)


def _reloads(script: InitScript) -> None:
    machine = script.machine
    machine.edit("per_host = 32", "per_host = 30")
    script("reload")
    wait_until(lambda: "reload_done" in script.output(), "it is reloaded", BOUND_S)
    assert "changed=delivery.per_host" in script.output()
    good = machine.path(CONFIG).read_text()
    machine.path(CONFIG).write_text("[delivery\n")
    assert "is not valid TOML" in script("reload", code=6)
    machine.path(CONFIG).write_text(good)
    script("force-reload")
    wait_until(lambda: script.output().count("reload_done") == 2, "it is reloaded", BOUND_S)


def _starts_after_a_crash(script: InitScript) -> None:
    """Nothing restarts it here; its children have died with it, so that a start finds the way free."""
    machine = script.machine
    with machine.load() as load:
        machine.root.run("kill", "-KILL", script.pid())
        machine.wait_for(script.nothing_runs, "its children die too")
        script("status", code=1)
        script("start")
        load.wait_for_more()


def _is_whole_after_a_power_cut(script: InitScript) -> None:
    """What was acknowledged and not delivered when everything died is delivered, once."""
    machine = script.machine
    script("stop")
    script.roles("ingest")
    script("start")
    with machine.target() as sink:
        ids = machine.post(sink.url, 200)
        machine.root.cut_the_power()
        machine.root.boot(systemd=False)
        script.roles("ingest,deliver,admin")
        script("start")
        machine.wait_for(lambda: set(ids) <= set(names_and_ids(sink)[1]), "all of them arrive")
        assert {names_and_ids(sink)[1][one] for one in ids} == {1}


def _is_removed(script: InitScript) -> None:
    pid = script.pid()
    script.machine.make("uninstall", PURGE="1")
    assert not script.machine.is_alive(int(pid))
    left = script.machine.files()
    assert left == [], left
