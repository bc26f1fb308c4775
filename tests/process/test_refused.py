# SPDX-License-Identifier: MIT
"""An ingest that refuses everything for a fault of ours says so: `postbackd status`, /stats, metrics and the log."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import POSTBACKD, Daemon, http, running_daemon, wait_until
from tests.support.servers import Server

REQUEST = {"endpoint": {"method": "GET", "url": "http://127.0.0.1:9/?k={k}"}, "data": [{"k": 1}]}
LATER = {**REQUEST, "delay": 3600}


def status(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    chosen = [part for setting in daemon.settings for part in ("--set", setting)]
    return subprocess.run([*POSTBACKD, "status", *chosen], capture_output=True, text=True, timeout=60)


def refuse(daemon: Daemon, code: str) -> int:
    """Post until the requests are counted as refused; how many that were. A minute may end in between."""
    posted = 0

    def are_counted() -> bool:
        nonlocal posted
        answers = [daemon.post(LATER) for _ in range(1 if posted else 20)]
        posted += len(answers)
        assert {(answer[0], answer[1]["error"]["code"]) for answer in answers} == {(503, code)}
        return bool(daemon.stats()["refused_last_minute"].get(code, 0) >= 20)

    wait_until(are_counted, "they are counted")
    return posted


def said(daemon: Daemon, event: str) -> list[str]:
    return [line for line in daemon.output.read_text().splitlines() if f" {event} " in line]


def test_redis_at_maxmemory_is_told_as_an_outage(tmp_path: Path, own_server: Server) -> None:
    with running_daemon(tmp_path, [f"queue.url={own_server.url}"]) as daemon:
        assert daemon.post(LATER)[0] == 202
        wait_until(lambda: daemon.stats()["ready"], "it is ready")
        own_server.client.config_set("maxmemory", int(own_server.client.info("memory")["used_memory"] * 0.9))
        wait_until(lambda: not daemon.stats()["ready"], "known before anybody is refused")
        refused, text = 0, ""

        def says_all() -> bool:
            nonlocal refused, text
            refused += refuse(daemon, "queue_full")
            told = status(daemon)
            text = " ".join(told.stdout.split())
            assert told.returncode == 1
            return "all requests of the last minute are refused" in text

        wait_until(says_all, "the last one taken is ten seconds ago")
        assert "NOT READY: queue: Redis is out of memory" in text
        counts = re.search(
            r"minute are refused, ([\d,]+) x queue_full.* ([\d,]+) queue_full answered 5xx in the last", text
        )
        assert counts and all(20 <= int(count.replace(",", "")) <= refused for count in counts.groups()), text
        metrics = http("GET", f"{daemon.admin_url}/metrics")[1]
        assert f'postbackd_ingest_unavailable_total{{error="queue_full"}} {refused}.0' in metrics
        assert "postbackd_ready 0.0" in metrics
        [line] = said(daemon, "ingest_refuses")
        assert "WARNING" in line and "code=queue_full" in line and "maxmemory" in line
        assert not said(daemon, "look_failed")

        own_server.client.config_set("maxmemory", 0)
        wait_until(lambda: daemon.post(LATER)[0] == 202, "it takes again")
        wait_until(lambda: status(daemon).returncode == 0, "ready again, though the minute is not over")
        wait_until(lambda: daemon.post(LATER)[0] == 202 and said(daemon, "ingest_takes_again"), "the end is said")


def test_full_disk_without_redis_is_told_as_an_outage(tmp_path: Path, own_server: Server) -> None:
    disk = tmp_path / "var"  # what Daemon takes for its data_dir
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", disk]).returncode:
        pytest.skip("a small file system needs root")
    try:
        with running_daemon(tmp_path, [f"queue.url={own_server.url}"]) as daemon:
            assert daemon.post(LATER)[0] == 202
            with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
                while filler.write(bytes(65536)):
                    pass
            own_server.kill()
            wait_until(lambda: daemon.post(LATER)[0] == 503, "nothing is taken")
            refuse(daemon, "spool_full")
            wait_until(lambda: "spool:" in str(daemon.stats()["reasons"]), "the disk is looked at")
            told = status(daemon)
            text = " ".join(told.stdout.split())
            assert told.returncode == 1 and f"spool: the disk under {disk} is full" in text
            assert "DISK FULL" in text and "spool_full answered 5xx in the last minute" in text
            lines = [line for line in said(daemon, "ingest_refuses") if "code=spool_full" in line]
            assert len(lines) == 1 and "is full: make room there" in lines[0]
            own_server.start()
    finally:
        subprocess.run(["umount", disk], check=True)
