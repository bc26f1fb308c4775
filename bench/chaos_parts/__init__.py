# SPDX-License-Identifier: MIT
"""What bench.chaos is made of: the world it disturbs, its load, its faults."""
