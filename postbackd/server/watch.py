# SPDX-License-Identifier: MIT
"""Which connections are cut, and why: the limits of the door, judged from what the kernel says of each. Pure.

In come figures of TCP_INFO, one `Look` a connection and pass, and a clock; out come reasons. guard.py looks and cuts.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

HEADER_BYTES = 80 * 1024  # bjoern's parser refuses a longer header
MIN_BYTES_PER_MS = 64  # 64 kB/s: what moves at least so fast gets the time it needs
PATIENCE_MS = 1_000  # what has been arriving for less is no load yet, only busy
HEADER_WEIGHT = 40  # bytes of memory that a byte of many tiny headers takes in bjoern, at most
OBJECT_BYTES = 100  # of each object that they become: 79 to 99 measured


class Reason(Enum):
    """Why a connection is cut, as in the log."""

    IDLE = "idle"  # nothing came or went for idle_timeout
    SLOW_SENDER = "slow_sender"  # a request did not arrive in its time
    SLOW_READER = "slow_reader"  # an answer was not taken in its time
    TOO_LARGE = "too_large"  # more arrived than any request may have
    TOO_MANY = "too_many"  # over max_connections: the longest idle
    ADDRESS = "address"  # over max_connections_per_address: the longest idle of that address
    MEMORY = "memory"  # unfinished requests take too much: the largest


class Limits(NamedTuple):
    """Of one process. Zero connections an address: no limit of its own."""

    max_connections: int
    per_address: int
    idle_ms: int
    request_ms: int
    body_bytes: int
    arriving_bytes: int


NO_LIMITS = Limits(1 << 30, 0, 1 << 40, 1 << 40, 1 << 30, 1 << 40)


class Look(NamedTuple):
    """What the kernel says of a connection now. Ages in ms, of the last data."""

    sent_age_ms: int
    received_age_ms: int
    acked_age_ms: int
    unacked: int  # segments
    acked_bytes: int
    received_bytes: int
    not_sent_bytes: int  # answered, and the client's window is full
    sent_segments: int
    sent_bytes: int  # without what was sent again

    def is_at_rest(self) -> bool:
        """Our answer is younger than the last data; the kernel's ages step by 4 ms and begin with the connection."""
        return self.received_bytes == 0 or (self.sent_segments > 0 and self.sent_age_ms <= self.received_age_ms)


class Watched(Struct):
    """A connection as it was when it was last looked at."""

    inode: int
    address: str | bytes
    sent_bytes: int = 0
    received_before: int = 0  # received when the request of now began
    arriving_since_ms: int = 0  # 0: nothing is
    answering_since_ms: int = 0
    acked_before: int = 0
    idle_ms: int = 0
    arriving_bytes: int = 0

    def judge(self, look: Look, now_ms: int, limits: Limits) -> Reason | None:
        """Take note of the look; the reason to cut the connection if there is one."""
        if look.is_at_rest():
            self.arriving_since_ms = self.arriving_bytes = 0
            self.received_before = look.received_bytes
            self.idle_ms = min(look.received_age_ms, look.sent_age_ms) if look.sent_segments else look.received_age_ms
        else:
            self._note_arriving(look, now_ms)
        self._note_answering(look, now_ms)
        self.sent_bytes = look.sent_bytes
        if self.answering_since_ms:
            allowed_ms = limits.request_ms + (look.acked_bytes - self.acked_before) // MIN_BYTES_PER_MS
            return Reason.SLOW_READER if now_ms - self.answering_since_ms > allowed_ms else None
        if look.unacked and look.acked_age_ms > limits.request_ms:  # its machine is gone, or stopped
            return Reason.SLOW_READER
        if self.arriving_since_ms:
            if self.arriving_bytes > limits.body_bytes + HEADER_BYTES:
                return Reason.TOO_LARGE
            allowed_ms = limits.request_ms + self.arriving_bytes // MIN_BYTES_PER_MS
            return Reason.SLOW_SENDER if now_ms - self.arriving_since_ms > allowed_ms else None
        return Reason.IDLE if self.idle_ms > limits.idle_ms else None

    def _note_arriving(self, look: Look, now_ms: int) -> None:
        if look.sent_bytes != self.sent_bytes:  # answered since the last look: this is another request
            self.received_before = look.received_bytes
            self.arriving_since_ms = 0
        self.arriving_since_ms = self.arriving_since_ms or now_ms
        self.arriving_bytes = look.received_bytes - self.received_before
        self.idle_ms = 0

    def _note_answering(self, look: Look, now_ms: int) -> None:
        if not look.not_sent_bytes:
            self.answering_since_ms = 0
        elif not self.answering_since_ms:
            self.answering_since_ms, self.acked_before = now_ms, look.acked_bytes


def too_many(connections: Iterable[tuple[int, Watched]], limits: Limits) -> list[tuple[int, Reason]]:
    """Whom to cut because they are too many: the longest idle first, the busy ones last."""
    ordered = sorted(connections, key=lambda known: -known[1].idle_ms)
    chosen: list[tuple[int, Reason]] = []
    if limits.per_address:
        of_address: dict[str | bytes, int] = {}
        for _, watched in ordered:
            of_address[watched.address] = of_address.get(watched.address, 0) + 1
        for fd, watched in ordered:
            if of_address[watched.address] > limits.per_address:
                of_address[watched.address] -= 1
                chosen.append((fd, Reason.ADDRESS))
    surplus = len(ordered) - len(chosen) - limits.max_connections
    if surplus > 0:
        taken = {fd for fd, _ in chosen}
        chosen += [(fd, Reason.TOO_MANY) for fd, _ in ordered if fd not in taken][:surplus]
    return chosen


def is_calm(connections: Iterable[tuple[int, Watched]], limits: Limits) -> bool:
    """Whether unfinished requests take next to nothing, whatever they are."""
    return 8 * HEADER_WEIGHT * sum(watched.arriving_bytes for _, watched in connections) < limits.arriving_bytes


def arriving_long(connections: Iterable[tuple[int, Watched]], now_ms: int) -> list[tuple[int, Watched]]:
    """Those whose request is more than only under way."""
    return [(fd, w) for fd, w in connections if w.arriving_since_ms and now_ms - w.arriving_since_ms >= PATIENCE_MS]


def too_heavy(
    arriving: Sequence[tuple[int, Watched]], held_bytes: int, objects: int, limits: Limits
) -> list[tuple[int, Reason]]:
    """Whom to cut because unfinished requests take too much memory: the largest first.

    `held_bytes` is what the bodies take, known exactly; the rest of what has arrived are headers, which take many
    times their size when they are tiny. Then they show in `objects`: how many more there are than at rest.
    """
    header_bytes = max(sum(watched.arriving_bytes for _, watched in arriving) - held_bytes, 0)
    header_memory = min(HEADER_WEIGHT * header_bytes, header_bytes + OBJECT_BYTES * max(objects, 0))
    surplus = held_bytes + header_memory - limits.arriving_bytes
    weight = (held_bytes + header_memory) / (held_bytes + header_bytes or 1)
    chosen: list[tuple[int, Reason]] = []
    for fd, watched in sorted(arriving, key=lambda known: -known[1].arriving_bytes):
        if surplus <= 0:
            break
        surplus -= int(watched.arriving_bytes * weight)
        chosen.append((fd, Reason.MEMORY))
    return chosen
