# SPDX-License-Identifier: MIT
"""Which worker waits at which shard: its home, and shards that would have nobody."""

import pytest

from postbackd.delivery.shard import waits_at


def waiting(slot: int, workers: int, shards: int) -> list[int]:
    return [shard for shard in range(shards) if waits_at(shard, slot, workers, shards)]


@pytest.mark.parametrize(
    ("workers", "shards", "expected"),
    [
        (1, 1, [[0]]),
        (3, 1, [[0], [0], [0]]),
        (2, 2, [[0], [1]]),
        (5, 2, [[0], [1], [0], [1], [0]]),
        (1, 4, [[0, 1, 2, 3]]),
        (2, 3, [[0, 2], [1]]),
        (3, 4, [[0, 3], [1], [2]]),
    ],
)
def test_worker_waits_at_home_and_every_shard_has_somebody(
    workers: int, shards: int, expected: list[list[int]]
) -> None:
    found = [waiting(slot, workers, shards) for slot in range(workers)]
    assert found == expected
    assert all(slot % shards in places for slot, places in enumerate(found)), "home is slot mod shards"
    assert {shard for places in found for shard in places} == set(range(shards))
