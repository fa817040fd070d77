"""Inserts many rows by few statements: one holds the interpreter lock once, however many it has.

Path:   store.fires (a scheduler's transaction) -> here
Not X:  SQLAlchemy's lists of parameters: by themselves they cost as much as the rest of a fire.
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
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    at = 0
    for size in CHUNK_ROWS:
        while len(rows) - at >= size:
            given = tuple(chain.from_iterable(rows[at : at + size]))
            connection.exec_driver_sql(_sql(table, size, mark, replace=replace), given)
            at += size


@lru_cache(maxsize=128)
def _sql(table: Table, count: int, mark: str, *, replace: bool) -> str:
    row = "(" + ",".join([mark] * len(table.columns)) + ")"
    columns = ",".join(f'"{column.name}"' for column in table.columns)
    tail = ""
    if replace:
        key = ",".join(f'"{column.name}"' for column in table.primary_key.columns)
        others = [column.name for column in table.columns if not column.primary_key]
        changes = ",".join(f'"{name}"=excluded."{name}"' for name in others)
        tail = f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
    # S608: every name is of our own tables, and values are marks.
    return f'INSERT INTO "{table.name}" ({columns}) VALUES {",".join([row] * count)}{tail}'  # noqa: S608
