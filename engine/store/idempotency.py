"""Keys of requests that may be sent again: whose each one is, and what was answered.

Path:   engine.idempotency -> journal -> here; store.retention forgets old ones
Never:  gives one key to two requests: the row is claimed, carried out and answered in the name of
        one node, and each step asks for that name.

A row's life: running -> applied (with what the request changes) -> answered. What is known before
that change is committed goes straight to answered. A request that did nothing leaves no row.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update

from engine.store.tables import idempotency_keys, nodes
from engine.store.unique import insert_absent

RUNNING, APPLIED, ANSWERED = "running", "applied", "answered"
_rows = idempotency_keys.c


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """One use of a key: who wants it, and for what."""

    project_id: str
    key: str
    request: str  # SHA-256 of what was asked, hex
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierUse:
    """What was found in place of a free key."""

    request: str
    state: str
    worked_on: bool  # a node that is alive has not finished it
    status: int | None
    answer: bytes | None  # sealed


def claim(
    connection: Connection, use: KeyUse, now_ms: int, expired_ms: int, *, busy: bool
) -> EarlierUse | None:
    """Take the key; or return what it was used for before.

    A key is free when nobody has used it since `expired_ms`, or when whoever did is dead and had
    changed nothing yet.

    Args:
        connection: the writer's.
        use: who wants which key, for which request.
        now_ms: the time, as of the new row.
        expired_ms: rows made before that do not count.
        busy: this process works on a request with the key. Else a row in this node's name is of a
            request that has ended without being able to say so.
    """
    fresh = {
        "project_id": use.project_id,
        "key": use.key,
        "request": use.request,
        "state": RUNNING,
        "node_id": use.node_id,
        "created_ms": now_ms,
        "status": None,
        "answer": None,
    }
    while True:  # again when the row that was in the way goes before it is read
        if insert_absent(connection, idempotency_keys, [fresh]):
            return None
        found = connection.execute(
            select(idempotency_keys).where(_is_of(use)).with_for_update()
        ).first()
        if found is not None:
            break
    alive = busy if found.node_id == use.node_id else _is_alive(connection, found.node_id)
    expired = found.created_ms < expired_ms
    undone = found.state == RUNNING and found.request == use.request
    if not alive and (expired or undone):
        connection.execute(update(idempotency_keys).where(_is_of(use)).values(**fresh))
        return None
    return EarlierUse(
        request=found.request,
        state=found.state,
        worked_on=alive and found.state != ANSWERED,
        status=found.status,
        answer=found.answer,
    )


def mark_applied(connection: Connection, use: KeyUse) -> bool:
    """Say that the request's changes are made, in their own transaction; False: not ours now."""
    change = update(idempotency_keys).where(_is_ours(use), _rows.state == RUNNING)
    return connection.execute(change.values(state=APPLIED)).rowcount == 1


def put_answer(connection: Connection, use: KeyUse, status: int, sealed: bytes) -> bool:
    """Keep what was answered; False: the key is not ours any more."""
    change = update(idempotency_keys).where(_is_ours(use), _rows.state != ANSWERED)
    done = change.values(state=ANSWERED, node_id=None, status=status, answer=sealed)
    return connection.execute(done).rowcount == 1


def let_go(connection: Connection, use: KeyUse) -> None:
    """End a use that has no answer: the key is free again, unless something was changed."""
    connection.execute(delete(idempotency_keys).where(_is_ours(use), _rows.state == RUNNING))
    connection.execute(
        update(idempotency_keys).where(_is_ours(use), _rows.state == APPLIED).values(node_id=None)
    )


def _is_alive(connection: Connection, node_id: str | None) -> bool:
    if node_id is None:
        return False
    return connection.execute(select(nodes.c.id).where(nodes.c.id == node_id)).first() is not None


def _is_of(use: KeyUse) -> ColumnElement[bool]:
    return and_(_rows.project_id == use.project_id, _rows.key == use.key)


def _is_ours(use: KeyUse) -> ColumnElement[bool]:
    return and_(_is_of(use), _rows.node_id == use.node_id, _rows.request == use.request)
