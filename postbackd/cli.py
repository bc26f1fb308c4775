# SPDX-License-Identifier: MIT
"""The command line: commands, options and exit codes; parses, calls, nothing else."""

import os
import sys
import time
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
    from postbackd.queue.durability import Durability
    from postbackd.senders import Senders
    from postbackd.settings_loader import load

    settings = load(config, os.environ, overrides)
    Policy(settings.security.allow_networks, settings.security.deny_networks)
    retried_statuses(settings.retry.statuses)
    Durability(settings.queue)
    Senders(settings.ingest.tokens)
    return settings


_config_option = click.option("-c", "--config", metavar="FILE", help="Configuration file (TOML).")
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated."
)

_existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


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

    sys.exit(run_check(_load(config, overrides), config))


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
@click.option(
    "--drop-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests whose connection is closed."
)
@click.option("--hang-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests never answered.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Append each request as a JSON line.")
def sink(
    host: str,
    port: int,
    status: int,
    latency: float,
    fail_rate: float,
    drop_rate: float,
    hang_rate: float,
    record: Path | None,
) -> None:
    """Run a target that records what arrives, with faults on order."""
    from postbackd.tools.sink import Options, Sink

    target = Sink(host, port, Options(status, latency, fail_rate, drop_rate, hang_rate), record)
    click.echo(
        f"sink listens on http://{host}:{target.port}/ and answers {status}"
        + (f", recording to {record}" if record else "")
    )
    click.echo(f"sink received {target.run()} requests")


@main.command()
@click.option("--sent", required=True, multiple=True, type=_existing_file, help="Answers of ingest, or ids.")
@click.option("--received", required=True, multiple=True, type=_existing_file, help="A sink's record or delivery log.")
@click.option("--show", default=10, show_default=True, type=click.IntRange(0), help="How many ids to name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every id.")
def audit(sent: tuple[Path, ...], received: tuple[Path, ...], show: int, as_json: bool) -> None:
    """Compare what was acknowledged with what arrived; exit code 1 when anything is lost."""
    from postbackd.tools.audit import audit as run_audit

    sys.exit(run_audit(sent, received, show, as_json))


@main.command()
@click.argument("postback_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_config_option
@_set_option
def explain(postback_id: str, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Tell one postback's story: where it is, each attempt, when the next is due."""
    from postbackd.tools.explain import explain as run_explain

    sys.exit(run_explain(_load(config, overrides), postback_id, as_json))


@main.group()
def dead() -> None:
    """Dead letters: list, show, replay, purge."""


def _dead_filter(command: Any) -> Any:
    """The options that say which dead letters are meant."""
    for option in (
        click.option("--host", help="Only those for this host, with its port where it is not the default."),
        click.option("--endpoint", metavar="HEX", help="Only those of this endpoint (16 hex digits)."),
        click.option("--reason", help="Only those that died of this, as attempts_exhausted."),
        click.option("--id", "postback_id", metavar="ID", help="Only this one."),
        click.option("--since", metavar="TIME", help="Only those that died since: 30m, 2h, 3d, or an ISO time."),
        click.option("--until", metavar="TIME", help="Only those that died before."),
        _config_option,
        _set_option,
    ):
        command = option(command)
    return command


_overflow_option = click.option("--overflow", is_flag=True, help="Those that the cap moved to dead-overflow.jsonl.")


def _open_dead(config: str | None, overrides: tuple[str, ...], overflow: bool = False) -> Any:
    from postbackd.queue.dead_letters import DeadLetters
    from postbackd.queue.dead_overflow import NAME, OverflowLetters
    from postbackd.queue.embedded import running_url

    settings = _load(config, overrides)
    url = running_url(settings.queue, settings.data_dir)
    if overflow:
        return OverflowLetters(Path(settings.data_dir) / NAME, url, settings.queue.prefix)
    return DeadLetters(url, settings.queue.prefix)


def _filter(options: dict[str, Any], needs_one: bool = False) -> Any:
    from postbackd.queue.dead_letters import Filter
    from postbackd.tools.dead import parse_time_ms

    if needs_one and not options.pop("all") and not any(options.values()):
        raise ConfigError("name which ones (--host, --endpoint, --reason, --id, --since, --until), or say --all")
    now_s = time.time()
    since, until = options.pop("since"), options.pop("until")
    return Filter(
        **options,
        since_ms=None if since is None else parse_time_ms("--since", since, now_s),
        until_ms=None if until is None else parse_time_ms("--until", until, now_s),
    )


@dead.command(name="list")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_overflow_option
@_dead_filter
def dead_list(
    limit: int, as_json: bool, overflow: bool, config: str | None, overrides: tuple[str, ...], **options: Any
) -> None:
    """List them, oldest first."""
    from postbackd.tools.dead import list_letters

    sys.exit(list_letters(_open_dead(config, overrides, overflow), _filter(options), limit, as_json))


@dead.command(name="show")
@click.argument("postback_id", metavar="ID")
@_overflow_option
@_config_option
@_set_option
def dead_show(postback_id: str, overflow: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show all that is known of one: its attempts, its endpoint, its last answer."""
    from postbackd.tools.dead import show_letter

    sys.exit(show_letter(_open_dead(config, overrides, overflow), postback_id))


@dead.command(name="replay")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--all", is_flag=True, help="All of them, without a filter.")
@_overflow_option
@_dead_filter
def dead_replay(
    rate: float | None, dry_run: bool, overflow: bool, config: str | None, overrides: tuple[str, ...], **options: Any
) -> None:
    """Give them back to the queue: attempts and expiry count anew."""
    from postbackd.tools.dead import replay_letters

    wanted = _filter(options, needs_one=True)
    sys.exit(replay_letters(_open_dead(config, overrides, overflow), wanted, rate, dry_run))


@dead.command(name="purge")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--all", is_flag=True, help="All of them, without a filter.")
@_dead_filter
def dead_purge(dry_run: bool, config: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Delete them for ever."""
    from postbackd.tools.dead import purge_letters

    sys.exit(purge_letters(_open_dead(config, overrides), _filter(options, needs_one=True), dry_run))


if __name__ == "__main__":
    main()
