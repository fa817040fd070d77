"""Reads a project's key-value store (table `kv`), and forgets what has expired.

Path:   hostcalls.kv, engine.kv -> here; puts and deletes are rows of a Commit, see journal
Never:  shows a key whose time is over, whether or not it is still there.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, or_, select, tuple_

from engine.store.tables import kv

FORGET_ROWS: Final = 200  # in one step: of 64 KiB each they are 13 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """What a list shows of an entry; its value is read by its name."""

    key: str
    expires_ms: int | None
    updated_ms: int


def put_row(
    project_id: str, namespace: str, key: str, value: str, expires_ms: int | None, now_ms: int
) -> tuple[Any, ...]:
    """Return the row for `Commit.put`."""
    return (project_id, namespace, key, expires_ms, now_ms, value)


def read_value(
    connection: Connection, project_id: str, namespace: str, key: str, now_ms: int
) -> str | None:
    """Return the JSON of a key, or None."""
    query = select(kv.c.value).where(
        kv.c.project_id == project_id,
        kv.c.namespace == namespace,
        kv.c.key == key,
        _alive(now_ms),
    )
    return connection.execute(query).scalar_one_or_none()


def read_keys(
    connection: Connection,
    project_id: str,
    namespace: str,
    now_ms: int,
    *,
    prefix: str = "",
    after: str = "",
    limit: int,
) -> list[StoredKey]:
    """Return at most `limit` keys that begin with `prefix` and come after `after`, in order."""
    query = (
        select(kv.c.key, kv.c.expires_ms, kv.c.updated_ms)
        .where(
            kv.c.project_id == project_id,
            kv.c.namespace == namespace,
            # One bound, so that the database begins there: with two it may begin at the lower one.
            kv.c.key > after if after >= prefix else kv.c.key >= prefix,
            _alive(now_ms),
        )
        .order_by(kv.c.key)
        .limit(limit)
    )
    found = [StoredKey(**row) for row in connection.execute(query).mappings()]
    # Keys with one prefix stand side by side, so what follows them is cut off, and costs little.
    return [one for one in found if one.key.startswith(prefix)]


def forget_expired(connection: Connection, now_ms: int) -> bool:
    """Delete some entries whose time is over; False when none are left."""
    key = tuple_(*kv.primary_key.columns)
    some = select(*kv.primary_key.columns).where(kv.c.expires_ms <= now_ms).limit(FORGET_ROWS)
    return connection.execute(delete(kv).where(key.in_(some))).rowcount == FORGET_ROWS


def _alive(now_ms: int) -> ColumnElement[bool]:
    return or_(kv.c.expires_ms.is_(None), kv.c.expires_ms > now_ms)
