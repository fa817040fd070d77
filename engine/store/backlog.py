"""Reads the runs that must still run, oldest first: at start, and when memory has room again."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from engine.store.tables import events, run_queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """One row of the queue, with its event's payload."""

    id: str
    project_id: str
    function_id: str
    cause: str
    handler: str
    event_id: str | None
    device_id: str | None
    input: str | None
    root_id: str
    depth: int
    created_ms: int
    payload: str | None
    source: str | None


def projects_waiting(connection: Connection) -> list[str]:
    """Return the ids of the projects that have runs in the queue."""
    return list(connection.execute(select(run_queue.c.project_id).distinct()).scalars())


def oldest(connection: Connection, project_id: str, after: str, limit: int) -> list[Queued]:
    """Return up to `limit` rows of a project whose id is greater than `after`, oldest first."""
    query = (
        select(run_queue, events.c.payload, events.c.source)
        .outerjoin(events, events.c.id == run_queue.c.event_id)
        .where(run_queue.c.project_id == project_id, run_queue.c.id > after)
        .order_by(run_queue.c.id)
        .limit(limit)
    )
    return [Queued(**row) for row in connection.execute(query).mappings()]
