"""Ends runs that have not ended, wherever they are: their rows go, their records say `cancelled`.

Path:   cancellations, schedules, flow -> `cancel_runs`; functions (deletion) -> `cancel_waiting`
Never:  touches a run that has ended: whoever deletes its row first decides how it ended.
"""

from collections.abc import Collection
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    Text,
    cast,
    delete,
    insert,
    literal,
    null,
    select,
    update,
)

from engine.jobs import Status, before
from engine.store.locks import lock_in_order
from engine.store.tables import executions, functions, jobs, run_queue

STEP_RUNS: Final = 500  # in one statement
_encode: Final = msgspec.json.encode


def cancel_runs(
    connection: Connection, project_id: str, ids: Collection[str], now_ms: int, why: str
) -> list[str]:
    """End those of these runs that have not ended, on whatever node they are, and their jobs.

    A node that is at work on one finds its row gone, and applies nothing of it. Tell the nodes
    afterwards (`platform.cancelled`), so that they stop.

    Args:
        connection: the writer's.
        project_id: whose runs; the id of another project's is passed over.
        ids: executions' ids, of runs that wait or run.
        now_ms: when they end.
        why: shown as the error's message.

    Returns:
        The ids of the runs that this call has ended.
    """
    found: list[str] = []
    wanted = sorted(ids)  # in one order everywhere, so that two cancellers never wait in a circle
    for at in range(0, len(wanted), STEP_RUNS):
        found += _cancel(connection, project_id, wanted[at : at + STEP_RUNS], now_ms, why)
    return found


def lanes_of(connection: Connection, project_id: str, ids: Collection[str]) -> list[str]:
    """Return the lanes of these runs: their ends make room there (see `engine.flow`)."""
    query = select(run_queue.c.lane).where(
        run_queue.c.project_id == project_id,
        run_queue.c.id.in_(ids),
        run_queue.c.lane.is_not(None),
    )
    return sorted(set(connection.execute(query).scalars()))


def cancel_waiting(connection: Connection, function_id: str, name: str, now_ms: int) -> None:
    """End every waiting run and job of a function that is deleted, however many, in three steps."""
    error = _encode(_error("the function was deleted")).decode()
    report = (
        literal(f'{{"error":{error},"root_id":"')
        + run_queue.c.root_id
        + literal('","depth":')
        + cast(run_queue.c.depth, Text)
        + literal(',"cold_start":false,"effects":[]}')
    )
    known: dict[str, ColumnElement[Any] | Column[Any]] = {
        column.name: column for column in run_queue.columns if column.name in executions.columns
    }
    known |= {
        "function": literal(name),
        "version": literal(0),  # none was chosen yet
        "status": literal("cancelled"),
        "clock_ms": literal(now_ms),
        "seed": literal(""),
        "queue_us": (now_ms - run_queue.c.created_ms) * 1000,
        "wall_us": literal(0),
        "cpu_us": literal(0),
        "peak_memory_bytes": literal(0),
        "result": null(),
        "report": report,
        "log": null(),
    }
    assert known.keys() == set(executions.columns.keys())
    moved = select(*known.values()).where(run_queue.c.function_id == function_id)
    connection.execute(insert(executions).from_select(list(known), moved))
    connection.execute(delete(run_queue).where(run_queue.c.function_id == function_id))
    connection.execute(
        update(jobs)
        .where(jobs.c.function_id == function_id, jobs.c.status.in_(before(Status.CANCELLED)))
        .values(status=Status.CANCELLED.value, ended_ms=now_ms, error=error)
    )


def _cancel(
    connection: Connection, project_id: str, ids: list[str], now_ms: int, why: str
) -> list[str]:
    here = (run_queue.c.project_id == project_id, run_queue.c.id.in_(ids))
    lock_in_order(connection, run_queue.c.id, *here)
    rows = connection.execute(delete(run_queue).where(*here).returning(run_queue)).mappings().all()
    if not rows:
        return []
    names = _names(connection, {row["function_id"] for row in rows})
    error = _error(why)
    records = [_record(row, names, now_ms, error) for row in rows]
    connection.execute(insert(executions), records)
    for row in rows:
        if row["job_id"] is not None:
            _cancel_job(connection, row["job_id"], row["id"], now_ms, error)
    return sorted(row["id"] for row in rows)


def _cancel_job(
    connection: Connection, job_id: str, execution_id: str, now_ms: int, error: dict[str, str]
) -> None:
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.in_(before(Status.CANCELLED)))
        .values(
            status=Status.CANCELLED.value,
            ended_ms=now_ms,
            execution_id=execution_id,
            error=_encode(error).decode(),
        )
    )


def _names(connection: Connection, function_ids: Collection[str]) -> dict[str, str]:
    query = select(functions.c.id, functions.c.name).where(functions.c.id.in_(function_ids))
    return {row.id: row.name for row in connection.execute(query)}


def _record(
    row: RowMapping, names: dict[str, str], now_ms: int, error: dict[str, str]
) -> dict[str, Any]:
    report = {
        "root_id": row["root_id"],
        "depth": row["depth"],
        "cold_start": False,
        "effects": [],
        "error": error,
    }
    known = {name: row[name] for name in executions.columns.keys() & row.keys()}
    return known | {
        "function": names.get(row["function_id"], row["function_id"]),
        "version": 0,  # whichever it ran, or would have
        "status": "cancelled",
        "clock_ms": now_ms,
        "seed": "",
        "queue_us": max(0, now_ms - row["created_ms"]) * 1000,
        "wall_us": 0,
        "cpu_us": 0,
        "peak_memory_bytes": 0,
        "result": None,
        "report": _encode(report).decode(),
        "log": None,
    }


def _error(why: str) -> dict[str, str]:
    return {"name": "Cancelled", "message": why}
