"""What a provider's callback needs of the store: who verifies it, and where its news go.

Path:   engine.callbacks -> here -> store.deliveries.told
Never:  touches a delivery of another project or another connection
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from engine.connectors.contract import Told
from engine.store.deliveries import told
from engine.store.gates import INLINE
from engine.store.tables import deliveries
from engine.store.vaulted import get_connections
from engine.vault import connection_context, delivery_context


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Whose credentials verify a callback: a connection's, or those of one delivery alone."""

    kind: str
    sealed: bytes = field(repr=False)
    context: str  # in which they were sealed
    settings: str  # JSON


def find_source(
    connection: Connection, project_id: str, name: str, delivery_id: str | None
) -> Source | None:
    """Return who may tell of this connection's deliveries; None: nobody."""
    if name.startswith(INLINE):
        return None if delivery_id is None else _inline(connection, project_id, name, delivery_id)
    key = (project_id, name)
    stored = get_connections(connection, [key]).get(key)
    if stored is None:
        return None
    return Source(
        kind=stored.kind,
        sealed=stored.sealed,
        context=connection_context(*key),
        settings=stored.settings,
    )


def keep_news(
    connection: Connection, project_id: str, name: str, news: Sequence[Told], now_ms: int
) -> None:
    """Write what a provider tells, of those of these deliveries that were sent through `name`."""
    query = select(deliveries.c.id).where(
        deliveries.c.project_id == project_id,
        deliveries.c.connection == name,
        deliveries.c.id.in_({one.delivery_id for one in news}),
    )
    ours = set(connection.execute(query).scalars())
    for one in news:
        if one.delivery_id in ours:
            told(
                connection,
                project_id,
                one.delivery_id,
                one.status,
                one.final,
                one.error,
                one.message_id,
                now_ms,
            )


def _inline(connection: Connection, project_id: str, name: str, delivery_id: str) -> Source | None:
    query = select(deliveries.c.kind, deliveries.c.sealed).where(
        deliveries.c.project_id == project_id,
        deliveries.c.connection == name,
        deliveries.c.id == delivery_id,
    )
    row = connection.execute(query).first()
    if row is None or row.sealed is None:
        return None
    context = delivery_context(project_id, delivery_id)
    return Source(kind=row.kind, sealed=row.sealed, context=context, settings="{}")
