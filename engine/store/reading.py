"""What reads of background tasks have in common: one error, and the database's own time.

Path:   store.retention, store.queue_view, store.nodes_view -> here
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from engine.store.journal import StoreFailed

P = ParamSpec("P")
T = TypeVar("T")


def reads(query: Callable[P, T]) -> Callable[P, T]:
    """Return `query`, whose only error is StoreFailed: its caller tries again later."""

    @wraps(query)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return query(*args, **kwargs)
        except SQLAlchemyError as error:
            raise StoreFailed(f"the database cannot be read: {type(error).__name__}") from error

    return reading


def database_ms(connection: Connection) -> int | None:
    """Return the time by the database server's clock; None: it is this machine's own (SQLite)."""
    if connection.dialect.name == "sqlite":
        return None
    query = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    return int(connection.execute(query).scalar_one())
