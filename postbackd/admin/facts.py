# SPDX-License-Identifier: MIT
"""What the supervisor tells the admin process about the daemon when it forks it."""

from collections.abc import Mapping
from typing import NamedTuple

from postbackd.host_board import HostBoard


class DaemonFacts(NamedTuple):
    """What stays as it is while this admin process lives."""

    started_ms: int  # of the supervisor, Unix time
    roles: frozenset[str]
    rows: Mapping[str, range]  # of the scoreboard, by role
    hosts: HostBoard
