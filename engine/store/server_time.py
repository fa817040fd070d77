"""The time by the database server's clock, which all nodes have in common."""

from sqlalchemy import Connection, text


def database_ms(connection: Connection) -> int | None:
    """Return its time in milliseconds; None: its clock is this machine's own (SQLite)."""
    if connection.dialect.name == "sqlite":
        return None
    query = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    return int(connection.execute(query).scalar_one())
