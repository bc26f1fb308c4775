# SPDX-License-Identifier: MIT
"""What bench.failover and its relatives set up and take down."""
