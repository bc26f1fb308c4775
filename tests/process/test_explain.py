# SPDX-License-Identifier: MIT
"""`postbackd explain` and `audit` beside a running daemon, as a person at 3 a.m. uses them."""

import json
import signal
import subprocess
from pathlib import Path

from tests.support.daemon import POSTBACKD, Daemon, free_port, running_daemon, running_sink, wait_until
from tests.support.daemon import http as ask
from tests.support.servers import Server


def explain(daemon: Daemon, postback_id: str, *options: str) -> subprocess.CompletedProcess[str]:
    settings = [part for setting in daemon.settings for part in ("--set", setting)]
    return subprocess.run(
        [*POSTBACKD, "explain", postback_id, *options, *settings], capture_output=True, text=True, timeout=60
    )


def post_one(daemon: Daemon, url: str, **members: object) -> str:
    status, answer = daemon.post({"endpoint": {"method": "GET", "url": url, **members}, "data": {"n": 1}})
    assert status == 202, answer
    return str(answer["ids"][0])


def place_of(daemon: Daemon, postback_id: str) -> str | None:
    place: str | None = json.loads(explain(daemon, postback_id, "--json").stdout)["place"]
    return place


def test_each_place_is_told(tmp_path: Path) -> None:
    with (
        running_sink(tmp_path / "sink") as sink,
        running_sink(tmp_path / "gone", "--status", "410") as gone,
        running_daemon(tmp_path / "daemon") as daemon,
    ):
        delivered = post_one(daemon, sink.url + "/{n}")
        dead = post_one(daemon, gone.url)
        later = post_one(daemon, f"http://127.0.0.1:{free_port()}/", retry={"schedule": [600]})
        for one, place in ((delivered, "delivered"), (dead, "dead"), (later, "later")):
            wait_until(lambda one=one, place=place: place_of(daemon, one) == place, "it is tried and settled")  # type: ignore[misc]
        assert len(daemon.log()) == 3
        told = explain(daemon, delivered)
        assert told.returncode == 0, told.stderr
        assert "now       delivered" in told.stdout and "attempt 1" in told.stdout and "200" in told.stdout
        told = explain(daemon, dead)
        assert "dead since" in told.stdout and "refused_status" in told.stdout and "410" in told.stdout
        assert f"endpoint  GET {gone.url}" in told.stdout
        told = explain(daemon, later)
        assert "later: attempt 2 is due" in told.stdout and "connection_refused" in told.stdout
        story = json.loads(explain(daemon, later, "--json").stdout)
        assert (story["place"], story["next_attempt"], len(story["attempts"])) == ("later", 2, 1)
        assert story["parked"] is False, "a retry has its own time"
        with daemon.log_path.open("a") as log:  # as a full disk leaves it
            log.write(f'{{"time":"2026","id":"{later}","attem\n')
        assert explain(daemon, later).returncode == 0
        endpoint = {"method": "GET", "url": "http://127.0.0.1:1/"}
        status, answer = daemon.post({"endpoint": endpoint, "data": {}, "expires_after": 0.001})
        assert status == 202, answer
        expired = answer["ids"][0]
        wait_until(lambda: "now       dead" in explain(daemon, expired).stdout, "it is dead")
        told = explain(daemon, expired)
        assert "not in this log" not in told.stdout, "no attempt that there never was"
        daemon.log_path.unlink()
        told = explain(daemon, later)
        assert "its log line is not in this log" in told.stdout, "the item itself knows its attempts"


def test_replay_stands_between_the_attempts_it_separates(tmp_path: Path) -> None:
    def replay() -> None:
        settings = [part for setting in daemon.settings for part in ("--set", setting)]
        command = [*POSTBACKD, "dead", "replay", "--id", dead, *settings]
        assert subprocess.run(command, timeout=60, capture_output=True).returncode == 0

    def words() -> list[str]:
        return [line.split("  ")[0].strip() for line in explain(daemon, dead).stdout.splitlines()]

    with (
        running_sink(tmp_path / "gone", "--status", "410") as gone,
        running_daemon(tmp_path / "daemon") as daemon,
    ):
        dead = post_one(daemon, gone.url)
        wait_until(lambda: "dead since" in explain(daemon, dead).stdout, "it is dead")
        for count in (2, 3):
            replay()
            wait_until(lambda n=count: len(daemon.log()) == n, "it is tried again")
            wait_until(lambda: "dead since" in explain(daemon, dead).stdout, "and dead again")
        told = explain(daemon, dead).stdout
        assert words()[1:] == ["endpoint", *["attempt 1", "replayed"] * 2, "attempt 1", "now"], told
        lines = told.splitlines()
        times = [line.split("  ")[1] for line in lines if line.startswith("attempt")]
        assert times == sorted(times)
        last_replay = next(line for line in reversed(lines) if line.startswith("replayed")).split("  ")[1]
        assert times[1] < last_replay <= times[2], "by its own time, since the item knows it"
        assert "on this machine" in lines[0] and "process number" not in told
        daemon.stop()
        settings = [part for setting in daemon.settings for part in ("--set", setting)]
        ended = subprocess.run([*POSTBACKD, "dead", "list", *settings], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert "no daemon runs on data_dir" in ended.stderr and "start it (postbackd run --set" in ended.stderr
        assert "no daemon runs on data_dir" in explain(daemon, dead).stdout


def test_unknown_and_impossible_ids_are_one_clear_answer(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "daemon", roles="ingest") as daemon:
        waiting = post_one(daemon, "http://127.0.0.1:1/")
        assert "now       ready: attempt 1" in explain(daemon, waiting).stdout
        told = explain(daemon, "0000000000000001")
        assert (told.returncode, "never accepted here" in told.stdout) == (1, True)
        assert told.stdout.startswith("0000000000000001  nothing here knows it; by its number it would have")
        told = explain(daemon, "what?")
        assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (2, "", 1)


def test_data_dir_that_cannot_be_looked_through_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [*POSTBACKD, "explain", "0000000000000001", "--set", f"data_dir={tmp_path}/file"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (1, "")
    assert f"the spool was not looked through: {tmp_path}/file: Not a directory" in told.stdout
    assert "the queue was not looked through" in told.stdout


def test_spooled_one_is_found_without_redis(tmp_path: Path) -> None:
    server = Server()
    try:
        with running_daemon(tmp_path / "daemon", [f"queue.url={server.url}"], roles="ingest") as daemon:
            server.kill()
            spooled = post_one(daemon, "http://127.0.0.1:1/")
            told = explain(daemon, spooled)
            assert told.returncode == 0
            assert (
                "now       spooled in " in told.stdout and "warning   the queue was not looked through" in told.stdout
            )
            told = explain(daemon, "0000000000000001")
            assert (told.returncode, "unknown: the queue does not answer" in told.stdout) == (1, True)
            [spool] = (daemon.data_dir / "spool").glob("*.spool")
            spool.rename(spool.with_suffix(".damaged"))
            assert "damaged on the disk" in explain(daemon, spooled).stdout
            line = {"id": spooled, "attempt": 1, "time": "2026", "outcome": "delivered", "reason": None}
            line |= dict.fromkeys(("response_code", "response_time_ms", "error", "error_detail", "remote_ip"))
            line |= {"next_attempt_at": None}
            daemon.log_path.write_text(json.dumps(line, separators=(",", ":")) + "\n")
            assert "now       delivered" in explain(daemon, spooled).stdout, "its file only waits to be removed"
    finally:
        server.destroy()


def test_audit_compares_answers_with_a_record(tmp_path: Path) -> None:
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon") as daemon:
        ids = [post_one(daemon, sink.url + "/?id={@id}") for _ in range(5)]
        wait_until(lambda: len(sink.received()) == 5, "all have arrived")
    sent = tmp_path / "sent"
    sent.write_text("\n".join(ids))
    command = [*POSTBACKD, "audit", "--sent", str(sent), "--received", str(sink.record)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.split()[:6]) == (0, ["sent", "5", "delivered", "5", "lost", "0"])
    sent.write_text("\n".join([*ids, "00000000000000ff"]))
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "lost: 00000000000000ff" in ended.stdout


def test_audit_tells_what_waits_from_what_is_lost(tmp_path: Path) -> None:
    with (
        running_sink(tmp_path / "sink", "--status", "503") as sink,
        running_daemon(tmp_path / "daemon", ["retry.schedule=[3600]"]) as daemon,
    ):
        waits = post_one(daemon, sink.url + "/?id={@id}")
        wait_until(lambda: daemon.stats()["queue"]["later"] == 1, "its second attempt is due in an hour")
        sent = tmp_path / "sent"
        sent.write_text(waits)
        chosen = [part for setting in daemon.settings for part in ("--set", setting)]
        command = [*POSTBACKD, "audit", "--sent", str(sent), "--received", str(daemon.log_path)]
        ended = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        assert "lost            0\nwaiting         1 (not delivered yet)\n" in ended.stdout
        sent.write_text(f"{waits}\n00000000000000ff")
        ended = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=60)
        assert (
            ended.returncode == 1 and "lost: 00000000000000ff" in ended.stdout and f"lost: {waits}" not in ended.stdout
        )
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert (
            ended.returncode == 1 and "not looked through, so what is lost may wait there: the queue:" in ended.stderr
        )
        assert daemon.stop() == 0
    (daemon.data_dir / "dead-overflow.jsonl").write_text("torn\n")
    ended = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "no daemon runs on data_dir" in ended.stderr


def test_silent_redis_sends_one_twice_and_the_counter_tells_of_it(tmp_path: Path) -> None:
    server = Server()
    try:
        settings = [f"queue.url={server.url}", "ingest.workers=1"]
        with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon", settings) as daemon:
            post_one(daemon, sink.url + "/first")  # the script is known from now on: one that is not does nothing
            wait_until(lambda: len(sink.received()) == 1, "it is delivered")
            server.process.send_signal(signal.SIGSTOP)
            postback_id = post_one(daemon, sink.url + "/?id={@id}")
            server.process.send_signal(signal.SIGCONT)
            wait_until(lambda: len(sink.received()) == 3, "it arrives from the queue and from the spool")
            wait_until(lambda: len(daemon.log()) == 3, "each attempt is logged")
            wait_until(lambda: "spool_replayed" in daemon.output.read_text(), "the replay is told")
            metrics = ask("GET", f"{daemon.admin_url}/metrics")[1]
            assert "postbackd_spooled_unsure_total 1.0" in metrics
            told = explain(daemon, postback_id).stdout
            assert told.count("attempt 1  ") == 2 and told.count("delivered: 200") == 2, told
            said = daemon.output.read_text()
            assert "lease_" not in said and "worker_died" not in said
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.destroy()
