"""Inserts many rows by few statements: one holds the interpreter lock once, however many it has.

Path:   store.fires (a scheduler's transaction) -> here
Not X:  SQLAlchemy's lists of parameters: by themselves they cost as much as the rest of a fire.
        On PostgreSQL VALUES with a mark for each field, which takes longer to read than to store;
        nor arrays, which psycopg writes in Python.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table

CHUNK_ROWS: Final = (512, 128, 32, 8, 1)  # fixed, so that the driver's statement cache holds them


def insert_tuples(
    connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]], *, replace: bool = False
) -> None:
    """Insert rows in the order of the columns; `replace`: in place of those with their keys."""
    if not rows:
        return
    if connection.dialect.name != "sqlite":
        names = table.columns.keys()
        given = msgspec.json.encode([dict(zip(names, row, strict=True)) for row in rows]).decode()
        connection.exec_driver_sql(_from_json(table) + _tail(table, replace=replace), (given,))
        return
    at = 0
    for size in CHUNK_ROWS:
        while len(rows) - at >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            sql = _values(table, size) + _tail(table, replace=replace)
            connection.exec_driver_sql(sql, values)
            at += size


@lru_cache(maxsize=64)
def _from_json(table: Table) -> str:
    """Return a statement whose one parameter is all rows, as JSON."""
    columns = _columns(table)
    return (
        f'INSERT INTO "{table.name}" ({columns}) SELECT {columns} '  # noqa: S608 - our own names
        f'FROM json_populate_recordset(NULL::"{table.name}", %s::json)'
    )


@lru_cache(maxsize=64)
def _values(table: Table, count: int) -> str:
    row = "(" + ",".join("?" * len(table.columns)) + ")"
    rows = ",".join([row] * count)
    return f'INSERT INTO "{table.name}" ({_columns(table)}) VALUES {rows}'  # noqa: S608 - as above


def _columns(table: Table) -> str:
    return ",".join(f'"{column.name}"' for column in table.columns)


def _tail(table: Table, *, replace: bool) -> str:
    if not replace:
        return ""
    key = ",".join(f'"{column.name}"' for column in table.primary_key.columns)
    others = [column.name for column in table.columns if not column.primary_key]
    changes = ",".join(f'"{name}"=excluded."{name}"' for name in others)
    return f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
