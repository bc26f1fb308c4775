# SPDX-License-Identifier: MIT
"""Whether sentinels, or the nodes of a Cluster, that tell only older epochs are behind, or were set up anew. Pure.

An older epoch is not believed: who tells it was away and has not heard who has taken the place of whom. But a service
that was removed and monitored again, or nodes restored from a copy, count from where they are, and processes that kept
to the epoch of before used no server until they were started again. They tell each other within seconds: where a
majority has known nothing newer for long, nobody is behind.
"""

from collections.abc import Sequence

ANEW_S = 30.0


class OlderEpochs:
    """Of one service."""

    def __init__(self) -> None:
        self._since_s: float | None = None  # when only older epochs were told, last without interruption

    def to_believe(self, told: Sequence[int], known: int, asked: int, now_s: float) -> int | None:
        """The epoch to go on with instead of `known`, or None to keep it.

        `told` are those of the answers to one round of `asked` questions; `now_s` is monotonic.
        """
        if len(told) <= asked // 2 or any(epoch >= known for epoch in told):
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s >= ANEW_S:
            return max(told)
        return None
