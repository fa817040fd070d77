"""The only place that names concrete adapters: opens them in order, and closes them in reverse.

Path:   serve -> `open_platform` -> everything else is handed what it needs
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import Connection

from engine.addresses import split_denied
from engine.admission import Admission
from engine.allowances import defaults as defaults_of_projects
from engine.api.app import Operations, create_app
from engine.api.hot import Hot
from engine.api.platform import Check, Samples
from engine.api.ports import Ports
from engine.backlog import Backlog
from engine.breakers import Breakers
from engine.builder import Builder
from engine.catalogue import Catalogue, Version
from engine.changes import Changes
from engine.clock import Clock, wall_clock
from engine.commit import Settler
from engine.dispatch import Dispatcher
from engine.egress import Egress
from engine.ends import attempt
from engine.errors import Invalid
from engine.events import Events
from engine.hostcalls.broker import Broker
from engine.hostcalls.connections import Connections
from engine.hostcalls.devices import Devices
from engine.hostcalls.fetch import Fetch
from engine.hostcalls.functions import Functions
from engine.hostcalls.jobs import Jobs
from engine.hostcalls.kv import KeyValues
from engine.hostcalls.network import Network
from engine.hostcalls.timers import timer
from engine.idempotency import Idempotency
from engine.idle_cells import IdleCells
from engine.ids import new_id
from engine.kv import Sweeper
from engine.memory_budget import MemoryBudget, budget_bytes, warn_if_small
from engine.metrics import Metrics
from engine.nodes import Nodes
from engine.outbox import Outbox
from engine.programs import Programs
from engine.projects import key_hash, make_key, new_secret_key
from engine.queue_gauges import QueueGauges
from engine.queue_room import QueueRoom
from engine.rate_limits import RateLimits
from engine.readiness import Node, Readiness
from engine.retention import Retention
from engine.retention_rules import defaults
from engine.rotation import Rotation
from engine.run import Run
from engine.scheduler import Scheduler
from engine.settings import Settings
from engine.store.api_keys import insert_api_key
from engine.store.changes import in_turn
from engine.store.database import Database, StoreFailed, ping
from engine.store.journal import Journal
from engine.store.live import all_keys, all_projects
from engine.store.projects import Project, insert_project
from engine.store.sole import hold
from engine.tails import Tails
from engine.usage import Usage
from engine.vault import Vault
from jobs.bus import Bus, NullBus
from jobs.local_tickets import LocalTickets
from jobs.tickets import Tickets
from sandbox.supervisor import Sandbox

if TYPE_CHECKING:
    from jobs.rq_worker import TicketWorker

DEFAULT_PROJECT: Final = "default"
RELEASE: Final = version("cloudcode-engine")
WINDOW: Final = 20_000  # queued runs of one project that this process may hold
SHARED_WINDOW: Final = 2_000  # ... when there are workers to share them with
CHANGES: Final = "changes"  # topics of the bus
CANCELLED: Final = "cancelled"
Kind = Literal["serve", "worker"]
WORKER_DRAIN_S: Final = 20.0  # a worker lets what has begun end, as far as that goes
DRAIN_S: Final = 2.0  # for runs that have outlasted the grace of `serve`


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Everything that is open, for the API."""

    settings: Settings
    clock: Clock
    database: Database
    journal: Journal
    vault: Vault
    rotation: Rotation
    catalogue: Catalogue
    builder: Builder
    programs: Programs
    outbox: Outbox
    providers: Egress
    tails: Tails
    metrics: Metrics
    sandbox: Sandbox
    dispatcher: Dispatcher
    breakers: Breakers
    backlog: Backlog
    queue_room: QueueRoom
    scheduler: Scheduler
    events: Events
    nodes: Nodes
    tickets: Tickets
    bus: Bus
    kind: Kind
    idempotency: Idempotency
    rate_limits: RateLimits
    readiness: Readiness
    checks: Mapping[str, Check]
    new_admin_key: str | None  # made at this start; to be shown once

    def quarantined(self) -> Mapping[str, int]:
        return self.dispatcher.quarantined()

    def held_back(self) -> Mapping[str, int]:
        return self.breakers.held_back()

    @property
    def usage(self) -> Usage:
        return self.dispatcher.admission.usage

    def running(self) -> Collection[str]:
        return self.backlog.running()

    def left_count(self) -> int:
        """Return how many runs in cells need not be waited for when the process stops."""
        return self.backlog.count if self.kind == "serve" else 0

    def operations(self) -> Operations:
        """Return the application of a node that answers operators only."""
        return Operations(self)

    def cancelled(self, ids: Collection[str]) -> None:
        """Stop these runs, whose rows are gone, wherever they are."""
        if ids:
            self.backlog.cancel(ids)
            self.bus.publish(CANCELLED, " ".join(ids).encode())

    def outbox_node(self) -> str | None:
        """Return whose outbox has the deliveries that this node is asked for."""
        return None if self.database.is_sqlite else self.nodes.id

    def asgi(self) -> Hot:
        """Return the application that the server runs."""
        return Hot(
            create_app(self),
            Ports(
                catalogue=self.catalogue,
                database=self.database,
                journal=self.journal,
                events=self.events,
                idempotency=self.idempotency,
                rate_limits=self.rate_limits,
                backlog=self.backlog,
                queue_room=self.queue_room,
                dispatcher=self.dispatcher,
                clock=self.clock,
            ),
        )


@asynccontextmanager
async def open_platform(
    settings: Settings, kind: Kind = "serve", clock: Clock = wall_clock
) -> AsyncIterator[Platform]:
    """Open everything; on leaving, stop taking runs, finish what is in flight, and close.

    Args:
        settings: the operator's.
        kind: `serve` answers requests, and runs what is queued unless workers do; `worker` runs.
        clock: the wall's.

    Raises:
        EngineError: the settings do not fit together, or something they name cannot be had.
    """
    async with AsyncExitStack() as stack:
        check_kind(settings, kind)
        if not settings.database_url:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        vault = Vault.from_settings(settings)
        database = Database(settings.database())
        if database.is_sqlite:
            stack.enter_context(hold(Path(f"{database.url.database}.lock")))
        stack.callback(database.close)
        await _reached(database)
        database.migrate()
        journal = Journal(database)
        stack.push_async_callback(journal.close)
        metrics, tails = Metrics(), Tails()

        def lost() -> None:
            backlog.drop_all()
            outbox.lost()

        nodes = Nodes(
            journal,
            clock,
            kind=kind,
            release=RELEASE,
            lease_s=settings.lease_seconds,
            alone=database.is_sqlite,
            counts=metrics.counts,
            # Lambdas here and below, for what is made further down and in turn needs this.
            on_lost=lost,
            on_freed=lambda: backlog.look(),
            on_adopted=lambda waiting, interrupted: outbox.adopted(waiting, interrupted),
            on_checked=lambda: outbox.look(),
            state=lambda: {
                "held": backlog.count,
                "running": len(backlog.running()),
                "keys": vault.key_ids(),  # see engine.rotation
            },
        )
        await nodes.start()
        stack.push_async_callback(nodes.close)
        sweeper = Sweeper(journal, clock)
        stack.push_async_callback(sweeper.close)
        new_admin_key = await _first_start(settings, database, journal, clock)
        catalogue = Catalogue(database, vault, clock, defaults_of_projects(settings))
        changes = Changes(database, journal, catalogue)
        await changes.begin()
        await catalogue.load()
        sandbox = Sandbox(
            warm_count=settings.warm_cells,
            cell_memory_mb=settings.cell_memory_mb,
            strict=settings.isolation_required == "strict",
        )
        stack.push_async_callback(sandbox.close)
        await sandbox.start()
        usage = Usage(
            journal,
            clock,
            catalogue.allowances,
            lifted=lambda: dispatcher.admission.lifted(),
            refused=metrics.refused,
        )
        stack.push_async_callback(usage.close)
        builder = Builder(sandbox, clock, cell_memory_mb=settings.cell_memory_mb, usage=usage)
        programs = Programs(
            database,
            journal,
            vault,
            builder,
            fingerprint=sandbox.fingerprint,
            clock=clock,
        )
        stack.push_async_callback(programs.close)
        # One each: guests that wait for slow servers must not hold the outbox's connections.
        guests_egress, outbox_egress = (_egress(settings) for _ in range(2))
        stack.push_async_callback(guests_egress.close)
        stack.push_async_callback(outbox_egress.close)
        rng = Random()  # noqa: S311 - spreads retries, guards nothing
        outbox = Outbox(
            database,
            journal,
            vault,
            outbox_egress,
            clock=clock,
            rng=rng,
            node=lambda: None if database.is_sqlite else journal.node_id,
            public_url=settings.public_url,
            claim_s=math.inf if database.is_sqlite else settings.lease_seconds / 2,
        )
        events = Events(catalogue, clock, owner=lambda project_id: backlog.owner(project_id))
        broker = _broker(
            catalogue, database, journal, guests_egress, clock, vault, tails, metrics.counts
        )
        settler = Settler(
            journal,
            events,
            catalogue,
            tails,
            metrics,
            start=lambda runs: backlog.submit(runs),
            start_again=lambda run: dispatcher.submit(run),
            notice=outbox.notice,
            wake=lambda project_id, priority, due_ms: backlog.wake(project_id, priority, due_ms),
            owner=lambda project_id: backlog.owner(project_id),
            vault=vault,
            clock=clock,
            rng=rng,
            outbox_of=lambda: None if database.is_sqlite else journal.node_id,
        )

        queue_room = QueueRoom(database, catalogue.allowances, refused=metrics.refused)
        stack.push_async_callback(queue_room.close)

        def finish(run: Run) -> None:
            settler.settle(run)
            attempt("end_not_judged", run.execution_id, breakers.ended, run)

        dispatcher = Dispatcher(
            sandbox,
            broker,
            finish=finish,
            on_log=tails.log,
            clock=clock,
            cells_max=settings.cells_max,
            cell_memory_mb=settings.cell_memory_mb,
            programs=programs,
            is_hardened=catalogue.hardened,
            admission=lambda start: Admission(
                usage, catalogue.allowances, start=start, refused=metrics.refused
            ),
        )
        breakers = Breakers(
            database,
            journal,
            dispatcher,
            clock=clock,
            settle=settler.settle,
            put_off=settler.put_off,
            wake=lambda project_id, priority, due_ms: backlog.wake(project_id, priority, due_ms),
            tell=lambda function_id, text: tails.tell(function_id, clock(), text),
            exceeded=usage.exceeded,
        )
        dispatcher.guard = breakers
        changes.on_breakers = breakers.changed
        memory = MemoryBudget(
            dispatcher,
            sandbox,
            budget=budget_bytes(settings.memory_budget_mb),
            cell_memory_mb=settings.cell_memory_mb,
        )
        idle_cells = IdleCells(dispatcher.houses)
        metrics.gauges["cloudcode_cells"] = memory.cells
        metrics.gauges["cloudcode_cells_memory_bytes"] = memory.held
        metrics.gauges["cloudcode_cells_reclaimed_total"] = memory.reclaimed
        bus: Bus = NullBus()
        tickets: Tickets
        runs_here = kind == "worker" or settings.redis_url is None
        if settings.redis_url is None:
            tickets = LocalTickets(lambda ticket: backlog.take_ticket(ticket))
        else:
            # Here: who has no Redis need not load its client, 8 MB of it.
            from jobs.redis_bus import RedisBus
            from jobs.rq_tickets import RqTickets

            redis_url = settings.redis_url.get_secret_value()
            tickets, bus = RqTickets(redis_url), RedisBus(redis_url)
        backlog = Backlog(
            database,
            journal,
            catalogue,
            changes,
            dispatcher,
            tickets,
            clock=clock,
            settle=settler.settle,
            cancelled=lambda ids: platform.cancelled(ids),
            window=SHARED_WINDOW if settings.redis_url else WINDOW,
            runs_here=runs_here,
            shared=settings.redis_url is not None,
            counts=metrics.counts,
            changed=queue_room.changed,
            held_back=usage.exceeded,
        )

        queue_gauges = metrics.stored = QueueGauges(database, clock)
        metrics.known = catalogue.function_names
        stack.push_async_callback(queue_gauges.close)
        retention = Retention(database, journal, clock, defaults(settings))
        stack.push_async_callback(retention.close)
        scheduler = Scheduler(
            database,
            journal,
            catalogue,
            clock,
            wake=backlog.wake,
            cancelled=lambda ids: platform.cancelled(ids),
            has_room=queue_room.seems_to_fit,
            counts=metrics.counts,
        )
        readiness = Readiness(
            Node(
                kind=kind,
                release=RELEASE,
                has_redis=settings.redis_url is not None,
                data_dir=settings.data_dir,
            ),
            database,
            journal,
            clock,
            redis_trouble=lambda: tickets.trouble(),
            sandbox_alive=lambda: sandbox.alive,
        )
        stack.push_async_callback(readiness.close)

        def retired(version: Version) -> None:
            dispatcher.retire(version)
            breakers.replaced(version.id)

        catalogue.on_retired = retired
        catalogue.on_isolation = dispatcher.rehouse
        metrics.gauges |= dispatcher.admission.gauges()
        rate_limits = RateLimits()
        metrics.gauges["cloudcode_rate_limited_total"] = rate_limits.samples
        _store_gauges(metrics, journal, retention, queue_gauges, scheduler)
        _gauges(metrics, outbox, dispatcher, backlog, breakers, (guests_egress, outbox_egress))
        platform = Platform(
            settings=settings,
            clock=clock,
            database=database,
            journal=journal,
            vault=vault,
            rotation=Rotation(vault, database, journal),
            catalogue=catalogue,
            builder=builder,
            programs=programs,
            outbox=outbox,
            providers=outbox_egress,
            tails=tails,
            metrics=metrics,
            sandbox=sandbox,
            dispatcher=dispatcher,
            breakers=breakers,
            backlog=backlog,
            queue_room=queue_room,
            scheduler=scheduler,
            events=events,
            nodes=nodes,
            tickets=tickets,
            bus=bus,
            kind=kind,
            idempotency=Idempotency(journal, vault, clock),
            rate_limits=rate_limits,
            readiness=readiness,
            checks=readiness.checks(),
            new_admin_key=new_admin_key,
        )
        sweeper.start()
        await outbox.start()
        stack.push_async_callback(outbox.close)
        await tickets.start()
        stack.push_async_callback(tickets.close)
        journal.on_noted = lambda: bus.publish(CHANGES, b"")
        bus.subscribe(CHANGES, lambda _data: changes.poke())
        bus.subscribe(CANCELLED, lambda data: backlog.cancel(data.decode().split()))
        if settings.redis_url is not None:
            tails.share(bus)
        if kind == "worker":
            worker = _ticket_worker(settings, nodes, backlog)
            await worker.start()
            stack.push_async_callback(worker.stop)
        await bus.start()
        stack.push_async_callback(bus.close)
        if not database.is_sqlite:
            catalogue.learn = changes.fresh
            changes.start()
            stack.push_async_callback(changes.close)
        await breakers.load()
        await usage.start()
        queue_room.start()
        backlog.start()
        warn_if_small(settings)
        memory.start()
        stack.push_async_callback(memory.close)
        idle_cells.start()
        stack.push_async_callback(idle_cells.close)
        await retention.start()
        await readiness.start()
        await scheduler.start()
        stack.push_async_callback(scheduler.close)
        stack.push_async_callback(_stop_runs, platform)
        nodes.watch()
        yield platform


def _ticket_worker(settings: Settings, nodes: Nodes, backlog: Backlog) -> "TicketWorker":
    from jobs.rq_worker import TicketWorker

    assert settings.redis_url is not None
    loop = asyncio.get_running_loop()
    worker = TicketWorker(
        settings.redis_url.get_secret_value(),
        nodes.id,
        lambda ticket: asyncio.run_coroutine_threadsafe(backlog.claim_for(ticket), loop),
    )
    nodes.on_born = worker.rename
    return worker


async def _reached(database: Database) -> None:
    """Wait a moment for a database that is starting, too.

    Raises:
        StoreFailed: it does not answer; says where it was looked for.
    """
    try:
        await database.read(ping)
    except StoreFailed as error:
        raise StoreFailed(
            f"{error} at {database.url.render_as_string()}; start it, or look at --database-url"
        ) from error


def check_kind(settings: Settings, kind: Kind) -> None:
    """Refuse settings that cannot work together.

    Raises:
        Invalid: says what is missing, and what to give.
    """
    if settings.redis_url is not None and not settings.database_url.startswith("postgres"):
        raise Invalid(
            "redis_url is for several nodes, and these need PostgreSQL: give --database-url "
            "postgresql://user:password@host/name, or leave --redis-url out",
            "/redis_url",
        )
    if settings.redis_url is not None and settings.master_key is None:
        raise Invalid(
            "nodes that share secrets need one key: give each the same CLOUDCODE_MASTER_KEY "
            "(head -c 32 /dev/urandom | base64)",
            "/master_key",
        )
    if kind == "worker" and settings.redis_url is None:
        raise Invalid(
            "a worker takes its tickets from Redis: give --redis-url redis://host:6379/0 and "
            "--database-url postgresql://...; a single machine needs only `cloudcode serve`",
            "/redis_url",
        )


def _egress(settings: Settings) -> Egress:
    networks, hosts = split_denied(settings.egress_deny)
    return Egress(
        settings.egress_allow, deny=networks, deny_hosts=hosts, nat64=settings.egress_nat64
    )


def _broker(
    catalogue: Catalogue,
    database: Database,
    journal: Journal,
    egress: Egress,
    clock: Clock,
    vault: Vault,
    tails: Tails,
    counts: Counter[str],
) -> Broker:
    devices = Devices(catalogue, database, clock)
    key_values = KeyValues(database, clock)
    network = Network(Fetch(egress))
    return Broker(
        {
            "devices.values": devices.values,
            "devices.write": devices.write,
            "devices.list": devices.list,
            "kv.get": key_values.get,
            "kv.put": key_values.put,
            "kv.delete": key_values.delete,
            "kv.list": key_values.list,
            "connection.send": Connections(vault, tails.log).send,
            "function.call": Functions(catalogue, counts).call,
            "job.progress": Jobs(journal, clock).progress,
            "fetch": network.fetch,
            "timer": timer,
        }
    )


async def _stop_runs(platform: Platform) -> None:
    platform.tails.close()
    await platform.backlog.close()
    await platform.breakers.close()
    dispatcher = platform.dispatcher
    try:
        async with asyncio.timeout(DRAIN_S if platform.kind == "serve" else WORKER_DRAIN_S):
            while dispatcher.inflight > platform.left_count():  # noqa: ASYNC110 - once, at the end
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass  # what is left is in the queue's table, or its caller has been told
    await dispatcher.close()
    await platform.journal.drain()


async def _first_start(
    settings: Settings, database: Database, journal: Journal, clock: Clock
) -> str | None:
    """Make the project `default` and the admin key the operator gave, or a new one to be shown."""
    given = settings.admin_key.get_secret_value() if settings.admin_key is not None else None
    if given is None and database.read_here(all_projects):
        return None
    new_key = None if given is not None else new_secret_key()

    def change(connection: Connection) -> str | None:
        in_turn(connection)  # other nodes may start for the first time, too
        known = {project.name: project.id for project in all_projects(connection)}
        if known and given is None:
            return None
        project_id = known.get(DEFAULT_PROJECT)
        if project_id is None:
            project = Project(id=new_id("prj"), name=DEFAULT_PROJECT, created_ms=clock())
            insert_project(connection, project)
            project_id = project.id
        secret = given or new_key
        assert secret is not None
        if key_hash(secret) not in {key.hash for key in all_keys(connection)}:
            row = make_key(
                secret,
                key_id=new_id("key"),
                project_id=project_id,
                name="admin",
                scopes=("admin",),
                now_ms=clock(),
            )
            insert_api_key(connection, row)
        return new_key

    return await journal.run(change)


def _gauges(
    metrics: Metrics,
    outbox: Outbox,
    dispatcher: Dispatcher,
    backlog: Backlog,
    breakers: Breakers,
    egresses: tuple[Egress, Egress],
) -> None:
    def held() -> Samples:
        return {("runs",): float(backlog.count), ("deliveries",): float(outbox.waiting_count)}

    def requests() -> Samples:
        return {key: float(count) for key, count in outbox.counts.requests.items()}

    def held_back() -> Samples:
        return {(reason,): float(count) for reason, count in outbox.counts.held.items()}

    def breakers_now() -> Samples:
        return {(state,): float(count) for state, count in breakers.counts().items()}

    def breakers_opened() -> Samples:
        return {(scope,): float(count) for scope, count in breakers.opened.items()}

    def opened() -> Samples:
        return {(kind,): float(count) for kind, count in outbox.counts.opened.items()}

    def blocked() -> Samples:
        total: Counter[str] = Counter()
        for egress in egresses:
            total.update(egress.blocked)
        return {(reason,): float(count) for reason, count in total.items()}

    def busy() -> Samples:
        return {(): float(dispatcher.busy_cells)}

    metrics.gauges["cloudcode_held"] = held
    metrics.gauges["cloudcode_connector_requests_total"] = requests
    metrics.gauges["cloudcode_deliveries_held_total"] = held_back
    metrics.gauges["cloudcode_breaker_openings_total"] = opened
    metrics.gauges["cloudcode_breakers"] = breakers_now
    metrics.gauges["cloudcode_breakers_opened_total"] = breakers_opened
    metrics.gauges["cloudcode_worker_busy"] = busy
    metrics.gauges["cloudcode_egress_blocked_total"] = blocked


def _store_gauges(
    metrics: Metrics,
    journal: Journal,
    retention: Retention,
    queue_gauges: QueueGauges,
    scheduler: Scheduler,
) -> None:
    def deleted() -> Samples:
        return {(kind,): float(rows) for kind, rows in retention.deleted.items()}

    def void() -> Samples:
        return {(): float(journal.leases_lost_count)}

    def lag() -> Samples:
        return {(): max(scheduler.lag_s, queue_gauges.schedule_lag_s())}

    metrics.gauges["cloudcode_retention_deleted_total"] = deleted
    metrics.gauges["cloudcode_runs_void_total"] = void
    metrics.gauges["cloudcode_schedule_lag_seconds"] = lag
