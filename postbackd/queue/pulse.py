# SPDX-License-Identifier: MIT
"""Which of several servers have fallen silent: a PING to each every half second, on connections of its own.

For the watch threads of Sentinel and Cluster. A machine that is cut off resets nothing: each connection to it would
find out by itself, by its own time-out, and an ingest process runs its requests one after the other, so three shards
at silent masters held up every answer for ten seconds. Nothing waits here but one connect, half a second at most.
"""

import time
from collections.abc import Callable, Collection

from postbackd import oplog
from postbackd.errors import QueueUnavailableError
from postbackd.queue.wire import Wire, pack
from postbackd.queue_url import Node

SILENT_S = 2.0  # as long as ingest waits for one of several shards
_PING = pack(("PING",))


class _Probe:
    """One server."""

    def __init__(self, now_s: float) -> None:
        self.heard_s = now_s
        self.sent_s = now_s
        self.wire: Wire | None = None


class Pulse:
    """Looks after the servers in use."""

    def __init__(self, connect: Callable[[Node], Wire]) -> None:
        self._connect = connect
        self._probes: dict[Node, _Probe] = {}
        self.silent: frozenset[Node] = frozenset()

    def look(self, nodes: Collection[Node], now_s: float | None = None) -> None:
        """Find out who of these is silent. Any answer counts, an error reply too."""
        now_s = time.monotonic() if now_s is None else now_s
        for node in self._probes.keys() - set(nodes):
            self._close(self._probes.pop(node))
        for node in nodes:
            self._probes.setdefault(node, _Probe(now_s))
        may_connect = True
        for node, probe in list(self._probes.items()):
            if probe.wire is not None:
                self._listen(probe, now_s)
            elif may_connect and not self._open(node, probe, now_s):
                may_connect = False
                self._probes[node] = self._probes.pop(node)  # the others first next time
        silent = frozenset(node for node, probe in self._probes.items() if now_s - probe.heard_s >= SILENT_S)
        for node in sorted(silent - self.silent):
            if oplog.changed(f"node {node}", "silent"):
                oplog.warning("node_silent", node=node, hint=f"no answer for {SILENT_S:g} s: not used until it answers")
        for node in sorted(self.silent & self._probes.keys() - silent):
            if oplog.changed(f"node {node}", "answers"):
                oplog.info("node_answers", node=node)
        self.silent = silent

    def _open(self, node: Node, probe: _Probe, now_s: float) -> bool:
        try:
            probe.wire = self._connect(node)
            self._send(probe.wire, probe, now_s)
        except QueueUnavailableError:
            self._close(probe)
            return False
        return True

    def _send(self, wire: Wire, probe: _Probe, now_s: float) -> None:
        wire.send(_PING)
        probe.sent_s = now_s

    def _listen(self, probe: _Probe, now_s: float) -> None:
        assert probe.wire is not None
        try:
            if probe.wire.receive():
                probe.heard_s = now_s
                self._send(probe.wire, probe, now_s)
            elif now_s - probe.sent_s >= SILENT_S:
                # A new one gets through sooner: what was lost of this is sent again ever more rarely.
                self._close(probe)
        except QueueUnavailableError:
            self._close(probe)

    def _close(self, probe: _Probe) -> None:
        if probe.wire is not None:
            probe.wire.close()
            probe.wire = None
