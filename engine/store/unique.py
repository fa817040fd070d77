"""Inserts one row whose name may be taken: the database decides who came first."""

from typing import Any

from sqlalchemy import Connection, Table, insert
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
