"""Keeps deliveries and their attempts: what sending them needs.

Path:   commit -> `delivery_row`; outbox -> `pending_*`, store.turns, `finish`; callbacks -> `told`;
        for people: store.delivery_views, store.delivery_actions
Never:  changes a state that engine.deliveries.NEXT does not allow.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from engine.connectors.contract import ERROR_CHARS_MAX
from engine.deliveries import NEXT, WAITING, Sending, State
from engine.scrub import printable
from engine.store.gates import Key
from engine.store.tables import deliveries, delivery_attempts
from engine.store.vaulted import StoredConnection, get_connections

Place = tuple[int, str, int]
"""Where a delivery stands among those to its recipient: when, by which run, and where in it."""
SendingOf = Callable[[str, str], Sending]
"""Returns how deliveries are sent, by kind and the connection's settings (JSON)."""

STATUS_CHARS_MAX: Final = 100  # of the provider's word
_WAITING: Final = sorted(WAITING)
_rows = deliveries.c
# As the index has it, without parameters: so the databases know that it has them all.
_WAITS: Final = and_(
    _rows.ended_ms.is_(None),
    _rows.state != literal_column("'held'"),
    _rows.state != literal_column("'sending'"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A delivery that waits: no more than is needed to decide when it has its turn."""

    id: str
    key: Key
    due_ms: int
    recipient: str | None = None  # whose line it stands in; None: no order
    place: Place = (0, "", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InLine:
    """Those that wait for one recipient; `more`: there are others behind them."""

    key: Key
    recipient: str
    oldest: list[Pending]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery that is marked as being sent. `connection` is None when it was deleted."""

    id: str
    key: Key
    kind: str
    action: str
    payload: str = field(repr=False)
    attempts: int  # made before
    due_ms: int
    connection: StoredConnection | None
    sending: Sending
    recipient: str | None = None
    place: Place = (0, "", 0)
    base_attempts: int = 0  # of those, before it was resent or released
    since_ms: int = 0  # when its schedule began; 0: begins now
    state: State = State.QUEUED  # that it was claimed from
    sealed: bytes | None = field(default=None, repr=False)  # credentials of its own
    via: str | None = None  # see engine.causality
    at_ms: int = 0  # not before
    is_trial: bool = False  # it decides whether the breaker closes
    is_troubled: bool = False  # the gate has failures: a success is news


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a delivery in `sending` becomes."""

    id: str
    state: State
    attempts: int
    next_ms: int
    ended_ms: int | None
    reason: str | None = None
    message_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A delivery that a crash has left in `sending`, or one that this node is at."""

    id: str
    attempts: int
    base_attempts: int
    since_ms: int
    sending: Sending
    accepted: bool  # the provider has told of it since: it had taken it
    message_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt as the API shows it."""

    attempt: int
    at_ms: int
    took_ms: int
    status: int | None
    error: str | None
    delivered: bool
    message_id: str | None = None


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
    function: str | None = None,
    action: str = "send",
    recipient: str | None = None,
    line: str | None = None,
    sealed: bytes | None = None,
    via: str | None = None,
) -> tuple[Any, ...]:
    """Return a row for `Commit.insert_new(deliveries, ...)`; `Outbox.notice` it once committed."""
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
        function,
        action,
        recipient,
        line,
        sealed,
        0,
        False,
        None,
        None,
        None,
        None,
        None,
        now_ms,
        via,
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
        attempt.message_id,
    )


def pending_until(
    connection: Connection, until_ms: int, node_id: str | None, *, per_lane: int
) -> tuple[list[Pending], int | None]:
    """Return what is due until then, at most `per_lane` a connection, and the next due time.

    Of deliveries to one recipient the oldest of this node is all: see `pending_behind`.
    """
    free, first = _due(until_ms, node_id)
    one = union_all(free, first).subquery()
    rank = func.row_number().over(
        partition_by=(one.c.project_id, one.c.connection),
        order_by=(one.c.next_ms, one.c.created_ms, one.c.execution_id, one.c.position),
    )
    ranked = select(one, rank.label("rank")).subquery()
    later = select(func.min(_rows.next_ms)).where(
        _rows.state.in_(_WAITING), is_of(node_id), _rows.next_ms > until_ms
    )
    far_ms = connection.execute(later).scalar_one()
    return _pending(connection, select(ranked).where(ranked.c.rank <= per_lane)), far_ms


def pending_of(
    connection: Connection, key: Key, until_ms: int, node_id: str | None, *, limit: int
) -> list[Pending]:
    """Return at most `limit` of one connection that are due until then, as `pending_until`."""
    due = (query.limit(limit) for query in _due(until_ms, node_id, key))
    found = [one for query in due for one in _pending(connection, query)]
    return sorted(found, key=lambda one: (one.due_ms, one.place))[:limit]


def pending_among(
    connection: Connection, ids: Sequence[str], node_id: str | None
) -> tuple[list[Pending], list[Pending]]:
    """Return those of `ids` that wait for this node, and those that somebody has ended or held."""
    query = _PENDING.add_columns(_rows.state, _rows.node_id).where(_rows.id.in_(ids))
    waiting, gone = [], []
    for row in connection.execute(query.order_by(*_TURN)):
        if row.state in _WAITING:
            if node_id is None or row.node_id == node_id:
                waiting.append(_one_pending(row))
        elif row.state != State.SENDING:
            gone.append(_one_pending(row))
    return waiting, gone


def pending_in_lines(
    connection: Connection, lines: Iterable[tuple[Key, str]], node_id: str | None, *, limit: int
) -> list[InLine]:
    """Return the oldest `limit` of this node's to each of these recipients."""
    found = []
    for key, recipient in lines:
        query = _PENDING.add_columns(_rows.state).where(
            *_in_line(deliveries, *key, recipient), is_of(node_id)
        )
        order = (_rows.created_ms, _rows.execution_id, _rows.position)
        rows = connection.execute(query.order_by(*order).limit(limit)).all()
        oldest = [_one_pending(row) for row in rows if row.state in _WAITING]
        more = len(rows) == limit
        found.append(InLine(key=key, recipient=recipient, oldest=oldest, more=more))
    return found


def left_sending(
    connection: Connection, node_id: str | None, besides: Collection[str], sending_of: SendingOf
) -> list[Left]:
    """Return what is in `sending` `besides` what this process is at: a crash has left it."""
    query = ASKING.add_columns(_rows.provider_final, _rows.provider_ms, _rows.message_id)
    query = query.where(_rows.state == State.SENDING.value, is_of(node_id))
    rows = [row for row in connection.execute(query) if row.id not in besides]
    stored = get_connections(connection, {key_of(row) for row in rows})
    return [
        Left(
            id=row.id,
            attempts=row.attempts,
            base_attempts=row.base_attempts,
            since_ms=row.since_ms,
            sending=sending_of(row.kind, settings_of(stored.get(key_of(row)))),
            accepted=row.provider_ms is not None,
            message_id=row.message_id,
        )
        for row in rows
    ]


def finish(connection: Connection, changes: Sequence[Change], node_id: str | None) -> None:
    """Write what became of deliveries in `sending`, in one statement.

    Of one that another node has by now nothing is written: that node decides. What the provider
    has told meanwhile counts: that it has failed, or that it has it although its answer was lost.
    """
    assert all(change.state in NEXT[State.SENDING] for change in changes), changes
    connection.execute(
        _FINISH.where(is_of(node_id)),
        [
            {
                "of": change.id,
                "to_state": change.state.value,
                "to_attempts": change.attempts,
                "to_next_ms": change.next_ms,
                "to_ended_ms": change.ended_ms,
                "to_reason": change.reason,
                "to_message_id": change.message_id,
            }
            for change in changes
        ],
    )


def told(
    connection: Connection,
    project_id: str,
    delivery_id: str,
    status: str,
    final: Literal["delivered", "failed"] | None,
    error: str | None,
    message_id: str | None,
    now_ms: int,
) -> bool:
    """Keep what a provider says afterwards; return False for what is unknown, or no news.

    Its last word is `failed` before `delivered` before any other: callbacks overtake each other,
    and a mail may bounce that was delivered. News of a message that an earlier attempt has made
    are none.

    Args:
        connection: in a transaction.
        project_id: whose delivery.
        delivery_id: its id.
        status: the provider's word.
        final: what it comes to; None: not known yet.
        error: why, if it failed.
        message_id: the provider's, of the message that it speaks of.
        now_ms: the time.
    """
    here = (_rows.project_id == project_id, _rows.id == delivery_id)
    query = select(
        _rows.state, _rows.message_id, _rows.provider_ms, _rows.provider_final, _rows.ended_ms
    )
    row = connection.execute(query.where(*here).with_for_update()).first()
    if row is None or now_ms < (row.provider_ms or 0):
        return False
    if row.provider_final is not None and _RANK[final] <= _RANK[row.provider_final]:
        return False
    if message_id is not None and not _is_of(connection, delivery_id, row.message_id, message_id):
        return False
    before = after = State(row.state)
    values: dict[str, Any] = {
        "provider_status": printable(status)[:STATUS_CHARS_MAX],
        "provider_ms": now_ms,
        "provider_final": final or row.provider_final,
        "message_id": row.message_id or message_id,
    }
    if final == "failed" and before in (State.SENDING, State.DELIVERED):
        values["reason"] = f"the provider: {printable(error or status)}"[:ERROR_CHARS_MAX]
        after = State.FAILED if before is State.DELIVERED else before  # else `finish` does it
    elif final != "failed" and before in (State.RETRYING, State.FAILED):
        after = State.DELIVERED
        values |= {"reason": _HAS_IT, "next_ms": 0, "ended_ms": now_ms}
    assert after is before or after in NEXT[before], (before, after)
    connection.execute(update(deliveries).where(*here).values(state=after.value, **values))
    return True


def _is_of(connection: Connection, delivery_id: str, current: str | None, message_id: str) -> bool:
    """Return whether news are of the newest message, not of one that an earlier attempt made."""
    if current is not None:
        return _is_same(current, message_id)
    query = select(delivery_attempts.c.message_id).where(
        delivery_attempts.c.delivery_id == delivery_id, delivery_attempts.c.message_id.is_not(None)
    )
    return not any(_is_same(one, message_id) for one in connection.execute(query).scalars())


def _is_same(one: str, other: str) -> bool:
    """Compare ids; SendGrid's later ones begin with its first one."""
    return one.startswith(other) or other.startswith(one)


def is_of(node_id: str | None, table: FromClause = deliveries) -> ColumnElement[bool]:
    """Return the condition that a delivery is this node's; None: there is only one node."""
    return true() if node_id is None else table.c.node_id == node_id


def _active(table: FromClause) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a delivery is in a line, and has neither ended nor is held.

    As the index has it, without parameters: so the databases know that it has them all.
    """
    return (
        table.c.ended_ms.is_(None),
        table.c.line.is_not(None),
        table.c.state != literal_column("'held'"),
    )


def _in_line(
    table: FromClause, project_id: Any, connection: Any, recipient: Any
) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a delivery is to that recipient, and active."""
    return (
        *_active(table),
        table.c.project_id == project_id,
        table.c.connection == connection,
        table.c.line == recipient,
    )


_older: Final = deliveries.alias("older")
_OLDEST: Final = (_older.c.created_ms, _older.c.execution_id, _older.c.position)
_IS_OLDER: Final = and_(
    *_in_line(_older, _rows.project_id, _rows.connection, _rows.line),
    tuple_(*_OLDEST) < tuple_(_rows.created_ms, _rows.execution_id, _rows.position),
)


def _due(
    until_ms: int, node_id: str | None, key: Key | None = None
) -> tuple[Select[Any], Select[Any]]:
    """Return queries of what this node has that is due: without an order, and first in its line.

    Each is one walk along an index.
    Not X: to ask of each row whether another goes before it, which takes twenty times as long.
    """
    of = () if key is None else (_rows.project_id == key[0], _rows.connection == key[1])
    free = _PENDING.where(_WAITS, _rows.line.is_(None), is_of(node_id), *of)
    free = free.where(_rows.next_ms <= until_ms)
    nth = func.row_number().over(
        partition_by=(_rows.project_id, _rows.connection, _rows.line),
        order_by=(_rows.created_ms, _rows.execution_id, _rows.position),
    )
    lines = select(_rows.id, nth.label("nth")).where(*_active(deliveries), is_of(node_id), *of)
    one = lines.subquery()
    first = _PENDING.where(_rows.id.in_(select(one.c.id).where(one.c.nth == 1)), _WAITS)
    first = first.where(_rows.next_ms <= until_ms)
    if key is None:
        return free, first
    return free.order_by(*_TURN), first.order_by(*_TURN)


_TURN: Final = (_rows.next_ms, _rows.created_ms, _rows.execution_id, _rows.position)
_PENDING: Final = select(
    _rows.id,
    _rows.project_id,
    _rows.connection,
    _rows.next_ms,
    _rows.recipient,
    _rows.line,
    _rows.created_ms,
    _rows.execution_id,
    _rows.position,
)
ASKING: Final = _PENDING.add_columns(
    _rows.kind,
    _rows.state,
    _rows.attempts,
    _rows.base_attempts,
    func.coalesce(_rows.since_ms, _rows.created_ms).label("since_ms"),
    _rows.cleared,
    # When the oldest that goes before it is due; null: nobody does.
    select(case((_older.c.state == State.SENDING.value, 0), else_=_older.c.next_ms))
    .where(_IS_OLDER)
    .order_by(*_OLDEST)
    .limit(1)
    .scalar_subquery()
    .label("goes_before_ms"),
)
_HAS_IT: Final = "the provider has it: its answer to an attempt was lost"
_to_state: Final = bindparam("to_state", type_=Text)
_has_failed: Final = func.coalesce(_rows.provider_final, "") == "failed"
_is_lost: Final = and_(
    _to_state.in_([literal_column("'retrying'"), literal_column("'failed'")]),
    _rows.provider_ms.is_not(None),  # told since it was claimed
    ~_has_failed,
)
_FINISH: Final = (
    update(deliveries)
    .where(_rows.id == bindparam("of"), _rows.state == State.SENDING.value)
    .values(
        state=case(
            (and_(_to_state == State.DELIVERED.value, _has_failed), State.FAILED.value),
            (_is_lost, State.DELIVERED.value),
            else_=_to_state,
        ),
        attempts=bindparam("to_attempts"),
        next_ms=case((_is_lost, 0), else_=bindparam("to_next_ms")),
        ended_ms=case((_is_lost, _rows.provider_ms), else_=bindparam("to_ended_ms")),
        reason=case((_is_lost, _HAS_IT), else_=func.coalesce(_rows.reason, bindparam("to_reason"))),
        message_id=func.coalesce(bindparam("to_message_id"), _rows.message_id),
    )
)
_RANK: Final[Mapping[str | None, int]] = {None: 0, "delivered": 1, "failed": 2}


def key_of(row: Any) -> Key:
    return row.project_id, row.connection


def place_of(row: Any) -> Place:
    return row.created_ms, row.execution_id, row.position


def turn_of(row: Any) -> tuple[int, Place]:
    return row.next_ms, place_of(row)


def settings_of(stored: StoredConnection | None) -> str:
    return "{}" if stored is None else stored.settings


def _one_pending(row: Any) -> Pending:
    return Pending(
        id=row.id,
        key=key_of(row),
        due_ms=row.next_ms,
        recipient=row.line,
        place=place_of(row),
    )


def _pending(connection: Connection, query: Select[Any]) -> list[Pending]:
    return [_one_pending(row) for row in connection.execute(query)]
