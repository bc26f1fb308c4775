# SPDX-License-Identifier: MIT
"""A Cluster under load: nodes fail over, slots move, a shard is away. Nothing that was acknowledged is lost."""

import pytest

from bench.cluster import HOWS, disturb
from bench.failover_parts.cluster import CUTS
from bench.failover_parts.hosts import may_make_namespaces

UNSETTLED = 2 * (256 + 512)  # what two delivery workers may have sent and not settled


@pytest.mark.parametrize("how", HOWS)
def test_disturbed_cluster_loses_nothing(how: str) -> None:
    found = disturb(how, rate=60, items=5)
    assert (found.lost, found.wrong) == (0, [])
    assert found.twice <= UNSETTLED


@pytest.mark.skipif(not may_make_namespaces(), reason="needs root and ip, for network namespaces")
@pytest.mark.parametrize("how", CUTS)
def test_master_on_a_machine_that_is_cut_off_loses_nothing(how: str) -> None:
    """From everybody, from everybody but us, and with us from everybody else; and then it comes back."""
    found = disturb(how, rate=60, items=5)
    assert (found.lost, found.wrong) == (0, [])
    assert found.twice <= UNSETTLED
