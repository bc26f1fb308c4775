# SPDX-License-Identifier: MIT
"""What bench.rollbacks disturbs, what it does to it, and what it holds against what was acknowledged."""
