# SPDX-License-Identifier: MIT
"""What the machine gives: processor cores and descriptors, against what the settings ask for."""

import os
import resource

from postbackd.errors import BootError
from postbackd.settings import Ingest, Settings

SPARE_DESCRIPTORS = 128  # Redis, logs, the resolver's sockets, Python's own
INGEST_PER_CORE = {"commit": 4, "group": 2}
DESCRIPTORS_PER_TRANSFER = 5  # libcurl keeps a cache of 4 x in_flight idle connections beside those in use


def worker_count(configured: int, *, per_core: int) -> int:
    """The workers of a role: as configured, or so many a core that this process may run on."""
    return configured or per_core * len(os.sched_getaffinity(0))


def ingest_workers(settings: Ingest) -> int:
    """The ingest processes: by themselves several a core, since each waits for every commit, and fewer where those that
    arrive together share a commit."""
    return worker_count(settings.workers, per_core=INGEST_PER_CORE[settings.ack])


def descriptors_needed(settings: Settings, roles: frozenset[str]) -> tuple[int, str]:
    """Of the process that needs most, and the setting it comes from."""
    needs = [(SPARE_DESCRIPTORS, "the daemon itself")]
    if "ingest" in roles:
        needs.append((settings.ingest.max_connections + SPARE_DESCRIPTORS, "ingest.max_connections"))
    if "deliver" in roles:
        in_flight = settings.delivery.in_flight
        needs.append((DESCRIPTORS_PER_TRANSFER * in_flight + SPARE_DESCRIPTORS, "delivery.in_flight"))
    return max(needs)


def raise_descriptor_limit(settings: Settings, roles: frozenset[str]) -> None:
    """Set the soft limit to the hard one, for us and our children; a BootError when that is too little.

    A process without descriptors does not fail, it spins: at EMFILE bjoern's loop takes a whole core.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed, reason = descriptors_needed(settings, roles)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise BootError(
            f"{needed} descriptors are needed ({reason}) and this process may have {hard}: "
            f"raise the limit (ulimit -Hn {needed}, LimitNOFILE={needed} in the systemd unit) or lower the setting"
        )
