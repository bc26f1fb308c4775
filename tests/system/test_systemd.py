# SPDX-License-Identifier: MIT
"""docs/install.md walked on a clean Debian with systemd as process 1: install, boot, crash, power cut, upgrade, remove.

One test in the order of a service's life, since every step stands on the one before.
"""

import json
import re
import time
from pathlib import Path

from postbackd import __version__
from tests.support.daemon import http, read_json_lines, wait_until
from tests.support.debian_root import debian_root
from tests.support.installed import (
    ADMIN_PORT,
    CONFIG,
    DELIVER_ADMIN_PORT,
    PAUSE_S,
    PORT,
    REPOSITORY,
    SOURCE,
    Installation,
)  # fmt: skip
from tests.support.steady_load import SteadyLoad, assert_nothing_went_wrong
from tests.system.init_script import obeys_its_init_script

WATCHDOG_S = 5
# Run by the service itself before it starts, so inside of all that its unit forbids. Prints what it could do.
PROBE = Path(__file__).with_name("sandbox_probe.py")
ALLOWED = ["write /run/postbackd", "write /var/lib/postbackd", "write /var/log/postbackd"]


def test_life_on_a_clean_debian(tmp_path: Path) -> None:
    with debian_root(tmp_path) as root:
        machine = Installation(root, tmp_path)
        for step in (
            installs, starts_at_boot, is_confined, is_observed, reloads, comes_back_from_a_crash, is_watched,
            comes_back_from_a_power_cut, is_upgraded_under_load, uses_a_queue_server_of_its_own, runs_split,
            is_removed, is_put_into_an_image, obeys_its_init_script,
        ):  # fmt: skip
            started_s = time.monotonic()
            step(machine)
            print(f"{step.__name__}: {time.monotonic() - started_s:.1f} s")


def installs(machine: Installation) -> None:
    machine.root.boot()
    machine.make("dist")
    machine.keep_wheels()
    machine.make("install")
    modes = "stat", "--format=%a %U:%G %n"
    assert machine.root.run(*modes, CONFIG, "/etc/postbackd", "/etc/postbackd/valkey.conf", "/var/lib/postbackd",
                            "/var/log/postbackd", "/etc/logrotate.d/postbackd").splitlines() == [
        f"640 root:postbackd {CONFIG}",
        "750 root:postbackd /etc/postbackd",
        "640 root:postbackd /etc/postbackd/valkey.conf",
        "700 postbackd:postbackd /var/lib/postbackd",
        "750 postbackd:postbackd /var/log/postbackd",
        "644 root:root /etc/logrotate.d/postbackd",
    ]  # fmt: skip
    assert "nologin" in machine.root.run("getent", "passwd", "postbackd")
    states = machine.systemctl("list-unit-files", "--no-legend", "postbackd*")
    enabled = [line.split()[0] for line in states.splitlines() if line.split()[1] == "enabled"]
    assert enabled == ["postbackd.service"] and len(states.splitlines()) == 6
    assert machine.show("ActiveState") == "inactive", "the configuration is looked at first"
    alerts = machine.path("/usr/share/doc/postbackd/prometheus/alerts.yml").read_text()
    pages = set(re.findall(r"runbook_url: (.+)#", alerts))
    assert len(pages) == 1 and machine.path(pages.pop()).exists(), "they lead to the runbook beside them"
    for page in machine.path("/usr/share/doc/postbackd").glob("*.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name
    machine.configure()
    machine.root.run("postbackd", "check", "-c", CONFIG)
    # The units as they are installed, with all they name.
    assert machine.root.run("systemd-analyze", "verify", "--man=no", "postbackd.service", "postbackd.socket") == ""


def starts_at_boot(machine: Installation) -> None:
    machine.cut_and_boot()
    machine.systemctl("is-active", "postbackd")
    assert [machine.show(name) for name in ("Type", "SubState", "NRestarts", "Result")] == [
        "notify", "running", "0", "success",
    ]  # fmt: skip
    machine.delivers()
    # The queue is the daemon's own: one more process of the unit, and no other unit.
    names = machine.programs("postbackd")
    assert names.keys() >= {"postbackd", "valkey-server", "pb-ingest-0", "pb-deliver-0", "pb-admin-0"}, names
    assert machine.show("ActiveState", "postbackd-valkey") == "inactive"


def is_confined(machine: Installation) -> None:
    for pid in machine.pids():
        status = dict(line.split(":", 1) for line in machine.root.run("cat", f"/proc/{pid}/status").splitlines())
        status = {name: text.strip() for name, text in status.items()}
        user = machine.root.run("id", "-u", "postbackd").strip()
        assert set(status["Uid"].split()) == {user}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    machine.path("/opt/probe.py").write_text(PROBE.read_text())
    machine.drop_in("postbackd.service", "ExecStartPre=/usr/bin/python3 /opt/probe.py")
    machine.systemctl("restart", "postbackd")
    printed = re.search(r"could: (.*)", machine.journal())
    assert printed and json.loads(printed.group(1)) == ALLOWED
    # It is the sandbox that forbids it: without, the same program can do more.
    assert json.loads(machine.root.run("python3", "/opt/probe.py").partition("could: ")[2]) != ALLOWED
    machine.drop_in("postbackd.service", "")
    # Who still types the init script's name gets systemd's daemon, not a second one beside it.
    machine.root.run("/etc/init.d/postbackd", "restart")
    assert "active (running)" in machine.root.run("/etc/init.d/postbackd", "status")
    assert f'Status: "postbackd {__version__}: ingest, deliver, admin"' in machine.systemctl("status", "postbackd")


def is_observed(machine: Installation) -> None:
    """The journal, and logrotate as cron or the timer runs it."""
    lines = machine.root.run("journalctl", "--no-pager", "-u", "postbackd", "-o", "cat", "-b").splitlines()
    own = [line for line in lines if not line.startswith(("Start", "Stop", "postbackd.service: ", "could: "))]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (INFO|WARNING|ERROR) [a-z_]+ ", line) for line in own), own
    assert any(" ready " in line for line in own)
    log = machine.path("/var/log/postbackd")
    before = len(read_json_lines(log / "deliveries.jsonl"))
    machine.root.run("logrotate", "--force", "/etc/logrotate.d/postbackd")
    wait_until((log / "deliveries.jsonl").exists, "a new log is begun")
    ids = set(machine.delivers(3))

    def logged() -> list[str]:  # each worker changes over in its own second
        lines = [line for path in log.glob("deliveries.jsonl*") for line in read_json_lines(path)]
        return [line["id"] for line in lines if line["outcome"] == "delivered"]

    wait_until(lambda: ids <= set(logged()), "every delivery has its line")
    assert len(logged()) == len(set(logged())) == before + len(ids)
    assert len(list(log.glob("deliveries.jsonl-*"))) == 1


def reloads(machine: Installation) -> None:
    pid = machine.show("MainPID")
    machine.edit("per_host = 32", "per_host = 31")
    machine.systemctl("reload", "postbackd")
    machine.wait_for(lambda: "reload_done" in machine.journal(), "it is reloaded")
    assert "changed=delivery.per_host" in machine.journal()
    assert machine.show("ActiveState") == "active"
    # What cannot be read never reaches the daemon; what only a restart can change is refused by the daemon itself.
    good = machine.path(CONFIG).read_text()
    machine.path(CONFIG).write_text("[delivery\n")
    machine.systemctl("reload", "postbackd", code=1)
    assert "is not valid TOML" in machine.journal()
    machine.path(CONFIG).write_text(good)
    machine.edit("port = 8080", "port = 8089")
    machine.systemctl("reload", "postbackd")
    machine.wait_for(lambda: "reload_refused" in machine.journal(), "it is refused")
    refused = "reload refused: only a restart can change ingest.port"
    machine.wait_for(lambda: refused in machine.show("StatusText"), "systemctl status says so")
    assert "reload_refused" in machine.journal("postbackd", "--priority=err")
    machine.path(CONFIG).write_text(good)
    assert (machine.show("ActiveState"), machine.show("MainPID")) == ("active", pid)
    machine.delivers()
    machine.systemctl("reload", "postbackd")
    machine.wait_for(lambda: "refused" not in machine.show("StatusText"), "nothing is wrong any more")


def comes_back_from_a_crash(machine: Installation) -> None:
    assert machine.show("StartLimitIntervalUSec") == "0", "it is never given up"
    with machine.load() as load:
        before, restarts = machine.pids(), machine.restarts()
        machine.root.run("kill", "-KILL", machine.show("MainPID"))
        machine.wait_for(lambda: machine.restarts() > restarts, "systemd starts it again")
        machine.wait_until_active("postbackd")
        assert not [pid for pid in before if machine.is_alive(pid)], "its children have died with it"
        load.wait_for_more()


def is_watched(machine: Installation) -> None:
    machine.drop_in("postbackd.service", f"WatchdogSec={WATCHDOG_S}")
    machine.systemctl("restart", "postbackd")
    with machine.load() as load:
        before, restarts = machine.pids(), machine.restarts()
        machine.root.run("kill", "-STOP", machine.show("MainPID"))
        machine.wait_for(lambda: machine.restarts() > restarts, "systemd has seen it")
        assert f"Watchdog timeout (limit {WATCHDOG_S}s)" in machine.journal()
        machine.wait_until_active("postbackd")
        assert not [pid for pid in before if machine.is_alive(pid)]
        load.wait_for_more()
    machine.drop_in("postbackd.service", "")


def comes_back_from_a_power_cut(machine: Installation) -> None:
    with machine.load() as load:
        machine.root.cut_the_power()
        machine.root.boot()
        machine.wait_until_active("postbackd")
        load.wait_for_more()


def is_upgraded_under_load(machine: Installation) -> None:
    """systemd holds the socket: no connection is refused."""
    machine.systemctl("stop", "postbackd")
    machine.systemctl("enable", "--now", "postbackd.socket")
    machine.systemctl("start", "postbackd")
    edited = machine.path(CONFIG).read_text()
    machine.set_version("9.9.9.dev1")
    machine.make("dist")
    machine.make("install")
    assert machine.path(CONFIG).read_text() == edited
    assert "9.9.9" not in machine.journal(), "the old one goes on until it is restarted"
    machine.delivers()
    with machine.target() as sink:
        load = SteadyLoad(PORT, sink.url, pause_s=PAUSE_S)
        try:
            load.wait_for_more()
            machine.systemctl("restart", "postbackd")
            assert "version=9.9.9.dev1" in machine.journal()
            load.wait_for_more()
            machine.systemctl("restart", "postbackd")
            load.wait_for_more()
        finally:
            load.stop()
        assert_nothing_went_wrong(load, sink)
    machine.cut_and_boot()
    machine.wait_until_active("postbackd")
    assert machine.show("ActiveState", "postbackd.socket") == "active"
    machine.delivers()
    machine.systemctl("disable", "--now", "postbackd.socket")
    releases = machine.path("/opt/postbackd")
    assert len(list((releases / "releases").iterdir())) == 2
    # And back to the one before, with the command that the documentation gives.
    machine.root.run("sh", "-c", 'ln -sfn "$(readlink /opt/postbackd/previous)" /opt/postbackd/current')
    machine.systemctl("restart", "postbackd")
    assert f"postbackd {__version__} " in machine.root.run("postbackd", "status", "-c", CONFIG)
    machine.delivers()


def uses_a_queue_server_of_its_own(machine: Installation) -> None:
    """What the embedded one holds is moved, as docs/operations.md has it."""
    [waiting] = machine.post("http://127.0.0.1:1", 1)  # nobody listens there: it is tried for a day
    found = re.search(r"^requirepass (\S+)$", machine.path("/etc/postbackd/valkey.conf").read_text(), re.MULTILINE)
    assert found
    machine.edit('url = ""', f'url = "redis://:{found.group(1)}@127.0.0.1:7379"')
    machine.systemctl("restart", "postbackd")
    assert "queue_left_behind" in machine.journal("postbackd", "--priority=err")
    machine.systemctl("stop", "postbackd")
    for line in (
        "mv $DATA_DIR/queue $DATA_DIR/queue.moved",
        "install -d -o postbackd -g postbackd -m 0700 /var/lib/postbackd-valkey",
        "cp -r $DATA_DIR/queue.moved/appendonlydir /var/lib/postbackd-valkey/",
        "chown -R postbackd: /var/lib/postbackd-valkey",
    ):
        assert f"    {line}\n" in (REPOSITORY / "docs/operations.md").read_text()
        machine.root.run("sh", "-c", line, DATA_DIR="/var/lib/postbackd")
    machine.systemctl("enable", "--now", "postbackd-valkey")
    machine.systemctl("start", "postbackd")
    assert "now       later" in machine.root.run("postbackd", "explain", waiting, "-c", CONFIG)
    assert len(machine.pids("postbackd-valkey")) == 1
    assert "valkey-server" not in machine.programs("postbackd")
    machine.delivers()
    with machine.load() as load:
        restarts = machine.restarts("postbackd-valkey")
        machine.systemctl("kill", "--signal=KILL", "postbackd-valkey")
        machine.wait_for(lambda: machine.restarts("postbackd-valkey") > restarts, "it is started again")
        load.wait_for_more()
        machine.systemctl("stop", "postbackd-valkey")
        load.wait_for_more()  # into the spool
        assert "spool_in_use" in machine.journal()
        machine.systemctl("start", "postbackd-valkey")
        load.wait_for_more()
        assert set(load.answers) <= {202, 503} and not load.refused
    with machine.load() as load:
        machine.cut_and_boot()
        machine.wait_until_active("postbackd")
        load.wait_for_more()


def runs_split(machine: Installation) -> None:
    """Both halves on one machine, each with an admin app."""
    machine.systemctl("disable", "--now", "postbackd")
    machine.root.run("cp", "--preserve=all", CONFIG, "/etc/postbackd/main.toml")
    halves = ["postbackd-ingest@main", "postbackd-deliver@main"]
    machine.systemctl("enable", "--now", *halves)
    [one] = machine.delivers(1)
    for role, port, log in (("ingest", ADMIN_PORT, {}), ("deliver", DELIVER_ADMIN_PORT, {
        "POSTBACKD_LOG__PATH": "/var/log/postbackd-deliver/main.jsonl", "POSTBACKD_ADMIN__PORT": "8082",
    })):  # fmt: skip
        places = {"POSTBACKD_CONFIG": "/etc/postbackd/main.toml",
                  "POSTBACKD_DATA_DIR": f"/var/lib/postbackd-{role}/main"} | log  # fmt: skip
        user = ["runuser", "-u", "postbackd", "--", "postbackd"]
        assert f":{port}," in machine.root.run(*user, "status", **places)
        checked = machine.root.run(*user, "check", "--roles", f"{role},admin", **places)
        assert "already runs here" in checked and "fail " not in checked, checked
        if role == "deliver":
            assert "now       delivered" in machine.root.run(*user, "explain", one, **places)
            # Of all its lines: retries of what steps before have left, due just now, may have come behind it.
            assert one in machine.root.run(*user, "tail", "--lines", "100000", **places)
    for port, mine, others in ((ADMIN_PORT, "ingest", "deliver"), (DELIVER_ADMIN_PORT, "deliver", "ingest")):
        status, found = http("GET", f"http://127.0.0.1:{port}/profile")
        roles = {process["role"] for process in found["processes"]}
        assert status == 200 and mine in roles and others not in roles
    before = [machine.show("MainPID", unit) for unit in halves]
    machine.systemctl("restart", "postbackd.target")
    after = [machine.show("MainPID", unit) for unit in halves]
    assert not set(before) & set(after)
    machine.delivers()
    machine.cut_and_boot()
    for unit in halves:
        machine.wait_until_active(unit)
    machine.delivers()
    assert machine.path("/var/log/postbackd-deliver/main.jsonl").exists()


def is_removed(machine: Installation) -> None:
    machine.make("uninstall")
    assert machine.root.run("pgrep", "--euid", "postbackd", code=1) == ""
    left = machine.files()
    kept = ("/etc/postbackd", "/etc/default/postbackd", "/etc/logrotate.d/postbackd", "/var/l")
    assert CONFIG in left and "/var/lib/postbackd/queue.moved" in left
    assert [name for name in left if not name.startswith(kept)] == []
    machine.make("uninstall", PURGE="1")
    assert machine.files() == []
    machine.root.run("getent", "passwd", "postbackd", code=2)


def is_put_into_an_image(machine: Installation) -> None:
    """DESTDIR, by somebody who is not root."""
    home = "/home/builder"
    machine.root.run("useradd", "--create-home", "builder")
    copy = f"mkdir {home}/postbackd && tar -C {SOURCE} -c --exclude=.venv . | tar -C {home}/postbackd -x"
    machine.root.run("sh", "-c", f"{copy} && chown -R builder: {home}")
    machine.root.run("runuser", "-u", "builder", "--", "make", "install", f"DESTDIR={home}/image",
                     cwd=f"{home}/postbackd", online=True, HOME=home, **machine.wheels)  # fmt: skip
    machine.root.run("cp", "-r", f"{home}/image/.", "/")
    machine.root.run("systemd-sysusers")
    machine.root.run("systemd-tmpfiles", "--create")
    machine.configure()
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", "postbackd")
    machine.delivers()
    machine.systemctl("stop", "postbackd")
    machine.systemctl("start", "postbackd-valkey")
    machine.wait_for(lambda: "Ready to accept connections" in machine.journal("postbackd-valkey", "-b"), "it runs")
