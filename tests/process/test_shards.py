# SPDX-License-Identifier: MIT
"""A daemon with several shards: requests over all of them, tools that look through all of them."""

import json
import subprocess
from collections import Counter
from pathlib import Path

from postbackd.queue.embedded import running_url
from postbackd.queue.figures import FigureReader
from postbackd.queue.keys import Keys
from postbackd.queue.wire import Wire
from postbackd.settings import Queue
from tests.support.daemon import POSTBACKD, free_port, running_daemon, running_sink, wait_until

SHARDS = 3


def tool(settings: list[str], *arguments: str) -> str:
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run([*POSTBACKD, *arguments, *options], capture_output=True, text=True, check=False)
    return done.stdout


def places(reader: FigureReader) -> tuple[int, int, int, int]:
    found = reader.read()
    return found.ready, found.leased, found.later, found.dead


def test_daemon_with_shards_delivers_all_and_its_tools_see_all(tmp_path: Path) -> None:
    chosen = [f"queue.shards={SHARDS}", "delivery.workers=2"]
    with running_sink(tmp_path / "s") as sink, running_daemon(tmp_path / "d", chosen) as daemon:
        endpoint = {"method": "GET", "url": sink.url + "/hit?n={n}"}
        refused = {"method": "GET", "url": f"http://127.0.0.1:{free_port()}/", "retry": {"max_attempts": 1}}
        ids, dead_ids = [], []
        for number in range(30):
            status, answer = daemon.post({"endpoint": endpoint, "data": [{"n": number}, {"n": number}]})
            assert status == 202
            ids += answer["ids"]
        for _ in range(6):
            dead_ids += daemon.post({"endpoint": refused, "data": {}})[1]["ids"]
        url = running_url(Queue(), daemon.data_dir)
        reader = FigureReader(url, [Keys("pb", shard) for shard in range(SHARDS)])
        wait_until(lambda: places(reader) == (0, 0, 0, 6), "all are delivered, or dead")
        assert sorted(daemon.delivered_ids()) == sorted(ids)
        wire = Wire(url, 5)
        for shard in range(SHARDS):
            keys = Keys("pb", shard)
            assert int(wire.call("HGET", keys.stats, "delivered")) > 0, "each had its part"
            assert wire.call("ZCARD", keys.workers) == 2, "each is claimed by each worker"
        listed = [json.loads(line) for line in tool(daemon.settings, "dead", "list", "--json").splitlines()]
        assert Counter(letter["id"] for letter in listed) == Counter(dead_ids)
        for postback_id in dead_ids:
            assert json.loads(tool(daemon.settings, "explain", postback_id, "--json"))["place"] == "dead"
        assert "6 replayed" in tool(daemon.settings, "dead", "replay", "--all")
