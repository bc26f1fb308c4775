# SPDX-License-Identifier: MIT
"""Commands that we suggest, so that they can be pasted: with the `-c FILE` and `--set` that this one was given.

The command line says once what was given (`remember`); whoever suggests something asks for the whole command. A value
that may be a secret is left out: the text may end in a log.
"""

import os
import shlex
import shutil
import sys

from postbackd.settings import declarations

CONFIG_VARIABLE = "POSTBACKD_CONFIG"

_options: tuple[str, ...] = ()


def remember(config: str | None, overrides: tuple[str, ...]) -> None:
    """What was given; a file that the environment names, it names to the next command too."""
    global _options
    found = [] if config is None or config == os.environ.get(CONFIG_VARIABLE) else ["-c", shlex.quote(config)]
    shown = {f"{d.section}.{d.name}".lstrip(".") for d in declarations() if not d.secret}
    for override in overrides:
        name = override.partition("=")[0].strip()
        is_open = name in shown or name.startswith("hosts.")
        found += ["--set", shlex.quote(override) if is_open else f"{name}=…"]
    _options = tuple(found)


def command(text: str) -> str:
    """`dead list` as `postbackd dead list -c FILE`, by the name that this process was started by."""
    return " ".join([program(), text, *_options])


def program() -> str:
    """`postbackd` where the shell would find this one by it, else its path as it was typed."""
    typed = sys.argv[0]
    if os.path.basename(typed) != "postbackd":
        return "postbackd"
    found = shutil.which("postbackd")
    return "postbackd" if found and os.path.exists(typed) and os.path.samefile(found, typed) else shlex.quote(typed)
