"""Ends runs that have not ended, wherever they are: their rows go, their records say `cancelled`.

Path:   cancellations, schedules, flow -> `cancel_runs`; functions (deletion) -> `cancel_waiting`
Never:  touches a run that has ended: whoever deletes its row first decides how it ended.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    delete,
    insert,
    or_,
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
    """End every waiting run and job of a function that is deleted."""
    why = "the function was deleted"
    query = select(run_queue.c.id).where(run_queue.c.function_id == function_id)
    query = query.order_by(run_queue.c.id).limit(STEP_RUNS)
    while ids := list(connection.execute(query).scalars()):
        rows = _delete(connection, run_queue.c.id.in_(ids))
        _record(connection, rows, {function_id: name}, now_ms, why)
    connection.execute(
        update(jobs)
        .where(jobs.c.function_id == function_id, jobs.c.status.in_(before(Status.CANCELLED)))
        .values(status=Status.CANCELLED.value, ended_ms=now_ms, error=_encode(_error(why)).decode())
    )


def cancel_deleted(
    connection: Connection, project_id: str, ids: Collection[str], now_ms: int
) -> list[str]:
    """End those of these runs whose function is gone; return them.

    A node that had not heard of the deletion yet may have queued one after it.
    """
    query = (
        select(run_queue.c.id)
        .outerjoin(functions, functions.c.id == run_queue.c.function_id)
        .where(run_queue.c.id.in_(ids), functions.c.id.is_(None))
    )
    gone = list(connection.execute(query).scalars())
    return cancel_runs(connection, project_id, gone, now_ms, "the function was deleted")


def _cancel(
    connection: Connection, project_id: str, ids: list[str], now_ms: int, why: str
) -> list[str]:
    here = (run_queue.c.project_id == project_id, run_queue.c.id.in_(ids))
    rows = _delete(connection, *here)
    _record(connection, rows, _names(connection, rows), now_ms, why)
    ended = [row for row in rows if row["job_id"] is not None]
    if ended:
        error = _encode(_error(why)).decode()
        connection.execute(
            _CANCEL_JOB,
            [
                {"of": row["job_id"], "execution_id": row["id"], "ended_ms": now_ms, "error": error}
                for row in sorted(ended, key=lambda row: str(row["job_id"]))
            ],
        )
    return sorted(row["id"] for row in rows)


_CANCEL_JOB: Final = (  # not `in_`: that cannot be executed for many rows at once
    update(jobs)
    .where(
        jobs.c.id == bindparam("of"),
        or_(*(jobs.c.status == status for status in before(Status.CANCELLED))),
    )
    .values(
        status=Status.CANCELLED.value,
        execution_id=bindparam("execution_id"),
        ended_ms=bindparam("ended_ms"),
        error=bindparam("error"),
    )
)


def _delete(connection: Connection, *here: ColumnElement[bool]) -> Sequence[RowMapping]:
    """Take runs out of the queue; those that somebody else has just ended are not among them."""
    lock_in_order(connection, run_queue.c.id, *here)
    gone = delete(run_queue).where(*here).returning(run_queue)
    return connection.execute(gone).mappings().all()


def _names(connection: Connection, rows: Sequence[RowMapping]) -> dict[str, str]:
    function_ids = {row["function_id"] for row in rows}
    query = select(functions.c.id, functions.c.name).where(functions.c.id.in_(function_ids))
    return {row.id: row.name for row in connection.execute(query)}


def _record(
    connection: Connection,
    rows: Sequence[RowMapping],
    names: dict[str, str],
    now_ms: int,
    why: str,
) -> None:
    if rows:
        records = [_record_of(row, names, now_ms, why) for row in rows]
        connection.execute(insert(executions), records)


def _record_of(row: RowMapping, names: dict[str, str], now_ms: int, why: str) -> dict[str, Any]:
    report = {
        "root_id": row["root_id"],
        **({"origin": row["origin"]} if row["origin"] else {}),
        "depth": row["depth"],
        "cold_start": False,
        "effects": [],
        "error": _error(why),
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
