"""Shows operators the nodes, what they have, and what nobody has.

Path:   readiness, api.admin -> here; api.admin -> journal -> `release_run`
Never:  changes anything, but for a run that somebody names.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    func,
    null,
    or_,
    select,
    update,
)

from engine.errors import NotFound
from engine.store.nodes import Takeover
from engine.store.schema import current_revision
from engine.store.server_time import database_ms
from engine.store.tables import (
    PARKED,
    deliveries,
    idempotency_keys,
    nodes,
    run_queue,
    schedule_cursors,
    schedules,
)

LATE_MS: Final = 60_000  # what is due for longer, and nobody has taken, is stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A process that is alive, or was within the lease."""

    id: str
    kind: str
    host: str
    pid: int
    release: str
    started_ms: int
    seen_ms: int
    state: str  # JSON
    held: int = 0  # rows of the queue that are its


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a node asks the database about itself and the others."""

    database_ms: int | None
    revision: str | None
    nodes: tuple[NodeRow, ...]


class Stuck(StrEnum):
    """Why something does not go on by itself, or not soon."""

    ORPHANED = "orphaned"  # a run of a node that is not there
    PARKED = "parked"  # a run that waits for its lane, in which nothing runs
    UNCLAIMED = "unclaimed"  # a run that is due, and nobody takes
    SENDING = "sending"  # a delivery on its way, of a node that is not there
    OVERDUE = "overdue"  # a schedule that nobody fires
    ANSWERING = "answering"  # an idempotency key of a node that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckRow:
    kind: Stuck
    id: str
    project_id: str
    since_ms: int
    node_id: str | None
    detail: str | None  # lane, connection, time zone


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedRun:
    """A run of the queue; `node_id` has it."""

    project_id: str
    priority: int
    node_id: str | None


def look(connection: Connection) -> Look:
    return Look(
        database_ms=database_ms(connection),
        revision=current_revision(connection),
        nodes=tuple(_nodes(connection, {})),
    )


def list_nodes(connection: Connection) -> list[NodeRow]:
    """Return all nodes with how many runs are theirs."""
    held = (
        select(run_queue.c.node_id, func.count().label("rows"))
        .where(run_queue.c.node_id.is_not(None))
        .group_by(run_queue.c.node_id)
    )
    return _nodes(connection, {row.node_id: row.rows for row in connection.execute(held)})


def _nodes(connection: Connection, held: dict[str, int]) -> list[NodeRow]:
    return [
        NodeRow(
            id=row.id,
            kind=row.kind,
            host=row.host,
            pid=row.pid,
            release=row.release,
            started_ms=row.started_ms,
            seen_ms=row.seen_ms,
            state=row.state,
            held=held.get(row.id, 0),
        )
        for row in connection.execute(select(nodes).order_by(nodes.c.id))
    ]


def stuck(connection: Connection, now_ms: int, limit: int) -> list[StuckRow]:
    """Return what is stuck, at most `limit` of each kind, the oldest first."""
    found: list[StuckRow] = []
    for kind, query in _stuck_queries(now_ms).items():
        found += [
            StuckRow(
                kind=kind,
                id=row.id,
                project_id=row.project_id,
                since_ms=row.since_ms,
                node_id=row.node_id,
                detail=row.detail,
            )
            for row in connection.execute(query.limit(limit))
        ]
    return found


def find_run(connection: Connection, run_id: str, *, lock: bool = False) -> OwnedRun:
    """Return a run of the queue and who has it.

    Raises:
        NotFound: it is not in the queue: it has ended, or there was none.
    """
    query = select(run_queue.c.project_id, run_queue.c.priority, run_queue.c.node_id).where(
        run_queue.c.id == run_id
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound("queued run", run_id)
    return OwnedRun(project_id=row.project_id, priority=row.priority, node_id=row.node_id)


def release_run(connection: Connection, run_id: str) -> OwnedRun:
    """Free a run of the queue, whoever has it; what its node does with it is void from now on.

    Raises:
        NotFound: it is not in the queue.
    """
    found = find_run(connection, run_id, lock=True)
    connection.execute(update(run_queue).where(run_queue.c.id == run_id).values(node_id=None))
    return found


def count_of_node(connection: Connection, node_id: str) -> Takeover | None:
    """Return how much is a node's; None: it is not there, and nothing is."""
    if node_id == PARKED:
        return None
    of_queue = select(func.count()).where(run_queue.c.node_id == node_id)
    of_outbox = select(func.count()).where(
        deliveries.c.node_id == node_id, deliveries.c.ended_ms.is_(None)
    )
    found = Takeover(
        runs=connection.execute(of_queue).scalar_one(),
        deliveries=connection.execute(of_outbox).scalar_one(),
    )
    alive = connection.execute(select(nodes.c.id).where(nodes.c.id == node_id)).first()
    return found if alive is not None or found.runs or found.deliveries else None


def _stuck_queries(now_ms: int) -> dict[Stuck, Select[Any]]:
    owned = and_(run_queue.c.node_id.is_not(None), run_queue.c.node_id != PARKED)
    busy_lanes = select(run_queue.c.lane).where(owned, run_queue.c.lane.is_not(None))
    late_ms = now_ms - LATE_MS
    due = (
        select(
            schedule_cursors.c.schedule_id.label("id"),
            schedules.c.project_id,
            schedule_cursors.c.next_ms.label("since_ms"),
            null().label("node_id"),
            schedule_cursors.c.timezone.label("detail"),
        )
        .join(schedules, schedules.c.id == schedule_cursors.c.schedule_id)
        .where(schedule_cursors.c.next_ms < late_ms)
        .order_by(schedule_cursors.c.next_ms)
    )
    sending = (
        select(
            deliveries.c.id,
            deliveries.c.project_id,
            deliveries.c.next_ms.label("since_ms"),
            deliveries.c.node_id,
            deliveries.c.connection.label("detail"),
        )
        .where(deliveries.c.state == "sending", _gone(deliveries.c.node_id))
        .order_by(deliveries.c.id)
    )
    answering = (
        select(
            idempotency_keys.c.key.label("id"),
            idempotency_keys.c.project_id,
            idempotency_keys.c.created_ms.label("since_ms"),
            idempotency_keys.c.node_id,
            null().label("detail"),
        )
        .where(
            idempotency_keys.c.state == "running",
            idempotency_keys.c.created_ms < late_ms,
            _gone(idempotency_keys.c.node_id),
        )
        .order_by(idempotency_keys.c.created_ms)
    )
    return {
        Stuck.ORPHANED: _runs(owned, _gone(run_queue.c.node_id)),
        Stuck.PARKED: _runs(
            run_queue.c.node_id == PARKED,
            run_queue.c.due_ms < late_ms,
            or_(run_queue.c.lane.is_(None), run_queue.c.lane.not_in(busy_lanes)),
        ),
        Stuck.UNCLAIMED: _runs(run_queue.c.node_id.is_(None), run_queue.c.due_ms < late_ms),
        Stuck.SENDING: sending,
        Stuck.OVERDUE: due,
        Stuck.ANSWERING: answering,
    }


def _runs(*conditions: ColumnElement[bool]) -> Select[Any]:
    return (
        select(
            run_queue.c.id,
            run_queue.c.project_id,
            run_queue.c.due_ms.label("since_ms"),
            run_queue.c.node_id,
            run_queue.c.lane.label("detail"),
        )
        .where(*conditions)
        .order_by(run_queue.c.id)
    )


def _gone(node_id: ColumnElement[Any]) -> ColumnElement[bool]:
    # A null is no node: an engine on SQLite is the only one, and writes none for deliveries.
    return and_(node_id.is_not(None), node_id.not_in(select(nodes.c.id)))
