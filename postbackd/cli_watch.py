# SPDX-License-Identifier: MIT
"""`postbackd status`, `top` and `tail`: their options; parses, calls, nothing else."""

import sys

import click

from postbackd.cli_options import config_option, hex_digits, load_settings, set_option


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole answer of /stats as one JSON object.")
@click.option("--cluster", is_flag=True, help="Every daemon that shares the queue, and their sum.")
@config_option
@set_option
def status(as_json: bool, cluster: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show how the running daemon is. Exit code 1 when it is not ready or none runs."""
    from postbackd.tools.status import status as run_status

    sys.exit(run_status(load_settings(config, overrides), as_json, cluster))


@click.command()
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.5, 60), help="Seconds.")
@config_option
@set_option
def top(interval: float, config: str | None, overrides: tuple[str, ...]) -> None:
    """Watch the running daemon, per host and per worker; q ends it."""
    from postbackd.tools.top import top as run_top

    sys.exit(run_top(load_settings(config, overrides), interval))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, over renames, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), help="How many of the last to show: 20, or with --id all.")
@click.option("--failed", is_flag=True, help="Only attempts that did not deliver.")
@click.option("--id", "postback_id", metavar="ID", callback=hex_digits, help="Only this postback.")
@click.option("--host", help="Only this host; without a port, at any.")
@click.option("--json", "as_json", is_flag=True, help="The lines as they are in the log.")
@config_option
@set_option
def tail(
    follow: bool,
    lines: int | None,
    failed: bool,
    postback_id: str | None,
    host: str | None,
    as_json: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Show the end of the delivery log, one line an attempt."""
    from postbackd.tools.tail import Filter
    from postbackd.tools.tail import tail as run_tail

    if lines is None and postback_id is None:
        lines = 20
    sys.exit(
        run_tail(
            load_settings(config, overrides), Filter(failed, postback_id, host and host.lower()), lines, follow, as_json
        )
    )
