# SPDX-License-Identifier: MIT
"""The requests, drawn from a seed, what was acknowledged of them, and the audit of that."""

import random
import time
from typing import NamedTuple

from bench.rollbacks_parts.ingest import KEYS, Ingest
from bench.rollbacks_parts.servers import Servers
from postbackd.errors import PostbackdError
from postbackd.queue.enqueuer import QueuedRequest

# Each is used a few times, far apart, so that a record that one process left out is not put right by the others.
ENDPOINTS = 60  # in use at a time
ENDPOINT_USES = 3  # until one of them gives way to one that no server has seen
BODY_HASH = b"h" * 16
MOST_ELEMENTS = 3
MOST_REQUESTS = 8  # of a group
NEW_KEYS = 0.6  # the others were asked before, perhaps of another master
SETTLE_BOUND_S = 60


def endpoint(place: int) -> tuple[bytes, bytes]:
    """Its id and its record."""
    return place.to_bytes(8), b"record %d" % place


class Audit(NamedTuple):
    """What of the acknowledged is not as promised, and what is there more than once, which is allowed."""

    lost: int
    records_missing: int
    keys_with_two_answers: int
    twice: int
    left_in_spool: int


class Load:
    """Asks the processes at random. An element is its id of 8 bytes and nothing else."""

    def __init__(self, randomness: random.Random, processes: list[Ingest]) -> None:
        self._random = randomness
        self._processes = processes  # each may be replaced
        self._elements = 0
        self._uses = 0  # of endpoints
        self._acknowledged: dict[bytes, int] = {}  # element → its endpoint's place
        self._keys: list[tuple[bytes, int]] = []
        self._answers: dict[bytes, set[bytes]] = {}
        self.requests = self.refused = 0

    @property
    def acknowledged(self) -> int:
        """Postbacks so far."""
        return len(self._acknowledged)

    @property
    def keys(self) -> int:
        """Idempotency-Keys that were answered."""
        return len(self._answers)

    # Requests

    def enqueue(self) -> bool:
        """One request, committed alone."""
        process, place, elements = self._process(), self._endpoint(), self._new_elements()
        try:
            process.queue.enqueue(*endpoint(place), elements)
        except PostbackdError:
            self._note(place, elements, is_acknowledged=False)
        else:
            self._note(place, elements, is_acknowledged=True)
        return True

    def enqueue_group(self) -> bool:
        """Several requests, committed together."""
        process, count = self._process(), self._random.randint(1, MOST_REQUESTS)
        places = [self._endpoint() for _ in range(count)]
        requests = [QueuedRequest(*endpoint(place), self._new_elements()) for place in places]
        for place, request, error in zip(places, requests, process.queue.enqueue_group(requests), strict=True):
            self._note(place, request.elements, is_acknowledged=error is None)
        return True

    def ask_once(self) -> bool:
        """A request with an Idempotency-Key, by every process: a new one, or one that came before."""
        if self._random.random() < NEW_KEYS or not self._keys:
            self._keys.append((b"%016d" % len(self._keys), self._endpoint()))
            key, place = self._keys[-1]
        else:
            key, place = self._random.choice(self._keys)
        for process in self._processes:
            [element] = self._new_elements(1)
            try:
                found = process.queue.enqueue_once(key, BODY_HASH, element, *endpoint(place), [element])
            except PostbackdError:
                self._note(place, [], is_acknowledged=False)
            else:
                self._answers.setdefault(key, set()).add(found)
                self._note(place, [found], is_acknowledged=True)
        return True

    def replay(self) -> bool:
        """A turn of a process' replay thread."""
        self._process().turn()
        return True

    def _process(self) -> Ingest:
        return self._random.choice(self._processes)

    def _endpoint(self) -> int:
        self._uses += 1
        return self._uses // ENDPOINT_USES + self._random.randrange(ENDPOINTS)

    def _new_elements(self, count: int = 0) -> list[bytes]:
        """So many, or a few."""
        first = self._elements + 1
        self._elements += count or self._random.randint(1, MOST_ELEMENTS)
        return [b"%08d" % number for number in range(first, self._elements + 1)]

    def _note(self, place: int, elements: list[bytes], *, is_acknowledged: bool) -> None:
        self.requests += 1
        if is_acknowledged:
            self._acknowledged.update(dict.fromkeys(elements, place))
        else:
            self.refused += 1

    # The end

    def settle(self) -> None:
        """Replay until the spool is empty, or for a minute."""
        deadline_s = time.monotonic() + SETTLE_BOUND_S
        while any([process.turn() for process in self._processes]) and time.monotonic() < deadline_s:
            time.sleep(0.02)

    def audit(self, servers: Servers, left_in_spool: int) -> Audit:
        """Hold what was acknowledged against what the master has."""
        client = servers.master.client
        ready = client.lrange(KEYS.ready, 0, -1)
        found = set(ready)
        endpoints = dict(map(endpoint, set(self._acknowledged.values())))
        return Audit(
            lost=sum(element not in found for element in self._acknowledged),
            records_missing=sum(client.get(KEYS.endpoint(name)) != record for name, record in endpoints.items()),
            keys_with_two_answers=sum(len(answers) > 1 for answers in self._answers.values()),
            twice=len(ready) - len(found),
            left_in_spool=left_in_spool,
        )
