# SPDX-License-Identifier: MIT
"""Prints the part of requirements.lock that an installed postbackd[embedded] needs: no tests, no linters.

Run by the Python of .venv, whose installed packages say who needs whom.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name: str, extras: frozenset[str], found: dict[str, set[str]]) -> None:
    """Add a package, with these extras, and all that it needs."""
    known = found.setdefault(canonical(name), set())
    if known and extras <= known:
        return
    known |= extras | {""}
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in known):
            closure(requirement.name, frozenset(requirement.extras), found)


def main() -> None:
    found: dict[str, set[str]] = {}
    closure("postbackd", frozenset({"embedded"}), found)
    found.pop("postbackd")
    blocks = re.split(r"\n(?=\S)", (Path(__file__).parents[1] / "requirements.lock").read_text())
    locked = {canonical(block.partition("==")[0]): block.rstrip("\n") for block in blocks}
    missing = found.keys() - locked.keys()
    if missing:
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}: add them, with their hashes")
    for name in sorted(found):
        print(locked[name])


if __name__ == "__main__":
    main()
