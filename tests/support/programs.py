# SPDX-License-Identifier: MIT
"""Programs of Debian packages that a test needs: there, installed as root, or the test says what to install."""

import os
import subprocess
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@cache
def need(program: str, package: str) -> str:
    """Its name, once it is installed."""
    done = subprocess.run(
        ["flock", "/tmp/postbackd-need.lock", "bash", "scripts/need.sh", f"{program}:{package}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == 0, f"{program} is missing: {done.stderr or done.stdout}"
    return program
