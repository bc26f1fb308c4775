# SPDX-License-Identifier: MIT
"""/metrics: the daemon in Prometheus' text format. Every name, its labels and its unit are listed in docs/metrics.md.

A collector that reads what the observer sees: nothing is counted here. Series that can be known beforehand are there
from the start with 0, so that their first increase is not missed.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from postbackd import __version__, tally
from postbackd.admin import totals
from postbackd.admin.observer import Observer
from postbackd.codec import ErrorClass
from postbackd.scoreboard import Cell

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
NEVER_TRIED = {ErrorClass.EXPIRED, ErrorClass.ENDPOINT_MISSING}  # no attempt ends so
OUTCOMES = {"delivered": Cell.DELIVERED, "retry": Cell.RETRIED, "dead": Cell.DEAD}
COUNTERS = {
    "postbackd_ingest_postbacks_total": (Cell.ACCEPTED, "Postbacks acknowledged."),
    "postbackd_retries_total": (Cell.RETRIED, "Attempts after which another one is due."),
    "postbackd_parked_total": (Cell.PARKED, "Postbacks put off without an attempt: host full, shut or slow."),
    "postbackd_leases_reclaimed_total": (Cell.RECLAIMED, "Leases taken back from workers that died or went silent."),
    "postbackd_spooled_total": (Cell.SPOOLED, "Postbacks acknowledged from the local spool, Redis being away."),
    "postbackd_spooled_unsure_total": (Cell.UNSURE, "Requests spooled although Redis may have taken them: sent twice."),
    "postbackd_replayed_total": (Cell.REPLAYED, "Postbacks of the spool that were enqueued."),
    "postbackd_redis_errors_total": (Cell.REDIS_ERRORS, "Failed calls to the queue server, and lost connections."),
    "postbackd_ingest_connections_cut_total": (Cell.CONNECTIONS_CUT, "Connections cut over a limit of [ingest]."),
    "postbackd_ingest_tokens_refused_total": (Cell.TOKENS_REFUSED, "Requests with a token missing or unknown."),
    "postbackd_ingest_misframed_total": (Cell.MISFRAMED, "Requests refused since their framing was not clear."),
    "postbackd_log_lines_lost_total": (Cell.LOG_LINES_LOST, "Lines of the delivery log that could not be written."),
}


class DaemonCollector(Collector):
    """Reads the observer each time it is asked."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        """Every metric of the daemon."""
        sums = self._observer.sums()
        yield from _traffic(sums)
        yield from self._gauges(sums)
        yield from self._queue()
        yield from self._hosts()
        yield from self._daemon()

    def _gauges(self, sums: Sequence[int]) -> Iterator[Metric]:
        in_flight, capacity = sums[Cell.IN_FLIGHT], self._observer.capacity()
        yield GaugeMetricFamily("postbackd_inflight", "Transfers under way.", in_flight)
        yield GaugeMetricFamily(
            "postbackd_worker_saturation_ratio",
            "Transfers under way, as a share of what all delivery workers may have.",
            in_flight / capacity if capacity else 0.0,
        )
        size, limit = self._observer.spool[0], self._observer.settings.spool.max_bytes
        yield GaugeMetricFamily("postbackd_spool_bytes", "Size of the local spool.", size)
        yield GaugeMetricFamily("postbackd_spool_max_bytes", "Size beyond which ingest answers 503.", limit)

    def _queue(self) -> Iterator[Metric]:
        """The queue; no depth is told while it cannot be known."""
        figures = self._observer.figures
        yield GaugeMetricFamily("postbackd_queue_up", "1 when the queue server answers.", int(figures.reachable))
        if not figures.reachable:
            return
        depth = GaugeMetricFamily("postbackd_queue_depth", "Postbacks in the queue, by state.", labels=["state"])
        for state in ("ready", "leased", "later", "dead"):
            depth.add_metric([state], getattr(figures, state))
        yield depth
        yield GaugeMetricFamily(
            "postbackd_queue_shards_away", "Shards whose server does not answer.", figures.shards_away
        )
        yield GaugeMetricFamily(
            "postbackd_oldest_ready_seconds",
            "How long the oldest ready postback has been due; 0 when none waits.",
            figures.oldest_ready_s or 0.0,
        )
        yield GaugeMetricFamily(
            "postbackd_queue_memory_bytes", "Memory that the queue server uses.", figures.used_memory_bytes
        )
        yield GaugeMetricFamily(
            "postbackd_queue_max_memory_bytes",
            "Its maxmemory, beyond which requests are refused; 0 = no limit.",
            figures.max_memory_bytes,
        )

    def _hosts(self) -> Iterator[Metric]:
        """The 50 busiest hosts, and `other`, which is all the rest."""
        breaker = GaugeMetricFamily(
            "postbackd_breaker_state", "0 closed, 1 half open, 2 open: nothing is sent.", labels=["host"]
        )
        attempts = CounterMetricFamily("postbackd_host_attempts_total", "Attempts, by host.", labels=["host"])
        delivered = CounterMetricFamily("postbackd_host_delivered_total", "Deliveries, by host.", labels=["host"])
        series = self._observer.host_series
        for host, figures in [*series.shown.items(), (totals.OTHER, series.other)]:
            breaker.add_metric([host], figures.breaker)
            attempts.add_metric([host], figures.attempts)
            delivered.add_metric([host], figures.delivered)
        yield from (breaker, attempts, delivered)

    def _daemon(self) -> Iterator[Metric]:
        workers = GaugeMetricFamily("postbackd_workers", "Worker processes that run, by role.", labels=["role"])
        restarts = CounterMetricFamily(
            "postbackd_worker_restarts_total", "Workers started again after their death, by role.", labels=["role"]
        )
        alive = [worker["role"] for worker in self._observer.workers() if worker["alive"]]
        for role, count in self._observer.restarts().items():
            restarts.add_metric([role], count)
            if role != "admin":
                workers.add_metric([role], alive.count(role))
        yield from (workers, restarts)
        yield GaugeMetricFamily("postbackd_ready", "1 when /ready says so.", int(not self._observer.reasons()))
        info = GaugeMetricFamily("postbackd_build_info", "1; the version is a label.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def _traffic(sums: Sequence[int]) -> Iterator[Metric]:
    requests = CounterMetricFamily("postbackd_ingest_requests_total", "Requests answered, by code.", labels=["code"])
    for code, count in {"202": 0, "503": 0, **totals.by_code(sums)}.items():
        requests.add_metric([code], count)
    yield requests
    unavailable = CounterMetricFamily(
        "postbackd_ingest_unavailable_total", "Requests answered 5xx, by error code.", labels=["error"]
    )
    for error, count in {**dict.fromkeys(tally.UNAVAILABLE, 0), **totals.by_error(sums)}.items():
        unavailable.add_metric([error], count)
    yield unavailable
    for name, (cell, text) in COUNTERS.items():
        yield CounterMetricFamily(name, text, sums[cell])
    outcomes = CounterMetricFamily(
        "postbackd_deliveries_total", "Outcomes, as in the delivery log.", labels=["outcome"]
    )
    for outcome, cell in OUTCOMES.items():
        outcomes.add_metric([outcome], sums[cell])
    yield outcomes
    yield _attempts(sums)
    dead = CounterMetricFamily("postbackd_dead_total", "Dead letters made, by reason.", labels=["reason"])
    for reason, count in {**dict.fromkeys(tally.REASONS, 0), **totals.by_reason(sums)}.items():
        dead.add_metric([reason], count)
    yield dead
    yield _histogram(
        "postbackd_attempt_duration_seconds",
        "Time of attempts that had a connection.",
        totals.durations(sums),
        sums[tally.DURATION_SUM_AT] / 1e6,
    )
    yield _histogram(
        "postbackd_delivery_lag_seconds",
        "From when a postback was due (accepted, deliver_at or replayed) to its first attempt.",
        totals.lags(sums),
        sums[tally.LAG_SUM_AT] / 1e3,
    )
    connections = CounterMetricFamily(
        "postbackd_connections_total", "Attempts by whether their connection was open already.", labels=["reused"]
    )
    connections.add_metric(["false"], sums[tally.NEW_CONNECTIONS_AT])
    connections.add_metric(["true"], sums[tally.REUSED_CONNECTIONS_AT])
    yield connections


def _attempts(sums: Sequence[int]) -> Metric:
    """By class and method: every class of every method that was ever used."""
    counted = {(name, method): count for name, method, count in totals.by_class_and_method(sums)}
    names = [name for number, name in totals.CLASS_NAMES.items() if number not in NEVER_TRIED]
    methods = sorted({method for _, method in counted} | {"GET"})
    attempts = CounterMetricFamily(
        "postbackd_attempts_total",
        "HTTP attempts; class is ok or an error of the delivery log.",
        labels=["class", "method"],
    )
    for key in dict.fromkeys([*((name, method) for name in names for method in methods), *counted]):
        attempts.add_metric(list(key), counted.get(key, 0))
    return attempts


def _histogram(name: str, text: str, histogram: totals.Histogram, total_s: float) -> Metric:
    buckets, below = [], 0
    for bound_ms, count in zip(histogram.bounds, histogram.buckets, strict=False):
        below += count
        buckets.append((str(bound_ms / 1000), float(below)))
    buckets.append(("+Inf", float(below + histogram.buckets[-1])))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total_s)


class Metrics:
    """The text of /metrics."""

    def __init__(self, observer: Observer) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(DaemonCollector(observer))

    def text(self) -> bytes:
        """Everything as of now."""
        return generate_latest(self._registry)
