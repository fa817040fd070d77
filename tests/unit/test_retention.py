"""What retention deletes, and what it must never touch; on each kind of database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Table, insert, select

from engine.errors import Invalid
from engine.retention import Retention
from engine.retention_rules import DAY_MS, HOUR_MS, Keep, Kind, check_rule, defaults, keeps
from engine.retention_usage import Usage, cut_ms, usage
from engine.settings import Settings
from engine.store import retention as store
from engine.store.database import Database
from engine.store.journal import Journal
from engine.store.retention import Rule, put_rules
from engine.store.tables import (
    PARKED,
    changes,
    connection_gates,
    dead_letters,
    deliveries,
    delivery_attempts,
    delivery_counts,
    devices,
    events,
    executions,
    flow_marks,
    functions,
    idempotency_keys,
    jobs,
    nodes,
    products,
    projects,
    resources,
    run_queue,
    schedule_fires,
    schedules,
    value_ids,
    values,
)

NOW_MS = 1_790_000_000_000
EVER = dict.fromkeys(Kind, Keep())
WAIT_S = 10


class Time:
    """A wall clock and a monotonic one, set by hand."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.passed_s = 0.0

    def wall(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return self.passed_s

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self.passed_s += seconds


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    with opened.engine.begin() as connection:
        for name in ("prj_a", "prj_b"):
            connection.execute(insert(projects).values(id=name, name=name, created_ms=0))
    yield opened
    opened.close()


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[Journal]:
    opened = Journal(database)
    yield opened
    async with asyncio.timeout(WAIT_S):
        await opened.close()


@pytest.fixture
def time() -> Time:
    return Time()


def retention(database: Database, journal: Journal, time: Time, **keep: Keep) -> Retention:
    """A retention that keeps everything else for ever; events follow executions."""
    given = EVER | {Kind(name): one for name, one in keep.items()}
    return Retention(database, journal, time.wall, given, monotonic=time.monotonic)


def an_id(prefix: str, at_ms: int, number: int = 0) -> str:
    return f"{prefix}_{at_ms:012x}7{number:019x}"


def put(database: Database, table: Table, **given: Any) -> dict[str, Any]:
    """Store a row; what is not given is something of the right type."""
    of_type = {str: "x", int: 1, bytes: b"x", bool: True}
    row = {
        column.name: None if column.nullable else of_type[column.type.python_type]
        for column in table.columns
    }
    row |= given
    with database.engine.begin() as connection:
        connection.execute(insert(table).values(row))
    return row


def ran(database: Database, days_ago: float, *, project: str = "prj_a", **given: Any) -> str:
    """Store an execution, and return its id."""
    at_ms = NOW_MS - round(days_ago * DAY_MS)
    row = {"id": an_id("exe", at_ms), "project_id": project, "clock_ms": at_ms, "created_ms": at_ms}
    return put(database, executions, **{"log": "[]", **row, **given})["id"]


def happened(
    database: Database, days_ago: float, *, project: str = "prj_a", number: int = 0
) -> str:
    at_ms = NOW_MS - round(days_ago * DAY_MS)
    event_id = an_id("evt", at_ms, number)
    put(database, events, id=event_id, project_id=project, received_ms=at_ms)
    return event_id


def left(database: Database, table: Table, *columns: str) -> list[Any]:
    """Return a column of what is there, in order; of several columns, tuples."""
    wanted = [table.c[name] for name in columns or ("id",)]
    with database.engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(select(*wanted).order_by(*wanted))]
    return [row[0] for row in rows] if len(wanted) == 1 else rows


def a_timeline(database: Database, *days_ago: float, device: str = "dev_1", project: str = "prj_a",
               key: str = "temp", value: str = "21.5") -> None:  # fmt: skip
    with database.engine.begin() as connection:
        known = connection.execute(select(devices.c.id).where(devices.c.id == device)).first()
    if known is None:
        if not left(database, products):
            put(database, products, id="prd_1", project_id=project)
        put(database, devices, id=device, token=device, project_id=project, product_id="prd_1")
    put(database, resources, device_id=device, key=key)
    for seq, days in enumerate(days_ago):
        at_ms = NOW_MS - round(days * DAY_MS)
        row = {"device_id": device, "key": key, "at_ms": at_ms, "seq": seq, "value": value}
        put(database, values, **row)


def days_left(database: Database, device: str = "dev_1") -> list[float]:
    rows = left(database, values, "device_id", "at_ms")
    return sorted((NOW_MS - at_ms) / DAY_MS for of, at_ms in rows if of == device)


# By age.


async def test_old_executions_go(database: Database, journal: Journal, time: Time) -> None:
    """Those that ran within the time stay."""
    ran(database, 31)
    kept = ran(database, 29)

    gone = await retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS)).sweep()

    assert gone == 1
    assert left(database, executions) == [kept]


async def test_an_executions_age_counts_from_its_run(
    database: Database, journal: Journal, time: Time
) -> None:
    """A job for next month has an id of today; its record must not go as soon as it is made."""
    old_id = an_id("exe", NOW_MS - 60 * DAY_MS)
    ran(database, 1, id=old_id)

    await retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS)).sweep()

    assert left(database, executions) == [old_id]


async def test_of_old_logs_the_log_alone_goes(
    database: Database, journal: Journal, time: Time
) -> None:
    """What ran, how it ended and what it answered is still there."""
    old = ran(database, 15, log='[["info",1,"x"]]', result="42")
    new = ran(database, 13, log='[["info",1,"y"]]')

    await retention(database, journal, time, logs=Keep(age_ms=14 * DAY_MS)).sweep()

    assert left(database, executions, "id", "log", "result") == [
        (old, None, "42"),
        (new, '[["info",1,"y"]]', None),
    ]


async def test_a_job_that_has_not_ended_stays(
    database: Database, journal: Journal, time: Time
) -> None:
    """However old it is; one that has ended long ago goes, one that ended lately stays."""
    created = an_id("job", NOW_MS - 90 * DAY_MS, 1)
    waiting = put(database, jobs, id=created, project_id="prj_a", ended_ms=None)["id"]
    for number, days in ((2, 31), (3, 29)):
        job_id = an_id("job", NOW_MS - 90 * DAY_MS, number)
        put(database, jobs, id=job_id, project_id="prj_a", ended_ms=NOW_MS - days * DAY_MS)

    await retention(database, journal, time, jobs=Keep(age_ms=30 * DAY_MS)).sweep()

    assert left(database, jobs) == [waiting, an_id("job", NOW_MS - 90 * DAY_MS, 3)]


async def test_old_dead_letters_go(database: Database, journal: Journal, time: Time) -> None:
    """Nobody has looked at them for so long."""
    for number, days in enumerate((91, 89)):
        at_ms = NOW_MS - days * DAY_MS
        letter_id = an_id("dlq", at_ms, number)
        put(database, dead_letters, id=letter_id, project_id="prj_a", created_ms=at_ms)

    await retention(database, journal, time, dead_letters=Keep(age_ms=90 * DAY_MS)).sweep()

    assert left(database, dead_letters) == [an_id("dlq", NOW_MS - 89 * DAY_MS, 1)]


async def test_ended_deliveries_go_with_their_attempts(
    database: Database, journal: Journal, time: Time
) -> None:
    """One that is still on its way stays, whatever its age."""
    at_ms = NOW_MS - 40 * DAY_MS
    for number, ended_ms in enumerate((at_ms, None)):
        delivery_id = an_id("dlv", at_ms, number)
        row = {"id": delivery_id, "project_id": "prj_a", "ended_ms": ended_ms}
        put(database, deliveries, **row, execution_id=delivery_id)
        put(database, delivery_attempts, delivery_id=delivery_id)

    await retention(database, journal, time, deliveries=Keep(age_ms=30 * DAY_MS)).sweep()

    assert left(database, deliveries) == [an_id("dlv", at_ms, 1)]
    assert left(database, delivery_attempts, "delivery_id") == [an_id("dlv", at_ms, 1)]


async def test_old_values_go_by_their_datetime(
    database: Database, journal: Journal, time: Time
) -> None:
    """Of every timeline of the project; the resource itself stays known."""
    a_timeline(database, 100, 91, 89, 1)
    a_timeline(database, 95, device="dev_2")
    a_timeline(database, 2, device="dev_3")

    await retention(database, journal, time, values=Keep(age_ms=90 * DAY_MS)).sweep()

    assert days_left(database) == [1, 89]
    assert days_left(database, "dev_2") == []
    assert days_left(database, "dev_3") == [2]
    assert len(left(database, resources, "device_id")) == 3


async def test_old_fires_of_schedules_go(database: Database, journal: Journal, time: Time) -> None:
    """By their due times."""
    put(database, functions, id="fn_1", project_id="prj_a")
    put(database, schedules, id="sch_1", project_id="prj_a", function_id="fn_1")
    for days in (31, 29):
        due_ms = NOW_MS - days * DAY_MS
        put(database, schedule_fires, schedule_id="sch_1", due_ms=due_ms, device_id="")

    await retention(database, journal, time, schedule_fires=Keep(age_ms=30 * DAY_MS)).sweep()

    assert left(database, schedule_fires, "due_ms") == [NOW_MS - 29 * DAY_MS]


async def test_what_is_kept_for_ever_stays(
    database: Database, journal: Journal, time: Time
) -> None:
    """No limit is no limit."""
    ran(database, 3000)
    happened(database, 3000)
    a_timeline(database, 3000)

    assert await retention(database, journal, time).sweep() == 0


# What must never go.


async def test_the_event_of_a_queued_run_stays(
    database: Database, journal: Journal, time: Time
) -> None:
    """The run has not happened yet, and its input is in the event; so with dead letters."""
    queued, dead, plain = (happened(database, 60, number=number) for number in range(3))
    put(database, run_queue, id=an_id("exe", NOW_MS - 60 * DAY_MS), event_id=queued)
    put(database, dead_letters, event_id=dead, project_id="prj_a")

    await retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS)).sweep()

    assert plain not in left(database, events)
    assert left(database, events) == [queued, dead]


async def test_an_event_that_is_asked_for_again_meanwhile_stays(
    database: Database, journal: Journal
) -> None:
    """A replay that came between the look and the step has its row in the queue already."""
    event_id = happened(database, 60)
    ask = store.Ask(kind="events", project_ids=("prj_a",), until_id="evt_z", before_ms=NOW_MS)
    put(database, run_queue, id=an_id("exe", NOW_MS), event_id=event_id, node_id=PARKED)

    done = await journal.run(store.delete_rows, ask, [event_id], NOW_MS)

    assert done == 0
    assert left(database, events) == [event_id]


async def test_an_event_goes_once_nobody_needs_it(
    database: Database, journal: Journal, time: Time
) -> None:
    """What was passed over is looked at again, at the latest the day after."""
    happened(database, 60)
    letter = put(database, dead_letters, event_id=left(database, events)[0], project_id="prj_a")
    working = retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS))
    await working.sweep()
    with database.engine.begin() as connection:
        connection.execute(dead_letters.delete().where(dead_letters.c.id == letter["id"]))

    time.pass_s(25 * 3600)
    await working.sweep()

    assert left(database, events) == []


async def test_a_job_that_is_alive_again_by_the_step_stays(
    database: Database, journal: Journal
) -> None:
    """The step looks again: between the look and it somebody may have redriven the job."""
    at_ms = NOW_MS - 60 * DAY_MS
    job_id = an_id("job", at_ms)
    put(database, jobs, id=job_id, project_id="prj_a", ended_ms=None)
    ask = store.Ask(kind="jobs", project_ids=("prj_a",), until_id="job_z", before_ms=NOW_MS)

    assert await journal.run(store.delete_rows, ask, [job_id], NOW_MS) == 0
    assert left(database, jobs) == [job_id]


@pytest.mark.parametrize("kind", ["executions", "events", "values"])
async def test_another_projects_rows_stay(
    kind: str, database: Database, journal: Journal, time: Time
) -> None:
    """A project's rules are its own."""
    ran(database, 400, project="prj_b")
    happened(database, 400, project="prj_b")
    a_timeline(database, 400, project="prj_b")
    rule = {kind: Rule(age_ms_max=DAY_MS, rows_max=1, bytes_max=1)}
    await journal.run(put_rules, "prj_a", rule)

    assert await retention(database, journal, time).sweep() == 0


async def test_projects_that_say_nothing_follow_the_settings(
    database: Database, journal: Journal, time: Time
) -> None:
    """One that keeps its events for ever does so, beside one that does not."""
    mine, _theirs = happened(database, 60), happened(database, 60, project="prj_b", number=1)
    await journal.run(put_rules, "prj_a", {"events": Rule(age_ms_max=0)})

    await retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS)).sweep()

    assert left(database, events) == [mine]


# By size.


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (3, 3), (10, 5)])
async def test_the_newest_rows_stay(
    rows: int, expected: int, database: Database, journal: Journal, time: Time
) -> None:
    """So many of them, whatever their age."""
    kept = [ran(database, days) for days in (5, 4, 3, 2, 1)][-expected:]

    await retention(database, journal, time, executions=Keep(rows=rows)).sweep()

    assert left(database, executions) == kept


async def test_the_newest_bytes_stay(database: Database, journal: Journal, time: Time) -> None:
    """Bytes, not characters; with what each row takes besides its texts."""
    kept = [ran(database, days, result="é" * 300, log=None) for days in (3, 2, 1)][1:]
    row_bytes = store.SHELVES["executions"].row_bytes

    keep = Keep(bytes=2 * (600 + row_bytes))
    await retention(database, journal, time, executions=keep).sweep()

    assert left(database, executions) == kept


async def test_logs_have_a_size_of_their_own(
    database: Database, journal: Journal, time: Time
) -> None:
    """The oldest logs go; runs without a log do not count."""
    for days in (4, 3, 2, 1):
        ran(database, days, log=None if days == 2 else "x" * 100)

    await retention(database, journal, time, logs=Keep(bytes=200)).sweep()

    assert [log and len(log) for log in left(database, executions, "log")].count(100) == 2
    assert len(left(database, executions)) == 4


async def test_events_of_one_project_are_counted_among_all(
    database: Database, journal: Journal, time: Time
) -> None:
    """They stand between those of others, and those needed are not counted away."""
    for number in range(6):
        project = "prj_a" if number % 2 else "prj_b"
        happened(database, 10 - number, project=project, number=number)
    put(database, run_queue, id=an_id("exe", 1), event_id=left(database, events)[1])
    await journal.run(put_rules, "prj_a", {"events": Rule(rows_max=1)})

    await retention(database, journal, time).sweep()

    of_a = [event_id for event_id, project in left(database, events, "id", "project_id")
            if project == "prj_a"]  # fmt: skip
    assert of_a == [left(database, events)[1], left(database, events)[-1]]
    assert len(left(database, events)) == 5


@pytest.mark.parametrize("keep", [Keep(rows=3), Keep(bytes=3 * 104)], ids=["rows", "bytes"])
async def test_the_newest_values_of_a_project_stay(
    keep: Keep, database: Database, journal: Journal, time: Time
) -> None:
    """Over all its timelines together."""
    a_timeline(database, 9, 7, 1.5)
    a_timeline(database, 8, 2, 1, device="dev_2")

    await retention(database, journal, time, values=keep).sweep()

    assert days_left(database) == [1.5]
    assert days_left(database, "dev_2") == [1, 2]


@pytest.mark.parametrize("count", [1, 2, 5, 59, 60, 61])
async def test_values_are_cut_to_the_millisecond(
    count: int, database: Database, journal: Journal, time: Time
) -> None:
    """Also when all of them came within one second, or before 1970."""
    a_timeline(database)
    with database.engine.begin() as connection:
        for number in range(60):
            row = {"device_id": "dev_1", "key": "temp", "seq": number, "value": "1", "geo": None}
            connection.execute(insert(values).values(at_ms=number - 30, **row))

    await retention(database, journal, time, values=Keep(rows=count)).sweep()

    assert left(database, values, "at_ms") == list(range(-30, 30))[-min(count, 60) :]


async def test_the_newest_moment_stays_whole(database: Database) -> None:
    """Equal datetimes have no order among themselves that an owner would know."""
    a_timeline(database, 1, 1, 1, 2)

    cut = await cut_ms(database, "prj_a", Keep(rows=2))

    assert cut == NOW_MS - DAY_MS


async def test_a_size_and_an_age_hold_together(
    database: Database, journal: Journal, time: Time
) -> None:
    """What either of them does not allow goes."""
    a_timeline(database, 50, 3, 2, 1)
    kept = [ran(database, days) for days in (50, 3, 2, 1)][-2:]

    keep = Keep(rows=2, age_ms=30 * DAY_MS)
    await retention(database, journal, time, values=keep, executions=keep).sweep()

    assert days_left(database) == [1, 2]
    assert left(database, executions) == kept


# The engine's own.


async def test_the_engine_forgets_its_own_rows(
    database: Database, journal: Journal, time: Time
) -> None:
    """Keys of a day, ids of values of a week, changes of an hour."""
    for hours in (23, 25):
        at_ms = NOW_MS - hours * HOUR_MS
        row = {"key": f"{hours}", "created_ms": at_ms}
        put(database, idempotency_keys, project_id="prj_a", **row)
    for days in (6, 8):
        put(database, value_ids, value_id=f"{days}", created_ms=NOW_MS - days * DAY_MS)
    for seq, minutes in ((1, 90), (2, 70), (3, 50)):
        put(database, changes, seq=seq, at_ms=NOW_MS - minutes * 60_000)

    await retention(database, journal, time).sweep()

    assert left(database, idempotency_keys, "key") == ["23"]
    assert left(database, value_ids, "value_id") == ["6"]
    assert left(database, changes, "seq") == [3]


async def test_the_newest_change_stays(database: Database, journal: Journal, time: Time) -> None:
    """Numbers would begin again otherwise, and whoever has read 7 waits for 8."""
    for seq in (6, 7):
        put(database, changes, seq=seq, at_ms=NOW_MS - 100 * DAY_MS)

    await retention(database, journal, time).sweep()

    assert left(database, changes, "seq") == [7]


async def test_marks_that_still_say_something_stay(
    database: Database, journal: Journal, time: Time
) -> None:
    """A rate that is used up until next week; a burst whose run still waits."""
    old_ms = NOW_MS - 2 * DAY_MS
    put(database, run_queue, id="exe_waits")
    put(database, flow_marks, key="over", touched_ms=old_ms, newest_id="exe_gone", free_ms=old_ms)
    put(database, flow_marks, key="rate", touched_ms=old_ms, free_ms=NOW_MS + DAY_MS)
    put(database, flow_marks, key="burst", touched_ms=old_ms, newest_id="exe_waits")
    put(database, flow_marks, key="new", touched_ms=NOW_MS - HOUR_MS)

    await retention(database, journal, time).sweep()

    assert left(database, flow_marks, "key") == ["burst", "new", "rate"]


async def test_counts_of_the_cost_guard_go_after_two_days(
    database: Database, journal: Journal, time: Time
) -> None:
    """Those of yesterday's last hour are still there; no window is older than a day."""
    for days in (3, 1):
        row = {"project_id": "prj_a", "connection": "SMS", "recipient": f"to:{days}"}
        put(database, delivery_counts, **row, window_ms=NOW_MS - days * DAY_MS)

    await retention(database, journal, time).sweep()

    assert left(database, delivery_counts, "recipient") == ["to:1"]


async def test_gates_that_say_nothing_go_and_others_stay(
    database: Database, journal: Journal, time: Time
) -> None:
    """An open breaker, a place of a slow rate, and what is disabled are kept for however long."""
    old = {"project_id": "prj_a", "next_ms": 0, "until_ms": 0, "failures": 0, "breaker": "closed"}
    put(database, connection_gates, **old, connection="QUIET")
    put(database, connection_gates, **{**old, "breaker": "open"}, connection="OPEN")
    put(database, connection_gates, **{**old, "failures": 2}, connection="FAILING")
    put(database, connection_gates, **old, connection="OFF", disabled="gone")
    put(database, connection_gates, **{**old, "next_ms": NOW_MS}, connection="RATED")

    await retention(database, journal, time).sweep()

    assert left(database, connection_gates, "connection") == ["FAILING", "OFF", "OPEN", "RATED"]


async def test_gates_of_a_scripts_own_credentials_go_when_nobody_uses_them(
    database: Database, journal: Journal, time: Time
) -> None:
    """Whatever they say: each credential makes one, so there is no end of them."""
    row = {"project_id": "prj_a", "next_ms": 0, "failures": 7, "breaker": "open"}
    old_ms = NOW_MS - 3 * DAY_MS
    for name, at_ms in (("telegram:OLD", old_ms), ("telegram:USED", NOW_MS)):
        inline = f"inline:{name}"
        put(database, connection_gates, **row, connection=inline, until_ms=at_ms, since_ms=0)
    put(database, connection_gates, **row, connection="inline", until_ms=old_ms, since_ms=0)

    await retention(database, journal, time).sweep()

    assert left(database, connection_gates, "connection") == ["inline", "inline:telegram:USED"]


# How it works.


async def test_many_rows_go_in_small_steps(
    database: Database, journal: Journal, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction takes more than a step; in the end all are gone."""
    monkeypatch.setattr("engine.retention.STEP_ROWS_MAX", 7)
    monkeypatch.setattr("engine.retention.TURN_ROWS", 20)
    monkeypatch.setattr("engine.retention.PAUSE_S", 0)
    monkeypatch.setattr("engine.store.retention_values.TIMELINES", 2)
    steps = []
    original = store.delete_rows

    def counting(connection: Connection, ask: store.Ask, ids: list[str], now_ms: int) -> int:
        steps.append(len(ids))
        return original(connection, ask, ids, now_ms)

    monkeypatch.setattr(store, "delete_rows", counting)
    for number in range(50):
        ran(database, 31, id=an_id("exe", NOW_MS - 31 * DAY_MS, number))
    a_timeline(database, *(40 + number for number in range(40)))
    for number in range(2, 7):
        a_timeline(database, 50, 40, 20, device=f"dev_{number}")

    keep = Keep(age_ms=30 * DAY_MS)
    gone = await retention(database, journal, time, executions=keep, values=keep).sweep()

    assert gone == 100
    assert left(database, executions) == []
    assert left(database, values, "at_ms") == [NOW_MS - 20 * DAY_MS] * 5
    assert max(steps) <= 7


async def test_two_nodes_delete_no_more_than_one(
    database: Database, journal: Journal, time: Time
) -> None:
    """Both count from the newest row, so both come to the same end."""
    kept = [ran(database, 100 - number / 10) for number in range(100)][-40:]
    a_timeline(database, *(100 - number / 10 for number in range(100)))
    keep = Keep(rows=40)

    await asyncio.gather(
        *(
            retention(database, journal, time, executions=keep, values=keep).sweep()
            for _ in range(3)
        )
    )

    assert left(database, executions) == kept
    assert len(left(database, values, "seq")) == 40


async def test_the_oldest_node_that_serves_works(database: Database) -> None:
    """Workers only when nobody serves; a node that is gone is not waited for."""
    read = database.read_here
    assert read(store.whose_turn)[0] is None
    for node_id, kind in (("node_1", "worker"), ("node_3", "serve"), ("node_2", "serve")):
        put(database, nodes, id=node_id, kind=kind)
    assert read(store.whose_turn)[0] == "node_2"
    with database.engine.begin() as connection:
        connection.execute(nodes.delete().where(nodes.c.kind == "serve"))
    assert read(store.whose_turn)[0] == "node_1"


async def test_a_clock_that_jumps_is_not_believed_at_once(
    database: Database, journal: Journal, time: Time
) -> None:
    """It may jump back; what was deleted meanwhile would not come back."""
    working = retention(database, journal, time)
    time.pass_s(60)
    assert working.believes_clock()

    time.now_ms += 400 * DAY_MS
    assert not working.believes_clock()
    time.pass_s(1800)
    assert not working.believes_clock()
    time.now_ms -= 400 * DAY_MS
    assert not working.believes_clock()
    time.pass_s(3601)
    assert working.believes_clock()


async def test_what_was_recorded_late_is_found_later(
    database: Database, journal: Journal, time: Time
) -> None:
    """A row that appears behind the place where the last walk ended goes within hours."""
    working = retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS))
    ran(database, 31)
    await working.sweep()
    ran(database, 32)
    await working.sweep()
    assert len(left(database, executions)) == 1

    time.pass_s(2 * 3600)
    await working.sweep()

    assert left(database, executions) == []


async def test_a_row_whose_time_comes_goes_then(
    database: Database, journal: Journal, time: Time
) -> None:
    """Passed over because it was too young, though its id is old."""
    working = retention(database, journal, time, executions=Keep(age_ms=30 * DAY_MS))
    ran(database, 29.9, id=an_id("exe", NOW_MS - 60 * DAY_MS))
    await working.sweep()

    time.pass_s(3 * 3600)
    await working.sweep()

    assert left(database, executions) == []


# Rules and counts.


def test_what_is_left_out_is_no_limit() -> None:
    """Except of age, where the settings speak; 0 there is for ever."""
    given = defaults(Settings(retention_executions_days=30, retention_logs_days=14))

    kept = keeps(given, {"executions": Rule(rows_max=5), "logs": Rule(age_ms_max=0)})

    assert kept[Kind.EXECUTIONS] == Keep(rows=5, age_ms=30 * DAY_MS, own=True)
    assert kept[Kind.LOGS] == Keep(own=True)
    assert kept[Kind.VALUES] == Keep()
    assert kept[Kind.DEAD_LETTERS] == Keep(age_ms=90 * DAY_MS)


def test_events_are_kept_as_long_as_the_runs_whose_input_they_are() -> None:
    """Unless the project says of them how long."""
    given = defaults(Settings(retention_executions_days=30))
    longer = {"executions": Rule(age_ms_max=90 * DAY_MS)}

    assert keeps(given, {})[Kind.EVENTS].age_ms == 30 * DAY_MS
    assert keeps(given, longer)[Kind.EVENTS].age_ms == 90 * DAY_MS
    assert keeps(given, longer | {"events": Rule(rows_max=9)})[Kind.EVENTS] == Keep(
        rows=9, age_ms=90 * DAY_MS, own=True
    )
    shorter = longer | {"events": Rule(age_ms_max=DAY_MS)}
    assert keeps(given, shorter)[Kind.EVENTS].age_ms == DAY_MS


@pytest.mark.parametrize(
    ("kind", "given", "pointer"),
    [
        ("executions", {"rows": 0}, "/executions/rows"),
        ("executions", {"size": -1}, "/executions/bytes"),
        ("values", {"age_days": 0.01}, "/values/age_days"),
        ("values", {"age_days": -1}, "/values/age_days"),
        ("values", {"age_days": 1e9}, "/values/age_days"),
        ("schedule_fires", {"rows": 5}, "/schedule_fires/rows"),
        ("schedule_fires", {"size": 5}, "/schedule_fires/bytes"),
    ],
)
def test_a_rule_that_would_surprise_is_refused(
    kind: str, given: dict[str, Any], pointer: str
) -> None:
    """Nought rows, or an age of minutes: more likely a slip than a wish."""
    asked = {"rows": None, "size": None, "age_days": None} | given

    with pytest.raises(Invalid) as caught:
        check_rule(Kind(kind), **asked)

    assert caught.value.problems[0].pointer == pointer


async def test_usage_counts_what_there_is_and_what_would_go(database: Database) -> None:
    """And deletes nothing."""
    for days in (40, 35, 3, 2, 1):
        ran(database, days, log=None, result="x" * 100)
    a_timeline(database, 40, 35, 3, 2, 1, value="x" * 10)
    size = 100 + store.SHELVES["executions"].row_bytes
    keep = Keep(age_ms=30 * DAY_MS)

    by_age = await usage(database, "prj_a", Kind.EXECUTIONS, keep, NOW_MS)
    by_both = await usage(
        database, "prj_a", Kind.EXECUTIONS, Keep(age_ms=30 * DAY_MS, rows=2), NOW_MS
    )
    of_values = await usage(database, "prj_a", Kind.VALUES, Keep(rows=4), NOW_MS)
    of_others = await usage(database, "prj_b", Kind.VALUES, keep, NOW_MS)

    oldest_ms = NOW_MS - 40 * DAY_MS
    expected = {"rows": 5, "bytes": 5 * size, "oldest_ms": oldest_ms}
    assert by_age == Usage(**expected, over_rows=2, over_bytes=2 * size)
    assert by_both == Usage(**expected, over_rows=3, over_bytes=3 * size)
    assert of_values == Usage(
        rows=5, bytes=5 * 110, oldest_ms=oldest_ms, over_rows=1, over_bytes=110
    )
    assert of_others == Usage()
    assert len(left(database, executions)) == len(left(database, values, "seq")) == 5


async def test_usage_says_what_goes_as_retention_does_it(
    database: Database, journal: Journal, time: Time
) -> None:
    """Of every kind."""
    for days in (40, 20, 1):
        at_ms = NOW_MS - days * DAY_MS
        ran(database, days)
        happened(database, days)
        common = {"project_id": "prj_a"}
        put(database, jobs, id=an_id("job", at_ms), ended_ms=at_ms, **common)
        put(database, dead_letters, id=an_id("dlq", at_ms), created_ms=at_ms, **common)
        delivery = an_id("dlv", at_ms)
        put(database, deliveries, id=delivery, execution_id=delivery, ended_ms=at_ms, **common)
    a_timeline(database, 40, 20, 1)
    keep = {
        kind: Keep(age_ms=30 * DAY_MS) if kind is Kind.SCHEDULE_FIRES
        else Keep(age_ms=30 * DAY_MS, rows=2)
        for kind in Kind if kind is not Kind.LOGS
    }  # fmt: skip
    told = {
        kind.value: (await usage(database, "prj_a", kind, one, NOW_MS, budget_s=60)).over_rows
        for kind, one in keep.items()
    }

    working = retention(database, journal, time, **{kind.value: one for kind, one in keep.items()})
    await working.sweep()

    assert dict(working.deleted) == {kind: rows for kind, rows in told.items() if rows}
    assert set(told.values()) == {0, 1}


async def test_a_count_that_takes_too_long_says_so(database: Database) -> None:
    """It is at least so much."""
    ran(database, 1)
    a_timeline(database, 1)

    for kind in (Kind.EXECUTIONS, Kind.VALUES):
        found = await usage(database, "prj_a", kind, Keep(), NOW_MS, budget_s=-1)
        assert not found.complete


async def test_a_rule_is_replaced_whole(database: Database, journal: Journal) -> None:
    """What was said before and is not said again is not in force any more."""
    await journal.run(put_rules, "prj_a", {"logs": Rule(rows_max=1), "jobs": Rule(rows_max=2)})
    await journal.run(put_rules, "prj_a", {"jobs": Rule(bytes_max=3)})

    assert database.read_here(store.rules_of, ("prj_a",)) == {"jobs": Rule(bytes_max=3)}
    assert database.read_here(store.rules_of_all) == {
        "prj_a": {"jobs": Rule(bytes_max=3)},
        "prj_b": {},
    }
