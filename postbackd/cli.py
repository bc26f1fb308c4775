# SPDX-License-Identifier: MIT
"""The command line: commands, options and exit codes; parses, calls, nothing else."""

import sys
from pathlib import Path

import click

from postbackd import __version__
from postbackd.cli_dead import dead
from postbackd.cli_options import (
    Commands,
    SpreadFiles,
    config_option,
    files,
    hex_digits,
    load_settings,
    set_option,
)
from postbackd.cli_watch import status, tail, top
from postbackd.errors import ConfigError

ROLES = ("ingest", "deliver", "admin")


EPILOG = """\b
Every command but sink takes its settings, the later one winning, from
  -c FILE                      a TOML file; else the one that POSTBACKD_CONFIG names, else none is read
  POSTBACKD_INGEST__PORT=9000  the environment: POSTBACKD_<SECTION>__<KEY>, POSTBACKD_DATA_DIR
  --set ingest.port=9000       any number of times
`postbackd config` prints them all. Exit code: 0 well, 1 failed, 2 wrong usage or configuration."""


HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(cls=Commands, context_settings=HELP, epilog=EPILOG)
@click.version_option(__version__, prog_name="postbackd")
def main() -> None:
    """Deliver postbacks: POST one request, and every data object in it becomes one HTTP call, at least once."""


def _roles(_context: click.Context, _parameter: click.Parameter, value: str) -> frozenset[str]:
    chosen = frozenset(role.strip() for role in value.split(",") if role.strip())
    if not chosen or not chosen <= set(ROLES):
        raise ConfigError(f"--roles {value}: choose from {', '.join(ROLES)}")
    return chosen


roles_option = click.option(
    "--roles",
    default="ingest,deliver,admin",
    show_default=True,
    callback=_roles,
    help="What this daemon does, comma-separated.",
)


@main.command()
@config_option
@set_option
@roles_option
def run(config: str | None, overrides: tuple[str, ...], roles: frozenset[str]) -> None:
    """Run the daemon in the foreground."""
    from postbackd.queue.check import refuse_denied
    from postbackd.queue.worker_number import has_numbers
    from postbackd.supervisor import run as run_supervisor

    settings = load_settings(config, overrides)
    if not has_numbers(Path(settings.data_dir)):  # else it was right once: starting serves better than not starting
        refuse_denied(settings.queue.url)
    sys.exit(run_supervisor(settings, roles, lambda: load_settings(config, overrides)))


@main.command()
@config_option
@set_option
@roles_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(config: str | None, overrides: tuple[str, ...], roles: frozenset[str], as_json: bool) -> None:
    """Say what is wrong here, and how to mend it. Looks at configuration, Redis, ports, limits and files."""
    from postbackd.tools.check import check as run_check

    sys.exit(run_check(load_settings(config, overrides), config, roles, as_json))


@main.command(name="config")
@config_option
@set_option
def show_config(config: str | None, overrides: tuple[str, ...]) -> None:
    """Print the configuration in force as TOML; secrets are masked."""
    from postbackd.settings_loader import render_toml

    click.echo(render_toml(load_settings(config, overrides)), nl=False)


@main.command()
@click.argument("file", default="-", metavar="[FILE|-]")
@click.option("--url", help="Where to post; by default the ingest address of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
@config_option
@set_option
def send(file: str, url: str | None, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Post one request and print the ids. It is read from FILE, or from standard input."""
    from postbackd.tools.send import send as run_send

    sys.exit(run_send(load_settings(config, overrides), file, url, as_json))


@main.command()
@click.argument("file", metavar="FILE|-")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@config_option
@set_option
def render(file: str, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show what the request in FILE would send. Item by item, and what is wrong with it; nothing is sent."""
    from postbackd.tools.render import render as run_render

    sys.exit(run_render(load_settings(config, overrides), file, as_json))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8888, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--status", default=200, show_default=True, type=click.IntRange(200, 599), help="Status of every answer.")
@click.option("--latency", default=0.0, type=click.FloatRange(0), help="Seconds before each answer.")
@click.option("--fail-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests that fail.")
@click.option("--fail-status", default=500, show_default=True, type=click.IntRange(400, 599), help="What those get.")
@click.option("--retry-after", type=click.IntRange(0), help="Retry-After, in seconds, of every answer of 400 and more.")
@click.option(
    "--drop-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests whose connection is closed."
)
@click.option("--hang-rate", default=0.0, type=click.FloatRange(0, 1), help="Share of requests never answered.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Append each request as a JSON line.")
@click.option("--quiet", is_flag=True, help="No line for each request, which costs half of its speed.")
def sink(
    host: str,
    port: int,
    status: int,
    latency: float,
    fail_rate: float,
    fail_status: int,
    retry_after: int | None,
    drop_rate: float,
    hang_rate: float,
    record: Path | None,
    quiet: bool,
) -> None:
    """Run a target that shows and records what arrives. With faults on order."""
    from postbackd.tools.sink import Options, Sink

    options = Options(status, latency, fail_rate, drop_rate, hang_rate, fail_status, retry_after)
    target = Sink(host, port, options, record, None if quiet else sys.stdout)
    click.echo(
        f"sink listens on http://{host}:{target.port}/ and answers {status}"
        + (f", recording to {record}" if record else "")
    )
    click.echo(f"sink received {target.run()} requests")


@main.command(cls=SpreadFiles)
@click.option("--sent", required=True, multiple=True, callback=files, help="Answers of ingest, or ids; also .gz.")
@click.option(
    "--received", required=True, multiple=True, callback=files, help="A sink's record, delivery log, or ids; also .gz."
)
@click.option("--show", default=10, show_default=True, type=click.IntRange(0), help="How many ids to name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every id.")
@config_option
@set_option
def audit(
    sent: tuple[Path, ...],
    received: tuple[Path, ...],
    show: int,
    as_json: bool,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Compare what was acknowledged with what arrived. What did not is looked for in the queue, spool and dead letters
    of this configuration (so give the daemon's): exit code 1 when anything is lost, which what waits there is not.

    --sent and --received take several files each, and patterns: --received 'deliveries.jsonl*'."""
    from postbackd.tools.audit import audit as run_audit
    from postbackd.tools.whereabouts import look_for

    settings = load_settings(config, overrides)
    sys.exit(run_audit(sent, received, show, as_json, lambda missing: look_for(settings, missing)))


@main.command()
@click.argument("postback_id", metavar="ID", callback=hex_digits)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@config_option
@set_option
def explain(postback_id: str, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Tell one postback's story. Where it is, each attempt, when the next is due."""
    from postbackd.tools.explain import explain as run_explain

    sys.exit(run_explain(load_settings(config, overrides), postback_id, as_json))


for _command in (dead, status, tail, top):
    main.add_command(_command)


if __name__ == "__main__":
    main()
