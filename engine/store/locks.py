"""Locks rows before they change, always in one order: so no two transactions wait in a circle.

Path:   store.cancellations, store.dead_letters -> here; SQLite has one writer, and needs none of it
"""

from sqlalchemy import Column, ColumnElement, Connection, select


def lock_in_order(connection: Connection, key: Column[str], *where: ColumnElement[bool]) -> None:
    """Lock the rows that match, in the order of `key`; an UPDATE or DELETE takes them in any."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(key).where(*where).order_by(key).with_for_update())
