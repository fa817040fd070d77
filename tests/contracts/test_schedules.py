"""Schedulers on one database, under a clock that tests move: each due time fires once.

Arithmetic stands in tests/unit/test_due_times; over HTTP, with real runs: test_api_schedules.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, delete, insert, select, update

from engine.catalogue import Function, Version
from engine.errors import Conflict, Invalid
from engine.fires import Outcome
from engine.policies import LANES, read_queued
from engine.schedule_runs import backfill_schedule, trigger_schedule
from engine.scheduler import DEVICES_MAX, Scheduler, _Firing
from engine.schedules import (
    change_schedule,
    create_schedule,
    get_schedule,
    pause_schedule,
    remove_schedule,
    resume_schedule,
)
from engine.store.database import Database
from engine.store.fires import next_due
from engine.store.flow import unpark
from engine.store.journal import Commit, Journal
from engine.store.schedules import Schedule, run_ended
from engine.store.tables import (
    devices,
    executions,
    functions,
    products,
    projects,
    run_queue,
    schedule_cursors,
    schedule_fires,
    schedules,
)
from jobs.schedule import instants
from runtimes.contract import Runtime

MADRID, NEW_YORK, LORD_HOWE = "Europe/Madrid", "America/New_York", "Australia/Lord_Howe"
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
PROJECT = "prj_1"
_numbers = itertools.count(1)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def shown(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%m-%dT%H:%M")


START = ms("2026-01-01T00:00Z")


class Clock:
    def __init__(self) -> None:
        self.now_ms = START

    def __call__(self) -> int:
        return self.now_ms


class Live:
    """What is live: one version of each function, with the handlers that a test gives it."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}

    def add(self, name: str, handlers: tuple[str, ...]) -> str:
        function_id = f"fn_{name}"
        version = Version(
            id=f"ver_{name}",
            number=1,
            function_id=function_id,
            function=name,
            project_id=PROJECT,
            runtime=Runtime.JAVASCRIPT,
            program="",
            handlers=handlers,
            overrides={},
            allowed_hosts=(),
            bindings={},
        )
        self.functions[function_id] = Function(
            id=function_id, name=name, project_id=PROJECT, shares=((100, version),)
        )
        return function_id

    def function_by_id(self, function_id: str) -> Function | None:
        return self.functions.get(function_id)


@dataclass
class World:
    """A database with a project, functions and as many schedulers as a test wants."""

    url: str
    stack: AsyncExitStack
    clock: Clock = field(default_factory=Clock)
    catalogue: Live = field(default_factory=Live)
    woken: list[tuple[str, int, int]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    full: set[str] = field(default_factory=set)  # projects that may queue nothing more
    database: Database = field(init=False)
    journal: Journal = field(init=False)
    scheduler: Scheduler = field(init=False)

    async def open(self) -> None:
        self.database, self.journal = await self._connect()
        self.scheduler = self.another(self.database, self.journal)
        await self.write(insert(projects).values(id=PROJECT, name="one", created_ms=START))
        await self.function("report", ("scheduled",))

    async def _connect(self) -> tuple[Database, Journal]:
        database = Database(self.url)
        self.stack.callback(database.close)
        await asyncio.to_thread(database.migrate)
        journal = Journal(database)
        journal.gather(LANES, unpark, lambda _freed: None)
        self.stack.push_async_callback(journal.close)
        return database, journal

    def another(self, database: Database, journal: Journal) -> Scheduler:
        return Scheduler(
            database,
            journal,
            self.catalogue,
            self.clock,
            wake=lambda *woken: self.woken.append(woken),
            cancelled=self.stopped.extend,
            has_room=lambda project_id, count: project_id not in self.full,
        )

    async def another_node(self) -> Scheduler:
        return self.another(*await self._connect())

    # What the rules of by-hand runs want.

    @property
    def backlog(self) -> "World":
        return self

    @property
    def queue_room(self) -> "World":
        return self

    async def need(self, project_id: str, count: int) -> None:
        """Let in whatever comes by hand."""

    def wake(self, project_id: str, priority: int = 1, due_ms: int = 0) -> None:
        self.woken.append((project_id, priority, due_ms))

    def cancelled(self, ids: Collection[str]) -> None:
        self.stopped.extend(ids)

    # Short words.

    async def write(self, *statements: Any) -> None:
        await self.journal.run(lambda connection: [connection.execute(one) for one in statements])

    async def rows(self, query: Any) -> list[Any]:
        return await self.database.read(lambda connection: connection.execute(query).all())

    async def function(self, name: str, handlers: tuple[str, ...]) -> str:
        function_id = self.catalogue.add(name, handlers)
        row = {"id": function_id, "project_id": PROJECT, "name": name, "runtime": "javascript"}
        await self.write(insert(functions).values(**row, created_ms=START))
        return function_id

    async def device(self, zone: str, product: str = "prd_1", count: int = 1) -> list[str]:
        known = [row.id for row in await self.rows(select(products.c.id))]
        if product not in known:
            row = {"id": product, "project_id": PROJECT, "name": product, "created_ms": START}
            await self.write(insert(products).values(row))
        ids = [f"dev_{next(_numbers):06}" for _ in range(count)]
        rows = [
            {
                "id": one, "project_id": PROJECT, "product_id": product, "name": one,
                "token": one, "timezone": zone, "tags": "[]", "created_ms": START,
            }
            for one in ids
        ]  # fmt: skip
        await self.journal.run(lambda connection: connection.execute(insert(devices), rows))
        return ids

    async def schedule(self, function: str = "report", **given: Any) -> Schedule:
        return await create_schedule(self, PROJECT, {"function": function, **given})

    async def fire(self, *schedulers: Scheduler) -> None:
        """Let schedulers fire, all at the same time, until nothing is due."""
        while True:
            passes = [one.fire_due() for one in schedulers or (self.scheduler,)]
            done = await asyncio.gather(*passes)
            next_ms = await self.database.read(next_due)
            if next_ms is None or next_ms > self.clock():
                return
            assert sum(one.moved for one in done), "stuck"

    async def at(self, text: str | int) -> None:
        """Set the clock, and let what is due fire."""
        self.clock.now_ms = text if isinstance(text, int) else ms(text)
        await self.fire()

    async def fires(self, schedule: Schedule | None = None) -> list[Any]:
        query = select(schedule_fires).order_by(schedule_fires.c.due_ms, schedule_fires.c.device_id)
        if schedule is not None:
            query = query.where(schedule_fires.c.schedule_id == schedule.id)
        return await self.rows(query)

    async def outcomes(self, schedule: Schedule) -> list[tuple[str, str]]:
        return [(shown(row.due_ms), row.outcome) for row in await self.fires(schedule)]

    async def queue(self) -> list[Any]:
        return await self.rows(select(run_queue).order_by(run_queue.c.id))

    async def end(self, *run_ids: str) -> None:
        """Let runs end, or all of them."""
        ids = run_ids or [row.id for row in await self.queue()]
        await self.write(delete(run_queue).where(run_queue.c.id.in_(ids)))

    async def ended(self, schedule: Schedule, *, succeeded: bool) -> list[Any]:
        """Let a run end as `engine.commit` does; return the rows that follow."""
        error = None if succeeded else '{"name":"Error","message":"no"}'
        return await self.journal.run(
            run_ended, schedule.id, succeeded, "exe_1", error, self.clock()
        )


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        opened = World(database_url, stack)
        await opened.open()
        yield opened


# -- Once, and never less


async def test_a_due_time_becomes_one_run(world: World) -> None:
    """With what the handler gets, and whoever runs it is told."""
    schedule = await world.schedule(cron="0 7 * * *", timezone=MADRID, payload=b'{"to":"ops"}')

    await world.at("2026-01-01T05:59:59Z")
    assert await world.queue() == []
    await world.at("2026-01-01T06:00:00Z")
    await world.fire()

    (run,) = await world.queue()
    (fire,) = await world.fires()
    assert (run.cause, run.handler, run.schedule_id) == ("schedule", "scheduled", schedule.id)
    assert (run.function_id, run.node_id, run.attempt) == ("fn_report", None, 1)
    assert msgspec.json.decode(run.input) == {
        "scheduledTime": ms("2026-01-01T06:00Z"),
        "time": "2026-01-01T06:00:00.000Z",
        "cron": "0 7 * * *",
        "timezone": MADRID,
        "scheduleId": schedule.id,
        "catchUp": False,
        "payload": {"to": "ops"},
    }
    assert (fire.outcome, fire.execution_id, fire.device_id) == ("queued", run.id, "")
    assert world.woken == [(PROJECT, 1, ms("2026-01-01T06:00Z"))]
    assert (await get_schedule(world, PROJECT, schedule.id)).next_ms == ms("2026-01-02T06:00Z")


CRONS = [
    {"cron": "30 2 * * *"},
    {"cron": "30 2 * * *", "gap": "skip", "fold": "both"},
    {"cron": "45 1 * * *", "fold": "both"},
    {"cron": "*/20 * * * *"},
    {"cron": "0 */2 * * *"},
    {"cron": "@daily"},
    {"every": "25m"},
]
CHANGES = {
    MADRID: ("2026-03-28T12:00Z", "2026-10-24T12:00Z"),
    NEW_YORK: ("2026-03-07T12:00Z", "2026-10-31T12:00Z"),
    LORD_HOWE: ("2026-04-04T00:00Z", "2026-10-03T00:00Z"),
}


@pytest.mark.slow
@pytest.mark.parametrize("zone", CHANGES)
async def test_many_schedulers_fire_once_through_clock_changes(world: World, zone: str) -> None:
    """Three at the same time, and a fourth that dies in the middle of every third turn."""
    nodes = [world.scheduler, await world.another_node(), await world.another_node()]
    for begin in map(ms, CHANGES[zone]):
        world.clock.now_ms = begin
        made = [
            await world.schedule(timezone=zone, overlap="allow_all", **given) for given in CRONS
        ]
        for turn in range(1, 97):  # 32 hours
            world.clock.now_ms = begin + turn * 20 * MINUTE + turn % 7 * SECOND
            if turn % 3 == 0:
                with dying(world):
                    if world.database.is_sqlite:
                        pass  # it holds the whole database: the others come after it
                    else:
                        await asyncio.gather(*(one.fire_due() for one in nodes))
            await world.fire(*nodes)
        runs = Counter(row.schedule_id for row in await world.queue())
        for schedule in made:
            expected = list(instants(schedule.spec, begin + 1, world.clock.now_ms + 1))
            rows = await world.fires(schedule)
            assert [row.due_ms for row in rows] == expected, schedule.spec
            assert {row.outcome for row in rows} <= {"queued"}
            assert runs[schedule.id] == len(expected)
            await remove_schedule(world, PROJECT, schedule.id)
        await world.end()


# Where, a line that falls into the gap or the fold, and when it is due on that day and the next.
CHANGED_DAYS = [
    (NEW_YORK, "30 2 * * *", "2026-03-08T07:00Z", "2026-03-09T06:30Z"),
    (MADRID, "30 2 * * *", "2026-03-29T01:00Z", "2026-03-30T00:30Z"),
    (LORD_HOWE, "45 1 * * *", "2026-04-04T14:45Z", "2026-04-05T15:15Z"),
    (LORD_HOWE, "15 2 * * *", "2026-10-03T15:30Z", "2026-10-04T15:15Z"),
    (MADRID, "30 2 * * *", "2026-10-25T00:30Z", "2026-10-26T01:30Z"),
    (NEW_YORK, "30 1 * * *", "2026-11-01T05:30Z", "2026-11-02T06:30Z"),
]


@pytest.mark.slow
async def test_hundreds_in_one_minute_of_a_clock_change_fire_once(world: World) -> None:
    """In the minute that is missing or comes twice, and on the day after; three at a time."""
    nodes = [world.scheduler, await world.another_node(), await world.another_node()]
    for zone, line, *times in CHANGED_DAYS:
        expected = [ms(time) for time in times]
        world.clock.now_ms = expected[0] - 12 * HOUR
        made = await many(world, 600, cron=line, timezone=zone)
        stops = {at + late for at in expected for late in (-MINUTE, 0, HOUR // 2, HOUR)}
        for world.clock.now_ms in sorted(stops):
            await world.fire(*nodes)
            runs = Counter((row.schedule_id, row.due_ms) for row in await world.queue())
            now = [at for at in expected if at == world.clock.now_ms]
            assert runs == Counter(itertools.product(made, now))
            await world.write(delete(run_queue))
        fires = await world.fires()
        assert {row.outcome for row in fires} == {"queued"}
        assert Counter((row.schedule_id, row.due_ms) for row in fires) == Counter(
            itertools.product(made, expected)
        )
        await world.write(*map(delete, (schedule_fires, schedule_cursors, schedules)))


async def many(world: World, count: int, **given: Any) -> list[str]:
    """Make one schedule, and copies of it in bulk."""
    first = await world.schedule(**given)
    (row,) = await world.rows(select(schedules))
    (cursor,) = await world.rows(select(schedule_cursors))
    ids = [first.id, *(f"sch_{next(_numbers):08}" for _ in range(count - 1))]
    others = [{**row._mapping, "id": one, "name": one} for one in ids[1:]]
    cursors = [{**cursor._mapping, "schedule_id": one} for one in ids[1:]]
    for table, rows in ((schedules, others), (schedule_cursors, cursors)):
        await world.journal.run(Connection.execute, insert(table), rows)
    return ids


@contextmanager
def dying(world: World) -> Any:
    """A scheduler that fires, and dies before it has committed."""
    with world.database.engine.connect() as connection:
        if world.database.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        _Firing(connection, Commit(), world.catalogue, {}, world.clock(), lambda *_: True).fire()
        yield
        connection.rollback()


async def test_what_the_clock_changes_do_is_exact(world: World) -> None:
    """Written out: 02:30 of every day, in three zones, on the days of both changes of 2026."""
    made = {
        zone: await world.schedule(cron="30 2 * * *", timezone=zone, overlap="allow_all")
        for zone in CHANGES
    }
    for begin, end in (
        ("2026-03-08T00:00Z", "2026-03-09T12:00Z"),
        ("2026-03-28T20:00Z", "2026-03-30T12:00Z"),
        ("2026-04-04T00:00Z", "2026-04-06T00:00Z"),
        ("2026-10-03T00:00Z", "2026-10-05T00:00Z"),
        ("2026-10-24T20:00Z", "2026-10-26T12:00Z"),
        ("2026-11-01T00:00Z", "2026-11-02T12:00Z"),
    ):
        world.clock.now_ms = ms(begin)
        for schedule in made.values():
            await resume(world, schedule)
        while world.clock() < ms(end):
            await world.at(world.clock() + 15 * MINUTE)
        for schedule in made.values():
            await pause_schedule(world, PROJECT, schedule.id, "")

    assert [time for time, _ in await world.outcomes(made[MADRID])] == [
        "03-08T01:30", "03-09T01:30",
        "03-29T01:00", "03-30T00:30",  # 02:30 does not exist: right after the gap
        "04-04T00:30", "04-05T00:30", "10-03T00:30", "10-04T00:30",
        "10-25T00:30", "10-26T01:30",  # 02:30 comes twice: the first time
        "11-01T01:30", "11-02T01:30",
    ]  # fmt: skip
    assert [time for time, _ in await world.outcomes(made[NEW_YORK])] == [
        "03-08T07:00", "03-09T06:30",
        "03-29T06:30", "03-30T06:30", "04-04T06:30", "04-05T06:30", "10-03T06:30", "10-04T06:30",
        "10-25T06:30", "10-26T06:30",
        "11-01T07:30", "11-02T07:30",  # there 01:00 to 02:00 comes twice
    ]  # fmt: skip
    assert [time for time, _ in await world.outcomes(made[LORD_HOWE])] == [
        "03-08T15:30", "03-29T15:30",
        "04-04T16:00", "04-05T16:00", "10-03T15:30", "10-04T15:30",
        "10-25T15:30", "11-01T15:30",
    ]  # fmt: skip


async def resume(world: World, schedule: Schedule) -> None:
    if (await get_schedule(world, PROJECT, schedule.id)).paused_ms is None:
        await pause_schedule(world, PROJECT, schedule.id, "")
    await resume_schedule(world, PROJECT, schedule.id)


async def test_a_clock_that_jumps_fires_nothing_twice(world: World) -> None:
    """Forwards and back, again and again: cursors only move by nominal times."""
    schedule = await world.schedule(cron="*/10 * * * *", overlap="allow_all")

    for minutes in (25, 5, 31, 0, 61, -600, 30, 62, 10, 75):
        await world.at(START + minutes * MINUTE)

    assert [time for time, _ in await world.outcomes(schedule)] == [
        "01-01T00:10", "01-01T00:20", "01-01T00:30", "01-01T00:40", "01-01T00:50", "01-01T01:00",
        "01-01T01:10",
    ]  # fmt: skip
    assert len(await world.queue()) == 7


async def test_a_change_under_a_clock_set_back_fires_nothing_twice(world: World) -> None:
    """Its next due time is one that has been: the fire's row is unique."""
    schedule = await world.schedule(cron="0 * * * *", overlap="allow_all")
    await world.at(START + 90 * MINUTE)

    world.clock.now_ms = START + 30 * MINUTE
    await change_schedule(world, PROJECT, schedule.id, {"cron": "0,15 * * * *"})
    await world.at(START + 80 * MINUTE)

    assert [time for time, _ in await world.outcomes(schedule)] == ["01-01T01:00", "01-01T01:15"]
    assert len(await world.queue()) == 2


async def test_an_error_of_the_database_loses_nothing(world: World) -> None:
    """The loop goes on, and what was due fires then."""
    schedule = await world.schedule(cron="0 * * * *")
    await world.write(
        insert(schedule_fires).values(
            schedule_id=schedule.id, due_ms=START + HOUR, device_id="", fired_ms=1,
            outcome="missed", execution_id=None,
        )
    )  # fmt: skip

    await world.at(START + HOUR)
    await world.at(START + 2 * HOUR)

    assert await world.outcomes(schedule) == [("01-01T01:00", "missed"), ("01-01T02:00", "queued")]


async def test_the_loop_fires_by_itself(world: World) -> None:
    """It looks once a second at least, at once when poked, and stops when asked to."""
    schedule = await world.schedule(every="1s")
    await world.scheduler.start()

    world.clock.now_ms += SECOND
    world.scheduler.poke()
    async with asyncio.timeout(10):
        while not await world.queue():
            world.scheduler.poke()
            await asyncio.sleep(0)
    await world.scheduler.close()

    assert await world.outcomes(schedule) == [("01-01T00:00", "queued")]
    assert world.scheduler.outcomes == Counter({Outcome.QUEUED: 1})


async def test_one_bad_schedule_stops_no_other(world: World) -> None:
    """It is paused, and says why."""
    bad = await world.schedule(cron="0 * * * *", name="bad")
    worse = await world.schedule(cron="0 * * * *", name="worse")
    good = await world.schedule(cron="0 * * * *", name="good")
    await world.write(
        update(schedules).where(schedules.c.id == bad.id).values(spec='{"cron":"0 0 L * *"}'),
        update(schedules).where(schedules.c.id == worse.id).values(options="[]"),
    )

    await world.at(START + HOUR)

    assert await world.outcomes(good) == [("01-01T01:00", "queued")]
    assert await world.outcomes(bad) == []
    rows = await world.rows(select(schedules).where(schedules.c.paused_ms.is_not(None)))
    assert {row.name for row in rows} == {"bad", "worse"}
    assert all(row.paused_reason.startswith("cannot be read: ") for row in rows)


# -- Late


async def test_a_late_scheduler_catches_up_within_the_window(world: World) -> None:
    """What is older is missed, and counted; what is not says that it is late."""
    schedule = await world.schedule(cron="0 * * * *", overlap="allow_all", catchup_window="2h")

    await world.at(START + 5 * HOUR + 30 * MINUTE)

    assert await world.outcomes(schedule) == [
        ("01-01T01:00", "missed"), ("01-01T02:00", "missed"), ("01-01T03:00", "missed"),
        ("01-01T04:00", "queued"), ("01-01T05:00", "queued"),
    ]  # fmt: skip
    assert [msgspec.json.decode(run.input)["catchUp"] for run in await world.queue()] == [True] * 2
    assert world.scheduler.missed_count == 3


async def test_a_long_standstill_is_passed_over(world: World) -> None:
    """A month of seconds is not written down one by one; the last row says that there were more."""
    schedule = await world.schedule(every="1s", overlap="skip", catchup_window="10s")

    await world.at(START + 30 * DAY)

    rows = await world.fires(schedule)
    outcomes = Counter(row.outcome for row in rows)
    assert outcomes == {"missed": 99, "missed_more": 1, "queued": 1, "overlapped": 10}
    assert world.scheduler.missed_count == 30 * DAY // SECOND - 11
    assert (await get_schedule(world, PROJECT, schedule.id)).next_ms == START + 30 * DAY + SECOND


async def test_a_single_time_fires_once(world: World) -> None:
    """Local time, on a day of a clock change."""
    schedule = await world.schedule(at="2026-03-29T02:30:00", timezone=MADRID)

    await world.at("2026-03-29T01:00Z")
    await world.at("2026-06-29T01:00Z")

    assert await world.outcomes(schedule) == [("03-29T01:00", "queued")]
    assert (await get_schedule(world, PROJECT, schedule.id)).next_ms is None


async def test_start_and_end_bound_an_interval(world: World) -> None:
    """It counts from its start, which is its first due time."""
    bounds = {"start_ms": START + 90 * SECOND, "end_ms": START + 150 * SECOND}
    schedule = await world.schedule(every="30s", overlap="allow_all", **bounds)

    await world.at(START + HOUR)

    fires = [row.due_ms - START for row in await world.fires(schedule)]
    assert fires == [90 * SECOND, 120 * SECOND, 150 * SECOND]


async def test_jitter_is_the_same_for_whoever_fires(world: World) -> None:
    """It delays the run, not the due time."""
    schedule = await world.schedule(cron="0 * * * *", jitter="10m", overlap="allow_all")

    await world.at(START + HOUR)
    await world.at(START + 2 * HOUR)

    runs = await world.queue()
    delays = [run.due_ms - (START + at * HOUR) for at, run in enumerate(runs, start=1)]
    assert all(0 <= delay <= 10 * MINUTE for delay in delays)
    assert len(set(delays)) == 2
    assert [time for time, _ in await world.outcomes(schedule)] == ["01-01T01:00", "01-01T02:00"]


# -- Overlap


async def test_skip_leaves_out_what_overlaps(world: World) -> None:
    """Until the run has ended, wherever it is; then the next due time runs."""
    schedule = await world.schedule(cron="0 * * * *")

    await world.at(START + HOUR)
    await world.write(update(run_queue).values(node_id="node_1"))
    await world.at(START + 2 * HOUR)
    await world.end()
    await world.at(START + 3 * HOUR)

    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["queued", "overlapped", "queued"]


async def test_buffer_one_keeps_one_waiting(world: World) -> None:
    """In the schedule's lane, which runs one at a time."""
    schedule = await world.schedule(cron="0 * * * *", overlap="buffer_one")

    for hours in range(1, 5):
        await world.at(START + hours * HOUR)

    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    runs = await world.queue()
    assert outcomes == ["queued", "buffered", "overlapped", "overlapped"]
    assert {run.lane for run in runs} == {f"s:{schedule.id}"}
    flow = read_queued(runs[0].policy).flow
    assert flow is not None
    assert flow.concurrency is not None
    assert flow.concurrency.limit == 1


async def test_buffer_all_keeps_all_waiting(world: World) -> None:
    """One after another."""
    schedule = await world.schedule(cron="0 * * * *", overlap="buffer_all", catchup_window="1d")

    await world.at(START + 5 * HOUR)

    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["queued", *["buffered"] * 4]
    assert {run.lane for run in await world.queue()} == {f"s:{schedule.id}"}


async def test_cancel_other_takes_the_place(world: World) -> None:
    """The earlier run ends as cancelled, and its node is told."""
    schedule = await world.schedule(cron="0 * * * *", overlap="terminate_other")
    await world.at(START + HOUR)
    (first,) = await world.queue()

    await world.at(START + 3 * HOUR)

    (last,) = await world.queue()
    (record,) = await world.rows(select(executions))
    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["queued", "overlapped", "replaced"]
    assert (record.id, record.status) == (first.id, "cancelled")
    assert world.stopped == [first.id]
    assert msgspec.json.decode(last.input)["scheduledTime"] == START + 3 * HOUR


# -- What runs


async def test_the_handler_is_the_first_that_fits(world: World) -> None:
    """`job` gets what one-off jobs give it: the payload alone, or {}."""
    await world.function("classic", ("job", "main"))
    await world.function("plain", ("main",))
    await world.function("device", ("trigger",))
    await world.schedule("classic", cron="0 * * * *", name="a")
    await world.schedule("classic", cron="0 * * * *", name="b", payload=b'{"x":1}')
    await world.schedule("plain", cron="0 * * * *", name="c")
    nothing = await world.schedule("report", cron="0 * * * *", name="d")
    await world.write(
        update(schedules).where(schedules.c.id == nothing.id).values(function_id="fn_device")
    )

    await world.at(START + HOUR)

    runs = {(run.handler, run.input) for run in await world.queue() if run.handler == "job"}
    assert runs == {("job", "{}"), ("job", '{"x":1}')}
    assert {run.handler for run in await world.queue()} == {"job", "main"}
    assert await world.outcomes(nothing) == [("01-01T01:00", "nothing_to_run")]


async def test_a_fire_that_finds_the_queue_full_is_skipped(world: World) -> None:
    """That stands in its row; the next one runs when there is room again."""
    schedule = await world.schedule(cron="0 * * * *", overlap="allow_all")
    world.full.add(PROJECT)
    await world.at(START + HOUR)
    world.full.clear()
    await world.at(START + 2 * HOUR)

    outcomes = await world.outcomes(schedule)

    assert [outcome for _, outcome in outcomes] == ["queue_full", "queued"]
    assert len(await world.queue()) == 1


async def test_a_function_that_is_not_known_here_yet_is_waited_for(world: World) -> None:
    """Another node has made it; after some seconds it is taken to be gone."""
    schedule = await world.schedule(cron="0 * * * *")
    known = world.catalogue.functions.pop("fn_report")
    world.clock.now_ms = START + HOUR

    assert (await world.scheduler.fire_due()).moved == 0
    world.catalogue.functions["fn_report"] = known
    await world.fire()
    await world.end()
    world.catalogue.functions.clear()
    await world.at(START + 2 * HOUR + 6 * SECOND)

    outcomes = [outcome for _, outcome in await world.outcomes(schedule)]
    assert outcomes == ["queued", "nothing_to_run"]


async def test_attempts_are_the_schedules(world: World) -> None:
    """More than one: the last failure is a dead letter."""
    await world.schedule(cron="0 * * * *", max_attempts=3, queue="reports", priority="low")

    await world.at(START + HOUR)

    (run,) = await world.queue()
    policy = read_queued(run.policy)
    assert (policy.max_attempts, policy.dead_letter, policy.queue) == (3, True, "reports")
    assert (run.priority, policy.watched) == (2, False)


# -- What follows from failures


async def test_failures_in_a_row_pause_a_schedule(world: World) -> None:
    """Counted over runs; resumed it begins anew, from now on."""
    schedule = await world.schedule(cron="0 * * * *", pause_on_failure=2)
    await world.at(START + HOUR)
    (run,) = await world.queue()
    assert read_queued(run.policy).watched
    await world.end()

    for succeeded in (False, True, False, False):
        assert await world.ended(schedule, succeeded=succeeded) == []
    paused = await get_schedule(world, PROJECT, schedule.id)
    await world.at(START + 5 * HOUR)
    resumed = await resume_schedule(world, PROJECT, schedule.id)

    assert (paused.paused_reason, paused.failures) == ("failed 2 times in a row", 2)
    assert len(await world.fires(schedule)) == 1
    assert (resumed.paused_ms, resumed.failures) == (None, 0)
    assert resumed.next_ms == START + 6 * HOUR


async def test_functions_follow_failure_and_recovery(world: World) -> None:
    """Each once: after so many failures, and when it works again after these."""
    await deployed(world, "alarm", ("job",))
    await deployed(world, "calm", ("main",))
    schedule = await world.schedule(
        cron="0 * * * *",
        on_failure={"function": "alarm", "times": 2},
        on_recovery={"function": "calm"},
    )

    ends = [False, True, False, False, False, True, True]
    rows = [await world.ended(schedule, succeeded=succeeded) for succeeded in ends]

    named = dict(zip(run_queue.columns.keys(), rows[3][0], strict=True))
    told = msgspec.json.decode(named["input"])
    assert [len(found) for found in rows] == [0, 0, 0, 1, 0, 1, 0]
    assert (named["function_id"], named["handler"]) == ("fn_alarm", "job")
    assert (named["schedule_id"], named["cause"]) == (None, "schedule")
    assert told["type"] == "schedule.failed"
    assert (told["failures"], told["error"]["message"]) == (2, "no")
    recovered = dict(zip(run_queue.columns.keys(), rows[5][0], strict=True))
    assert (recovered["function_id"], recovered["handler"]) == ("fn_calm", "main")
    assert msgspec.json.decode(recovered["input"])["failures"] == 3


async def deployed(world: World, name: str, handlers: tuple[str, ...]) -> None:
    """A function with a live version in the database too."""
    from engine.store.tables import deployments, versions

    function_id = await world.function(name, handlers)
    blank = {column.name: "{}" for column in versions.columns}
    version = blank | {
        "id": f"ver_{name}", "function_id": function_id, "number": 1, "created_ms": START,
        "handlers": msgspec.json.encode(handlers).decode(), "allowed_hosts": "[]", "secrets": "[]",
    }  # fmt: skip
    live = {"id": f"dep_{name}", "function_id": function_id, "message": "", "created_ms": START}
    await world.write(
        insert(versions).values(version),
        insert(deployments).values(**live, versions='[{"version":1,"percent":100}]'),
    )


async def test_a_run_of_a_deleted_schedule_ends_as_any_other(world: World) -> None:
    """There is nothing to count."""
    schedule = await world.schedule(cron="0 * * * *", pause_on_failure=1)
    await remove_schedule(world, PROJECT, schedule.id)

    assert await world.ended(schedule, succeeded=False) == []


# -- Device-local


async def test_a_device_local_schedule_fires_where_devices_are(world: World) -> None:
    """At 07:00 of each, once a device; devices in a new time zone are found."""
    (madrid,), (york,) = await world.device(MADRID), await world.device(NEW_YORK)
    schedule = await world.schedule(cron="0 7 * * *", product="prd_1")

    await world.at("2026-01-01T06:00Z")
    (kolkata,) = await world.device("Asia/Kolkata")
    await world.scheduler.find_zones()
    await world.at("2026-01-01T12:00Z")
    await world.at("2026-01-02T01:30Z")

    fires = [(shown(row.due_ms), row.device_id) for row in await world.fires(schedule)]
    runs = await world.queue()
    assert fires == [
        ("01-01T06:00", madrid), ("01-01T12:00", york), ("01-02T01:30", kolkata),
    ]  # fmt: skip
    assert [run.device_id for run in runs] == [madrid, york, kolkata]
    event = msgspec.json.decode(runs[1].input)
    assert (event["timezone"], event["deviceId"]) == (NEW_YORK, york)


async def test_a_new_time_zone_misses_nothing_of_the_last_minute(world: World) -> None:
    """The device was there before anybody looked."""
    await world.device(MADRID)
    schedule = await world.schedule(cron="0 7 * * *", product="prd_1")
    world.clock.now_ms = ms("2026-01-01T12:00:20Z")
    (york,) = await world.device(NEW_YORK)

    await world.scheduler.find_zones()
    await world.fire()

    assert york in [row.device_id for row in await world.fires(schedule)]


async def test_a_bad_device_local_schedule_stops_no_other(world: World) -> None:
    """Neither where time zones are looked for, nor where it fires."""
    await world.device(MADRID)
    bad = await world.schedule(cron="0 7 * * *", product="prd_1", name="bad")
    good = await world.schedule(cron="0 7 * * *", product="prd_1", name="good")
    await world.write(
        update(schedules).where(schedules.c.id == bad.id).values(spec='{"cron":"0 0 L * *"}')
    )
    await world.device(NEW_YORK)

    await world.scheduler.find_zones()
    await world.at("2026-01-01T12:00Z")

    rows = await world.rows(select(schedules.c.name).where(schedules.c.paused_ms.is_not(None)))
    assert [row.name for row in rows] == ["bad"]
    assert len(await world.fires(good)) == 2


async def test_zones_without_devices_are_forgotten(world: World) -> None:
    """A cursor that nobody needs is not looked at for ever."""
    ids = await world.device(MADRID)
    await world.device(NEW_YORK)
    await world.schedule(cron="0 7 * * *", product="prd_1")

    await world.write(delete(devices).where(devices.c.id.in_(ids)))
    await world.scheduler.find_zones()

    zones = [row.timezone for row in await world.rows(select(schedule_cursors))]
    assert zones == [NEW_YORK]


@pytest.mark.slow
async def test_a_fire_for_many_devices_survives_a_crash(world: World) -> None:
    """In parts, by several schedulers, with one that dies between: each device once."""
    ids = await world.device(MADRID, count=2 * DEVICES_MAX + 100)
    ids += await world.device("Europe/Paris", count=50)  # the same instant in another zone
    schedule = await world.schedule(cron="0 7 * * *", product="prd_1")
    world.clock.now_ms = ms("2026-01-01T06:00Z")

    await world.scheduler.fire_due()
    with dying(world):
        pass
    nodes = [await world.another_node(), await world.another_node()]
    await world.fire(*nodes)

    fires = await world.fires(schedule)
    runs = await world.queue()
    assert sorted(row.device_id for row in fires) == sorted(ids)
    assert sorted(run.device_id for run in runs) == sorted(ids)
    assert {row.execution_id for row in fires} == {run.id for run in runs}


async def test_overlap_is_each_devices_own(world: World) -> None:
    """A device whose run hangs holds up no other."""
    slow, quick = await world.device(MADRID, count=2)
    schedule = await world.schedule(cron="0 * * * *", product="prd_1")
    await world.at(START + HOUR)
    await world.end(*[run.id for run in await world.queue() if run.device_id == quick])

    await world.at(START + 2 * HOUR)

    fires = {(row.device_id, row.outcome) for row in await world.fires(schedule)}
    assert fires == {(slow, "queued"), (quick, "queued"), (slow, "overlapped")}


async def test_missed_times_of_zones_that_share_an_instant(world: World) -> None:
    """One row is enough."""
    await world.device(MADRID)
    await world.device("Europe/Paris")
    schedule = await world.schedule(cron="0 7 * * *", product="prd_1", catchup_window="1h")

    await world.at("2026-01-02T08:00Z")

    assert await world.outcomes(schedule) == [("01-01T06:00", "missed"), ("01-02T06:00", "missed")]


# -- By hand


async def test_pause_and_resume(world: World) -> None:
    """What falls due meanwhile is not made up for."""
    schedule = await world.schedule(cron="0 * * * *")

    await pause_schedule(world, PROJECT, schedule.name, "closed")
    await world.at(START + 3 * HOUR)
    assert await world.fires(schedule) == []
    await resume_schedule(world, PROJECT, schedule.name)
    await world.at(START + 4 * HOUR)

    assert await world.outcomes(schedule) == [("01-01T04:00", "queued")]


async def test_a_change_counts_from_now(world: World) -> None:
    """A new time replaces the old one; other fields leave it as it is."""
    schedule = await world.schedule(cron="0 * * * *", seconds=None, overlap="allow_all")
    await world.at(START + HOUR)

    await change_schedule(world, PROJECT, schedule.id, {"jitter": "1s"})
    await world.at(START + 2 * HOUR)
    changed = await change_schedule(world, PROJECT, schedule.id, {"every": "10m", "name": "x"})
    await world.at(START + 2 * HOUR + 20 * MINUTE)

    assert (changed.name, changed.spec.cron, changed.spec.every_ms) == ("x", "", 10 * MINUTE)
    assert [time for time, _ in await world.outcomes(schedule)] == [
        "01-01T01:00", "01-01T02:00", "01-01T02:10", "01-01T02:20",
    ]  # fmt: skip


async def test_names_are_unique(world: World) -> None:
    """In the project; a change tells so too."""
    await world.schedule(cron="0 * * * *", name="a")
    other = await world.schedule(cron="0 * * * *", name="b")

    with pytest.raises(Conflict):
        await world.schedule(cron="0 * * * *", name="a")
    with pytest.raises(Conflict):
        await change_schedule(world, PROJECT, other.id, {"name": "a"})
    await change_schedule(world, PROJECT, other.id, {"name": "b"})


async def trigger(world: World, schedule: Schedule, **options: Any) -> str:
    given = {"force": False, "device": None} | options
    return await trigger_schedule(world, PROJECT, schedule.id, **given)


async def test_a_trigger_runs_now_and_respects_overlap(world: World) -> None:
    """Unless it is forced; due times stay."""
    schedule = await world.schedule(cron="0 * * * *", jitter="1h")

    first = await trigger(world, schedule)
    with pytest.raises(Conflict, match="has not ended"):
        await trigger(world, schedule)
    second = await trigger(world, schedule, force=True)

    runs = await world.queue()
    assert [run.id for run in runs] == [first, second]
    assert {run.due_ms for run in runs} == {START}
    assert await world.fires(schedule) == []
    assert world.woken == [(PROJECT, 1, START)] * 2


async def test_a_trigger_can_take_the_place(world: World) -> None:
    """By the schedule's own policy."""
    schedule = await world.schedule(cron="0 * * * *", overlap="cancel_other")
    first = await trigger(world, schedule)

    second = await trigger(world, schedule)

    assert [run.id for run in await world.queue()] == [second]
    assert world.stopped == [first]


async def test_a_device_local_trigger_is_for_one_device(world: World) -> None:
    """Of the product."""
    (here,) = await world.device(MADRID)
    (other,) = await world.device(MADRID, product="prd_2")
    schedule = await world.schedule(cron="0 7 * * *", product="prd_1")

    await trigger(world, schedule, device=here)

    (run,) = await world.queue()
    assert run.device_id == here
    for device in (None, other, "dev_none"):
        with pytest.raises(Invalid):
            await trigger(world, schedule, device=device)


async def backfill(world: World, schedule: Schedule, begin: int, end: int, **options: Any) -> Any:
    given = {"overlap": None, "dry_run": False} | options
    return await backfill_schedule(world, PROJECT, schedule.id, begin, end, **given)


async def test_a_backfill_runs_what_nothing_ran_for(world: World) -> None:
    """Missed and overlapped times too; what ran is left alone, however often it is asked."""
    schedule = await world.schedule(cron="0 * * * *", catchup_window="1h")
    await world.at(START + 5 * HOUR)  # 01:00 to 03:00 missed, 04:00 queued, 05:00 overlapped
    await world.end()

    dry = await backfill(world, schedule, START + HOUR, START + 5 * HOUR, dry_run=True)
    assert await world.queue() == []
    done = await backfill(world, schedule, START + HOUR, START + 5 * HOUR)
    again = await backfill(world, schedule, START + HOUR, START + 5 * HOUR)

    assert [one.outcome for one in dry] == ["buffered"] * 3 + ["already_fired"]
    assert [one.outcome for one in done] == [one.outcome for one in dry]
    assert [one.outcome for one in again] == ["already_fired"] * 4
    assert [one.execution_id for one in again] == [one.execution_id for one in done]
    runs = await world.queue()
    assert [msgspec.json.decode(run.input)["scheduledTime"] for run in runs] == [
        START + HOUR, START + 2 * HOUR, START + 3 * HOUR,
    ]  # fmt: skip
    assert {run.lane for run in runs} == {f"s:{schedule.id}"}
    assert [outcome for _, outcome in await world.outcomes(schedule)] == [
        "buffered", "buffered", "buffered", "queued", "overlapped",
    ]  # fmt: skip


async def test_a_backfill_has_bounds(world: World) -> None:
    """Nothing of the future, nothing without end."""
    schedule = await world.schedule(every="1s")
    world.clock.now_ms = START + HOUR

    for begin, end, options in (
        (START, START, {}),
        (START, START + 2 * HOUR, {}),
        (START, START + HOUR, {}),
        (START, START + MINUTE, {"overlap": "skip"}),
    ):
        with pytest.raises(Invalid):
            await backfill(world, schedule, begin, end, **options)
    done = await backfill(world, schedule, START + 1, START + MINUTE, overlap="allow_all")

    assert len(done) == 59
    assert {run.lane for run in await world.queue()} == {None}


async def test_a_backfill_that_a_late_scheduler_follows(world: World) -> None:
    """What was made up for by hand does not fire again."""
    schedule = await world.schedule(cron="0 * * * *", overlap="allow_all", catchup_window="1d")
    world.clock.now_ms = START + 3 * HOUR

    await backfill(world, schedule, START + HOUR, START + 3 * HOUR)
    await world.fire()

    assert len(await world.queue()) == 3
    assert len(await world.fires(schedule)) == 3


async def test_a_deleted_schedule_leaves_its_runs(world: World) -> None:
    """They are runs like any other."""
    schedule = await world.schedule(cron="0 * * * *")
    await world.at(START + HOUR)

    await remove_schedule(world, PROJECT, schedule.id)
    await world.at(START + 2 * HOUR)

    assert len(await world.queue()) == 1
    assert await world.rows(select(schedule_cursors)) == []
