# SPDX-License-Identifier: MIT
"""Text that others wrote (answers of targets, host names), made fit for a terminal. Pure."""


def printable(text: str) -> str:
    """The same without anything that a terminal would obey: controls, escapes and the like as \\x1b."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
