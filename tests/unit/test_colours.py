# SPDX-License-Identifier: MIT
"""The dashboard's colours: text can be read on what it stands on, in both themes (WCAG 2, level AA: 4.5 to 1)."""

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "postbackd" / "admin" / "static" / "style.css").read_text()
PAIRS = [
    *((ink, ground) for ink in ("ink", "soft") for ground in ("page", "card", "sunk")),
    *((level, ground) for level in ("ok", "warn", "bad", "info") for ground in ("card", f"{level}-wash")),
    *(("ink", f"{level}-wash") for level in ("ok", "warn", "bad", "info")),
    *((line, "card") for line in ("accent", "second")),
    *(("card", level) for level in ("accent", "ok", "warn", "bad", "info")),
]


def colours(theme: str) -> dict[str, str]:
    block = {"light": r":root \{(.*?)\}", "dark": r':root\[data-theme="dark"\] \{(.*?)\}'}[theme]
    found = re.search(block, CSS, re.S)
    assert found
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", found.group(1)))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(theme: str) -> None:
    found = colours(theme)
    poor = {}
    for ink, ground in PAIRS:
        lighter, darker = sorted((luminance(found[ink]), luminance(found[ground])), reverse=True)
        ratio = (lighter + 0.05) / (darker + 0.05)
        if ratio < 4.5:
            poor[ink, ground] = round(ratio, 2)
    assert poor == {}
