# SPDX-License-Identifier: MIT
"""Signals while the daemon starts, before its loop acts on them: there is no request and no worker, so it just ends."""

import signal
from types import FrameType


class StartSignals:
    """SIGTERM and SIGINT raise KeyboardInterrupt, and are remembered, until other handlers are installed.

    Python drops what is raised in a finalizer or in the callback of a weak reference, and every import ends with such
    a callback: a signal that came just then would be lost. Whoever is done with the start looks at `came`.
    """

    def __init__(self) -> None:
        self.came: signal.Signals | None = None
        signal.signal(signal.SIGTERM, self._end_start)
        signal.signal(signal.SIGINT, self._end_start)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the configuration was read a moment ago

    def _end_start(self, signum: int, _frame: FrameType | None) -> None:
        self.came = signal.Signals(signum)
        raise KeyboardInterrupt
