# SPDX-License-Identifier: MIT
"""Benchmarks: python -m bench.ingest, bench.delivery, bench.loop. Real processes, pinned to named cores."""
