"""Inserts rows whose keys or names may be taken: the database decides who came first."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table, insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from engine.errors import Conflict


def insert_unique(connection: Connection, table: Table, row: dict[str, Any], taken: str) -> None:
    """Insert `row`.

    Raises:
        Conflict: a unique column of it is taken; `taken` is what the caller is told.
    """
    try:
        connection.execute(insert(table).values(row))
    except IntegrityError as error:
        raise Conflict(taken) from error


def insert_absent(
    connection: Connection, table: Table, rows: Sequence[dict[str, Any]]
) -> list[tuple[Any, ...]]:
    """Insert those of `rows` whose primary keys are not there; return the keys of these."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).on_conflict_do_nothing().returning(*table.primary_key)
    return [tuple(row) for row in connection.execute(statement, rows)]
