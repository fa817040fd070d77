"""Counts what waits: runs by project, queue, priority and state; jobs; deliveries; late schedules.

Path:   queue_gauges (every few seconds at most), api.admin -> here
Never:  reads more than some ten thousand rows: a backlog of millions is "at least so many".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Text, case, func, literal, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from engine.store.tables import (
    PARKED,
    connection_gates,
    deliveries,
    jobs,
    nodes,
    projects,
    run_queue,
    schedule_cursors,
)

ROWS_MAX: Final = 50_000  # of the queue that are looked at, the oldest
JOBS_MAX: Final = 10_000  # that are counted of a project and status
LATE_MS: Final = 1_000  # a schedule that is overdue by less is only waiting for its turn
PRIORITIES: Final = ("high", "default", "low")
STATES: Final = ("queued", "delayed", "parked", "held")
DELIVERIES_MAX: Final = 10_000  # that are counted of a state
DELIVERY_STATES: Final = ("queued", "sending", "retrying", "held")
GATES: Final = ("open", "half_open", "disabled")
JOB_STATUSES: Final = (
    "queued", "succeeded", "failed", "dead_lettered", "cancelled", "skipped",
)  # fmt: skip


class _queue_of(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it stands for
    """The queue that a row's policy names; null: none, it is in `default`."""

    type = Text()
    inherit_cache = True


@compiles(_queue_of)
def _queue_of_json(element: _queue_of, compiler: Any, **options: Any) -> str:
    return f"(CAST({compiler.process(element.clauses, **options)} AS json) ->> 'queue')"


@compiles(_queue_of, "sqlite")
def _queue_of_sqlite(element: _queue_of, compiler: Any, **options: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **options)}, '$.queue')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Rows of the queue that are alike."""

    project_id: str
    queue: str
    priority: str
    state: str  # queued: due and free; delayed; parked: its lane is full; held: a node has it
    rows: int
    oldest_due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the gauges show."""

    waiting: Sequence[Waiting]
    nodes: dict[str, int]  # by kind
    jobs: dict[str, int]  # by status
    deliveries: dict[str, int]  # that have not ended, by state
    gates: dict[str, int]  # connections that nothing passes, by why
    lag_ms: int  # of the schedule that is most overdue


def view(connection: Connection, now_ms: int) -> View:
    found = waiting(connection, now_ms)
    kinds = connection.execute(
        select(nodes.c.kind, func.count().label("rows")).group_by(nodes.c.kind)
    )
    lag_ms = now_ms - (connection.execute(select(func.min(schedule_cursors.c.next_ms))).scalar()
                       or now_ms)  # fmt: skip
    return View(
        waiting=found,
        nodes={row.kind: row.rows for row in kinds},
        jobs=_jobs(connection),
        deliveries=_deliveries(connection),
        gates=_gates(connection),
        lag_ms=lag_ms if lag_ms > LATE_MS else 0,
    )


def waiting(connection: Connection, now_ms: int, project_id: str | None = None) -> list[Waiting]:
    """Return what waits, of one project or of all, alike rows together."""
    oldest = select(
        run_queue.c.project_id,
        run_queue.c.priority,
        run_queue.c.node_id,
        run_queue.c.due_ms,
        run_queue.c.policy,
    )
    if project_id is not None:
        oldest = oldest.where(run_queue.c.project_id == project_id)
    some = oldest.order_by(run_queue.c.id).limit(ROWS_MAX).subquery()
    state = case(
        (some.c.node_id == PARKED, "parked"),
        (some.c.node_id.is_not(None), "held"),
        (some.c.due_ms > now_ms, "delayed"),
        else_="queued",
    )
    alike = select(
        some.c.project_id,
        func.coalesce(_queue_of(some.c.policy), "default").label("queue"),
        some.c.priority,
        state.label("state"),
        some.c.due_ms,
    ).subquery()
    key = (alike.c.project_id, alike.c.queue, alike.c.priority, alike.c.state)
    query = select(*key, func.count(), func.min(alike.c.due_ms)).group_by(*key).order_by(*key)
    return [
        Waiting(
            project_id=of,
            queue=queue,
            priority=PRIORITIES[min(max(priority, 0), 2)],
            state=word,
            rows=rows,
            oldest_due_ms=oldest_ms,
        )
        for of, queue, priority, word, rows, oldest_ms in connection.execute(query)
    ]


def queued_counts(connection: Connection, most: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows of these projects are in the queue, held and parked ones too.

    `most`: by project; free rows are counted up to one more.
    """
    held = select(run_queue.c.project_id, func.count()).where(run_queue.c.node_id.is_not(None))
    rows = connection.execute(held.group_by(run_queue.c.project_id))
    found: Counter[str] = Counter({row[0]: row[1] for row in rows})
    for project_id, limit in most.items():
        free = (
            select(literal(1).label("one"))
            .where(run_queue.c.project_id == project_id, run_queue.c.node_id.is_(None))
            .limit(limit + 1)
            .subquery()
        )
        count = connection.execute(select(func.count()).select_from(free)).scalar_one()
        found[project_id] += count
    return found


def _jobs(connection: Connection) -> dict[str, int]:
    # From an index of project and status, and no further than the limit in each.
    statuses = union_all(*(select(literal(word).label("status")) for word in JOB_STATUSES))
    wanted = statuses.subquery()
    some = (
        select(literal(1).label("one"))
        .where(jobs.c.project_id == projects.c.id, jobs.c.status == wanted.c.status)
        .correlate(projects, wanted)
        .limit(JOBS_MAX)
        .subquery()
    )
    count = select(func.count()).select_from(some).correlate(projects, wanted).scalar_subquery()
    each = select(wanted.c.status, count.label("rows")).select_from(projects).join(
        wanted, literal(value=True)
    ).subquery()  # fmt: skip
    query = select(each.c.status, func.sum(each.c.rows)).group_by(each.c.status)
    found = {status: int(rows) for status, rows in connection.execute(query)}
    return {word: found.get(word, 0) for word in JOB_STATUSES}


def _deliveries(connection: Connection) -> dict[str, int]:
    # From an index of states, and no further than the limit in each.
    some = (
        select(literal(1).label("one"))
        .where(deliveries.c.state == state)
        .limit(DELIVERIES_MAX)
        .subquery()
        for state in DELIVERY_STATES
    )
    counts = [select(func.count()).select_from(one).scalar_subquery() for one in some]
    return dict(zip(DELIVERY_STATES, connection.execute(select(*counts)).one(), strict=True))


def _gates(connection: Connection) -> dict[str, int]:
    state = case(
        (connection_gates.c.disabled.is_not(None), "disabled"), else_=connection_gates.c.breaker
    ).label("state")
    query = select(state, func.count().label("rows")).group_by(state)
    found = {row.state: row.rows for row in connection.execute(query)}
    return {word: found.get(word, 0) for word in GATES}
