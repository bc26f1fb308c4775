# SPDX-License-Identifier: MIT
"""How often the operational log says the same thing. Pure: the times are passed in.

Two events are the same when they have the same name and differ in nothing but numbers and ids. The first five in a
minute are written, the rest counted; when the minute is over their number is said, once. Beside that no event, whatever
its words, comes more than sixty times a minute: a thousand hosts that fail at once are one fact, not a thousand lines.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

Level = Literal["INFO", "WARNING", "ERROR"]
Words = tuple[tuple[str, str], ...]

WINDOW_MS = 60_000
SAME_A_WINDOW = 5
NAMED_A_WINDOW = 60
WINDOWS_KEPT = 512  # beyond it the oldest is summed up before its time
NUMBERED = ("slot",)  # numbers that say which, not how much
NUMBERS = (int, float)
UNSAID = ("id",)  # words that differ each time


class Summary(NamedTuple):
    """What was held back of one event."""

    level: Level
    event: str
    words: Words  # what all of them had in common
    held_back: int
    for_ms: int


class _Window:
    def __init__(self, level: Level, began_ms: int) -> None:
        self.level = level
        self.began_ms = began_ms
        self.count = 0
        self.held_back = 0


class Repeats:
    """What one process has said in the last minute."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, Words], _Window] = {}  # the oldest first
        self._overdue: list[Summary] = []
        self.is_quiet = True

    def admits(self, level: Level, event: str, fields: dict[str, object], now_ms: int) -> bool:
        """Whether this one is to be written; if not, it is counted."""
        # A list within, no generator: a target that refuses everything comes by here thousands of times a second.
        words = tuple(
            [
                (name, value if type(value) is str else str(value))
                for name, value in fields.items()
                if name in NUMBERED or not (name in UNSAID or isinstance(value, NUMBERS))
            ]
        )
        same = self._window(level, event, words, now_ms)
        same.count += 1
        if same.count > SAME_A_WINDOW:
            same.held_back += 1
            self.is_quiet = False
            return False
        if not words:
            return True
        named = self._window(level, event, (), now_ms)
        named.count += 1
        if named.count > NAMED_A_WINDOW:
            named.held_back += 1
            self.is_quiet = False
            return False
        return True

    def _window(self, level: Level, event: str, words: Words, now_ms: int) -> _Window:
        key = (event, words)
        found = self._windows.get(key)
        if found is not None and now_ms - found.began_ms < WINDOW_MS:
            return found
        if found is not None:
            self._end(key, found, now_ms)
        elif len(self._windows) >= WINDOWS_KEPT:
            oldest = next(iter(self._windows))
            self._end(oldest, self._windows[oldest], now_ms)
        made = self._windows[key] = _Window(level, now_ms)
        return made

    def _end(self, key: tuple[str, Words], window: _Window, now_ms: int) -> None:
        del self._windows[key]
        if window.held_back:
            self._overdue.append(Summary(window.level, *key, window.held_back, now_ms - window.began_ms))

    def take(self, now_ms: int, *, is_end: bool = False) -> Iterator[Summary]:
        """What was held back in the minutes that are over, or at the end in all of them."""
        for key, window in list(self._windows.items()):
            if is_end or now_ms - window.began_ms >= WINDOW_MS:
                self._end(key, window, now_ms)
        due, self._overdue = self._overdue, []
        self.is_quiet = not any(window.held_back for window in self._windows.values())
        yield from due
