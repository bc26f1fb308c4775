# SPDX-License-Identifier: MIT
"""The master fails under load and the sentinels name another: nothing that was acknowledged is lost."""

import pytest

from bench.failover import fail_over
from bench.failover_parts.servers import HOWS

UNSETTLED = 2 * (256 + 512)  # what two delivery workers may have sent and not settled


@pytest.mark.parametrize("how", HOWS)
def test_failover_of_the_master_loses_nothing(how: str) -> None:
    found, _ = fail_over(how, replicas=2, rate=60, items=5, durability="replica")
    assert (found.lost, found.wrong) == (0, [])
    assert found.spooled > 0, "ingest went on meanwhile"
    assert found.twice <= UNSETTLED
