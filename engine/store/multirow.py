"""Inserts many rows by few statements: one holds the interpreter lock once, however many it has.

Path:   store.fires (a scheduler's transaction) -> here
Not X:  SQLAlchemy's lists of parameters: by themselves they cost as much as the rest of a fire.
        VALUES with a mark for each field on PostgreSQL: to read that takes longer than to store.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, Table

CHUNK_ROWS: Final = (512, 128, 32, 8, 1)  # fixed, so that the driver's statement cache holds them


def insert_tuples(
    connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]], *, replace: bool = False
) -> None:
    """Insert rows in the order of the columns; `replace`: in place of those with their keys."""
    if not rows:
        return
    if connection.dialect.name != "sqlite":
        sql = _head(table) + _unnested(table) + _tail(table, replace=replace)
        connection.exec_driver_sql(sql, tuple(map(list, zip(*rows, strict=True))))
        return
    at = 0
    for size in CHUNK_ROWS:
        while len(rows) - at >= size:
            given = tuple(chain.from_iterable(rows[at : at + size]))
            sql = _head(table) + _values(table, size) + _tail(table, replace=replace)
            connection.exec_driver_sql(sql, given)
            at += size


def _head(table: Table) -> str:
    columns = ",".join(f'"{column.name}"' for column in table.columns)
    return f'INSERT INTO "{table.name}" ({columns}) '


@lru_cache(maxsize=64)
def _unnested(table: Table) -> str:
    """Return the rows as one array for each column."""
    arrays = ",".join(f"%s::{column.type.compile()}[]" for column in table.columns)
    return f"SELECT * FROM unnest({arrays})"  # noqa: S608 - names of types, and marks


@lru_cache(maxsize=64)
def _values(table: Table, count: int) -> str:
    row = "(" + ",".join("?" * len(table.columns)) + ")"
    return f"VALUES {','.join([row] * count)}"


def _tail(table: Table, *, replace: bool) -> str:
    if not replace:
        return ""
    key = ",".join(f'"{column.name}"' for column in table.primary_key.columns)
    others = [column.name for column in table.columns if not column.primary_key]
    changes = ",".join(f'"{name}"=excluded."{name}"' for name in others)
    return f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
