# SPDX-License-Identifier: MIT
"""`postbackd status`: one look at a running daemon, for a person or as JSON."""

import click
import msgspec
from rich.console import Console

from postbackd.errors import ExitCode
from postbackd.settings import Settings
from postbackd.suggestion import command
from postbackd.tools.admin_client import AdminClient
from postbackd.tools.board import cluster_table, headline, host_table, sorted_hosts, summary, worker_table

PIPE_COLUMNS = 160  # in a pipe there is no width to keep to
HOSTS_SHOWN = 20


def status(settings: Settings, as_json: bool, cluster: bool) -> int:
    """Print it; exit code 1 where the daemon is not ready. Raises PostbackdError where none answers."""
    client = AdminClient(settings)
    stats = client.get("/stats")
    if stranger := client.stranger(stats):
        click.echo(f"postbackd: {stranger}", err=True)
    code = ExitCode.OK if stats["ready"] else ExitCode.FAILED
    if as_json:
        click.echo(msgspec.json.encode(stats["cluster"] if cluster else stats))
        return code
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    if cluster:
        console.print(cluster_table(stats["cluster"]))
        return code
    console.print(headline(stats), summary(stats, client.address), "", sep="\n")
    hosts = sorted_hosts(stats["hosts"], "trouble")
    console.print(host_table(hosts[:HOSTS_SHOWN]))
    if len(hosts) > HOSTS_SHOWN:
        console.print(f"… and {len(hosts) - HOSTS_SHOWN} more: {command('status --json')}", style="dim")
    console.print("", worker_table(stats["workers"]), sep="\n")
    return code
