# SPDX-License-Identifier: MIT
"""The command line: commands, options and exit codes; parses, calls, nothing else."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from postbackd import __version__
from postbackd.errors import ConfigError, ExitCode, PostbackdError
from postbackd.settings import Settings

ROLES = ("ingest", "deliver", "admin")


class _Commands(click.Group):
    """Ends every command that fails as expected with one line and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PostbackdError as error:
            click.echo(f"postbackd: {error}", err=True)
            usage = error.exit_code == ExitCode.USAGE
            ctx.exit(ExitCode.USAGE if usage else ExitCode.FAILED)
        except BrokenPipeError:  # `postbackd config | head`
            sys.stderr.close()
            ctx.exit(ExitCode.FAILED)


def _load(config: str | None, overrides: tuple[str, ...]) -> Settings:
    """The settings, with what only the parts that use them can judge; raises ConfigError."""
    from postbackd.delivery.egress import Policy
    from postbackd.delivery.schedule import retried_statuses
    from postbackd.settings_loader import load

    settings = load(config, os.environ, overrides)
    Policy(settings.security.allow_networks, settings.security.deny_networks)
    retried_statuses(settings.retry.statuses)
    return settings


_config_option = click.option("-c", "--config", metavar="FILE", help="Configuration file (TOML).")
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="postbackd")
def main() -> None:
    """Deliver postbacks: POST one request, and every data object in it becomes one HTTP call, once at least."""


@main.command()
@_config_option
@_set_option
@click.option("--roles", default="ingest,deliver", show_default=True, help="What this daemon does, comma-separated.")
def run(config: str | None, overrides: tuple[str, ...], roles: str) -> None:
    """Run the daemon in the foreground."""
    from postbackd.supervisor import run as run_supervisor

    chosen = frozenset(role.strip() for role in roles.split(",") if role.strip())
    if not chosen or not chosen <= set(ROLES):
        raise ConfigError(f"--roles {roles}: choose from {', '.join(ROLES)}")
    sys.exit(run_supervisor(_load(config, overrides), chosen))


@main.command()
@_config_option
@_set_option
def check(config: str | None, overrides: tuple[str, ...]) -> None:
    """Look at configuration, Redis and limits: what is wrong, and how to mend it."""
    from postbackd.tools.check import check as run_check

    sys.exit(run_check(_load(config, overrides)))


@main.command(name="config")
@_config_option
@_set_option
def show_config(config: str | None, overrides: tuple[str, ...]) -> None:
    """Print the configuration in force as TOML; secrets are masked."""
    from postbackd.settings_loader import render_toml

    click.echo(render_toml(_load(config, overrides)), nl=False)


@main.command()
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--url", help="Where to post; by default the ingest address of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
@_config_option
@_set_option
def send(file: str, url: str | None, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Post one request from FILE, or from standard input, and print the ids."""
    from postbackd.tools.send import send as run_send

    sys.exit(run_send(_load(config, overrides), file, url, as_json))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8888, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--status", default=200, show_default=True, type=click.IntRange(200, 599), help="Status of every answer.")
@click.option("--latency", default=0.0, type=click.FloatRange(0), help="Seconds before each answer.")
@click.option("--fail-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests answered with 500.")
@click.option("--drop-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests never answered.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Append each request as a JSON line.")
def sink(
    host: str, port: int, status: int, latency: float, fail_rate: float, drop_rate: float, record: Path | None
) -> None:
    """Run a target that records what arrives, with faults on order."""
    from postbackd.tools.sink import Options, Sink

    target = Sink(host, port, Options(status, latency, fail_rate, drop_rate), record)
    click.echo(
        f"sink listens on http://{host}:{target.port}/ and answers {status}"
        + (f", recording to {record}" if record else "")
    )
    click.echo(f"sink received {target.run()} requests")


if __name__ == "__main__":
    main()
