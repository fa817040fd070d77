"""Keeps sealed values: the tables `secrets` and `connections`.

Path:   control plane -> journal -> here; host calls, outbox -> here (already sealed, always)
Never:  sees a plain secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from engine.errors import NotFound
from engine.store.changes import note_change
from engine.store.tables import connections, secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretName:
    """What may be shown of a secret."""

    name: str
    updated_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConnection:
    """One row of `connections`; `settings` is JSON text."""

    name: str
    kind: str
    sealed: bytes = field(repr=False)
    settings: str
    updated_ms: int


def put_secret(
    connection: Connection, *, project_id: str, name: str, sealed: bytes, now_ms: int
) -> None:
    row = {"project_id": project_id, "name": name, "sealed": sealed, "updated_ms": now_ms}
    _put(connection, secrets, row)
    note_change(connection, "connections", project_id)


def list_secrets(
    connection: Connection, project_id: str, *, limit: int, after: str = ""
) -> list[SecretName]:
    """Return at most `limit` names after the name `after`, in alphabetical order."""
    query = (
        select(secrets.c.name, secrets.c.updated_ms)
        .where(secrets.c.project_id == project_id, secrets.c.name > after)
        .order_by(secrets.c.name)
        .limit(limit)
    )
    return [
        SecretName(name=row.name, updated_ms=row.updated_ms) for row in connection.execute(query)
    ]


def get_secrets(connection: Connection, project_id: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return the sealed values of those `names` that exist."""
    query = select(secrets.c.name, secrets.c.sealed).where(
        secrets.c.project_id == project_id, secrets.c.name.in_(list(names))
    )
    return {row.name: row.sealed for row in connection.execute(query)}


def delete_secret(connection: Connection, project_id: str, name: str) -> None:
    """Delete it.

    Raises:
        NotFound: there is none of that name.
    """
    _delete(connection, secrets, "secret", project_id, name)
    note_change(connection, "connections", project_id)


def put_connection(
    connection: Connection,
    *,
    project_id: str,
    name: str,
    kind: str,
    sealed: bytes,
    settings: str,
    now_ms: int,
) -> None:
    row = {
        "project_id": project_id,
        "name": name,
        "kind": kind,
        "sealed": sealed,
        "settings": settings,
        "updated_ms": now_ms,
    }
    _put(connection, connections, row)
    note_change(connection, "connections", project_id)


def list_connections(
    connection: Connection, project_id: str, *, limit: int, after: str = ""
) -> list[StoredConnection]:
    """Return at most `limit` connections after the name `after`, in alphabetical order."""
    query = (
        select(connections)
        .where(connections.c.project_id == project_id, connections.c.name > after)
        .order_by(connections.c.name)
        .limit(limit)
    )
    return [_stored(row) for row in connection.execute(query)]


def get_connection(connection: Connection, project_id: str, name: str) -> StoredConnection:
    """Return one connection.

    Raises:
        NotFound: there is none of that name.
    """
    query = select(connections).where(
        connections.c.project_id == project_id, connections.c.name == name
    )
    row = connection.execute(query).first()
    if row is None:
        raise NotFound("connection", name)
    return _stored(row)


def get_connections(
    connection: Connection, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], StoredConnection]:
    """Return those of the `(project_id, name)` that exist: one query per project."""
    names: dict[str, list[str]] = {}
    for project_id, name in keys:
        names.setdefault(project_id, []).append(name)
    found: dict[tuple[str, str], StoredConnection] = {}
    for project_id, wanted in names.items():
        query = select(connections).where(
            connections.c.project_id == project_id, connections.c.name.in_(wanted)
        )
        for row in connection.execute(query):
            found[project_id, row.name] = _stored(row)
    return found


def delete_connection(connection: Connection, project_id: str, name: str) -> None:
    """Delete it; deliveries that still wait for it fail and say so.

    Raises:
        NotFound: there is none of that name.
    """
    _delete(connection, connections, "connection", project_id, name)
    note_change(connection, "connections", project_id)


def _stored(row: Any) -> StoredConnection:
    return StoredConnection(
        name=row.name,
        kind=row.kind,
        sealed=row.sealed,
        settings=row.settings,
        updated_ms=row.updated_ms,
    )


def _put(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(row)
    changed = {
        name: statement.excluded[name] for name in row if name not in table.primary_key.columns
    }
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns), set_=changed
        )
    )


def _delete(connection: Connection, table: Table, what: str, project_id: str, name: str) -> None:
    gone = connection.execute(
        delete(table).where(table.c.project_id == project_id, table.c.name == name)
    )
    if gone.rowcount == 0:
        raise NotFound(what, name)
