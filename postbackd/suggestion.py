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
STARTER_VARIABLE = "POSTBACKD_RUN_BY"  # `make run` says so

_config: str | None = None
_settings: tuple[str, ...] = ()


def remember(config: str | None, overrides: tuple[str, ...]) -> None:
    """What was given."""
    global _config, _settings
    found: list[str] = []
    shown = {f"{d.section}.{d.name}".lstrip(".") for d in declarations() if not d.secret}
    for override in overrides:
        name = override.partition("=")[0].strip()
        is_open = name in shown or name.startswith("hosts.")
        found += ["--set", shlex.quote(override) if is_open else f"{name}=…"]
    _config, _settings = config, tuple(found)


def command(text: str) -> str:
    """`dead list` as `postbackd dead list -c FILE`, by the name that this process was started by."""
    # A file that the environment names, it names to the next command too.
    file = [] if _config is None or _config == os.environ.get(CONFIG_VARIABLE) else ["-c", shlex.quote(_config)]
    return " ".join([program(), text, *file, *_settings])


def options_anywhere() -> str:
    """What was given, with the file by its whole path: for who reads it elsewhere, as on the dashboard."""
    file = [] if _config is None else ["-c", shlex.quote(os.path.abspath(_config))]
    return " ".join([*file, *_settings])


def with_setting(override: str) -> str:
    """How to start it again with one more setting, as it was started: `--set …` added, or make's ARGS."""
    starter = os.environ.get(STARTER_VARIABLE)
    if not starter:
        return f"--set {shlex.quote(override)}"
    return f'{starter} ARGS="{" ".join([*_settings, "--set", shlex.quote(override)])}"'


def with_other_port(setting: str, port: int) -> str:
    """How to start it again with another port than the one that is taken."""
    return with_setting(f"{setting}={port + 1000 if port < 64_000 else port - 1000}")


def program() -> str:
    """`postbackd` where the shell would find this one by it, else its path as it was typed."""
    typed = sys.argv[0]
    if os.path.basename(typed) != "postbackd":
        return "postbackd"
    found = shutil.which("postbackd")
    return "postbackd" if found and os.path.exists(typed) and os.path.samefile(found, typed) else shlex.quote(typed)
