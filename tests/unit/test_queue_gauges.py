"""The numbers of the queue: what they count, how seldom they are read, what if they cannot be."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from engine import queue_gauges as module
from engine.queue_gauges import QueueGauges
from engine.store.database import Database
from engine.store.queue_view import view, waiting
from engine.store.tables import (
    PARKED,
    connection_gates,
    deliveries,
    functions,
    jobs,
    nodes,
    projects,
    run_queue,
    schedule_cursors,
    schedules,
)

NOW_MS = 1_790_000_000_000


class Time:
    """A monotonic clock, set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    with opened.engine.begin() as connection:
        for name in ("prj_a", "prj_b"):
            connection.execute(insert(projects).values(id=name, name=name, created_ms=0))
    yield opened
    opened.close()


def put(database: Database, table: Any, **given: Any) -> None:
    of_type = {str: "x", int: 1, bytes: b"x", bool: True}
    row = {
        column.name: None if column.nullable else of_type[column.type.python_type]
        for column in table.columns
    }
    with database.engine.begin() as connection:
        connection.execute(insert(table).values(row | given))


def queued(database: Database, run_id: str, due_ms: int, **fields: Any) -> None:
    row = {"id": run_id, "project_id": "prj_a", "due_ms": due_ms, "priority": 1}
    put(database, run_queue, **row | fields)


async def samples(database: Database) -> Any:
    gauges = QueueGauges(database, lambda: NOW_MS)
    await gauges.refresh()
    return gauges.samples()


async def test_depth_and_age_are_by_queue_priority_and_state(database: Database) -> None:
    """Of all projects together; a row that is not due yet has no age."""
    queued(database, "exe_1", NOW_MS - 9_000)
    queued(database, "exe_2", NOW_MS - 3_000, project_id="prj_b")
    queued(database, "exe_3", NOW_MS + 5_000)
    queued(database, "exe_4", NOW_MS - 4_000, node_id=PARKED)
    queued(database, "exe_5", NOW_MS - 1_000, node_id="node_1", priority=0)
    queued(database, "exe_6", NOW_MS - 2_000, priority=2, policy='{"queue":"images"}')

    found = await samples(database)

    assert found["cloudcode_queue_depth"] == {
        ("default", "default", "queued"): 2.0,
        ("default", "default", "delayed"): 1.0,
        ("default", "default", "parked"): 1.0,
        ("default", "high", "held"): 1.0,
        ("images", "low", "queued"): 1.0,
    }
    assert found["cloudcode_queue_oldest_age_seconds"] == {
        ("default", "default", "queued"): 9.0,
        ("default", "default", "delayed"): 0.0,
        ("default", "default", "parked"): 4.0,
        ("default", "high", "held"): 1.0,
        ("images", "low", "queued"): 2.0,
    }


async def test_an_empty_queue_has_a_depth_of_nought(database: Database) -> None:
    """An alarm on it must not find nothing to look at."""
    found = await samples(database)

    assert found["cloudcode_queue_depth"] == {("default", "default", "queued"): 0.0}
    assert found["cloudcode_database_up"] == {(): 1.0}


async def test_names_of_queues_are_few(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenants make them up; the small ones go together, so that Prometheus is not flooded."""
    monkeypatch.setattr(module, "QUEUES_MAX", 2)
    for queue, count in (("big", 3), ("mid", 2), ("small", 1), ("tiny", 1)):
        for number in range(count):
            queued(database, f"exe_{queue}{number}", NOW_MS, policy=f'{{"queue":"{queue}"}}')

    depth = (await samples(database))["cloudcode_queue_depth"]

    assert {key[0]: count for key, count in depth.items() if count} == {
        "big": 3.0, "mid": 2.0, "other": 2.0,
    }  # fmt: skip


async def test_counting_stops_somewhere(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrape of a backlog of millions costs no more than one of thousands."""
    monkeypatch.setattr("engine.store.queue_view.ROWS_MAX", 3)
    monkeypatch.setattr("engine.store.queue_view.JOBS_MAX", 2)
    for number in range(5):
        queued(database, f"exe_{number}", NOW_MS)
        for project in ("prj_a", "prj_b"):
            put(database, jobs, id=f"job_{project}{number}", project_id=project, status="failed")

    found = database.read_here(view, (NOW_MS,))

    assert sum(one.rows for one in found.waiting) == 3
    assert found.jobs["failed"] == 4


async def test_nodes_and_jobs_are_counted(database: Database) -> None:
    """A status that no job has is there all the same."""
    for number, kind in enumerate(("serve", "worker", "worker")):
        put(database, nodes, id=f"node_{number}", kind=kind)
    for number, status in enumerate(("queued", "succeeded", "succeeded")):
        put(database, jobs, id=f"job_{number}", project_id="prj_a", status=status)

    found = await samples(database)

    assert found["cloudcode_nodes"] == {("serve",): 1.0, ("worker",): 2.0}
    assert found["cloudcode_jobs"] == {
        ("queued",): 1.0, ("succeeded",): 2.0, ("failed",): 0.0, ("dead_lettered",): 0.0,
        ("cancelled",): 0.0, ("skipped",): 0.0,
    }  # fmt: skip


async def test_deliveries_and_gates_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have not ended, up to a limit; what lets nothing pass, by why."""
    monkeypatch.setattr("engine.store.queue_view.DELIVERIES_MAX", 2)
    for number, state in enumerate(("held", "held", "held", "queued", "delivered", "failed")):
        put(database, deliveries, id=f"dlv_{number}", execution_id=f"exe_{number}", state=state)
    gates = {"a": ("open", None), "b": ("half_open", "401"), "c": ("closed", None)}
    for name, (breaker, why) in gates.items():
        put(database, connection_gates, connection=name, breaker=breaker, disabled=why)

    found = await samples(database)

    assert found["cloudcode_deliveries"] == {
        ("queued",): 1.0, ("sending",): 0.0, ("retrying",): 0.0, ("held",): 2.0,
    }  # fmt: skip
    assert found["cloudcode_connection_gates"] == {
        ("open",): 1.0, ("half_open",): 0.0, ("disabled",): 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("late_ms", "lag_s"), [(90_000, 90.0), (500, 0.0), (-60_000, 0.0)])
async def test_a_schedule_that_nobody_fires_is_a_lag(
    late_ms: int, lag_s: float, database: Database
) -> None:
    """One that was due this second is only waiting for its turn."""
    put(database, functions, id="fn_1", project_id="prj_a")
    put(database, schedules, id="sch_1", project_id="prj_a", function_id="fn_1")
    put(database, schedule_cursors, schedule_id="sch_1", next_ms=NOW_MS - late_ms)
    gauges = QueueGauges(database, lambda: NOW_MS)

    await gauges.refresh()

    assert gauges.schedule_lag_s() == lag_s


async def test_one_project_alone_can_be_looked_at(database: Database) -> None:
    """As an operator asks for it."""
    queued(database, "exe_1", NOW_MS)
    queued(database, "exe_2", NOW_MS, project_id="prj_b")

    (found,) = database.read_here(waiting, (NOW_MS, "prj_b"))

    assert (found.project_id, found.rows, found.state) == ("prj_b", 1, "queued")


async def test_numbers_are_read_again_after_a_while(database: Database) -> None:
    """However often they are asked for in between."""
    time = Time()
    gauges = QueueGauges(database, lambda: NOW_MS, monotonic=time)
    await gauges.refresh()
    queued(database, "exe_1", NOW_MS)

    await gauges.refresh()
    before = gauges.samples()["cloudcode_queue_depth"]
    time.now_s += module.FRESH_S
    await gauges.refresh()
    after = gauges.samples()["cloudcode_queue_depth"]

    assert sum(before.values()) == 0
    assert sum(after.values()) == 1


async def test_without_the_database_the_scrape_succeeds_and_says_so(tmp_path: Path) -> None:
    """And old numbers are not shown as new ones."""
    time = Time()
    database = Database(f"sqlite:///{tmp_path / 'engine.db'}")
    database.migrate()
    gauges = QueueGauges(database, lambda: NOW_MS, monotonic=time)
    await gauges.refresh()
    assert "cloudcode_queue_depth" in gauges.samples()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE run_queue")
    time.now_s += 60

    await gauges.refresh()
    database.close()

    assert gauges.samples() == {"cloudcode_database_up": {(): 0.0}}


async def test_a_database_that_hangs_is_not_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read is under way at a time, however many scrapes come."""
    reads, goes_on = [], threading.Event()

    def hangs(connection: Connection, now_ms: int) -> Any:
        reads.append(now_ms)
        goes_on.wait(10)
        return view(connection, now_ms)

    monkeypatch.setattr(module, "view", hangs)
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    time = Time()
    gauges = QueueGauges(database, lambda: NOW_MS, monotonic=time)
    for _ in range(3):
        await gauges.refresh()
        time.now_s += 10
    hanging = gauges.samples()

    goes_on.set()
    monkeypatch.setattr(module, "WAIT_S", 10)
    async with asyncio.timeout(10):
        await gauges.refresh()

    assert hanging == {"cloudcode_database_up": {(): 0.0}}
    assert len(reads) == 1
    assert gauges.samples()["cloudcode_database_up"] == {(): 1.0}
