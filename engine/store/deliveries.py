"""Keeps deliveries and their attempts.

Path:   commit -> `delivery_row`; outbox -> `claim`, `finish`; API -> `page`, `get`, `resend`
Never:  changes a state that engine.deliveries.NEXT does not allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    func,
    select,
    true,
    update,
)

from engine.deliveries import ENDED, NEXT, WAITING, State
from engine.errors import Conflict, NotFound
from engine.store.tables import deliveries, delivery_attempts
from engine.store.vaulted import StoredConnection, get_connections

Key = tuple[str, str]
"""Project and name of a connection."""

_WAITING: Final = sorted(WAITING)
_last_attempt: Final = delivery_attempts.alias("last_attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A delivery that waits: no more than is needed to decide when it has its turn."""

    id: str
    key: Key
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery that is marked as being sent. `connection` is None when it was deleted."""

    id: str
    key: Key
    kind: str
    payload: str = field(repr=False)
    attempts: int  # made before
    due_ms: int
    connection: StoredConnection | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a delivery in `sending` becomes."""

    id: str
    state: State
    attempts: int
    next_ms: int
    ended_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery as the API shows it."""

    id: str
    project_id: str
    execution_id: str
    connection: str
    kind: str
    state: State
    attempts: int
    created_ms: int
    ended_ms: int | None
    next_attempt_ms: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt as the API shows it."""

    attempt: int
    at_ms: int
    took_ms: int
    status: int | None
    error: str | None
    delivered: bool


def delivery_row(
    *,
    delivery_id: str,
    project_id: str,
    execution_id: str,
    position: int,
    connection: str,
    kind: str,
    payload: str,
    now_ms: int,
    node_id: str | None = None,
) -> tuple[Any, ...]:
    """Return a new row for `Commit.insert(deliveries, ...)`; `Outbox.notice` it once committed."""
    return (
        delivery_id,
        project_id,
        execution_id,
        position,
        connection,
        kind,
        payload,
        State.QUEUED.value,
        0,
        now_ms,
        now_ms,
        None,
        node_id,
    )


def attempt_row(delivery_id: str, attempt: Attempt) -> tuple[Any, ...]:
    """Return a new row for `Commit.insert(delivery_attempts, ...)`."""
    return (
        delivery_id,
        attempt.attempt,
        attempt.at_ms,
        attempt.took_ms,
        attempt.status,
        attempt.error,
        attempt.delivered,
    )


def pending_until(
    connection: Connection, until_ms: int, node_id: str | None, *, per_lane: int
) -> tuple[list[Pending], int | None]:
    """Return what is due until then, at most `per_lane` a connection, and the next due time."""
    waits = and_(deliveries.c.state.in_(_WAITING), _of(node_id))
    ranked = (
        _PENDING.add_columns(
            func.row_number()
            .over(
                partition_by=(deliveries.c.project_id, deliveries.c.connection),
                order_by=(deliveries.c.next_ms, deliveries.c.id),
            )
            .label("place")
        )
        .where(waits, deliveries.c.next_ms <= until_ms)
        .subquery()
    )
    later = select(func.min(deliveries.c.next_ms)).where(waits, deliveries.c.next_ms > until_ms)
    far_ms = connection.execute(later).scalar_one()
    return _pending(connection, select(ranked).where(ranked.c.place <= per_lane)), far_ms


def pending_of(
    connection: Connection, key: Key, until_ms: int, node_id: str | None, *, limit: int
) -> list[Pending]:
    """Return at most `limit` deliveries of one connection that are due until then."""
    project_id, name = key
    return _pending(
        connection,
        _PENDING.where(
            deliveries.c.state.in_(_WAITING),
            _of(node_id),
            deliveries.c.next_ms <= until_ms,
            deliveries.c.project_id == project_id,
            deliveries.c.connection == name,
        )
        .order_by(deliveries.c.next_ms, deliveries.c.id)
        .limit(limit),
    )


def pending_among(connection: Connection, ids: Sequence[str], node_id: str | None) -> list[Pending]:
    """Return those of `ids` that wait."""
    return _pending(
        connection,
        _PENDING.where(deliveries.c.id.in_(ids), deliveries.c.state.in_(_WAITING), _of(node_id)),
    )


def claim(connection: Connection, ids: Sequence[str], node_id: str | None) -> list[Claimed]:
    """Mark those of `ids` that still wait as being sent, and return them with their connections."""
    assert all(State.SENDING in NEXT[state] for state in WAITING)
    rows = connection.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids), deliveries.c.state.in_(_WAITING), _of(node_id))
        .values(state=State.SENDING.value)
        .returning(
            deliveries.c.id,
            deliveries.c.project_id,
            deliveries.c.connection,
            deliveries.c.kind,
            deliveries.c.payload,
            deliveries.c.attempts,
            deliveries.c.next_ms,
        )
    ).all()
    stored = get_connections(connection, {(row.project_id, row.connection) for row in rows})
    return [
        Claimed(
            id=row.id,
            key=(row.project_id, row.connection),
            kind=row.kind,
            payload=row.payload,
            attempts=row.attempts,
            due_ms=row.next_ms,
            connection=stored.get((row.project_id, row.connection)),
        )
        for row in sorted(rows, key=lambda row: (row.next_ms, row.id))  # RETURNING has no order
    ]


def left_sending(connection: Connection, node_id: str | None) -> list[Change]:
    """Return what is in `sending`: what a crash has left, and what this node is at."""
    query = select(deliveries.c.id, deliveries.c.attempts, deliveries.c.next_ms).where(
        deliveries.c.state == State.SENDING.value, _of(node_id)
    )
    return [
        Change(
            id=row.id,
            state=State.SENDING,
            attempts=row.attempts,
            next_ms=row.next_ms,
            ended_ms=None,
        )
        for row in connection.execute(query)
    ]


def finish(connection: Connection, changes: Sequence[Change], node_id: str | None) -> None:
    """Write what became of deliveries in `sending`, in one statement.

    Of one that another node has by now nothing is written: that node decides.
    """
    assert all(change.state in NEXT[State.SENDING] for change in changes), changes
    connection.execute(
        _FINISH.where(_of(node_id)),
        [
            {
                "of": change.id,
                "state": change.state.value,
                "attempts": change.attempts,
                "next_ms": change.next_ms,
                "ended_ms": change.ended_ms,
            }
            for change in changes
        ],
    )


def page(
    connection: Connection,
    project_id: str,
    *,
    state: State | None = None,
    name: str | None = None,
    execution_id: str | None = None,
    limit: int,
    before: str | None = None,
) -> tuple[list[Delivery], str | None]:
    """Return a page, newest first, and the `before` of the next page (None: there is none).

    Args:
        connection: the database's.
        project_id: whose deliveries.
        state: only these.
        name: only those of the connection of this name.
        execution_id: only those of this run.
        limit: rows on a page.
        before: the id of the last row of the page before.
    """
    query = _DELIVERY.where(deliveries.c.project_id == project_id)
    if state is not None:
        query = query.where(deliveries.c.state == state.value)
    if name is not None:
        query = query.where(deliveries.c.connection == name)
    if execution_id is not None:
        query = query.where(deliveries.c.execution_id == execution_id)
    if before is not None:
        query = query.where(deliveries.c.id < before)
    rows = connection.execute(query.order_by(deliveries.c.id.desc()).limit(limit + 1)).all()
    items = [_delivery(row) for row in rows[:limit]]
    return items, items[-1].id if len(rows) > limit else None


def get(
    connection: Connection, project_id: str, delivery_id: str
) -> tuple[Delivery, str, list[Attempt]]:
    """Return one delivery, its payload (JSON) and its attempts, first to last.

    Raises:
        NotFound: the project has none of that id.
    """
    query = _DELIVERY.where(
        deliveries.c.project_id == project_id, deliveries.c.id == delivery_id
    ).add_columns(deliveries.c.payload)
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("delivery", delivery_id)
    attempts = connection.execute(
        select(delivery_attempts)
        .where(delivery_attempts.c.delivery_id == delivery_id)
        .order_by(delivery_attempts.c.attempt)
    )
    return _delivery(row), row.payload, [_attempt(one) for one in attempts]


def resend(
    connection: Connection,
    project_id: str,
    delivery_id: str,
    now_ms: int,
    node_id: str | None = None,
) -> None:
    """Queue a delivery once more, at once; tell the outbox once it is committed.

    Raises:
        NotFound: the project has none of that id.
        Conflict: it is being sent right now.
    """
    here = (deliveries.c.project_id == project_id, deliveries.c.id == delivery_id)
    found = connection.execute(select(deliveries.c.state).where(*here)).scalar_one_or_none()
    if found is None:
        raise NotFound("delivery", delivery_id)
    state = State(found)
    if state is State.SENDING:
        raise Conflict(f"delivery {delivery_id!r} is being sent right now; ask again in a moment")
    assert state is State.QUEUED or State.QUEUED in NEXT[state], state
    connection.execute(
        update(deliveries)
        .where(*here)
        .values(state=State.QUEUED.value, next_ms=now_ms, ended_ms=None, node_id=node_id)
    )


def _of(node_id: str | None) -> ColumnElement[bool]:
    """Return the condition that a delivery is this node's; None: there is only one node."""
    return true() if node_id is None else deliveries.c.node_id == node_id


_PENDING: Final = select(
    deliveries.c.id, deliveries.c.project_id, deliveries.c.connection, deliveries.c.next_ms
)

_FINISH: Final = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("of"), deliveries.c.state == State.SENDING.value)
    .values(
        state=bindparam("state"),
        attempts=bindparam("attempts"),
        next_ms=bindparam("next_ms"),
        ended_ms=bindparam("ended_ms"),
    )
)

_DELIVERY: Final = select(
    deliveries.c.id,
    deliveries.c.project_id,
    deliveries.c.execution_id,
    deliveries.c.connection,
    deliveries.c.kind,
    deliveries.c.state,
    deliveries.c.attempts,
    deliveries.c.created_ms,
    deliveries.c.ended_ms,
    deliveries.c.next_ms,
    _last_attempt.c.error.label("last_error"),
).outerjoin_from(
    deliveries,
    _last_attempt,
    (_last_attempt.c.delivery_id == deliveries.c.id)
    & (_last_attempt.c.attempt == deliveries.c.attempts),
)


def _pending(connection: Connection, query: Select[Any]) -> list[Pending]:
    rows = connection.execute(query).all()
    return [
        Pending(id=row.id, key=(row.project_id, row.connection), due_ms=row.next_ms) for row in rows
    ]


def _delivery(row: Any) -> Delivery:
    state = State(row.state)
    return Delivery(
        id=row.id,
        project_id=row.project_id,
        execution_id=row.execution_id,
        connection=row.connection,
        kind=row.kind,
        state=state,
        attempts=row.attempts,
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        next_attempt_ms=None if state in ENDED else row.next_ms,
        last_error=row.last_error,
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        attempt=row.attempt,
        at_ms=row.at_ms,
        took_ms=row.took_ms,
        status=row.status,
        error=row.error,
        delivered=bool(row.delivered),
    )
