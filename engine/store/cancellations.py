"""Ends runs that wait for what is gone."""

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Text,
    cast,
    delete,
    insert,
    literal,
    null,
    select,
)

from engine.store.tables import executions, run_queue


def cancel_waiting(connection: Connection, function_id: str, name: str, now_ms: int) -> None:
    """End every waiting run of a function as `cancelled`, in two statements however many."""
    report = (
        literal('{"error":{"name":"Cancelled","message":"the function was deleted"},"root_id":"')
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
        "attempt": literal(0),
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
