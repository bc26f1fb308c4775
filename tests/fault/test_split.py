# SPDX-License-Identifier: MIT
"""Ingest and delivery on machines of their own (network namespaces where they are allowed): delivery machines come, are
stopped and are lost under load, and nothing that was acknowledged is."""

from bench.split import run

UNSETTLED = 256 + 512  # what the lost machine's worker may have sent and not settled


def test_delivery_machines_come_and_go_without_loss() -> None:
    found = run(rate=60, items=5, phase_s=2, shards=2)
    assert (found["lost"], found["tracebacks"], found["exit_code_of_stopped"]) == (0, 0, 0)
    assert found["twice"] <= UNSETTLED
    assert min(found["delivered_per_s"].values()) > 0
    if found["has_cables"]:
        ways = ("ingest_to_queue", "queue_to_ingest", "delivery_to_queue", "queue_to_delivery")
        assert min(found[way] for way in ways) > 0
