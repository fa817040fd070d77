"""What reads of background tasks have in common: one error, and the database's own time.

Path:   retention, queue_gauges, readiness -> here -> database
"""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from engine.store.database import Database
from engine.store.journal import StoreFailed

T = TypeVar("T")


async def read(database: Database, query: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Read as `Database.read` does, with one error, after which the caller tries again later.

    Raises:
        StoreFailed: the database is away, or refuses.
    """
    try:
        return await database.read(query, *args, **kwargs)
    except SQLAlchemyError as error:
        raise StoreFailed(f"the database cannot be read: {type(error).__name__}") from error


def database_ms(connection: Connection) -> int | None:
    """Return the time by the database server's clock; None: it is this machine's own (SQLite)."""
    if connection.dialect.name == "sqlite":
        return None
    query = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    return int(connection.execute(query).scalar_one())
