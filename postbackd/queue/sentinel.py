# SPDX-License-Identifier: MIT
"""The master of a service, as its sentinels say, and connections to it.

Of several answers that of the highest configuration epoch holds: a sentinel that was cut off, or is back from a stop,
still names the master of before. A connection is used only when its server says itself that it is a master (ROLE).
A thread asks the sentinels twice a second and cuts each connection to a server that is master no more: its owner
finds it broken, as after any failure, instead of waiting for a stopped server or writing to a deposed one. So it does
with a master that has fallen silent, whatever the sentinels say: they take their time.
"""

import contextlib
import threading
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from postbackd import oplog
from postbackd.errors import QueueUnavailableError
from postbackd.queue.pulse import SILENT_S, Pulse
from postbackd.queue.set_up_anew import OlderEpochs
from postbackd.queue.wire import CONNECT_TIMEOUT_S, Wire
from postbackd.queue_url import Node, QueueUrl

SENTINEL_TIMEOUT_S = 0.5  # of each question to one sentinel
WATCH_EVERY_S = 0.5
FRESH_S = 2.0  # how old the watch's last answer may be and still be used instead of asking


class Answer(NamedTuple):
    """What one sentinel says."""

    epoch: int
    master: Node


class SentinelRoute:
    """Connections to the master of one service."""

    def __init__(self, parts: QueueUrl) -> None:
        self._parts = parts
        self._sentinels: dict[Node, Wire] = {}  # the watch's own connections
        self._wires: weakref.WeakSet[Wire] = weakref.WeakSet()
        self._lock = threading.Lock()  # of _wires
        self._known: Answer | None = None
        self._pulse = Pulse(self._connect)  # the watch's: without it nobody counts as silent
        self._known_s = 0.0
        self._older = OlderEpochs()  # heard by the watch
        self._is_watching = False

    def open(self, shard: int, timeout_s: float, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        """A connection to the master of now; raises QueueUnavailableError."""
        master = self.master()
        if master in self._pulse.silent:
            raise QueueUnavailableError(f"{master}, the master of {self.service}, has not answered for {SILENT_S:g} s.")
        wire = Wire(self._parts.server_url(master), timeout_s, connect_timeout_s)
        role = wire.call("ROLE")[0]
        if role != b"master":
            wire.close()
            self._known_s = 0.0  # ask again
            raise QueueUnavailableError(
                f"{master}, the master of {self._parts.service} for the sentinels, says that it is a {role.decode()}: "
                "a failover is under way."
            )
        wire.node = master
        with self._lock:
            self._wires.add(wire)
        return wire

    def open_for(self, key: bytes, timeout_s: float) -> Wire:
        """The same: the master has all keys."""
        return self.open(0, timeout_s)

    @property
    def service(self) -> str:
        """The name under which the sentinels monitor the master."""
        return self._parts.service

    def master(self) -> Node:
        """The watch's answer where it is fresh, else that of the first sentinel that has one, else the last known."""
        known = self._known
        if known is not None and time.monotonic() - self._known_s < FRESH_S:
            return known.master
        last = "no sentinel is named"
        for sentinel in self._parts.nodes:
            try:
                wire = self._open_sentinel(sentinel)
            except QueueUnavailableError as error:
                last = str(error)
                continue
            try:
                return self._learn(self._ask(wire)).master
            except QueueUnavailableError as error:
                last = f"{sentinel}: {error}"
            finally:
                wire.close()
        if known is not None:  # whether it is master still, it says itself
            return known.master
        raise QueueUnavailableError(f"No sentinel knows the master of {self._parts.service}: {last}")

    def _open_sentinel(self, sentinel: Node) -> Wire:
        """A connection to a sentinel: with its own password, or with the servers' where it wants one."""
        parts = self._parts
        wire = Wire(parts.url_of(sentinel, parts.sentinel_credentials), SENTINEL_TIMEOUT_S, SENTINEL_TIMEOUT_S)
        try:
            wire.call("PING")
        except QueueUnavailableError as error:
            wire.close()
            if "NOAUTH" not in str(error) or not parts.credentials or parts.sentinel_credentials:
                raise
            return Wire(parts.server_url(sentinel), SENTINEL_TIMEOUT_S, SENTINEL_TIMEOUT_S)
        return wire

    def _ask(self, wire: Wire) -> Answer:
        service = self._parts.service
        address, about = wire.pipeline(
            [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), ("SENTINEL", "MASTER", service)]
        )
        if address is None:
            raise QueueUnavailableError(f"It does not monitor {service}.")
        fields = dict(zip(about[::2], about[1::2], strict=False))
        return Answer(int(fields.get(b"config-epoch", 0)), Node(address[0].decode(), int(address[1])))

    def _learn(self, answer: Answer) -> Answer:
        """The newest of all answers so far, this one included."""
        known = self._known
        if known is None or answer.epoch >= known.epoch:
            self._known = known = answer
        self._known_s = time.monotonic()
        return known

    def sentinels(self) -> dict[Node, str | None]:
        """Each sentinel, and what is wrong with it or None: for `check`."""
        found: dict[Node, str | None] = {}
        for sentinel in self._parts.nodes:
            try:
                with contextlib.closing(self._open_sentinel(sentinel)) as wire:
                    self._ask(wire)
                found[sentinel] = None
            except QueueUnavailableError as error:
                found[sentinel] = str(error)
        return found

    def standbys(self) -> list[Node]:
        """The servers that may become master, as the first sentinel that answers says: for `check`."""
        for sentinel in self._parts.nodes:
            try:
                with contextlib.closing(self._open_sentinel(sentinel)) as wire:
                    replies = wire.call("SENTINEL", "REPLICAS", self.service)
            except QueueUnavailableError:
                continue
            found = [dict(zip(reply[::2], reply[1::2], strict=False)) for reply in replies]
            return sorted(Node(fields[b"ip"].decode(), int(fields[b"port"])) for fields in found)
        return []

    def open_node(self, node: Node, timeout_s: float) -> Wire:
        """A connection to one server, whatever its role."""
        return Wire(self._parts.server_url(node), timeout_s, timeout_s)

    # The watch

    def watch(self) -> None:
        """Begin to ask the sentinels twice a second."""
        if not self._is_watching:
            self._is_watching = True
            threading.Thread(target=self._watch, name="sentinel-watch", daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # the top of the thread: without it no stopped master would be left
                oplog.error("sentinel_watch_failed", error=repr(error))
            time.sleep(WATCH_EVERY_S)

    def look(self) -> None:
        """Ask every sentinel once, and cut what leads to a server that is master no more."""
        before = self._known
        answers: list[Answer] = []
        for sentinel in self._parts.nodes:
            wire = self._sentinels.get(sentinel)
            try:
                if wire is None or not wire.is_open:
                    wire = self._sentinels[sentinel] = self._open_sentinel(sentinel)
                answers.append(self._ask(wire))
                self._learn(answers[-1])
            except QueueUnavailableError:  # the others will do; `check` names it
                if wire is not None:
                    wire.close()
        self._begin_anew(answers)
        known = self._known
        if known is None:
            return
        if before is not None and before.master != known.master and oplog.changed("master", known.master):
            oplog.warning("master_changed", service=self._parts.service, was=before.master, is_now=known.master)
        self._pulse.look([known.master])
        with self._lock:
            stale = [wire for wire in self._wires if wire.is_open and wire.node != known.master]
            if known.master in self._pulse.silent:
                stale = list(self._wires)
        for wire in stale:
            wire.cut()

    def _begin_anew(self, answers: Sequence[Answer]) -> None:
        if self._known is None:
            return
        told = [answer.epoch for answer in answers]
        epoch = self._older.to_believe(told, self._known.epoch, len(self._parts.nodes), time.monotonic())
        if epoch is not None:
            self._known = next(answer for answer in answers if answer.epoch == epoch)

    def _connect(self, server: Node) -> Wire:
        return self.open_node(server, SENTINEL_TIMEOUT_S)
