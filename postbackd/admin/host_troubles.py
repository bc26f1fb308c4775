# SPDX-License-Identifier: MIT
"""Since when a host fails: what someone who is woken asks first. Pure: rows of /stats and times are passed in.

A host is in trouble from the look at which its breaker is not closed or fewer than half of its attempts succeed, until
a look at which more succeed with the breaker closed. While nothing is tried, it stays what it was; a host that is no
longer among the rows is forgotten.
"""

from collections.abc import Sequence
from typing import Any

FAILING_RATIO = 0.5


class HostTroubles:
    """What was seen of the hosts, look by look."""

    def __init__(self) -> None:
        self._since_ms: dict[str, int] = {}

    def look(self, rows: Sequence[dict[str, Any]], now_ms: int) -> None:
        """Take up the hosts as they are. `now_ms` is Unix time."""
        seen = {}
        for row in rows:
            host, ratio = row["host"], row["success_ratio"]
            if row["breaker"] != "closed" or (ratio is not None and ratio < FAILING_RATIO):
                seen[host] = self._since_ms.get(host, now_ms)
            elif ratio is None and host in self._since_ms:
                seen[host] = self._since_ms[host]
        self._since_ms = seen

    def since_ms(self, host: str) -> int | None:
        """Unix time at which it was first seen failing; None while it is well."""
        return self._since_ms.get(host)
