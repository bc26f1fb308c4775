# SPDX-License-Identifier: MIT
"""Names → addresses, in threads of our own, so that dead or slow names delay no healthy one.

(libcurl's own resolver threads: 60 slow names filled them and a healthy name timed out after 5 s.) One look-up a
name at a time. A name nobody knows anything of has a thread at once, up to MOST_THREADS, since it may be the hundredth
dead one or the healthy one behind it; names that were slow or failed share a few threads among themselves. Answers are
kept for 60 s, and an old one serves up to a minute longer while it is looked up again. The policy is asked here first:
a name all of whose addresses are forbidden is blocked, and of a mixed one only the allowed addresses are used.
"""

import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from postbackd.scoreboard import monotonic_ms

KEPT_MS = 60_000
KEPT_FAILED_MS = 5_000
STALE_MS = 60_000
THREADS = 8  # that stay
MOST_THREADS = 128  # each holds a thread's stack and a descriptor while its name is looked up
SURPLUS_S = 30.0  # a thread beyond those that stay ends when it had nothing to do so long
SLOW_THREADS = 16
SLOW_MS = 1000
MAX_NAMES = 100_000


class Answer(NamedTuple):
    """What a look-up gave: addresses, or why there are none."""

    addresses: tuple[str, ...]
    error: str | None  # the name has no address now: dns_error
    blocked: str | None  # it has only forbidden ones
    looked_up_ms: int
    took_ms: int


class Resolver:
    """A worker's names. `fileno` becomes readable when answers have come; `take_ready` says for which names."""

    def __init__(self, verdict: Callable[[str], str | None]) -> None:
        self._verdict = verdict
        self._answers: dict[str, Answer] = {}
        self._pending: set[str] = set()
        self._ready: queue.SimpleQueue[tuple[str, Answer] | None] = queue.SimpleQueue()  # None: a thread has ended
        self._fast: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._slow_pending: set[str] = set()
        self._threads = 0  # for names that nobody knows to be slow

    def fileno(self) -> int:
        return self._event

    def resolve(self, name: str, now_ms: int) -> Answer | None:
        """The kept answer, or None: it is being looked up and will be in `take_ready`."""
        answer = self._answers.get(name)
        if answer is not None:
            age_ms = now_ms - answer.looked_up_ms
            kept_ms = KEPT_MS if answer.addresses else KEPT_FAILED_MS
            if age_ms <= kept_ms:
                return answer
            self._look_up(name, answer)
            return answer if answer.addresses and age_ms <= kept_ms + STALE_MS else None
        self._look_up(name, None)
        return None

    def take_ready(self) -> list[str]:
        """The names whose answers have come since the last call."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        names = []
        while not self._ready.empty():
            found = self._ready.get()
            if found is None:
                self._threads -= 1
                self._add_thread()
                continue
            name, answer = found
            self._pending.discard(name)
            self._slow_pending.discard(name)
            if len(self._answers) >= MAX_NAMES:
                del self._answers[next(iter(self._answers))]
            self._answers[name] = answer
            names.append(name)
        return names

    def _look_up(self, name: str, last: Answer | None) -> None:
        if name in self._pending:
            return
        self._pending.add(name)
        if not self._threads:
            self._start_threads()
        if last is not None and (last.took_ms > SLOW_MS or not last.addresses):
            self._slow_pending.add(name)
            self._slow.put(name)
        else:
            self._fast.put(name)
            self._add_thread()

    def _start_threads(self) -> None:
        for _ in range(SLOW_THREADS):
            self._start_thread(self._slow, None)
        for _ in range(THREADS):
            self._start_thread(self._fast, None)
        self._threads = THREADS

    def _add_thread(self) -> None:
        """One more where each has a name to wait for."""
        if self._threads < min(len(self._pending) - len(self._slow_pending), MOST_THREADS):
            self._start_thread(self._fast, SURPLUS_S)
            self._threads += 1

    def _start_thread(self, names: "queue.SimpleQueue[str]", rest_s: float | None) -> None:
        threading.Thread(target=self._serve, args=(names, rest_s), daemon=True, name="resolver").start()

    def _serve(self, names: "queue.SimpleQueue[str]", rest_s: float | None) -> None:
        """Look names up; `rest_s` without any ends the thread."""
        while True:
            try:
                name = names.get(timeout=rest_s)
            except queue.Empty:
                self._ready.put(None)
                os.eventfd_write(self._event, 1)
                return
            answer = look_up(name, self._verdict)
            self._ready.put((name, answer))
            os.eventfd_write(self._event, 1)


def look_up(name: str, verdict: Callable[[str], str | None]) -> Answer:
    """Ask the system's resolver, and the policy about each address."""
    started_ms = monotonic_ms()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        now_ms = monotonic_ms()
        text = f"{name} cannot be resolved: {getattr(error, 'strerror', None) or error}"
        return Answer((), text, None, now_ms, now_ms - started_ms)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    reasons = {address: verdict(address) for address in addresses}
    allowed = tuple(address for address in addresses if reasons[address] is None)
    blocked = None if allowed else f"{name}: {'; '.join(filter(None, reasons.values()))}"
    now_ms = monotonic_ms()
    return Answer(allowed, None, blocked, now_ms, now_ms - started_ms)
