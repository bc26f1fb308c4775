# SPDX-License-Identifier: MIT
"""How long the place of a process that died stays empty: the supervisor's workers and its queue server alike."""

from collections import deque

QUICK_DEATH_MS = 10_000  # who lives shorter did not get to work
FIRST_DELAY_MS = 1_000
LONGEST_DELAY_MS = 30_000
RESTARTS_PER_MINUTE = 10  # of one slot, whatever the reasons
MINUTE_MS = 60_000


class Backoff:
    """How long a slot stays empty after a death. Pure: the times are passed in."""

    def __init__(self) -> None:
        self.quick_deaths = 0
        self._deaths_ms: deque[int] = deque(maxlen=RESTARTS_PER_MINUTE)

    def delay_ms(self, lived_ms: int, now_ms: int, *, excused: bool = False) -> int:
        """0 for the first quick death and for who got to work, then 1, 2, 4 … 30 s; never above 10 a minute.

        An excused death (a lost lease) is no sign of a fault, so only the limit per minute holds it back.
        """
        if lived_ms >= QUICK_DEATH_MS or excused:
            self.quick_deaths = 0
        else:
            self.quick_deaths += 1
        delay_ms = 0
        if self.quick_deaths > 1:
            delay_ms = min(FIRST_DELAY_MS << min(self.quick_deaths - 2, 10), LONGEST_DELAY_MS)
        if len(self._deaths_ms) == RESTARTS_PER_MINUTE:
            delay_ms = max(delay_ms, self._deaths_ms[0] + MINUTE_MS - now_ms)
        self._deaths_ms.append(now_ms)
        return delay_ms
