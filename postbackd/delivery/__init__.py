# SPDX-License-Identifier: MIT
"""The delivery worker: claim → lanes → transfer → outcome → log → settle."""
