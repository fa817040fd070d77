"""Walks through everything that is stored sealed, so that it can be sealed with another key.

Path:   rotation -> here (pages), journal -> here (`swap`)
Never:  sees a plain value; writes over what was stored since the page was read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, func, select, tuple_, update

from engine.store.tables import (
    artifacts,
    connections,
    deliveries,
    functions,
    idempotency_keys,
    secrets,
    versions,
)

HEAD_BYTES: Final = 13  # format and nonce: no two sealed values have the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """One sealed value: its primary key, and what its context is made of."""

    key: tuple[str, ...]
    context: tuple[str, ...]
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A column with sealed values."""

    table: Table
    column: str
    rows_max: int  # of a page: they are all in memory
    query: Select[Any]  # of the context's columns, named c0, c1, ...


def _of(table: Table, column: str, rows_max: int, *context: Any) -> _Place:
    named = [one.label(f"c{number}") for number, one in enumerate(context)]
    return _Place(table=table, column=column, rows_max=rows_max, query=select(*named))


_PLACES: Final[Mapping[str, _Place]] = {
    "secrets": _of(secrets, "sealed", 200, secrets.c.project_id, secrets.c.name),
    "connections": _of(connections, "sealed", 200, connections.c.project_id, connections.c.name),
    "deliveries": _of(deliveries, "sealed", 200, deliveries.c.project_id, deliveries.c.id),
    "idempotency_keys": _of(
        idempotency_keys, "answer", 10, idempotency_keys.c.project_id, idempotency_keys.c.key
    ),
    "artifacts": _Place(
        table=artifacts,
        column="sealed",
        rows_max=1,  # tens of megabytes
        query=select(
            functions.c.project_id.label("c0"),
            artifacts.c.version_id.label("c1"),
            artifacts.c.fingerprint.label("c2"),
        ).select_from(artifacts.join(versions).join(functions)),
    ),
}
PLACES: Final = tuple(_PLACES)


def count(connection: Connection, place: str) -> int:
    """Return how many sealed values there are in one place."""
    at = _PLACES[place]
    column = at.table.c[at.column]
    query = select(func.count()).select_from(at.table).where(column.is_not(None))
    return connection.execute(query).scalar_one()


def page(connection: Connection, place: str, after: tuple[str, ...]) -> tuple[list[Sealed], bool]:
    """Return values after this primary key, in its order, and whether there may be more."""
    at = _PLACES[place]
    column, keys = at.table.c[at.column], list(at.table.primary_key.columns)
    query = (
        at.query.add_columns(
            column.label("sealed"), *(one.label(f"k{n}") for n, one in enumerate(keys))
        )
        .where(column.is_not(None))
        .order_by(*keys)
        .limit(at.rows_max)
    )
    if after:
        query = query.where(tuple_(*keys) > tuple_(*after))
    found = [
        Sealed(
            key=tuple(row[f"k{n}"] for n in range(len(keys))),
            context=tuple(row[name] for name in row if name.startswith("c")),
            sealed=row["sealed"],
        )
        for row in connection.execute(query).mappings()
    ]
    return found, len(found) == at.rows_max


def swap(connection: Connection, place: str, changed: Iterable[tuple[Sealed, bytes]]) -> int:
    """Replace values by what they are sealed to now; return how many still were what they were."""
    at = _PLACES[place]
    column, keys = at.table.c[at.column], list(at.table.primary_key.columns)
    swapped = 0
    for before, sealed in changed:
        same = [one == part for one, part in zip(keys, before.key, strict=True)]
        same.append(func.substr(column, 1, HEAD_BYTES) == before.sealed[:HEAD_BYTES])
        change = update(at.table).where(*same).values({at.column: sealed})
        swapped += connection.execute(change).rowcount
    return swapped
