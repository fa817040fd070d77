"""API keys as stored: never the key, only its hash."""

from dataclasses import asdict, dataclass

import msgspec
from sqlalchemy import Connection, RowMapping, delete, func, select, update

from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import api_keys
from engine.store.unique import insert_unique


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    project_id: str
    name: str
    hash: str  # SHA-256 of the key, hex
    scopes: tuple[str, ...]
    created_ms: int
    requests_per_minute: int | None = None  # None: what the project allows each of its keys


def insert_api_key(connection: Connection, key: ApiKey) -> None:
    row = asdict(key) | {"scopes": msgspec.json.encode(key.scopes).decode()}
    insert_unique(connection, api_keys, row, "this very key exists already")
    note_change(connection, "keys", key.project_id)


def update_api_key(connection: Connection, key: ApiKey) -> None:
    """Store the rate of a key that is there."""
    rate = {"requests_per_minute": key.requests_per_minute}
    connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(rate))
    note_change(connection, "keys", key.project_id)


def find_api_key(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).mappings().first()
    return _api_key(row) if row else None


def list_api_keys(
    connection: Connection, page: Page, *, project_id: str | None = None
) -> Paged[ApiKey]:
    query = select(api_keys)
    if project_id is not None:
        query = query.where(api_keys.c.project_id == project_id)
    rows = connection.execute(page_of(query, api_keys.c.id, page)).mappings()
    return paged([_api_key(row) for row in rows], page, lambda key: key.id)


def delete_api_key(connection: Connection, key_id: str) -> None:
    connection.execute(delete(api_keys).where(api_keys.c.id == key_id))
    note_change(connection, "keys")


def count_admin_keys(connection: Connection) -> int:
    query = select(func.count()).where(api_keys.c.scopes.contains('"admin"'))
    return connection.execute(query).scalar_one()


def _api_key(row: RowMapping) -> ApiKey:
    scopes = msgspec.json.decode(row["scopes"], type=tuple[str, ...])
    return ApiKey(**{**row, "scopes": scopes})
