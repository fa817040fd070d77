"""Shows deliveries to people: lists with filters, newest first, and one with its attempts.

Path:   api.deliveries, engine.ledger -> here
Never:  changes anything: store.deliveries does so for the outbox, store.delivery_actions for people
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, func, select, tuple_

from engine.deliveries import ENDED, State
from engine.errors import Invalid, NotFound
from engine.store.deliveries import Attempt
from engine.store.gates import DISABLED
from engine.store.pages import Page, Paged, paged
from engine.store.tables import deliveries, delivery_attempts

Place = tuple[int, str]
"""When a delivery was made, and its id: where it stands in a list."""

_last_attempt: Final = delivery_attempts.alias("last_attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A delivery as the API shows it."""

    id: str
    project_id: str
    execution_id: str
    function: str | None
    connection: str
    kind: str
    action: str
    recipient: str | None
    state: State
    reason: str | None
    attempts: int
    created_ms: int
    ended_ms: int | None
    next_attempt_ms: int | None
    last_error: str | None
    message_id: str | None
    provider_status: str | None
    provider_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    """Which deliveries are asked for; None: whatever it is."""

    states: tuple[State, ...] | None = None
    connection: str | None = None
    kind: str | None = None
    recipient: str | None = None
    execution_id: str | None = None
    function: str | None = None  # its name, as it was
    since_ms: int | None = None
    until_ms: int | None = None  # not those made then or later
    ended_since_ms: int | None = None  # failed, delivered or cancelled then or later
    disabled: bool = False  # only those held because their connection is disabled


def page(
    connection: Connection, project_id: str, wanted: DeliveryFilter, asked: Page
) -> Paged[Delivery]:
    """Return a page, newest first.

    Raises:
        Invalid: the delivery that the cursor names is gone.
    """
    query = _filtered(_DELIVERY, project_id, wanted)
    if asked.before is not None:
        query = query.where(tuple_(*_place(connection, project_id, asked.before)) > _PLACE)
    newest = query.order_by(deliveries.c.created_ms.desc(), deliveries.c.id.desc())
    rows = connection.execute(newest.limit(asked.limit + 1)).all()
    return paged(list(map(_delivery, rows)), asked, lambda delivery: delivery.id)


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


def count(connection: Connection, project_id: str, wanted: DeliveryFilter) -> int:
    """Return how many deliveries match."""
    query = select(func.count()).select_from(deliveries)
    found: int = connection.execute(_filtered(query, project_id, wanted)).scalar_one()
    return found


def places(
    connection: Connection,
    project_id: str,
    wanted: DeliveryFilter,
    *,
    after: Place | None = None,
    limit: int,
) -> list[Place]:
    """Return where the next deliveries that match stand, oldest first."""
    query = _filtered(select(deliveries.c.created_ms, deliveries.c.id), project_id, wanted)
    if after is not None:
        query = query.where(tuple_(*after) < _PLACE)
    rows = connection.execute(query.order_by(deliveries.c.created_ms, deliveries.c.id).limit(limit))
    return [(row.created_ms, row.id) for row in rows]


def _filtered(query: Select[Any], project_id: str, wanted: DeliveryFilter) -> Select[Any]:
    query = query.where(deliveries.c.project_id == project_id)
    if wanted.states is not None:
        query = query.where(deliveries.c.state.in_([state.value for state in wanted.states]))
    for column in ("connection", "kind", "recipient", "execution_id", "function"):
        value = getattr(wanted, column)
        if value is not None:
            query = query.where(deliveries.c[column] == value)
    if wanted.disabled:
        query = query.where(deliveries.c.reason.startswith(DISABLED, autoescape=True))
    if wanted.since_ms is not None:
        query = query.where(deliveries.c.created_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        query = query.where(deliveries.c.created_ms < wanted.until_ms)
    if wanted.ended_since_ms is not None:
        query = query.where(deliveries.c.ended_ms >= wanted.ended_since_ms)
    return query


def _place(connection: Connection, project_id: str, delivery_id: str) -> Place:
    """Return where a delivery stands: an id is made from its run's, and says nothing of when."""
    query = select(deliveries.c.created_ms).where(
        deliveries.c.project_id == project_id, deliveries.c.id == delivery_id
    )
    created_ms = connection.execute(query).scalar_one_or_none()
    if created_ms is None:
        raise Invalid("names a delivery that is gone; begin with the first page", "?cursor")
    return created_ms, delivery_id


_PLACE: Final = tuple_(deliveries.c.created_ms, deliveries.c.id)
_DELIVERY: Final = select(
    deliveries.c.id,
    deliveries.c.project_id,
    deliveries.c.execution_id,
    deliveries.c.function,
    deliveries.c.connection,
    deliveries.c.kind,
    deliveries.c.action,
    deliveries.c.recipient,
    deliveries.c.state,
    deliveries.c.reason,
    deliveries.c.attempts,
    deliveries.c.created_ms,
    deliveries.c.ended_ms,
    deliveries.c.next_ms,
    deliveries.c.message_id,
    deliveries.c.provider_status,
    deliveries.c.provider_ms,
    _last_attempt.c.error.label("last_error"),
).outerjoin_from(
    deliveries,
    _last_attempt,
    (_last_attempt.c.delivery_id == deliveries.c.id)
    & (_last_attempt.c.attempt == deliveries.c.attempts),
)


def _delivery(row: Row[Any]) -> Delivery:
    state = State(row.state)
    return Delivery(
        id=row.id,
        project_id=row.project_id,
        execution_id=row.execution_id,
        function=row.function,
        connection=row.connection,
        kind=row.kind,
        action=row.action,
        recipient=row.recipient,
        state=state,
        reason=row.reason,
        attempts=row.attempts,
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        next_attempt_ms=None if state in ENDED or state is State.HELD else row.next_ms,
        last_error=row.last_error,
        message_id=row.message_id,
        provider_status=row.provider_status,
        provider_ms=row.provider_ms,
    )


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        attempt=row.attempt,
        at_ms=row.at_ms,
        took_ms=row.took_ms,
        status=row.status,
        error=row.error,
        delivered=bool(row.delivered),
        message_id=row.message_id,
    )
