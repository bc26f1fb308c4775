# SPDX-License-Identifier: MIT
"""What the benchmarks compare with: as little as can do the job, in the same run."""
