# SPDX-License-Identifier: MIT
"""From the embedded queue to a server of one's own, as docs/operations.md has it; what is said until it is done."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.daemon import POSTBACKD, Daemon, running_daemon, running_sink, wait_until
from tests.support.programs import need
from tests.support.servers import Server, running_server

OWN = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
SAID = "may hold postbacks that nobody delivers"


def ask(daemon: Daemon, *command: str) -> str:
    settings = [part for setting in daemon.settings for part in ("--set", setting)]
    done = subprocess.run([*POSTBACKD, *command, *settings], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def redis_cli(*arguments: str, password: str = "", given: bytes = b"") -> str:
    command = [need("redis-cli", "redis-tools"), *arguments]
    environment = {**os.environ, "REDISCLI_AUTH": password} if password else None
    done = subprocess.run(command, input=given, capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def accept(daemon: Daemon, target: str, **members: object) -> str:
    status, answer = daemon.post({"endpoint": {"method": "GET", "url": target}, "data": {"n": 1}, **members})
    assert status == 202, answer
    return str(answer["ids"][0])


def name_own_server(daemon: Daemon, server: Server) -> None:
    daemon.settings.append(f"queue.url={server.url}")


def places(daemon: Daemon, *ids: str) -> list[str]:
    told = [ask(daemon, "explain", one).splitlines() for one in ids]
    return [line.split()[1] for lines in told for line in lines if line.startswith("now ")]


def test_queue_that_is_left_behind_is_told_until_it_is_moved_and_moves_whole(tmp_path: Path) -> None:
    """The files themselves, between servers of one program; and back."""
    server = Server(*OWN)
    try:
        with (
            running_sink(tmp_path / "gone", "--status", "410") as gone,
            running_daemon(tmp_path / "daemon") as daemon,
        ):
            dead, later = accept(daemon, gone.url), accept(daemon, gone.url, delay=600)
            wait_until(lambda: "dead since" in ask(daemon, "explain", dead), "it is dead")
            daemon.stop()
            own = daemon.settings.copy()
            name_own_server(daemon, server)
            folder = daemon.data_dir / "queue"
            moved = folder.with_name("queue.moved")
            assert f"warn queue: {folder}, of the embedded server, {SAID}" in ask(daemon, "check")
            daemon.start()
            line = next(line for line in daemon.output.read_text().splitlines() if "queue_left_behind" in line)
            assert " ERROR " in line and line.count(str(folder)) == 3 and f"mv {folder} {moved}" in line
            told = ask(daemon, "explain", later)
            assert places(daemon, later) == ["unknown:"] and f"it may lie in {folder}" in told, told
            assert "never accepted here" not in told
            daemon.stop()
            server.client.close()
            server.kill()
            folder.rename(moved)
            own_files = server.data_folder / "appendonlydir"
            shutil.rmtree(own_files)
            shutil.copytree(moved / "appendonlydir", own_files)
            server.start()
            daemon.output.unlink()
            daemon.start()
            assert places(daemon, dead, later) == ["dead", "later:"]
            assert SAID not in ask(daemon, "check") and "queue_left_behind" not in daemon.output.read_text()
            daemon.stop()
            server.kill()
            folder.mkdir(mode=0o700)
            shutil.copytree(own_files, folder / "appendonlydir")
            daemon.settings = own
            daemon.start()
            assert places(daemon, dead, later) == ["dead", "later:"]
            assert SAID not in ask(daemon, "check", "--set", f"queue.url=redis://127.0.0.1:{daemon.queue_port}"), (
                "a server that runs is not left behind"
            )
    finally:
        server.destroy()


def test_queue_moves_as_plain_commands_into_any_server(tmp_path: Path) -> None:
    with (
        running_sink(tmp_path / "sink") as sink,
        running_server(*OWN) as (_, url),
        running_daemon(tmp_path / "daemon", roles="ingest") as daemon,
    ):
        ids = [accept(daemon, sink.url + "/?id={@id}") for _ in range(3)]
        later = accept(daemon, sink.url, delay=600)
        folder = daemon.data_dir / "queue"
        place, password = ("-s", f"{folder}/socket"), (folder / "password").read_text().strip()
        redis_cli(*place, "config", "set", "aof-use-rdb-preamble", "no", password=password)
        redis_cli(*place, "bgrewriteaof", password=password)
        wait_until(
            lambda: (
                "aof_rewrite_in_progress:0" in redis_cli(*place, "info", "persistence", password=password)
                and list((folder / "appendonlydir").glob("*.base.aof"))
                and len(list((folder / "appendonlydir").iterdir())) == 3
            ),
            "it is rewritten, and what was before is removed: manifest, base, incr",
        )
        ids.append(accept(daemon, sink.url + "/?id={@id}"))  # since the rewrite: in the other file
        daemon.stop()
        files = [next((folder / "appendonlydir").glob(f"*.{kind}.aof")) for kind in ("base", "incr")]
        content = b"".join(file.read_bytes() for file in files)
        assert "errors: 0" in redis_cli("-s", url.removeprefix("unix://"), "--pipe", given=content)
        folder.rename(folder.with_name("queue.moved"))
        daemon.settings.append(f"queue.url={url}")
        daemon.roles = "ingest,deliver,admin"
        daemon.start()
        wait_until(lambda: set(daemon.delivered_ids()) == set(ids), "each is delivered")
        assert places(daemon, later) == ["later:"] and len(daemon.log()) == len(ids)
        assert "queue_left_behind" not in daemon.output.read_text()


def test_embedded_queue_that_never_had_a_postback_is_no_loss(tmp_path: Path) -> None:
    with running_server(*OWN) as (_, url), running_daemon(tmp_path / "daemon") as daemon:
        daemon.stop()
        daemon.settings.append(f"queue.url={url}")
        assert SAID not in ask(daemon, "check")
        daemon.start()
        assert "queue_left_behind" not in daemon.output.read_text()


def test_check_of_a_backup_put_back_is_well(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "daemon", roles="ingest") as daemon:
        waiting = accept(daemon, "http://127.0.0.1:1/")
        daemon.stop()
        daemon.data_dir.rename(tmp_path / "lost")
        (daemon.data_dir / "queue").mkdir(mode=0o700, parents=True)
        daemon.data_dir.chmod(0o700)
        shutil.copytree(tmp_path / "lost" / "queue" / "appendonlydir", daemon.data_dir / "queue" / "appendonlydir")
        (daemon.data_dir / "dead-overflow.jsonl").touch(mode=0o600)
        checked = ask(daemon, "check")
        assert "none of postbackd's" not in checked and "fail" not in checked, checked
        daemon.start()
        assert places(daemon, waiting) == ["ready:"]
