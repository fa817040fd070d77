"""What the database says of its own schema, and of who may be using it."""

from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select

from engine.store.tables import nodes


def current_revision(connection: Connection) -> str | None:
    """Return the migration that was the last one here, `0004`; None: no table yet."""
    return MigrationContext.configure(connection).get_current_revision()


def nodes_seen(connection: Connection, since_ms: int) -> list[str]:
    """Return the nodes that have shown since then that they live, as host and process."""
    if not inspect(connection).has_table(nodes.name):
        return []
    query = select(nodes.c.host, nodes.c.pid).where(nodes.c.seen_ms >= since_ms)
    return [f"{row.host} (process {row.pid})" for row in connection.execute(query)]
