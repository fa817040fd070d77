"""What runs got that have ended, so that they can be made once more.

Path:   engine.replays -> here; what is found goes to engine.reruns
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, and_, select

from engine.store.tables import events, executions


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a run was of, and what it got."""

    project_id: str
    function_id: str
    function: str
    handler: str
    device_id: str | None
    event_id: str | None
    input: str | None  # JSON; None: the event has it
    event: str | None  # its payload
    source: str | None
    received_ms: int | None
    origin: str = ""  # see engine.intents


class _Report(msgspec.Struct):
    """What is needed of a record's report."""

    root_id: str
    origin: str = ""


def ended_runs(connection: Connection, project_id: str, ids: Collection[str]) -> dict[str, Given]:
    """Return what those of these runs got that have ended, by id, oldest first."""
    query = (
        select(
            executions.c.id,
            executions.c.project_id,
            executions.c.function_id,
            executions.c.function,
            executions.c.handler,
            executions.c.device_id,
            executions.c.event_id,
            executions.c.input,
            executions.c.report,
            events.c.payload.label("event"),
            events.c.source,
            events.c.received_ms,
        )
        .outerjoin(events, and_(executions.c.input.is_(None), events.c.id == executions.c.event_id))
        .where(executions.c.project_id == project_id, executions.c.id.in_(ids))
        .order_by(executions.c.id)
    )
    found = [dict(row) for row in connection.execute(query).mappings()]
    return {row.pop("id"): Given(origin=_origin(row.pop("report")), **row) for row in found}


def _origin(report: str) -> str:
    told = msgspec.json.decode(report, type=_Report)
    return told.origin or told.root_id
