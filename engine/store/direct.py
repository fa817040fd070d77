"""Hands the journal's rows straight to PostgreSQL's driver, in the transaction of SQLAlchemy's.

Path:   store.journal -> here
Never:  is imported by an engine on SQLite: see store.postgresql.
Not X:  `%s`, which the driver looks for in each statement: 80 us a row, more than all the rest.
        INSERT for many rows: COPY takes the server half the time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError


def numbered(sql: str) -> str:
    """Return the statement with `$1`, `$2` ... for each `%s`, as `execute` wants it."""
    first, *rest = sql.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, start=1))


def execute(connection: Connection, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a `numbered` statement; return its rows.

    Raises:
        DBAPIError: as SQLAlchemy would.
    """
    with _translated(connection) as driver, psycopg.RawCursor(driver) as cursor:
        cursor.execute(sql.encode(), values)
        return [] if cursor.description is None else cursor.fetchall()


def copy(connection: Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows, in the order of the table's columns.

    Raises:
        DBAPIError: as SQLAlchemy would.
    """
    names = ",".join(f'"{column.name}"' for column in table.columns)
    sql = f'COPY "{table.name}" ({names}) FROM STDIN'
    with (
        _translated(connection) as driver,
        driver.cursor() as cursor,
        cursor.copy(sql.encode()) as copying,
    ):
        for row in rows:
            copying.write_row(row)


@contextmanager
def _translated(connection: Connection) -> Iterator[psycopg.Connection[Any]]:
    assert connection.in_transaction(), "nobody would commit it"
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), driver
    try:
        yield driver
    except psycopg.Error as error:
        raise DBAPIError.instance(
            None,
            None,
            error,
            psycopg.Error,
            connection_invalidated=driver.closed,
            dialect=connection.dialect,
        ) from error
