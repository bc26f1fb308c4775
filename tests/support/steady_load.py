# SPDX-License-Identifier: MIT
"""Clients that post all the time and keep an account of each request: answered, refused, or closed under it."""

import contextlib
import http.client
import json
import threading
from collections import Counter
from contextlib import closing

from tests.support.daemon import Sink, wait_until

BOUND_S = 120


class SteadyLoad:
    """Half of the threads open a connection for each request, the others keep theirs."""

    def __init__(
        self, port: int, target: str, threads: int = 8, headers: dict[str, str] | None = None, pause_s: float = 0
    ) -> None:
        self._port = port
        self._pause_s = pause_s  # of a thread, after each answer and each refusal
        self._target = target
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: list[str] = []  # ids
        self.answers: dict[int, int] = {}  # status → count
        self.refused: list[str] = []  # connections that could not be made: none may be
        self.unanswered_new: list[str] = []  # on a connection of its own: none may be
        self.unanswered_kept: list[str] = []  # on a kept connection that was closed meanwhile: the names of postbacks
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        keeps = number % 2 == 0
        count = 0
        while not self._stop.is_set():
            with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND_S)) as connection:
                try:
                    connection.connect()
                except OSError as error:
                    with self._lock:
                        self.refused.append(repr(error))
                    self._stop.wait(self._pause_s)
                    continue
                uses = 0
                while not self._stop.is_set() and (keeps or uses == 0):
                    count += 1
                    if not self._post(connection, f"{number}-{count}", is_new=uses == 0):
                        break
                    uses += 1
                    self._stop.wait(self._pause_s)

    def _post(self, connection: http.client.HTTPConnection, name: str, *, is_new: bool) -> bool:
        endpoint = {"method": "GET", "url": self._target + "/hit?id={@id}&name={name}"}
        body = json.dumps({"endpoint": endpoint, "data": [{"name": name}]})
        try:
            connection.request("POST", "/ingest.php", body, self._headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException):
            with self._lock:
                (self.unanswered_new if is_new else self.unanswered_kept).append(name)
            return False
        with self._lock:
            self.answers[response.status] = self.answers.get(response.status, 0) + 1
            if response.status == 202:
                self.acknowledged += answer["ids"]
        return True

    def wait_for_more(self, count: int = 200) -> None:
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal, f"{count} more postbacks are acknowledged")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            with contextlib.suppress(RuntimeError):
                thread.join()


def names_and_ids(sink: Sink) -> tuple[Counter[str], Counter[str]]:
    """What arrived, by the sender's name and by id."""
    queries = [request["url"].partition("?")[2] for request in sink.received()]
    fields = [dict(part.split("=") for part in query.split("&")) for query in queries]
    return Counter(one["name"] for one in fields), Counter(one["id"] for one in fields)


def assert_nothing_went_wrong(load: SteadyLoad, sink: Sink) -> None:
    load.stop()
    assert load.refused == []
    assert load.unanswered_new == []
    assert set(load.answers) == {202}
    wanted = set(load.acknowledged)
    wait_until(lambda: wanted <= set(names_and_ids(sink)[1]), "every acknowledged id has arrived", BOUND_S)
    names, ids = names_and_ids(sink)
    assert max(ids.values()) == 1, "workers that drain settle what they delivered"
    # A kept connection may be closed while its next request is on the way; then nobody has read it.
    assert not set(load.unanswered_kept) & set(names), "a request that was read was not answered"
    assert len(ids) == len(wanted)
