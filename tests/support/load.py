# SPDX-License-Identifier: MIT
"""Requests under way while a test does something to the daemon."""

import json
import threading
import urllib.error

from tests.support.daemon import Daemon, Sink, http, wait_until


class Load:
    """Threads that post small requests one after the other and keep the ids of every 202."""

    def __init__(self, daemon: Daemon, sink: Sink, threads: int = 4, items: int = 5) -> None:
        self._url = daemon.url + "/ingest.php"
        endpoint = {"method": "GET", "url": sink.url + "/hit?id={@id}&n={n}"}
        self._body = json.dumps({"endpoint": endpoint, "data": [{"n": n} for n in range(items)]}).encode()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: list[str] = []
        self.refused = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                status, answer = http("POST", self._url, self._body, {"Content-Type": "application/json"})
            except (OSError, urllib.error.URLError):  # a killed worker takes its connections with it
                status, answer = 0, None
            with self._lock:
                if status == 202:
                    self.acknowledged += answer["ids"]
                else:
                    self.refused += 1

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.acknowledged) >= count, f"{count} postbacks are acknowledged")

    def stop(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.acknowledged
