# SPDX-License-Identifier: MIT
"""`[hosts."…"] rate` with real workers: all of a machine keep it together, and use it in full however work falls."""

import time
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, running_daemon, running_sink, wait_until

RATE = 10  # a token in 100 ms: how late a loaded machine lets a worker look costs little of it
COUNT = 80


@pytest.mark.parametrize("items", [COUNT, COUNT // 20], ids=["one request", "many requests"])
@pytest.mark.parametrize("burst", [RATE, 1])
def test_rate_is_kept_by_two_workers_and_used_in_full(tmp_path: Path, burst: int, items: int) -> None:
    with running_sink(tmp_path / "sink") as sink:
        host = f'"127.0.0.1:{sink.port}"'
        settings = ["delivery.workers=2", f"hosts.{host}.rate={RATE}", f"hosts.{host}.burst={burst}"]
        with running_daemon(tmp_path, settings) as daemon:
            began_s = time.time()
            post(daemon, sink.url, items)
            wait_until(lambda: len(daemon.delivered_ids()) == COUNT, "all are delivered")
        times_s = sorted(request["time"] for request in sink.received())
    took_s = times_s[-1] - began_s  # not from the first: a sink that hears of it late would have the rest too fast
    print(f"{COUNT} of burst {burst} took {took_s:.2f} s: {(COUNT - burst) / took_s:.1f}/s")
    # One too many a worker, where both look at once.
    assert took_s * RATE + burst + 2 >= COUNT, "never more than the rate and its burst"
    assert took_s < (COUNT - burst) / (RATE / 2), "half of the rate would have taken so long"


def post(daemon: Daemon, url: str, items: int) -> None:
    endpoint = {"method": "GET", "url": url + "/{n}"}
    for first in range(0, COUNT, items):
        data = [{"n": number} for number in range(first, first + items)]
        assert daemon.post({"endpoint": endpoint, "data": data})[0] == 202
