"""Nodes that are alive, and what is theirs: runs of `run_queue`, deliveries, breakers' trials.

Path:   engine.nodes -> journal -> here
Never:  lets two nodes have one run: whoever takes over deletes the node's row in the same
        transaction, and the end of a run is void when its row is not the node's any more.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from engine.store.breakers import free_trials
from engine.store.tables import PARKED, deliveries, nodes, run_queue

_ON_THEIR_WAY = ("queued", "retrying", "sending", "held")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    id: str
    kind: str
    host: str
    pid: int
    release: str
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """What was freed of a dead node's."""

    runs: int
    deliveries: int


def register(connection: Connection, node: NewNode) -> None:
    connection.execute(
        insert(nodes).values(
            id=node.id,
            kind=node.kind,
            host=node.host,
            pid=node.pid,
            release=node.release,
            started_ms=node.now_ms,
            seen_ms=node.now_ms,
            beat=0,
            journal_seq=0,
            state="{}",
        )
    )


def beat(
    connection: Connection, node_id: str, state: str, now_ms: int
) -> tuple[bool, list[tuple[str, int]]]:
    """Show that the node lives; return whether it still does for the others, and their beats."""
    change = (
        update(nodes)
        .where(nodes.c.id == node_id)
        .values(beat=nodes.c.beat + 1, seen_ms=now_ms, state=state)
    )
    alive = connection.execute(change).rowcount == 1
    others = select(nodes.c.id, nodes.c.beat).where(nodes.c.id != node_id)
    return alive, [(row.id, row.beat) for row in connection.execute(others)]


def take_over(connection: Connection, dead_id: str, last_beat: int) -> Takeover | None:
    """Free everything of a node that has not beaten since; None: it has, or another one did.

    It may hang in the middle of a transaction, whose locks nobody waits for here: the node that
    did would beat no more, and no other either. `free_orphans` finds what is locked now.
    """
    silent = select(nodes.c.id).where(nodes.c.id == dead_id, nodes.c.beat == last_beat)
    if connection.execute(silent.with_for_update(skip_locked=True)).first() is None:
        return None
    connection.execute(delete(nodes).where(nodes.c.id == dead_id))
    free_trials(connection, dead_id)
    return _free(connection, dead_id)


def leave(connection: Connection, node_id: str) -> Takeover:
    """Free everything of a node that stops."""
    connection.execute(delete(nodes).where(nodes.c.id == node_id))
    free_trials(connection, node_id)
    change = update(run_queue).where(run_queue.c.node_id == node_id).values(node_id=None)
    runs = connection.execute(change).rowcount
    return Takeover(runs=runs, deliveries=_free_deliveries(connection, node_id))


def leave_alone(connection: Connection) -> None:
    """Free everything: this process is the only one on its database, and has just started."""
    connection.execute(delete(nodes))
    free_trials(connection, None)
    connection.execute(
        update(run_queue)
        .where(run_queue.c.node_id.is_not(None), run_queue.c.node_id != PARKED)
        .values(node_id=None, takeovers=run_queue.c.takeovers + 1)
    )


def free_orphans(connection: Connection) -> int:
    """Free what is of nodes that are not there; return how many runs that were.

    A transaction of theirs had it locked, or brought it, when they were taken over.
    """
    owners = select(run_queue.c.node_id).where(
        run_queue.c.node_id.is_not(None), run_queue.c.node_id != PARKED
    )
    senders = select(deliveries.c.node_id).where(
        deliveries.c.node_id.is_not(None), deliveries.c.state.in_(_ON_THEIR_WAY)
    )
    found = set(connection.execute(owners.union(senders)).scalars())
    if not found:
        return 0
    alive = set(connection.execute(select(nodes.c.id).where(nodes.c.id.in_(found))).scalars())
    return sum(_free(connection, node_id).runs for node_id in sorted(found - alive))


def adopt_deliveries(connection: Connection, node_id: str, limit: int) -> tuple[list[str], bool]:
    """Make deliveries of no node this one's; return those that wait, and whether others do not."""
    free = (
        select(deliveries.c.id)
        .where(deliveries.c.node_id.is_(None), deliveries.c.state.in_(_ON_THEIR_WAY))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(connection.execute(free).scalars())
    if not ids:
        return [], False
    rows = connection.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(node_id=node_id)
        .returning(deliveries.c.id, deliveries.c.state)
    ).all()
    waiting = [row.id for row in rows if row.state != "sending"]
    return waiting, len(waiting) < len(rows)


def mine(connection: Connection, node_id: str) -> set[str]:
    """Return the ids of the runs that are this node's."""
    query = select(run_queue.c.id).where(run_queue.c.node_id == node_id)
    return set(connection.execute(query).scalars())


def free_runs(connection: Connection, node_id: str, ids: Collection[str]) -> None:
    """Give runs of this node back unstarted."""
    connection.execute(
        update(run_queue)
        .where(run_queue.c.id.in_(ids), run_queue.c.node_id == node_id)
        .values(node_id=None)
    )


def _free(connection: Connection, dead_id: str) -> Takeover:
    theirs = select(run_queue.c.id).where(run_queue.c.node_id == dead_id)
    change = (
        update(run_queue)
        .where(run_queue.c.id.in_(theirs.with_for_update(skip_locked=True)))
        .values(node_id=None, takeovers=run_queue.c.takeovers + 1)
    )
    runs = connection.execute(change).rowcount
    return Takeover(runs=runs, deliveries=_free_deliveries(connection, dead_id))


def _free_deliveries(connection: Connection, node_id: str) -> int:
    theirs = select(deliveries.c.id).where(
        deliveries.c.node_id == node_id, deliveries.c.state.in_(_ON_THEIR_WAY)
    )
    change = (
        update(deliveries)
        .where(deliveries.c.id.in_(theirs.with_for_update(skip_locked=True)))
        .values(node_id=None)
    )
    return connection.execute(change).rowcount
