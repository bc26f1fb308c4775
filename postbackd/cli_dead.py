# SPDX-License-Identifier: MIT
"""`postbackd dead list | show | replay | purge`: their options; parses, calls, nothing else."""

import sys
from pathlib import Path
from typing import Any

import click

from postbackd.cli_options import config_option, hex_digits, load_settings, set_option
from postbackd.errors import ConfigError


@click.group()
def dead() -> None:
    """Dead letters: list, show, replay, purge."""


REASONS = (
    "attempts_exhausted",
    "refused_status",
    "expired",
    "blocked",
    "render_error",
    "poison",
    "endpoint_missing",
    "unexpected_body",
)


def _dead_filter(command: Any) -> Any:
    """The options that say which dead letters are meant."""
    for option in (
        set_option,
        config_option,
        click.option("--until", metavar="TIME", help="Only those that died before."),
        click.option("--since", metavar="TIME", help="Only those that died since: 30m, 2h, 3d, or an ISO time."),
        click.option("--id", "postback_id", metavar="ID", callback=hex_digits, help="Only this one."),
        click.option("--reason", type=click.Choice(REASONS), help="Only those that died of this."),
        click.option("--endpoint", metavar="HEX", callback=hex_digits, help="Only those of this endpoint."),
        click.option("--host", help="Only those for this host; without a port, at any."),
    ):
        command = option(command)
    return command


_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
_overflow_option = click.option("--overflow", is_flag=True, help="Those that the cap moved to dead-overflow.jsonl.")


def _open_dead(config: str | None, overrides: tuple[str, ...], overflow: bool = False) -> Any:
    from postbackd.queue.dead_letters import DeadLetters
    from postbackd.queue.dead_overflow import NAME, OverflowLetters
    from postbackd.queue.durability import Durability
    from postbackd.queue.embedded import running_url

    settings = load_settings(config, overrides)
    url = running_url(settings.queue, settings.data_dir)
    if overflow:
        path, queue = Path(settings.data_dir) / NAME, settings.queue
        return OverflowLetters(path, url, queue.prefix, queue.shards, Durability(queue))
    return DeadLetters(url, settings.queue.prefix, settings.queue.shards)


def _refuse_none(options: dict[str, Any], dry_run: bool) -> None:
    """What changes something wants to be told which ones; to count needs no leave."""
    if not options.pop("all") and not any(options.values()) and not dry_run:
        raise ConfigError("name which ones (--host, --endpoint, --reason, --id, --since, --until), or say --all")


def _filter(letters: Any, options: dict[str, Any]) -> Any:
    """Which ones are meant; times count from the queue server's clock, by which they died."""
    from postbackd.queue.dead_letters import Filter
    from postbackd.tools.dead import parse_time_ms

    now_s = letters.now_ms() / 1000
    since, until, host = options.pop("since"), options.pop("until"), options.pop("host")
    return Filter(
        **options,
        host=None if host is None else host.lower(),
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

    letters = _open_dead(config, overrides, overflow)
    sys.exit(list_letters(letters, _filter(letters, options), limit, as_json))


@dead.command(name="show")
@click.argument("postback_id", metavar="ID", callback=hex_digits)
@click.option("--json", is_flag=True, expose_value=False, help="As JSON, which it is anyway.")
@_overflow_option
@config_option
@set_option
def dead_show(postback_id: str, overflow: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show all that is known of one. Its attempts, its endpoint, its last answer, as JSON."""
    from postbackd.tools.dead import show_letter

    sys.exit(show_letter(_open_dead(config, overrides, overflow), postback_id, overflow))


@dead.command(name="replay")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--all", is_flag=True, help="All of them, without a filter.")
@_json_option
@_overflow_option
@_dead_filter
def dead_replay(
    rate: float | None,
    dry_run: bool,
    as_json: bool,
    overflow: bool,
    config: str | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Give them back to the queue: attempts and expiry count anew. Wants a filter, or --all."""
    from postbackd.tools.dead import replay_letters

    _refuse_none(options, dry_run)
    letters = _open_dead(config, overrides, overflow)
    sys.exit(replay_letters(letters, _filter(letters, options), rate, dry_run, as_json))


@dead.command(name="purge")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--all", is_flag=True, help="All of them, without a filter.")
@_json_option
@_dead_filter
def dead_purge(dry_run: bool, as_json: bool, config: str | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Delete them for ever. Wants a filter, or --all."""
    from postbackd.tools.dead import purge_letters

    _refuse_none(options, dry_run)
    letters = _open_dead(config, overrides)
    sys.exit(purge_letters(letters, _filter(letters, options), dry_run, as_json))
