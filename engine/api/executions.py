"""`/v1/executions`: every run, what started it and how it ended."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Listed, PageAsked, Shown
from engine.api.times import parse_time
from engine.clock import iso
from engine.errors import Invalid, NotFound
from engine.store.executions import (
    WAITING,
    Execution,
    ExecutionFilter,
    ExecutionSummary,
    find_execution,
    find_log,
    list_executions,
)
from engine.store.functions import find_function
from runtimes.contract import Outcome

router = APIRouter(tags=["executions"])

RUNNING: Final = "running"
STATUSES: Final = (WAITING, RUNNING, *(outcome.value for outcome in Outcome))


class ExecutionShown(Shown):
    id: str
    function: str
    version: int | None
    cause: str
    handler: str
    event_id: str | None
    device_id: str | None
    status: str
    created_at: str
    queue_ms: float | None
    wall_ms: float | None
    cpu_ms: float | None
    attempt: int
    error: dict[str, Any] | None = None
    limit: dict[str, Any] | None = None


class ExecutionWhole(ExecutionShown):
    """A run with what went in and what came out."""

    input: Any
    result: Any
    root_id: str | None
    depth: int
    cold_start: bool | None
    effects: list[Any]
    transcript: list[Any] | None = None
    seed: str
    clock: str | None
    peak_memory_bytes: int | None = Field(
        description="Of the cell; of a WebAssembly function, the memory of its instance."
    )
    fuel: int | None = Field(None, description="Used; only where limits.fuel meters it.")


class LogLine(Shown):
    seq: int
    ts: str
    level: str
    msg: str


@router.get("/v1/executions", responses=problems(422))
async def show_executions(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
    status: Annotated[str | None, Query(description=", ".join(STATUSES))] = None,
    device: Annotated[str | None, Query(description="A device's id.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: asked for then or later.")] = None,
) -> Listed[ExecutionShown]:
    """List runs, newest first: those that ended, and those that are queued or running."""
    if status is not None and status not in STATUSES:
        raise Invalid(f"{status[:80]!r} is none of {', '.join(STATUSES)}", "?status")
    known = None
    if function is not None:
        known = await platform.database.read(find_function, access.project_id, function)
    running = frozenset(platform.running())
    wanted = ExecutionFilter(
        function_id=known.id if known else None,
        function=function if known is None else None,
        status=WAITING if status == RUNNING else status,
        device_id=device,
        since_ms=None if since is None else parse_time(since, "?since"),
        among=running if status == RUNNING else None,
        not_among=running if status == WAITING else (),
    )
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    found = await platform.database.read(list_executions, access.project_id, wanted, page)
    items = [ExecutionShown(**_shown(one, one.id in running)) for one in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/executions/{execution_id}", responses=problems(404))
async def show_execution(
    platform: PlatformHere, access: Reader, execution_id: str
) -> ExecutionWhole:
    """Show one run with its input, result and effects."""
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    found = await platform.database.read(find_execution, access.project_id, execution_id)
    if found is None:
        raise NotFound("execution", execution_id)
    report = found.report
    return ExecutionWhole(
        **_shown(found, execution_id in platform.running()),
        input=_json(found.input_json),
        result=_json(found.result_json),
        root_id=report.get("root_id"),
        depth=report.get("depth", 0),
        cold_start=report.get("cold_start"),
        effects=report.get("effects") or [],
        transcript=report.get("transcript"),
        seed=found.seed,
        clock=None if found.clock_ms is None else iso(found.clock_ms),
        peak_memory_bytes=found.peak_memory_bytes,
        fuel=report.get("fuel"),
    )


@router.get("/v1/executions/{execution_id}/logs", responses=problems(404))
async def show_logs(platform: PlatformHere, access: Reader, execution_id: str) -> Listed[LogLine]:
    """Show all that one run logged, in the order it did, on one page."""
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    log = await platform.database.read(find_log, access.project_id, execution_id)
    if log is None:
        found: Execution | None = await platform.database.read(
            find_execution, access.project_id, execution_id
        )
        if found is None:
            raise NotFound("execution", execution_id)
        log = "[]"  # it has not ended: its lines come with its end
    lines = enumerate(msgspec.json.decode(log), start=1)
    items = [
        LogLine(seq=seq, ts=iso(at_ms), level=level, msg=text)
        for seq, (level, at_ms, text) in lines
    ]
    return Listed(items=items)


def _shown(execution: ExecutionSummary, is_running: bool) -> dict[str, Any]:
    waits = execution.status == WAITING
    return {
        "id": execution.id,
        "function": execution.function,
        "version": execution.version or None,
        "cause": execution.cause,
        "handler": execution.handler,
        "event_id": execution.event_id,
        "device_id": execution.device_id,
        "status": RUNNING if waits and is_running else execution.status,
        "created_at": iso(execution.created_ms),
        "queue_ms": _ms(execution.queue_us),
        "wall_ms": _ms(execution.wall_us),
        "cpu_ms": _ms(execution.cpu_us),
        "attempt": execution.attempt,
        "error": execution.error,
        "limit": execution.limit,
    }


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
