# SPDX-License-Identifier: MIT
"""A Cluster under load: nodes fail over, slots move, a shard is away. Nothing that was acknowledged is lost."""

import pytest

from bench.cluster import HOWS, disturb

UNSETTLED = 2 * (256 + 512)  # what two delivery workers may have sent and not settled


@pytest.mark.parametrize("how", HOWS)
def test_disturbed_cluster_loses_nothing(how: str) -> None:
    found = disturb(how, rate=60, items=5)
    assert (found.lost, found.wrong) == (0, [])
    assert found.twice <= UNSETTLED
