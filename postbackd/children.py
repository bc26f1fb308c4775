# SPDX-License-Identifier: MIT
"""What runs in the supervisor's children: their parts put together, from the first connection to the exit code.

Everything that holds a connection, a thread or a file is made here, after the fork.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from postbackd import oplog
from postbackd.admin.app import create_app as create_admin_app
from postbackd.admin.facts import DaemonFacts
from postbackd.admin.observer import Observer
from postbackd.clock import Clock
from postbackd.delivery.curl_options import CurlOptions
from postbackd.delivery.egress import Policy
from postbackd.delivery.endpoints import Endpoints
from postbackd.delivery.host_report import HostReport
from postbackd.delivery.intake import Intake
from postbackd.delivery.log import DeliveryLog
from postbackd.delivery.names import Names
from postbackd.delivery.outcome import RetryPolicy
from postbackd.delivery.pace import Pace
from postbackd.delivery.recall import Recaller
from postbackd.delivery.recorder import Delivery, Recorder
from postbackd.delivery.resolver import Resolver
from postbackd.delivery.shard import Settler, Shard, waits_at
from postbackd.delivery.transfer import Transfers
from postbackd.delivery.worker import DeliveryWorker
from postbackd.errors import BootError, ExitCode, LeaseLostError, QueueAwayError, QueueUnavailableError
from postbackd.group_commit import GroupCommit
from postbackd.host_board import HostBoard
from postbackd.ingest import IngestDoor, create_app
from postbackd.limits import worker_count
from postbackd.queue.check import MEND_AWAY, refuse_evicting, refuse_unfit
from postbackd.queue.dead_keeper import DeadKeeper
from postbackd.queue.durability import Durability
from postbackd.queue.enqueuer import Enqueuer
from postbackd.queue.figures import FigureReader
from postbackd.queue.idle_wait import IdleWait
from postbackd.queue.keys import Keys
from postbackd.queue.lease_client import LeaseClient
from postbackd.queue.link import REPLY_TIMEOUT_S, Link
from postbackd.queue.route import route_to
from postbackd.queue.shard_replay import ShardReplay
from postbackd.queue.spool import Spool
from postbackd.queue.spool_replay import SpoolReplay
from postbackd.queue.spooling import ShardedQueue, SpoolingQueue
from postbackd.queue.wire import Wire
from postbackd.queue.worker_number import WorkerNumber, has_numbers
from postbackd.request_body import MAX_NDJSON_BYTES
from postbackd.scoreboard import Cell, monotonic_ms
from postbackd.senders import Senders
from postbackd.server.held import Holder
from postbackd.server.listener import serve
from postbackd.server.watch import Limits
from postbackd.settings import Ingest, Settings
from postbackd.signing import SigningKeys
from postbackd.stack_sampler import StackSampler
from postbackd.tally import CodeCounter
from postbackd.worker_pool import SlotContext

QUEUE_WAIT_S = 10.0  # for a queue server that starts at the same time as we do
ADMIN_DRAIN_S = 2.0  # whoever looks on needs no more
ADMIN_LIMITS = Limits(512, 0, idle_ms=60_000, request_ms=20_000, body_bytes=1 << 20, arriving_bytes=64 << 20)
SHARD_REPLY_TIMEOUT_S = 2.0  # where other shards can take what a silent one does not: all of a process waits for it
SHORT_QUEUE_WAIT_S = 1.0  # where we can do without it for a while


def _sampler(context: SlotContext, settings: Settings, on_signal: Callable[[], None] = lambda: None) -> StackSampler:
    return StackSampler(Path(settings.data_dir), context.role, context.index, os.getpid(), on_signal)


def _redis_error_counter(context: SlotContext) -> "_Counter":
    return _Counter(context.cells, Cell.REDIS_ERRORS)


class _Counter:
    """Adds one to a cell each time it is called."""

    def __init__(self, cells: "memoryview[int]", cell: Cell) -> None:
        self._cells = cells
        self._cell = cell

    def __call__(self) -> None:
        self._cells[self._cell] += 1


def _look_at_queue(
    context: SlotContext, settings: Settings, url: str, prove: Callable[[Wire], None] = lambda wire: None
) -> None:
    """Refuse an unfit queue server; the first worker of a role says what is to be warned of.

    A server that cannot be reached is refused too, unless this data_dir has been used before: then the configuration
    was right once, and starting serves better than not starting (ingest spools, delivery waits).
    """
    was_right_once = has_numbers(Path(settings.data_dir))
    try:
        wait_s = SHORT_QUEUE_WAIT_S if was_right_once else QUEUE_WAIT_S
        found = refuse_unfit(url, wait_s, lambda: None, settings.queue.shards)
        _prove_each(url, settings.queue.shards, prove)
    except QueueAwayError as error:
        if not was_right_once:
            raise
        if context.index == 0:
            oplog.error("redis_away", error=str(error), hint="started all the same; requests are spooled until then")
        return
    for finding in found:
        if context.index == 0:
            oplog.warning("queue_server", finding=finding.text)


def _prove_each(url: str, shards: int, prove: Callable[[Wire], None]) -> None:
    """Raise BootError for a server that answers and must not be used, QueueAwayError for one that has gone away since
    it was looked at: that ended a daemon whose worker was started at such a moment."""
    for shard in range(shards):
        try:
            with contextlib.closing(route_to(url).open(shard, REPLY_TIMEOUT_S)) as wire:
                try:
                    prove(wire)
                except QueueUnavailableError as error:
                    if wire.is_open:
                        raise BootError(str(error)) from None
                    raise
        except QueueUnavailableError as error:
            raise QueueAwayError(f"queue: {error} {MEND_AWAY}") from None


def ingest_main(context: SlotContext, settings: Settings, listener: socket.socket, url: str) -> int:
    """An ingest process: take requests until SIGTERM, then answer what was read."""
    data_dir = Path(settings.data_dir)
    _sampler(context, settings).install()
    clock = Clock()
    durability = Durability(settings.queue)
    _look_at_queue(context, settings, url, durability.prove)
    route_to(url).watch()
    spool = Spool(data_dir / "spool", context.place, settings.spool.max_bytes)
    queues: list[SpoolingQueue] = []
    replays: list[ShardReplay] = []
    for shard in range(settings.queue.shards):
        main_link, replay_link = (_link(context, settings, url, shard, clock, durability) for _ in range(2))
        keys = Keys(settings.queue.prefix, shard)
        enqueuer = Enqueuer(main_link, keys, -(-settings.queue.max_depth // settings.queue.shards), durability)
        queues.append(SpoolingQueue(enqueuer, spool, context.cells, shard))
        cells, shards = context.cells, settings.queue.shards
        replays.append(ShardReplay(spool, replay_link, main_link, keys, durability, cells, shards))
    numbers = WorkerNumber(data_dir, Keys(settings.queue.prefix), clock)
    numbers.renew(replays[0].link)  # now, so that the first request does not wait for it
    replay = SpoolReplay(spool, replays, numbers)
    draining = False

    def on_drain() -> None:
        nonlocal draining
        draining = True

    queue = queues[0] if len(queues) == 1 else ShardedQueue(queues)
    door = IngestDoor(
        settings.ingest,
        settings.template,
        settings.security.schemes,
        SigningKeys(settings.security.signing_keys),
        settings.retry.expires_after,
        Senders(
            settings.ingest.tokens,
            settings.ingest.senders,
            context.scoreboard.sender_uses(context.slot.number),
            on_refused=_Counter(context.cells, Cell.TOKENS_REFUSED),
        ),
        queue,
        numbers,
        context.cells,
    )
    respond, holder = None, Holder()
    if settings.ingest.ack == "group":
        respond = GroupCommit(door, queue, holder.hold, CodeCounter(context.cells)).respond
    app = create_app(door, settings.ingest.paths, lambda: draining, context.cells, respond)
    replay.start()
    serve(
        listener,
        app,
        on_drain,
        settings.delivery.drain_timeout,
        beat=context.beat,
        progress=lambda: context.cells[Cell.REQUESTS] + context.cells[Cell.ACCEPTED],
        drain_delay_s=settings.ingest.drain_delay,
        limits=door_limits(settings.ingest),
        held=holder.held,
        on_refused=_Counter(context.cells, Cell.MISFRAMED),
        on_cut=_Counter(context.cells, Cell.CONNECTIONS_CUT),
    )
    replay.stop()
    return ExitCode.OK


def admin_main(context: SlotContext, settings: Settings, listener: socket.socket, url: str, facts: DaemonFacts) -> int:
    """The admin process: show the daemon until SIGTERM, and keep the dead letters within their cap."""
    _sampler(context, settings).install()
    node = context.worker.split(".")[0]
    route_to(url).watch()
    reader = FigureReader(url, [Keys(settings.queue.prefix, shard) for shard in range(settings.queue.shards)])
    observer = Observer(settings, facts, context.scoreboard, node, reader)
    app = create_admin_app(observer, settings.admin)
    observer.start()
    _keep_dead(settings, url)
    serve(
        listener,
        app,
        lambda: None,
        ADMIN_DRAIN_S,
        beat=context.beat,
        progress=lambda: app.requests,
        limits=ADMIN_LIMITS,
    )
    observer.stop()
    return ExitCode.OK


def door_limits(ingest: Ingest) -> Limits:
    """What the guard keeps of [ingest]."""
    return Limits(
        max_connections=ingest.max_connections,
        per_address=ingest.max_connections_per_address,
        idle_ms=int(ingest.idle_timeout * 1000),
        request_ms=int(ingest.request_timeout * 1000),
        body_bytes=max(ingest.max_body_bytes, MAX_NDJSON_BYTES),
        arriving_bytes=ingest.max_arriving_bytes,
    )


def _link(context: SlotContext, settings: Settings, url: str, shard: int, clock: Clock, durability: Durability) -> Link:
    def prove(wire: Wire) -> None:
        refuse_evicting(wire)
        durability.prove(wire)

    timeout_s = REPLY_TIMEOUT_S if settings.queue.shards == 1 else SHARD_REPLY_TIMEOUT_S
    timeout_s += settings.queue.durability_timeout if durability.waits else 0
    counter = _redis_error_counter(context)
    return Link(url, clock, counter, prove=prove, reply_timeout_s=timeout_s, shard=shard)


def _keep_dead(settings: Settings, url: str) -> None:
    """Keep the dead letters of every shard within their cap, from threads of this process."""
    for shard in range(settings.queue.shards):
        keys = Keys(settings.queue.prefix, shard)
        DeadKeeper(url, keys, Path(settings.data_dir), settings.dead, settings.queue.shards).start()


class _Flags:
    """What signals ask a delivery worker for, and a descriptor that becomes readable when one comes.

    Python goes on with an interrupted epoll wait after a handler that raises nothing (PEP 475): a flag alone would be
    seen up to a second later.
    """

    def __init__(self) -> None:
        self.stop = False
        self.hurry = False  # stop, and wait for no transfer
        self.reopen = False
        self.sampled = False  # the stack sampler's signal came: its byte is to be taken, nothing else
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        return self._out.fileno()

    def clear(self) -> None:
        """Take what woke us."""
        with contextlib.suppress(BlockingIOError):
            self._out.recv(4096)

    def handle_term(self) -> None:
        self.stop = True

    def handle_usr2(self) -> None:
        self.stop = self.hurry = True

    def handle_usr1(self) -> None:
        self.reopen = True

    def handle_prof(self) -> None:
        self.sampled = True


class _Deaths:
    """The dead incarnations that the supervisor has noted since the last call."""

    def __init__(self, context: SlotContext) -> None:
        self._scoreboard = context.scoreboard
        self._seen = 0

    def __call__(self) -> list[str]:
        self._seen, names = self._scoreboard.deaths_since(self._seen)
        return names


def deliver_main(context: SlotContext, settings: Settings, url: str, hosts: HostBoard, keeps_dead: bool) -> int:
    """A delivery worker: deliver until SIGTERM, then finish what is in flight and give back the rest. At SIGUSR2 it
    gives back at once, also what is in flight.

    `keeps_dead`: there is no admin process, so one of us looks after the dead letters."""
    flags = _Flags()
    _sampler(context, settings, flags.handle_prof).install()
    context.handle_signals(
        {
            signal.SIGTERM: flags.handle_term,
            signal.SIGUSR1: flags.handle_usr1,
            signal.SIGUSR2: flags.handle_usr2,
        }
    )
    log = DeliveryLog(settings.log.path)
    _look_at_queue(context, settings, url)
    route_to(url).watch()
    worker = _delivery_worker(context, settings, url, log, flags.fileno(), hosts)
    if keeps_dead and context.index == 0:
        _keep_dead(settings, url)
    try:
        while not flags.stop:
            context.beat()
            worker.turn(monotonic_ms())
            if flags.sampled:
                flags.sampled = False
                flags.clear()
            if flags.reopen:
                flags.reopen = False
                flags.clear()
                log.reopen(monotonic_ms())
    except LeaseLostError:
        # Others have these postbacks by now: no attempt more, but those under way may end and be logged.
        worker.drain(_drain_deadline_ms(settings), context.beat, lambda: flags.hurry)
        raise
    flags.clear()
    worker.drain(_drain_deadline_ms(settings), context.beat, lambda: flags.hurry)
    return ExitCode.OK


def _drain_deadline_ms(settings: Settings) -> int:
    return monotonic_ms() + int(settings.delivery.drain_timeout * 1000)


def _delivery_worker(
    context: SlotContext, settings: Settings, url: str, log: DeliveryLog, wake_up: int, hosts: HostBoard
) -> DeliveryWorker:
    clock = Clock()
    policy = RetryPolicy(settings.retry)
    verdict = Policy(settings.security.allow_networks, settings.security.deny_networks).verdict
    leases = [_lease(context, settings, url, shard, clock) for shard in range(settings.queue.shards)]
    settles = leases[0] if len(leases) == 1 else Settler(leases)
    recorder = Recorder(log, settles, policy, context.cells, context.place, settings.log.body_bytes)
    transfers: Transfers[Delivery] = Transfers(
        settings.delivery.in_flight, settings.delivery.max_response_bytes, CurlOptions(settings.delivery), verdict
    )
    transfers.watch(wake_up)
    resolver = Resolver(verdict)
    endpoints = Endpoints(settings)
    workers = worker_count(settings.delivery.workers, per_core=1)

    def shard_of(number: int, lease: LeaseClient) -> Shard:
        is_home = waits_at(number, context.index, workers, len(leases))
        return Shard(
            number,
            lease,
            IdleWait(url, Keys(settings.queue.prefix, number)) if is_home else None,
            Intake(lease, recorder, endpoints, settings.retry.expires_after),
            Pace(settings.delivery.in_flight),
            context.cells,
            transfers.watch,
        )

    return DeliveryWorker(
        settings,
        context.cells,
        clock,
        [shard_of(number, lease) for number, lease in enumerate(leases)],
        transfers,
        Names(resolver),
        resolver.fileno(),
        log,
        recorder,
        Recaller(endpoints.ids_of, len(leases)),
        _Deaths(context),
        HostReport(hosts, context.slot.number),
    )


def _lease(context: SlotContext, settings: Settings, url: str, shard: int, clock: Clock) -> LeaseClient:
    return LeaseClient(
        url,
        Keys(settings.queue.prefix, shard),
        context.worker,
        int(settings.queue.lease_timeout * 1000),
        clock,
        _redis_error_counter(context),
        in_background=True,
    )
