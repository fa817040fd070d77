"""The only place that names concrete adapters: opens them in order, and closes them in reverse.

Path:   serve -> `open_platform` -> everything else is handed what it needs
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

from sqlalchemy import Connection

from engine.api.app import create_app
from engine.api.hot import Hot
from engine.api.platform import Check, Samples
from engine.api.ports import Ports
from engine.backlog import Backlog
from engine.builder import Builder
from engine.catalogue import Catalogue
from engine.clock import Clock, wall_clock
from engine.commit import Settler
from engine.dispatch import Dispatcher
from engine.egress import Egress
from engine.events import Events
from engine.hostcalls.broker import Broker
from engine.hostcalls.connections import send
from engine.hostcalls.devices import Devices
from engine.hostcalls.fetch import Fetch
from engine.hostcalls.functions import Functions
from engine.hostcalls.kv import KeyValues
from engine.hostcalls.network import Network
from engine.hostcalls.timers import timer
from engine.ids import new_id
from engine.kv import Sweeper
from engine.metrics import Metrics
from engine.outbox import Outbox
from engine.programs import Programs
from engine.projects import key_hash, make_key, new_secret_key
from engine.settings import Settings
from engine.store.api_keys import insert_api_key
from engine.store.database import Database
from engine.store.journal import Journal
from engine.store.live import all_keys, all_projects
from engine.store.projects import Project, insert_project
from engine.tails import Tails
from engine.vault import Vault
from runtimes.contract import Runtime
from sandbox.supervisor import Sandbox

DEFAULT_PROJECT: Final = "default"
DRAIN_S: Final = 2.0  # for runs that have outlasted the grace of `serve`


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Everything that is open, for the API."""

    settings: Settings
    clock: Clock
    database: Database
    journal: Journal
    vault: Vault
    catalogue: Catalogue
    builder: Builder
    programs: Programs
    outbox: Outbox
    tails: Tails
    metrics: Metrics
    sandbox: Sandbox
    dispatcher: Dispatcher
    backlog: Backlog
    events: Events
    checks: Mapping[str, Check]
    new_admin_key: str | None  # made at this start; to be shown once

    def running(self) -> Collection[str]:
        return self.backlog.running()

    def asgi(self) -> Hot:
        """Return the application that the server runs."""
        return Hot(
            create_app(self),
            Ports(
                catalogue=self.catalogue,
                database=self.database,
                journal=self.journal,
                events=self.events,
                backlog=self.backlog,
                dispatcher=self.dispatcher,
                clock=self.clock,
            ),
        )


@asynccontextmanager
async def open_platform(settings: Settings, clock: Clock = wall_clock) -> AsyncIterator[Platform]:
    """Open everything; on leaving, stop taking runs, finish what is in flight, and close."""
    async with AsyncExitStack() as stack:
        if not settings.database_url:
            settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        vault = Vault.from_settings(settings)
        database = Database(settings.database())
        stack.callback(database.close)
        database.migrate()
        journal = Journal(database)
        stack.push_async_callback(journal.close)
        sweeper = Sweeper(journal, clock)
        stack.push_async_callback(sweeper.close)
        new_admin_key = await _first_start(settings, database, journal, clock)
        catalogue = Catalogue(database, vault, clock)
        await catalogue.load()
        sandbox = Sandbox(
            warm_count=settings.warm_cells,
            cell_memory_mb=settings.cell_memory_mb,
            strict=settings.isolation_required == "strict",
        )
        stack.push_async_callback(sandbox.close)
        await sandbox.start()
        builder = Builder(sandbox, clock, cell_memory_mb=settings.cell_memory_mb)
        programs = Programs(
            database,
            journal,
            vault,
            builder,
            fingerprint=lambda: sandbox.fingerprint(Runtime.WASM),
            clock=clock,
        )
        stack.push_async_callback(programs.close)
        # One each: guests that wait for slow servers must not hold the outbox's connections.
        guests_egress, outbox_egress = (Egress(settings.egress_allow) for _ in range(2))
        stack.push_async_callback(guests_egress.close)
        stack.push_async_callback(outbox_egress.close)
        rng = Random()  # noqa: S311 - spreads retries, guards nothing
        outbox = Outbox(database, journal, vault, outbox_egress, clock=clock, rng=rng)
        events, tails, metrics = Events(catalogue, clock), Tails(), Metrics()
        broker = _broker(catalogue, database, guests_egress, clock)
        settler = Settler(
            journal,
            events,
            catalogue,
            tails,
            metrics,
            # Lambdas, for these two are made further down: they in turn need the settler.
            start=lambda runs: backlog.submit(runs),  # noqa: PLW0108
            start_again=lambda run: dispatcher.submit(run),  # noqa: PLW0108
            notice=outbox.notice,
        )
        dispatcher = Dispatcher(
            sandbox,
            broker,
            finish=settler.settle,
            on_log=tails.log,
            clock=clock,
            cells_max=settings.cells_max,
            cell_memory_mb=settings.cell_memory_mb,
            programs=programs,
        )
        backlog = Backlog(database, journal.barrier, catalogue, dispatcher.submit)

        catalogue.on_retired = dispatcher.retire
        _gauges(metrics, outbox, dispatcher, backlog, (guests_egress, outbox_egress))
        platform = Platform(
            settings=settings,
            clock=clock,
            database=database,
            journal=journal,
            vault=vault,
            catalogue=catalogue,
            builder=builder,
            programs=programs,
            outbox=outbox,
            tails=tails,
            metrics=metrics,
            sandbox=sandbox,
            dispatcher=dispatcher,
            backlog=backlog,
            events=events,
            checks=_checks(database, sandbox),
            new_admin_key=new_admin_key,
        )
        sweeper.start()
        await outbox.start()
        stack.push_async_callback(outbox.close)
        await backlog.start()
        stack.push_async_callback(_stop_runs, platform)
        yield platform


def _broker(catalogue: Catalogue, database: Database, egress: Egress, clock: Clock) -> Broker:
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
            "connection.send": send,
            "function.call": Functions(catalogue).call,
            "fetch": network.fetch,
            "timer": timer,
        }
    )


async def _stop_runs(platform: Platform) -> None:
    platform.tails.close()
    await platform.backlog.close()
    dispatcher = platform.dispatcher
    try:
        async with asyncio.timeout(DRAIN_S):
            while dispatcher.inflight > platform.backlog.count:  # noqa: ASYNC110 - once, at the end
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
    has_projects = bool(database.read_here(all_projects))
    if has_projects and given is None:
        return None
    new_key = None if given is not None else new_secret_key()

    def change(connection: Connection) -> None:
        if not has_projects:
            project = Project(id=new_id("prj"), name=DEFAULT_PROJECT, created_ms=clock())
            insert_project(connection, project)
            project_id = project.id
        else:
            project_id = {name: known for known, name in all_projects(connection)}[DEFAULT_PROJECT]
        secret = given or new_key
        assert secret is not None
        if key_hash(secret) not in {row[0] for row in all_keys(connection)}:
            row = make_key(
                secret,
                key_id=new_id("key"),
                project_id=project_id,
                name="admin",
                scopes=("admin",),
                now_ms=clock(),
            )
            insert_api_key(connection, row)

    await journal.run(change)
    return new_key


def _checks(database: Database, sandbox: Sandbox) -> Mapping[str, Check]:
    async def database_answers() -> str | None:
        try:
            await database.read(all_projects)
        except Exception as error:  # noqa: BLE001 - whatever it is, the operator is told
            return f"does not answer: {type(error).__name__}"
        return None

    async def sandbox_answers() -> str | None:
        return (
            None if sandbox.alive else "the zygote is gone; it is started again with the next cell"
        )

    return {"database": database_answers, "sandbox": sandbox_answers}


def _gauges(
    metrics: Metrics,
    outbox: Outbox,
    dispatcher: Dispatcher,
    backlog: Backlog,
    egresses: tuple[Egress, Egress],
) -> None:
    def depth() -> Samples:
        return {("runs",): float(backlog.count), ("deliveries",): float(outbox.waiting_count)}

    def requests() -> Samples:
        return {key: float(count) for key, count in outbox.counts.requests.items()}

    def blocked() -> Samples:
        total: Counter[str] = Counter()
        for egress in egresses:
            total.update(egress.blocked)
        return {(reason,): float(count) for reason, count in total.items()}

    def busy() -> Samples:
        return {(): float(dispatcher.busy_cells)}

    metrics.gauges["cloudcode_queue_depth"] = depth
    metrics.gauges["cloudcode_connector_requests_total"] = requests
    metrics.gauges["cloudcode_worker_busy"] = busy
    metrics.gauges["cloudcode_egress_blocked_total"] = blocked
