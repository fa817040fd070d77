"""Rows of `run_queue`, what must still run: how one is built, and how a node gets those it runs.

Path:   events, commit, jobs, schedules -> `queue_row` -> journal; backlog -> `claim`
Never:  gives one row to two nodes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Row,
    Text,
    bindparam,
    func,
    insert,
    select,
    tuple_,
    update,
)

from engine.policies import needs_claim, read_queued
from engine.store.changes import newest
from engine.store.flow import Candidate, admit
from engine.store.tables import events, run_queue

HIGH, DEFAULT, LOW = 0, 1, 2  # priorities, in the order in which they are taken
PRIORITIES: Final[Mapping[str, int]] = {"high": HIGH, "default": DEFAULT, "low": LOW}


def queue_row(
    *,
    run_id: str,
    project_id: str,
    function_id: str,
    cause: str,
    handler: str,
    root_id: str,
    created_ms: int,
    depth: int = 0,
    event_id: str | None = None,
    device_id: str | None = None,
    given: str | None = None,
    due_ms: int = 0,
    priority: int = DEFAULT,
    node_id: str | None = None,
    attempt: int = 1,
    takeovers: int = 0,
    job_id: str | None = None,
    schedule_id: str | None = None,
    lane: str | None = None,
    position_ms: int | None = None,
    policy: str | None = None,
    origin: str | None = None,
    path: str | None = None,
    budget: int | None = None,
) -> tuple[Any, ...]:
    """Return a row for `Commit.insert(run_queue, ...)`.

    `run_id` is the execution's id; `given` the JSON of its input, None when the event holds it;
    `due_ms` 0 means at once; `node_id` None means that any node may claim it. `lane`,
    `position_ms`, `policy`, `origin`: see `engine.flow`, `engine.policies`, `engine.intents`;
    `path`, `budget`: `engine.causality`.
    """
    return (
        run_id, project_id, function_id, cause, handler, event_id, device_id, given, root_id,
        depth, created_ms, due_ms or created_ms, priority, node_id, attempt, takeovers, job_id,
        schedule_id, lane, position_ms, policy, origin, path, budget,
    )  # fmt: skip


class Queued(msgspec.Struct, frozen=True):
    """One row of the queue with its event's payload, claimed for a node.

    A struct, in the order of the table's columns: thousands a second are made.
    """

    id: str
    project_id: str
    function_id: str
    cause: str
    handler: str
    event_id: str | None
    device_id: str | None
    input: str | None
    root_id: str
    depth: int
    created_ms: int
    due_ms: int
    priority: int
    attempt: int
    takeovers: int
    job_id: str | None
    schedule_id: str | None
    lane: str | None
    position_ms: int | None
    policy: str | None
    origin: str | None
    path: str | None
    budget: int | None
    payload: str | None = None
    source: str | None = None
    skip: tuple[str, str] | None = None  # (reason, message): it is not to run, only to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one claim gave."""

    rows: list[Queued]
    more: bool  # there may be more that is due
    cancelled: list[str]  # runs that one of the rows has cancelled
    changes_seq: int  # the catalogue must know this much before the rows are run
    wake_ms: int | None = None  # the earliest time that a row was put off to


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """The first of the free rows of a project and priority."""

    project_id: str
    priority: int
    due_ms: int


def claim(connection: Connection, project_id: str, node_id: str, now_ms: int, limit: int) -> Claim:
    """Make up to `limit` free and due rows of a project this node's, high priority first.

    Several nodes may claim at once: each row goes to one of them, and none waits for another.
    """
    found: list[Row[Any]] = []
    for priority in (HIGH, DEFAULT, LOW):
        query = (
            select(*_COLUMNS)
            .where(
                run_queue.c.project_id == project_id,
                run_queue.c.node_id.is_(None),
                run_queue.c.priority == priority,
                run_queue.c.due_ms <= now_ms,
            )
            .order_by(run_queue.c.due_ms, run_queue.c.id)
            .limit(limit - len(found))
            .with_for_update(skip_locked=True)
        )
        found += connection.execute(query).all()
        if len(found) >= limit:
            break
    if not found:
        return Claim(rows=[], more=False, cancelled=[], changes_seq=0)
    plain, special = _parted(found)
    skips: dict[str, tuple[str, str]] = {}
    cancelled: list[str] = []
    wake_ms = None
    rows = plain
    if special:
        admitted = admit(connection, list(map(_candidate, special)), node_id, now_ms)
        skips = {run_id: (reason, message) for run_id, reason, message in admitted.skip}
        cancelled = list(admitted.cancel)
        wake_ms = min((due_ms for _, due_ms in admitted.wait), default=None)
        taken = {*admitted.claim, *skips}
        known = {row.id for row in special}
        chosen = [row for row in special if row.id in taken]
        chosen += _rows_of(connection, taken - known)  # earlier ones of an ordered lane
        place = {run_id: at for at, run_id in enumerate(admitted.claim)}
        rows = plain + sorted(chosen, key=lambda row: place.get(row.id, -1))
    if rows:
        ids = [row.id for row in rows]
        mine = update(run_queue).where(_one_of(connection, run_queue.c.id, ids))
        connection.execute(mine.values(node_id=node_id))
    given = _events_of(connection, {row.event_id for row in rows if row.input is None})
    return Claim(
        rows=[_queued(row, given, skips) for row in rows],
        more=len(found) >= limit,
        cancelled=cancelled,
        changes_seq=0 if connection.dialect.name == "sqlite" else newest(connection),
        wake_ms=wake_ms,
    )


def insert_rows(
    connection: Connection, rows: Sequence[tuple[Any, ...]]
) -> list[tuple[str, int, int]]:
    """Insert rows of `queue_row`; return (project, priority, due) of each, for `Backlog.wake`."""
    named = [dict(zip(run_queue.columns.keys(), row, strict=True)) for row in rows]
    if named:
        connection.execute(insert(run_queue), named)
    return [(row["project_id"], row["priority"], row["due_ms"]) for row in named]


def soonest(connection: Connection) -> list[Due]:
    """Return the first due time of each project and priority that has free rows.

    One step along the index for each pair, however many rows wait.
    """
    found: list[Due] = []
    last = ("", -1)
    while True:
        query = (
            select(run_queue.c.project_id, run_queue.c.priority, run_queue.c.due_ms)
            .where(
                run_queue.c.node_id.is_(None),
                tuple_(run_queue.c.project_id, run_queue.c.priority) > tuple_(*last),
            )
            .order_by(run_queue.c.project_id, run_queue.c.priority, run_queue.c.due_ms)
            .limit(1)
        )
        row = connection.execute(query).first()
        if row is None:
            return found
        found.append(Due(project_id=row.project_id, priority=row.priority, due_ms=row.due_ms))
        last = (row.project_id, row.priority)


_COLUMNS: Final = [column for column in run_queue.columns if column.name != "node_id"]
assert Queued.__struct_fields__[: len(_COLUMNS)] == tuple(column.name for column in _COLUMNS)


def _parted(rows: list[Row[Any]]) -> tuple[list[Row[Any]], list[Row[Any]]]:
    """Return the rows that just run, and those that a limit, an order or an end is set for."""
    plain: list[Row[Any]] = []
    special: list[Row[Any]] = []
    for row in rows:
        asks = row.lane is not None or needs_claim(read_queued(row.policy))
        (special if asks else plain).append(row)
    return plain, special


def _rows_of(connection: Connection, ids: Collection[str]) -> list[Row[Any]]:
    if not ids:
        return []
    query = select(*_COLUMNS).where(_one_of(connection, run_queue.c.id, ids))
    return list(connection.execute(query))


def _events_of(connection: Connection, ids: set[str | None]) -> dict[str, tuple[str, str]]:
    wanted = [event_id for event_id in ids if event_id is not None]
    if not wanted:
        return {}
    query = select(events.c.id, events.c.payload, events.c.source)
    found = connection.execute(query.where(_one_of(connection, events.c.id, wanted)))
    return {row.id: (row.payload, row.source) for row in found}


def _one_of(
    connection: Connection, column: Column[str], ids: Collection[str]
) -> ColumnElement[bool]:
    """Return `column IN ids`; for PostgreSQL as one value, for 512 cost more than the statement."""
    if connection.dialect.name == "sqlite":
        return column.in_(ids)
    return column == func.any(bindparam(None, list(ids), type_=ARRAY(Text)))


def _queued(
    row: Row[Any], given: dict[str, tuple[str, str]], skips: dict[str, tuple[str, str]]
) -> Queued:
    payload, source = given.get(row.event_id or "", (None, None))
    fields: tuple[Any, ...] = (*row, payload, source, skips.get(row.id))
    return Queued(*fields)


def _candidate(row: Row[Any]) -> Candidate:
    return Candidate(
        policy=read_queued(row.policy),
        **{name: getattr(row, name) for name in _CANDIDATE_COLUMNS},
    )


_CANDIDATE_COLUMNS: Final = tuple(
    name for name in Candidate.__dataclass_fields__ if name != "policy"
)
