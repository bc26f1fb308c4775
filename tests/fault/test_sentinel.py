# SPDX-License-Identifier: MIT
"""The master fails under load and the sentinels name another: nothing that was acknowledged is lost."""

import pytest

from bench.failover import fail_over
from bench.failover_parts.hosts import may_make_namespaces
from bench.failover_parts.sentinels import AGAIN, CUTS, HOWS

# A 202 waits for both replicas, since with one of the two the sentinels may name the other, which lacks the last ones.
UNSETTLED = 2 * (256 + 512)  # what two delivery workers may have sent and not settled


@pytest.mark.parametrize("how", HOWS)
def test_failover_of_the_master_loses_nothing(how: str) -> None:
    found, _ = fail_over(how, replicas=2, rate=60, items=5, durability="replica", copies=2)
    assert (found.lost, found.wrong) == (0, [])
    assert found.spooled > 0, "ingest went on meanwhile"
    assert found.twice <= UNSETTLED


def test_second_failover_at_once_loses_nothing() -> None:
    """The old master is dead, so a 202 waits for the one replica, which is named next. What was spooled in the first
    failover is at the master between alone, and partly still to be delivered: 44 to 699 postbacks were lost so."""
    found, _ = fail_over(AGAIN, replicas=2, rate=60, items=5, durability="replica", fail_rate=0.3, copies=1)
    assert (found.lost, found.wrong) == (0, [])
    assert found.spooled > 0


@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and ip, for network namespaces")
@pytest.mark.parametrize("how", CUTS)
def test_master_on_a_machine_that_is_cut_off_loses_nothing(how: str) -> None:
    """From everybody, from everybody but us, and with us from everybody else; and then it comes back."""
    found, _ = fail_over(how, replicas=2, rate=60, items=5, durability="replica", copies=2)
    assert (found.lost, found.wrong) == (0, [])
    assert found.twice <= UNSETTLED
    if how == "side":
        assert found.refused > 0, "nothing is acknowledged that no replica has"
