# SPDX-License-Identifier: MIT
"""What `postbackd status` and `top` show of an answer of /stats (docs/api.md). Pure: figures in, rich's tables out."""

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from postbackd.tools.figures import DASH, count, ms, percent, rate, size, span
from postbackd.tools.plain_text import printable

Stats = dict[str, Any]
Host = dict[str, Any]

FEW_FAILURES = 0.99  # of a host's attempts succeed: below it is marked
SORTS = ("trouble", "rate", "p99", "in flight")


def headline(stats: Stats) -> Text:
    """Who it is, how long it runs, whether it is ready and why not."""
    text = Text.assemble(
        ("postbackd ", "bold"),
        stats["version"],
        " on ",
        (printable(stats["node"]), "bold"),
        f", up {span(stats['uptime_s'])}, ",
    )
    if stats["ready"]:
        return text.append(stats["state"] + ", ready", "green")
    reasons = "; ".join(printable(reason) for reason in stats["reasons"]) or "no reason given"
    return text.append(f"{stats['state']}, NOT READY: {reasons}", "bold red")


def summary(stats: Stats, asked: str) -> Table:
    """Which daemon answered where, the figures of the last ten seconds, queue, spool and workers, one line each."""
    now, queue, spool, workers = stats["now"], stats["queue"], stats["spool"], stats["workers"]
    latency, lag = now["latency_ms"], now["lag_ms"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    place = f"{asked}, data_dir {printable(stats['data_dir'])}" if "data_dir" in stats else asked
    table.add_row("daemon", Text(place, "dim", overflow="ellipsis", no_wrap=True))
    table.add_row(
        "volume",
        f"in {rate(now['in_per_s'])}/s   out {rate(now['out_per_s'])}/s   attempts {rate(now['attempts_per_s'])}/s   "
        f"retry {rate(now['retried_per_s'])}/s   dead {rate(now['dead_per_s'])}/s",
    )
    if refused := stats.get("refused_last_minute"):
        text = "   ".join(f"{count(number)} {code}" for code, number in refused.items())
        table.add_row("refused", Text(f"{text}   answered 5xx in the last minute", "bold red"))
    table.add_row("success", _success(now["success_ratio"]))
    table.add_row(
        "answers",
        f"p50 {ms(latency['p50'])}   p90 {ms(latency.get('p90'))}   p99 {ms(latency['p99'])}   "
        f"accepted to sent: p50 {ms(lag['p50'])}   p99 {ms(lag['p99'])}",
    )
    table.add_row("queue", _queue(queue))
    if reasons := stats["totals"]["dead_by_reason"]:
        text = "   ".join(f"{count(number)} {reason}" for reason, number in reasons.items())
        table.add_row("given up", text + "   since the start")
    table.add_row("spool", _spool(spool))
    table.add_row("workers", _workers(workers, now))
    if refused_reload := stats.get("reload_refused"):
        text = f"REFUSED, the configuration before it goes on: {printable(refused_reload)}"
        table.add_row("reload", Text(text, "bold red"))
    if stats["log"]["lines_lost"]:
        table.add_row(
            "log", Text(f"{count(stats['log']['lines_lost'])} lines LOST: {stats['log']['path']}", "bold red")
        )
    return table


def _success(ratio: float | None) -> Text:
    if ratio is None:
        return Text("no attempt in the last 10 s", "dim")
    return Text(
        percent(ratio) + " of attempts", "" if ratio >= FEW_FAILURES else "bold red" if ratio < 0.5 else "yellow"
    )


def _queue(queue: dict[str, Any]) -> Text:
    if not queue["reachable"]:
        return Text(f"AWAY: {printable(str(queue['error']))}", "bold red")
    oldest = "" if queue["oldest_ready_s"] is None else f" (oldest {span(queue['oldest_ready_s'])})"
    text = Text()
    if queue.get("shards_away"):
        text.append(f"{count(queue['shards_away'])} SHARDS AWAY ({printable(str(queue['error']))})   ", "bold red")
    text.append(
        f"{count(queue['ready'])} ready{oldest}   {count(queue['leased'])} leased   {count(queue['later'])} later   "
    )
    text.append(f"{count(queue['dead'])} dead", "yellow" if queue["dead"] else "")
    limit = queue.get("max_memory_bytes") or 0
    used = size(queue["used_memory_bytes"]) + (f" of {size(limit)}" if limit else "")
    return text.append(f"   {used} in {queue['server'] or 'redis'}", "bold red" if queue.get("shards_full") else "dim")


def _spool(spool: dict[str, Any]) -> Text:
    if spool.get("disk_full"):
        return Text(f"DISK FULL, nothing can be spooled; {size(spool['bytes'])} in it", "bold red")
    if not spool["bytes"]:
        return Text("empty", "dim")
    return Text(
        f"IN USE: {size(spool['bytes'])} of {size(spool['max_bytes'])} in {count(spool['files'])} files", "yellow"
    )


def _workers(workers: list[dict[str, Any]], now: dict[str, Any]) -> Text:
    text = Text()
    for role in ("ingest", "deliver"):
        ours = [worker for worker in workers if worker["role"] == role]
        if ours:
            alive = sum(worker["alive"] for worker in ours)
            text.append(f"{role} {alive} of {len(ours)}   ", "" if alive == len(ours) else "bold red")
    restarts = sum(worker["restarts"] for worker in workers)
    text.append(f"restarts {count(restarts)}   ", "yellow" if restarts else "")
    return text.append(f"in flight {count(now['in_flight'])} ({percent(now['saturation'])} of what they may)")


def is_in_trouble(host: Host) -> bool:
    """Its breaker is not closed, it is paused, or it fails noticeably."""
    ratio = host["success_ratio"]
    return host["breaker"] != "closed" or host["paused_s"] > 0 or (ratio is not None and ratio < FEW_FAILURES)


def sorted_hosts(hosts: list[Host], sort: str) -> list[Host]:
    """The worst, or the busiest, first; `other` last."""
    keys = {
        "trouble": lambda h: (
            is_in_trouble(h),
            h["breaker"] == "open",
            1 - _or(h["success_ratio"], 1),
            h["attempts_per_s"],
        ),
        "rate": lambda h: (h["attempts_per_s"], h["attempts"]),
        "p99": lambda h: (_or(h["p99_ms"], -1), h["attempts_per_s"]),
        "in flight": lambda h: (h["in_flight"], h["attempts_per_s"]),
    }
    named = [host for host in hosts if host["host"] != "other"]
    return sorted(named, key=keys[sort], reverse=True) + [host for host in hosts if host["host"] == "other"]


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def host_table(hosts: list[Host], title: str | None = None) -> RenderableType:
    """One row a host."""
    if not hosts:
        return Text("no host was tried yet", "dim")
    table = Table(
        title=title, title_justify="left", title_style="dim", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    table.add_column("host", no_wrap=True, overflow="ellipsis", min_width=16, ratio=1)
    for name in ("tries/s", "success", "p50", "p99", "in flight", "retried", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("breaker", no_wrap=True)
    for host in hosts:
        ratio = host["success_ratio"]
        table.add_row(
            Text(("! " if is_in_trouble(host) else "  ") + printable(host["host"])),
            rate(host["attempts_per_s"]),
            Text(
                percent(ratio),
                "" if ratio is None or ratio >= FEW_FAILURES else "bold red" if ratio < 0.5 else "yellow",
            ),
            ms(host["p50_ms"]),
            ms(host["p99_ms"]),
            count(host["in_flight"]) + (f"/{count(host['limit'])}" if host["limit"] else ""),
            count(host["retried"]),
            Text(count(host["dead"]), "yellow" if host["dead"] else ""),
            _breaker(host),
        )
    return table


def _breaker(host: Host) -> Text:
    state = host["breaker"].replace("_", " ")
    if host["breaker"] == "open":
        return Text(f"OPEN, probe in {span(host['paused_s'])}", "bold red")
    if host["paused_s"] > 0:
        return Text(f"{state}, paused {span(host['paused_s'])}", "yellow")
    return Text(state, "dim" if host["breaker"] == "closed" else "yellow")


def worker_table(workers: list[dict[str, Any]]) -> Table:
    """One row a worker."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("worker", "pid", "in flight", "waiting", "last beat", "restarts"):
        table.add_column(name, justify="left" if name == "worker" else "right", no_wrap=True)
    table.add_column("")
    for worker in workers:
        is_deliver = worker["role"] == "deliver"
        table.add_row(
            f"{worker['role']} {worker['slot']}",
            str(worker["pid"] or DASH),
            count(worker["in_flight"]) if is_deliver else DASH,
            count(worker["waiting"]) if is_deliver else DASH,
            span(worker["heartbeat_age_s"]),
            Text(count(worker["restarts"]), "yellow" if worker["restarts"] else ""),
            Text("") if worker["alive"] else Text("DOWN", "bold red"),
        )
    return table


def cluster_table(daemons: list[dict[str, Any]]) -> Table:
    """One row a daemon that shares the queue, and their sum."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("machine", "version", "state", "in/s", "out/s", "in flight", "spool", "workers", "seen"):
        table.add_column(name, justify="left" if name in ("machine", "version", "state") else "right", no_wrap=True)
    for daemon in daemons:
        table.add_row(
            printable(daemon["node"]),
            daemon["version"],
            Text(daemon["state"] + ("" if daemon["ready"] else ", NOT READY"), "" if daemon["ready"] else "bold red"),
            rate(daemon["in_per_s"]),
            rate(daemon["out_per_s"]),
            count(daemon["in_flight"]),
            size(daemon["spool_bytes"]),
            count(daemon["workers"]),
            f"{span(daemon['seen_ms_ago'] / 1000)} ago",
        )
    summed = ("in_per_s", "out_per_s", "in_flight", "spool_bytes", "workers")
    in_per_s, out_per_s, in_flight, spool_bytes, workers = (sum(daemon[name] for daemon in daemons) for name in summed)
    table.add_row(
        Text(f"all {len(daemons)}", "bold"),
        *("", "", rate(in_per_s), rate(out_per_s), count(in_flight), size(spool_bytes), count(workers), ""),
    )
    return table
