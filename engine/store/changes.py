"""The feed of what nodes keep in memory and another node has changed."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, text

from engine.clock import wall_clock
from engine.store.tables import changes

_LOCK = 0x636C6368  # any number that is nobody else's: the feed's transactions, one at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    seq: int
    node_id: str | None
    kind: str
    of: str


def note_change(
    connection: Connection, kind: str, of: str = "", *, also_here: bool = False
) -> None:
    """Tell the other nodes, in this transaction, that what they know of `of` is old.

    Args:
        connection: the writer's.
        kind: function | triggers | device | keys | projects | connections | breakers.
        of: the id of the function, product (triggers), device or project (the last two).
        also_here: this node does not know it by itself.
    """
    if connection.dialect.name == "sqlite":
        return  # there is no other node
    in_turn(connection)  # who has read number 7 never looks for 6 again
    connection.execute(
        insert(changes).values(
            node_id=None if also_here else connection.info.get("node_id"),
            kind=kind,
            of=of,
            at_ms=wall_clock(),
        )
    )
    connection.info["noted"] = True


def in_turn(connection: Connection) -> None:
    """Wait until no other node's transaction is past this line; the lock goes with the commit."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def newest(connection: Connection) -> int:
    """Return the number of the last change; 0: there was none."""
    return connection.execute(select(func.max(changes.c.seq))).scalar_one() or 0


def noted_after(connection: Connection, seq: int, limit: int) -> list[Noted]:
    query = select(changes).where(changes.c.seq > seq).order_by(changes.c.seq).limit(limit)
    return [
        Noted(seq=row.seq, node_id=row.node_id, kind=row.kind, of=row.of)
        for row in connection.execute(query)
    ]
