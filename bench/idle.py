# SPDX-License-Identifier: MIT
"""What an idle daemon costs: commands it sends to Redis, and CPU of all its processes.

    python -m bench.idle [--seconds 20] [--json]

The daemon runs with its default number of workers, and its admin process, which looks at an idle queue every 10 s.
Commands come from the server's commandstats: those that the daemon sends, and apart from them those that its scripts
run inside the server, among which are the admin process' own (they have the same names).
"""

import time
from typing import Any

import click

from bench.support import cpu_s, daemon, free_port, queue_server, report

SENT = ("evalsha", "blmove", "rpush", "ping", "mget")  # TIME and the rest run inside the scripts of an idle daemon


@click.command()
@click.option("--seconds", default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(seconds: int, as_json: bool) -> None:
    """Measure an idle daemon."""
    with (
        queue_server("everysec") as (url, client),
        daemon(url, None, "ingest,deliver,admin", [f"admin.port={free_port()}"]) as running,
    ):
        time.sleep(2)  # the first claims are over
        client.config_resetstat()
        roles = ("supervisor", "ingest", "deliver", "admin")
        pids = {role: running.pids(role) for role in roles}
        before = {role: sum(map(cpu_s, pids[role])) for role in roles}
        time.sleep(seconds)
        used = {role: (sum(map(cpu_s, pids[role])) - before[role]) / seconds * 100 for role in roles}
        calls = {
            name.removeprefix("cmdstat_"): int(stat["calls"])
            for name, stat in client.info("commandstats").items()
            if name != "cmdstat_config|resetstat" and name != "cmdstat_info"
        }
    sent = sum(count for name, count in calls.items() if name in SENT) / seconds
    inner = sum(count for name, count in calls.items() if name not in SENT) / seconds
    figures: dict[str, Any] = {"commands_per_s": sent, "inner_commands_per_s": inner, "cpu_percent": sum(used.values())}
    rows = [
        ("commands/s sent to Redis, all processes", f"{sent:.2f}"),
        ("commands/s that these run inside (scripts; no round trip)", f"{inner:.2f}"),
        *((f"CPU % of {len(pids[role])} {role} process(es)", f"{used[role]:.2f}") for role in roles),
        ("CPU % in all", f"{sum(used.values()):.2f}"),
    ]
    report(f"idle: {seconds} s", rows, figures, as_json)


if __name__ == "__main__":
    main()
