# SPDX-License-Identifier: MIT
"""HTTP statuses as people list them: `["2xx", 302]` → a set of numbers. Pure."""

import re
from collections.abc import Sequence

_CLASS = re.compile(r"([1-5])xx", re.IGNORECASE)


def parse_statuses(entries: Sequence[int | str]) -> frozenset[int]:
    """The statuses that a list of numbers and classes means; raises ValueError that shows the wrong one."""
    statuses: set[int] = set()
    for entry in entries:
        found = _CLASS.fullmatch(entry) if isinstance(entry, str) else None
        if found:
            first = int(found.group(1)) * 100
            statuses |= set(range(first, first + 100))
        elif isinstance(entry, int) and 100 <= entry <= 599:
            statuses.add(entry)
        else:
            raise ValueError(f'{entry!r:.40} is no status: write numbers as 503 and classes as "5xx"')
    return frozenset(statuses)
