# SPDX-License-Identifier: MIT
"""What the commands share: how the configuration is named and loaded, and how an expected failure ends."""

import glob
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from postbackd import oplog, suggestion
from postbackd.errors import ConfigError, ExitCode, PostbackdError
from postbackd.settings import Settings


class Commands(click.Group):
    """Ends every command that fails as expected with one line and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PostbackdError as error:
            oplog.message(f"postbackd: {error}")  # to the journal with its priority
            usage = error.exit_code == ExitCode.USAGE
            ctx.exit(ExitCode.USAGE if usage else ExitCode.FAILED)
        except BrokenPipeError:  # `postbackd config | head`
            sys.stderr.close()
            ctx.exit(ExitCode.FAILED)


def load_settings(config: str | None, overrides: tuple[str, ...]) -> Settings:
    """The settings, with what only the parts that use them can judge; raises ConfigError."""
    from postbackd.delivery.egress import Policy
    from postbackd.delivery.schedule import retried_statuses
    from postbackd.queue.durability import Durability
    from postbackd.senders import Senders
    from postbackd.settings_loader import load
    from postbackd.signing import SigningKeys

    suggestion.remember(config, overrides)
    settings = load(config, os.environ, overrides)
    Policy(settings.security.allow_networks, settings.security.deny_networks)
    retried_statuses(settings.retry.statuses)
    Durability(settings.queue)
    Senders(settings.ingest.tokens, settings.ingest.senders)
    SigningKeys(settings.security.signing_keys)
    return settings


config_option = click.option(
    "-c",
    "--config",
    metavar="FILE",
    envvar=suggestion.CONFIG_VARIABLE,
    show_envvar=True,
    help="Configuration file (TOML); without one the defaults hold.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
)


class SpreadFiles(click.Command):
    """Gives an option of several files every file behind it, as a shell leaves `--received deliveries.jsonl*`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = {name for parameter in self.params if parameter.callback is files for name in parameter.opts}
        spread: list[str] = []
        name, has_one = "", False
        for arg in args:
            if arg.startswith("-") and arg != "-":
                name, has_one = arg if arg in names else "", False
            elif name and has_one:
                spread.append(name)
            else:
                has_one = True
            spread.append(arg)
        return super().parse_args(ctx, spread)


def files(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Path, ...]:
    """Files that are there; a name that is none may be a pattern."""
    found: list[Path] = []
    for value in values:
        matching = [value] if Path(value).is_file() else sorted(filter(os.path.isfile, glob.glob(value)))
        if not matching:
            raise click.BadParameter(f"{value}: there is no such file", param=parameter)
        found += map(Path, matching)
    return tuple(dict.fromkeys(found))


def hex_digits(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """An id or a digest: a mistyped one would mean no letter, and nobody would see why."""
    if value is not None and re.fullmatch("[0-9a-f]{16}", value.lower()) is None:
        name = parameter.human_readable_name if isinstance(parameter, click.Argument) else parameter.opts[0]
        raise ConfigError(
            f"{name} {value[:40]}: 16 hex digits are wanted, as in the answer of ingest and the delivery log"
        )
    return None if value is None else value.lower()
