# SPDX-License-Identifier: MIT
"""Looking at a running daemon: metrics, health, profiles, dashboard. A process of its own; it changes nothing."""
