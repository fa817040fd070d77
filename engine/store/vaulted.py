"""Keeps sealed values: the tables `secrets` and `connections`.

Path:   control plane -> journal -> here; host calls, outbox -> here (already sealed, always)
Never:  sees a plain secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from engine.errors import NotFound
from engine.store.changes import note_change
from engine.store.deployments import live_deployments
from engine.store.tables import connections, functions, secrets, versions

Allowed = tuple[str, ...] | None | UnsetType
"""The functions that may have something; None: all of the project; unset: as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretName:
    """What may be shown of a secret."""

    name: str
    updated_ms: int
    functions: tuple[str, ...] | None = None  # who may have it; None: every function


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConnection:
    """One row of `connections`; `settings` is JSON text."""

    name: str
    kind: str
    sealed: bytes = field(repr=False)
    settings: str
    updated_ms: int
    functions: tuple[str, ...] | None = None  # who may use it; None: every function


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """One row of `secrets`."""

    name: str
    sealed: bytes = field(repr=False)
    functions: tuple[str, ...] | None


def may_use(functions: tuple[str, ...] | None, function: str) -> bool:
    """Return whether a function may have what is shared with these only."""
    return functions is None or function in functions


def put_secret(
    connection: Connection,
    *,
    project_id: str,
    name: str,
    sealed: bytes,
    now_ms: int,
    functions: Allowed = UNSET,
) -> None:
    row = {"project_id": project_id, "name": name, "sealed": sealed, "updated_ms": now_ms}
    _put(connection, secrets, row | _allowed(functions))
    note_change(connection, "connections", project_id)


def list_secrets(
    connection: Connection, project_id: str, *, limit: int, after: str = ""
) -> list[SecretName]:
    """Return at most `limit` names after the name `after`, in alphabetical order."""
    query = (
        select(secrets.c.name, secrets.c.updated_ms, secrets.c.functions)
        .where(secrets.c.project_id == project_id, secrets.c.name > after)
        .order_by(secrets.c.name)
        .limit(limit)
    )
    return [
        SecretName(name=row.name, updated_ms=row.updated_ms, functions=_functions(row.functions))
        for row in connection.execute(query)
    ]


def get_secrets(
    connection: Connection, project_id: str, names: Iterable[str]
) -> dict[str, StoredSecret]:
    """Return those of the `names` that exist."""
    query = select(secrets).where(
        secrets.c.project_id == project_id, secrets.c.name.in_(list(names))
    )
    return {row.name: stored_secret(row) for row in connection.execute(query)}


def live_functions_with(connection: Connection, project_id: str, name: str) -> list[str]:
    """Return the functions of which a live version names this secret, in alphabetical order."""
    query = (
        select(functions.c.id, functions.c.name, versions.c.number)
        .join(versions, versions.c.function_id == functions.c.id)
        .where(
            functions.c.project_id == project_id,
            versions.c.secrets.contains(f'"{name}"', autoescape=True),
        )
        .order_by(functions.c.name)
    )
    rows = connection.execute(query).all()
    live = live_deployments(connection, sorted({row.id for row in rows}))
    numbers = {of: {share.version for share in one.versions} for of, one in live.items()}
    found = (row.name for row in rows if row.number in numbers.get(row.id, ()))
    return list(dict.fromkeys(found))


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
    functions: Allowed = UNSET,
) -> None:
    row = {
        "project_id": project_id,
        "name": name,
        "kind": kind,
        "sealed": sealed,
        "settings": settings,
        "updated_ms": now_ms,
    }
    _put(connection, connections, row | _allowed(functions))
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
    return [stored_connection(row) for row in connection.execute(query)]


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
    return stored_connection(row)


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
            found[project_id, row.name] = stored_connection(row)
    return found


def delete_connection(connection: Connection, project_id: str, name: str) -> None:
    """Delete it; deliveries that still wait for it fail and say so.

    Raises:
        NotFound: there is none of that name.
    """
    _delete(connection, connections, "connection", project_id, name)
    note_change(connection, "connections", project_id)


def stored_connection(row: Any) -> StoredConnection:
    return StoredConnection(
        name=row.name,
        kind=row.kind,
        sealed=row.sealed,
        settings=row.settings,
        updated_ms=row.updated_ms,
        functions=_functions(row.functions),
    )


def stored_secret(row: Any) -> StoredSecret:
    return StoredSecret(name=row.name, sealed=row.sealed, functions=_functions(row.functions))


def _functions(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(msgspec.json.decode(text))


def _allowed(functions: Allowed) -> dict[str, str | None]:
    """Return the column to write; none: it stays, and in a new row it is null."""
    if isinstance(functions, UnsetType):
        return {}
    return {"functions": None if functions is None else msgspec.json.encode(functions).decode()}


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
