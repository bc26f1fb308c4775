# SPDX-License-Identifier: MIT
"""init/: systemd's own judgement of the units, shellcheck's of the scripts, and that they say the same as the code."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from postbackd.settings import Settings
from tests.support.daemon import free_port
from tests.support.programs import need

REPOSITORY = Path(__file__).parents[2]
INIT = REPOSITORY / "init"
SERVICES = sorted(path.name for path in INIT.glob("*.service"))
MOST_EXPOSURE = 2.0
WORKS_HERE = "/opt/postbackd/current/bin"


def systemd_analyze(*arguments: str) -> str:
    done = subprocess.run(
        [need("systemd-analyze", "systemd"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_COLORS": "0"},
    )
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_confined(name: str) -> None:
    text = systemd_analyze("security", "--offline=true", "--no-pager", str(INIT / name))
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", text)
    assert found, text
    assert float(found.group(1)) <= MOST_EXPOSURE, text


def test_units_are_what_systemd_expects(tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)  # verify wants the programs to exist
    units = []
    for path in INIT.iterdir():
        if path.suffix in (".service", ".socket", ".target"):
            copy = tmp_path / path.name.replace("@", "@main")
            copy.write_text(path.read_text().replace(WORKS_HERE, here))
            units.append(str(copy))
    assert len(units) == 6
    assert systemd_analyze("verify", "--man=no", *units) == "exit 0\n"


@pytest.mark.parametrize("path", [INIT / "postbackd.init", *sorted((REPOSITORY / "scripts").glob("*.sh"))], ids=str)
def test_script_passes_shellcheck(path: Path) -> None:
    done = subprocess.run([need("shellcheck", "shellcheck"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_time_to_stop_covers_every_stage_of_the_drain() -> None:
    settings = Settings()
    # Ingest and delivery with 5 s of grace each, the queue server 30 s.
    needed_s = 2 * (settings.delivery.drain_timeout + 5) + 30
    for name in ("postbackd.service", "postbackd-ingest@.service", "postbackd-deliver@.service"):
        found = re.search(r"^TimeoutStopSec=(\d+)$", (INIT / name).read_text(), re.MULTILINE)
        assert found and int(found.group(1)) >= needed_s
    found = re.search(r"^STOP_TIMEOUT=(\d+)$", (INIT / "postbackd.init").read_text(), re.MULTILINE)
    assert found and int(found.group(1)) >= needed_s


def test_socket_unit_has_the_default_address() -> None:
    settings = Settings()
    assert f"ListenStream={settings.ingest.host}:{settings.ingest.port}\n" in (INIT / "postbackd.socket").read_text()


def test_queue_server_starts_with_its_configuration(tmp_path: Path) -> None:
    port = free_port()
    text = (INIT / "valkey.conf").read_text()
    assert "\nport 7379\n" in text
    text = text.replace("port 7379", f"port {port}").replace("@PASSWORD@", "secret")
    text = text.replace("/run/postbackd-valkey", str(tmp_path)).replace("/var/lib/postbackd-valkey", str(tmp_path))
    (tmp_path / "valkey.conf").write_text(text)
    server = subprocess.Popen(
        [sys.executable, "-m", "postbackd.tools.queue_server", str(tmp_path / "valkey.conf")],
        stdout=(tmp_path / "out").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"redis://:secret@127.0.0.1:{port}/0"
        settings = [f"queue.url={url}", "queue.durability=fsync", f"data_dir={tmp_path / 'var'}", "log.path=/dev/null"]
        settings += [f"ingest.port={free_port()}", f"admin.port={free_port()}"]
        arguments = [part for setting in settings for part in ("--set", setting)]
        deadline_s = time.monotonic() + 60
        while True:
            check = subprocess.run(
                [sys.executable, "-m", "postbackd.cli", "check", *arguments], capture_output=True, text=True
            )
            if check.returncode == 0 or time.monotonic() > deadline_s:
                break
        assert check.returncode == 0, check.stdout + check.stderr + (tmp_path / "out").read_text()
        assert server.poll() is None
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_queue_server_without_a_file_says_how_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-m", "postbackd.tools.queue_server"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: python -m postbackd.tools.queue_server FILE\n")
