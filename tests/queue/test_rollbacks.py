# SPDX-License-Identifier: MIT
"""Random failovers and restarts under the queue client, from a fixed seed: nothing acknowledged is lost."""

import pytest

from bench.rollbacks import run


@pytest.mark.parametrize(("durability", "steps", "seed"), [("replica", 700, 3), ("fsync", 500, 3)])
def test_acknowledged_postbacks_survive_rollbacks(durability: str, steps: int, seed: int) -> None:
    found = run(steps, seed, durability)
    assert not found.has_failed, found
    assert all(found.done.values()), f"each kind of disturbance happened: {found.done}"
    assert found.acknowledged and found.keys, "and something was acknowledged all the same"
