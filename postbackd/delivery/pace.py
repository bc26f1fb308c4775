# SPDX-License-Identifier: MIT
"""When a delivery worker talks to the queue, and how much it asks for. Pure.

Few large exchanges when busy (a claim costs the server a dozen commands however many items it brings), quick ones
when there is little to do, none but the heartbeat when there is nothing. A worker holds no more than it can have in
flight plus a tenth of a second of its own pace, so that what it dies with is little and others find work too.
"""

BATCH = 512
FULL_BATCH = 384  # when this much room has come up a claim goes out at once
SETTLE_AGE_MS = 20  # an outcome waits no longer for company
HEARTBEAT_MS = 1000
IDLE_SLACK_MS = 100  # while the idle wait blocks: it ends after a second itself, and the claim that follows is the beat
BUSY_RATE_PER_S = 500
BUSY_GAP_MS = 4  # between exchanges of a busy worker that finds the queue short
HOLD_S = 0.1
HOLD_MIN, HOLD_MAX = 32, 512  # beyond what is in flight
WINDOW_MS = 100


class Pace:
    """The pace of one worker."""

    def __init__(self, in_flight: int) -> None:
        self._in_flight = in_flight
        self._rate_per_s = 0.0
        self._completed = 0
        self._window_ms = 0
        self._sent_ms = -HEARTBEAT_MS

    def completed(self, count: int, now_ms: int) -> None:
        """Transfers have ended; called every turn, also with none."""
        self._completed += count
        passed_ms = now_ms - self._window_ms
        if passed_ms >= WINDOW_MS:
            self._rate_per_s = (self._rate_per_s + self._completed * 1000 / passed_ms) / 2
            self._completed = 0
            self._window_ms = now_ms

    @property
    def hold_limit(self) -> int:
        """How many items the worker may hold."""
        return self._in_flight + int(min(max(self._rate_per_s * HOLD_S, HOLD_MIN), HOLD_MAX))

    def sent(self, now_ms: int) -> None:
        """An exchange has gone out."""
        self._sent_ms = now_ms

    def room(self, open_items: int) -> int:
        """How many to claim, with so many items held that have no outcome yet."""
        return max(0, min(BATCH, self.hold_limit - open_items))

    def is_due(self, now_ms: int, open_items: int, unsettled: int, oldest_ms: int | None, may_find: bool) -> bool:
        """Whether an exchange is due: `oldest_ms` is when the oldest outcome came, `may_find` whether the queue may
        have something (False while the idle wait says that it is empty)."""
        return unsettled >= BATCH or self.next_ms(now_ms, open_items, oldest_ms, may_find) == 0

    def next_ms(self, now_ms: int, open_items: int, oldest_ms: int | None, may_find: bool) -> int:
        """In how many ms an exchange will be due without anything else happening; 0 is now."""
        due_ms = self._sent_ms + HEARTBEAT_MS + (0 if may_find else IDLE_SLACK_MS)
        if oldest_ms is not None:
            due_ms = min(due_ms, oldest_ms + SETTLE_AGE_MS)
        if may_find:
            room = self.room(open_items)
            if room >= FULL_BATCH:
                return 0
            if room >= max(1, int(self._rate_per_s * SETTLE_AGE_MS / 1000)):
                due_ms = min(due_ms, self._sent_ms + (BUSY_GAP_MS if self._rate_per_s > BUSY_RATE_PER_S else 1))
        return max(0, due_ms - now_ms)
