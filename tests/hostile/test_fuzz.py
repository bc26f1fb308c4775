# SPDX-License-Identifier: MIT
"""20,000 hostile requests from a fixed seed: only answers of the table, and the daemon serves on with its memory.

`python -m bench.fuzz --count N --seed S` sends more of the same.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Daemon, running_daemon
from tests.support.hostile import ENDPOINT_URL, Hostile, judge, send

SEED = 20261125
COUNT = int(os.environ.get("FUZZ_COUNT", "10000"))  # in each way to commit
GOOD_EVERY = 200
WARM_UP = 300
MAX_GROWTH_BYTES = 20_000_000


def good(daemon: Daemon) -> None:
    status, answer = daemon.post({"endpoint": {"method": "GET", "url": ENDPOINT_URL}, "data": {"key": "v"}})
    assert status == 202, answer


@pytest.mark.parametrize("ack", ["commit", "group"])
def test_hostile_requests_get_an_answer_of_the_table_and_change_nothing(tmp_path: Path, ack: str) -> None:
    seed = SEED + len(ack)
    print(f"seed {seed}, {COUNT} requests")
    with running_daemon(tmp_path, ["ingest.workers=1", f"ingest.ack={ack}"], roles="ingest") as daemon:
        [worker] = daemon.children("ingest")
        for _ in range(WARM_UP):
            good(daemon)
        before = psutil.Process(worker).memory_info().rss
        kinds: Counter[str] = Counter()
        for number, case in enumerate(Hostile(seed).cases(COUNT)):
            kinds[case.kind] += 1
            wrong = judge(send(daemon.port, case))
            assert wrong is None, f"seed {seed}, case {number} ({case.kind}): {wrong}; sent {case.pieces[:3]!r:.2000}"
            if number % GOOD_EVERY == 0:
                good(daemon)
        time.sleep(1)  # the guard's pass, and the last connections' end
        good(daemon)
        growth = psutil.Process(worker).memory_info().rss - before
        print(json.dumps(kinds), f"RSS grew by {growth / 1e6:.1f} MB")
        assert daemon.children("ingest") == [worker], "it is the same process as at the start"
        assert growth < MAX_GROWTH_BYTES
        assert b"request_failed" not in daemon.output.read_bytes()
        assert b"Traceback" not in daemon.output.read_bytes()
