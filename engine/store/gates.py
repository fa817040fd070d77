"""Keeps `connection_gates` and `delivery_counts`: what all nodes must know before they send.

Path:   store.deliveries.claim -> here; outbox -> journal -> `note`, with what came of attempts
Never:  waits for a gate that another node is at, while it holds something itself: see `try_lock`.

On PostgreSQL a gate is changed under an advisory lock, on SQLite by the only writer there is.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, and_, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from engine.deliveries import NEXT, WAITING, State
from engine.gates import Breaker, Gate, News, after
from engine.store.tables import connection_gates, connections, deliveries, delivery_counts
from engine.store.vaulted import StoredConnection, stored_connection

Key = tuple[str, str]
"""Project and name of a connection."""

DISABLED: Final = "the connection is disabled"  # how the reason begins of what is held for it
INLINE: Final = "inline:"  # how the name begins where a script gave the credentials itself
HELD_MAX: Final = 10_000  # by one statement; others are held when their turn comes
assert all(State.HELD in NEXT[state] for state in WAITING)


class Count(NamedTuple):
    """What is counted: deliveries through a connection in an hour, or on a day."""

    project_id: str
    connection: str
    recipient: str  # `to:` and whom; empty: all of them
    window_ms: int  # where the hour or the day begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What news have made of a gate."""

    key: Key
    before: Gate
    after: Gate
    held: int = 0  # deliveries, because it was disabled

    @property
    def has_opened(self) -> bool:
        """Return whether the breaker went from closed to open."""
        closed = self.before.breaker is Breaker.CLOSED
        return closed and self.after.breaker is Breaker.OPEN


def read(connection: Connection, keys: Iterable[Key]) -> dict[Key, Gate]:
    """Return the gates of these connections, of each one."""
    found: dict[Key, Gate] = dict.fromkeys(keys, Gate())
    for project_id, names in _by_project(found):
        query = select(connection_gates).where(
            connection_gates.c.project_id == project_id, connection_gates.c.connection.in_(names)
        )
        found |= {(project_id, row.connection): _gate(row) for row in connection.execute(query)}
    return found


def with_connections(
    connection: Connection, keys: Iterable[Key]
) -> tuple[dict[Key, StoredConnection], dict[Key, Gate]]:
    """Return those of these connections that exist, and the gates of all: mostly in one query."""
    wanted = dict.fromkeys(keys)
    stored: dict[Key, StoredConnection] = {}
    found: dict[Key, Gate] = {}
    for project_id, names in _by_project(wanted):
        query = _WITH_GATES.where(
            connections.c.project_id == project_id, connections.c.name.in_(names)
        )
        for row in connection.execute(query):
            key = (project_id, row.name)
            stored[key] = stored_connection(row)
            found[key] = Gate() if row.breaker is None else _gate(row)
    others = [key for key in wanted if key not in stored]  # deleted, or a script's own
    return stored, found | read(connection, others)


def write(connection: Connection, gates: Mapping[Key, Gate]) -> None:
    """Store gates; the transaction has locked them."""
    rows = [
        {
            "project_id": project_id,
            "connection": name,
            "next_ms": ceil(gate.next_ms),  # never a little more than the rate
            "breaker": gate.breaker.value,
            "until_ms": gate.until_ms,
            "failures": gate.failures,
            "since_ms": gate.since_ms,
            "last_error": gate.last_error,
            "disabled": gate.disabled,
        }
        for (project_id, name), gate in sorted(gates.items())
    ]
    _put(connection, connection_gates, rows)


def lock(connection: Connection, keys: Collection[Key]) -> None:
    """Wait until nobody else is at these gates, and keep others away to the transaction's end."""
    if connection.dialect.name == "postgresql" and keys:
        # A function in FROM yields its rows in their order, so the locks are taken in theirs.
        sql = text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key")
        connection.execute(sql, {"keys": sorted(map(_lock_key, keys))})


def try_lock(connection: Connection, keys: Collection[Key]) -> set[Key]:
    """Do as `lock` with those that nobody is at, and return them.

    A claim shares its transaction with other changes, so it may hold what somebody waits for.
    """
    if connection.dialect.name != "postgresql" or not keys:
        return set(keys)
    by_number = {_lock_key(key): key for key in keys}
    sql = text(
        "SELECT key, pg_try_advisory_xact_lock(key) AS got "
        "FROM unnest(CAST(:keys AS bigint[])) AS key"
    )
    rows = connection.execute(sql, {"keys": sorted(by_number)})
    return {by_number[row.key] for row in rows if row.got}


def note(connection: Connection, news: Mapping[Key, list[News]], now_ms: int) -> list[Noted]:
    """Tell gates what came of attempts, in this order; what waits at one that closes is held.

    Run it alone, with `Journal.run_alone`: it waits for gates, and so must hold nothing else.
    """
    lock(connection, news.keys())
    noted = []
    for key, before in read(connection, sorted(news)).items():
        gate = before
        for one in news[key]:
            gate = after(gate, one, now_ms)
        if key[1].startswith(INLINE):  # there is nothing that somebody could enable
            gate = replace(gate, disabled=None)
        is_new = gate.disabled is not None and before.disabled is None
        held = _hold(connection, key, gate.disabled or "") if is_new else 0
        noted.append(Noted(key=key, before=before, after=gate, held=held))
    write(connection, {one.key: one.after for one in noted if one.after != one.before})
    return noted


def inline_kind(key: Key) -> str:
    """Return the kind that the name of a script's own credentials tells; empty: it has another."""
    return key[1].split(":")[1] if key[1].startswith(INLINE) else ""


def disabled_reason(name: str, why: str) -> str:
    """Return what people read at a delivery that is held because its connection is disabled."""
    remedy = f"`cloudcode connections enable {name}`, or POST /v1/connections/{name}/enable"
    return f"{DISABLED}: {why}; mend it, then {remedy}"


def counts(connection: Connection, keys: Collection[Count]) -> dict[Count, int]:
    """Return how many deliveries were let through, of each of `keys`."""
    found = dict.fromkeys(keys, 0)
    if not found:
        return found
    table = delivery_counts.c
    any_of = or_(
        *(
            and_(
                table.project_id == project_id,
                table.connection == name,
                table.recipient == recipient,
                table.window_ms == window_ms,
            )
            for project_id, name, recipient, window_ms in found
        )
    )
    for *key, count in connection.execute(select(delivery_counts).where(any_of)):
        found[Count(*key)] = count
    return found


def put_counts(connection: Connection, counted: Mapping[Count, int]) -> None:
    """Store how many were let through; the transaction has locked the gates."""
    rows = [{**key._asdict(), "count": count} for key, count in sorted(counted.items())]
    _put(connection, delivery_counts, rows)


def _hold(connection: Connection, key: Key, why: str) -> int:
    project_id, name = key
    waiting = (
        select(deliveries.c.id)
        .where(
            deliveries.c.project_id == project_id,
            deliveries.c.connection == name,
            deliveries.c.state.in_(sorted(WAITING)),
        )
        .limit(HELD_MAX)
        .with_for_update(skip_locked=True)  # somebody else's is held when its turn comes
    )
    change = (
        update(deliveries)
        .where(deliveries.c.id.in_(waiting))
        .values(state=State.HELD.value, reason=disabled_reason(name, why))
    )
    return connection.execute(change).rowcount


def _put(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table)
    keys = list(table.primary_key.columns)
    changed = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if not column.primary_key
    }
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def _by_project(keys: Iterable[Key]) -> Iterable[tuple[str, list[str]]]:
    names: dict[str, list[str]] = {}
    for project_id, name in keys:
        names.setdefault(project_id, []).append(name)
    return names.items()


def _gate(row: Any) -> Gate:
    return Gate(
        next_ms=row.next_ms,
        breaker=Breaker(row.breaker),
        until_ms=row.until_ms,
        failures=row.failures,
        since_ms=row.since_ms,
        last_error=row.last_error,
        disabled=row.disabled,
    )


_WITH_GATES: Final = select(
    connections, *(column for column in connection_gates.c if not column.primary_key)
).outerjoin_from(
    connections,
    connection_gates,
    (connection_gates.c.project_id == connections.c.project_id)
    & (connection_gates.c.connection == connections.c.name),
)


def _lock_key(key: Key) -> int:
    told = "\0".join(key).encode()
    digest = hashlib.blake2b(told, digest_size=8, person=b"gate").digest()
    return int.from_bytes(digest, signed=True)
