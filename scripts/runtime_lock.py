# SPDX-License-Identifier: MIT
"""Prints the part of requirements.lock that an installed postbackd[embedded] needs: no tests, no linters.

Run by the Python of .venv, whose installed packages say who needs whom.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

OLDEST = {"python_full_version": "3.11.0", "python_version": "3.11"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str, extras: frozenset[str], found: dict[str, set[str]]) -> None:
    """Add a package, with these extras, and all that it needs."""
    known = found.setdefault(canonical(name), set())
    if known and extras <= known:
        return
    known |= extras | {""}
    try:
        texts = distribution(name).requires or []
    except PackageNotFoundError:  # needed by another Python than ours
        return
    for text in texts:
        requirement = Requirement(text)
        if _applies(requirement, known):
            closure(requirement.name, frozenset(requirement.extras), found)


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    """For this Python, or for the oldest that is supported."""
    marker = requirement.marker
    environments = [{"extra": extra} | python for extra in extras for python in ({}, OLDEST)]
    return marker is None or any(marker.evaluate(environment) for environment in environments)


def main() -> None:
    found: dict[str, set[str]] = {}
    closure("postbackd", frozenset({"embedded"}), found)
    found.pop("postbackd")
    blocks = re.split(r"\n(?=\S)", (Path(__file__).parents[1] / "requirements.lock").read_text())
    locked = {canonical(re.split(r"[ =]", block)[0]): block.rstrip("\n") for block in blocks}
    missing = found.keys() - locked.keys()
    if missing:
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}: add them, with their hashes")
    for name in sorted(found):
        print(locked[name])


if __name__ == "__main__":
    main()
