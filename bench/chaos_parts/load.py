# SPDX-License-Identifier: MIT
"""Load for the daemon under chaos: paced requests, and a line for each of them in a file.

    python -m bench.chaos_parts.load PORT RATE ITEMS CONNECTIONS FILE SINK_PORT…

A line: {"r": request number, "at": unix s, "status": 202, "ids": […], "ms": 1.2}; status 0 where no answer came. Every
tenth request has an Idempotency-Key and is sent again with it until it is acknowledged. Ends well on SIGTERM.
"""

import http.client
import itertools
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path

TIMEOUT_S = 30.0
RETRY_PAUSE_S = 0.5
KEYED_EVERY = 10


class Load:
    """Threads with a connection each, which share a clock that says when the next request is due."""

    def __init__(self, port: int, rate: float, items: int, out: Path, sinks: list[int]) -> None:
        self._port = port
        self._interval_s = 1 / rate
        self._bodies = [_body(items, sink) for sink in sinks]
        self._out = out.open("a")
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._due_s = time.monotonic()
        self.stopping = threading.Event()

    def run(self) -> None:
        """One thread: request after request until the end."""
        connection: http.client.HTTPConnection | None = None
        while not self.stopping.is_set():
            with self._lock:
                number = next(self._numbers)
                self._due_s = max(self._due_s + self._interval_s, time.monotonic() - 1.0)
                wait_s = self._due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            body = random.choice(self._bodies).replace("NUMBER", str(number)).encode()
            headers = {"Content-Type": "application/json"}
            if number % KEYED_EVERY == 0:
                headers["Idempotency-Key"] = f"chaos-{number}"
            while True:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
                status, ids, took_ms = _request(connection, body, headers)
                if status == 0:
                    connection.close()
                    connection = None
                self._note(number, status, ids, took_ms)
                if status == 202 or "Idempotency-Key" not in headers or self.stopping.is_set():
                    break
                time.sleep(RETRY_PAUSE_S)

    def _note(self, number: int, status: int, ids: list[str], took_ms: float) -> None:
        at_s = round(time.time(), 3)
        line = json.dumps({"r": number, "at": at_s, "status": status, "ids": ids, "ms": round(took_ms, 2)})
        with self._lock:
            self._out.write(line + "\n")

    def finish(self) -> None:
        """Everything noted is in the file."""
        self._out.close()


def _body(items: int, sink: int) -> str:
    endpoint = {"method": "GET", "url": f"http://127.0.0.1:{sink}/hit?id={{@id}}&r={{r}}&n={{n}}"}
    return json.dumps({"endpoint": endpoint, "data": [{"r": "NUMBER", "n": n} for n in range(items)]})


def _request(
    connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
) -> tuple[int, list[str], float]:
    began_s = time.monotonic()
    try:
        connection.request("POST", "/ingest.php", body, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException):
        return 0, [], (time.monotonic() - began_s) * 1000
    took_ms = (time.monotonic() - began_s) * 1000
    return response.status, json.loads(answer)["ids"] if response.status == 202 else [], took_ms


def main(arguments: list[str]) -> None:
    """Run until SIGTERM."""
    port, rate, items, connections, out, *sinks = arguments
    load = Load(int(port), float(rate), int(items), Path(out), [int(sink) for sink in sinks])
    signal.signal(signal.SIGTERM, lambda _signum, _frame: load.stopping.set())
    threads = [threading.Thread(target=load.run) for _ in range(int(connections))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
