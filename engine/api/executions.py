"""`/v1/executions`: every run, what started it and how it ended."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field

from engine.api.access import Invoker, Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere, shown_json
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.api.times import parse_time
from engine.cancellations import cancel_execution
from engine.clock import iso
from engine.errors import Invalid, NotFound
from engine.explain import OVER_QUOTA
from engine.ids import new_id
from engine.replays import (
    Matching,
    cancel_matching,
    count_matching,
    first_ids,
    replay_all,
    replay_execution,
)
from engine.store.executions import (
    OPEN,
    RUNNING,
    WAITING,
    AtWork,
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

REPLAY: Final = "replay"
ACTIONS: Final = (REPLAY, "cancel")
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
    job_id: str | None
    schedule_id: str | None
    error: dict[str, Any] | None = None
    limit: dict[str, Any] | None = None
    waits_for: str | None = Field(
        None, description="over_quota: it is queued, and the project's CPU time is used up."
    )


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
    restarts: int = Field(0, description="Cells that were lost under this attempt.")
    fuel: int | None = Field(None, description="Used; only where limits.fuel meters it.")


class RunsWanted(Body):
    """At least one of these."""

    function: str | None = Field(None, description="Name or id.")
    status: str | None = None
    device: str | None = Field(None, description="A device's id.")
    since: str | None = Field(None, description="RFC 3339: asked for then or later.")
    until: str | None = Field(None, description="RFC 3339: asked for before then.")


class BulkAsked(Body):
    model_config = example(
        {
            "action": "replay",
            "filter": {"function": "alarm", "status": "failed", "since": "2010-10-29T00:00:00Z"},
            "dry_run": True,
        }
    )

    action: str = Field(description="replay or cancel")
    filter: RunsWanted
    dry_run: bool = Field(False, description="Only count them.")


class BulkDone(Shown):
    """What was done, or would be: the first ids stand for the others."""

    action: str
    dry_run: bool
    count: int
    ids: list[str] = Field(description="Of the runs; of a replay that was done, of the new ones.")
    skipped: int = Field(description="Could not be replayed; or ended before they were cancelled.")
    reasons: dict[str, str]


class RunTaken(Shown):
    execution_id: str
    status: str


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
    wanted = ExecutionFilter(
        function_id=known.id if known else None,
        function=function if known is None else None,
        status=status,
        device_id=device,
        since_ms=None if since is None else parse_time(since, "?since"),
    )
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    found = await platform.database.read(
        list_executions, access.project_id, wanted, page, at_work(platform)
    )
    items = [
        ExecutionShown(**_shown(one), waits_for=_waits_for(platform, access.project_id, one))
        for one in found.items
    ]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/executions/{execution_id}", responses=problems(404))
async def show_execution(
    platform: PlatformHere, access: Reader, execution_id: str
) -> ExecutionWhole:
    """Show one run with its input, result and effects."""
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    found = await platform.database.read(
        find_execution, access.project_id, execution_id, at_work(platform)
    )
    if found is None:
        raise NotFound("execution", execution_id)
    report = found.report
    return ExecutionWhole(
        **_shown(found),
        waits_for=_waits_for(platform, access.project_id, found),
        input=None
        if found.input_json is None
        else shown_json(platform, access.project_id, found.input_json),
        result=_json(found.result_json),
        root_id=report.get("root_id"),
        depth=report.get("depth", 0),
        cold_start=report.get("cold_start"),
        effects=report.get("effects") or [],
        transcript=report.get("transcript"),
        seed=found.seed,
        clock=None if found.clock_ms is None else iso(found.clock_ms),
        peak_memory_bytes=found.peak_memory_bytes,
        restarts=report.get("restarts", 0),
        fuel=report.get("fuel"),
    )


@router.get("/v1/executions/{execution_id}/logs", responses=problems(404))
async def show_logs(platform: PlatformHere, access: Reader, execution_id: str) -> Listed[LogLine]:
    """Show all that one run logged, in the order it did, on one page."""
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    log = await platform.database.read(find_log, access.project_id, execution_id)
    if log is None:
        found: Execution | None = await platform.database.read(
            find_execution, access.project_id, execution_id, at_work(platform)
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


@router.post("/v1/executions/{execution_id}/cancel", responses=problems(404, 409))
async def stop_execution(platform: PlatformHere, access: Invoker, execution_id: str) -> RunTaken:
    """Cancel a run that is queued or running, and its job: nothing of it is applied."""
    await cancel_execution(platform, access.project_id, execution_id)
    return RunTaken(execution_id=execution_id, status=Outcome.CANCELLED.value)


@router.post("/v1/executions/{execution_id}/replay", status_code=202, responses=problems(404, 409))
async def repeat_execution(
    platform: PlatformHere, access: Invoker, execution_id: str, response: Response
) -> RunTaken:
    """Run once more what has ended, with what it got, on what is live now."""
    replayed = await replay_execution(platform, access.project_id, execution_id)
    response.headers["location"] = f"/v1/executions/{replayed}"
    return RunTaken(execution_id=replayed, status=WAITING)


@router.post("/v1/executions:bulk", responses=problems(422, body=True))
async def change_executions(platform: PlatformHere, access: Invoker, body: BulkAsked) -> BulkDone:
    """Replay or cancel all runs that match; a dry run says how many they are."""
    matching = await _matching(platform, access.project_id, body)
    if body.dry_run:
        count = await count_matching(platform, access.project_id, matching)
        ids = await first_ids(platform, access.project_id, matching)
        return BulkDone(
            action=body.action, dry_run=True, count=count, ids=ids, skipped=0, reasons={}
        )
    act = replay_all if body.action == REPLAY else cancel_matching
    done = await act(platform, access.project_id, matching)
    return BulkDone(
        action=body.action,
        dry_run=False,
        count=done.count,
        ids=done.ids,
        skipped=done.skipped_count,
        reasons=done.skipped,
    )


async def _matching(platform: Platform, project_id: str, body: BulkAsked) -> Matching:
    asked = body.filter
    if body.action not in ACTIONS:
        raise Invalid(f"{body.action[:80]!r} is none of {', '.join(ACTIONS)}", "/action")
    statuses = STATUSES[len(OPEN) :] if body.action == REPLAY else tuple(sorted(OPEN))
    if asked.status is not None and asked.status not in statuses:
        raise Invalid(
            f"{asked.status[:80]!r} is none of {', '.join(statuses)}: others cannot be "
            f"{'replayed' if body.action == REPLAY else 'cancelled'}",
            "/filter/status",
        )
    if not asked.model_dump(exclude_none=True):
        raise Invalid(f"give at least one of {', '.join(RunsWanted.model_fields)}", "/filter")
    known = None
    if asked.function is not None:
        known = await platform.database.read(find_function, project_id, asked.function)
    wanted = ExecutionFilter(
        function_id=known.id if known else None,
        function=asked.function if known is None else None,
        status=asked.status,
        device_id=asked.device,
        since_ms=None if asked.since is None else parse_time(asked.since, "/filter/since"),
        until_ms=None if asked.until is None else parse_time(asked.until, "/filter/until"),
        before_id=new_id("exe"),  # none that the request itself makes
    )
    return Matching(wanted=wanted, at_work=at_work(platform), ended=body.action == REPLAY)


def at_work(platform: Platform) -> AtWork:
    """Return what tells a run that runs from one that waits, as far as this node knows."""
    return AtWork(node_id=platform.journal.node_id, running=frozenset(platform.running()))


def _shown(execution: ExecutionSummary) -> dict[str, Any]:
    return {
        "id": execution.id,
        "function": execution.function,
        "version": execution.version or None,
        "cause": execution.cause,
        "handler": execution.handler,
        "event_id": execution.event_id,
        "device_id": execution.device_id,
        "status": execution.status,
        "created_at": iso(execution.created_ms),
        "queue_ms": _ms(execution.queue_us),
        "wall_ms": _ms(execution.wall_us),
        "cpu_ms": _ms(execution.cpu_us),
        "attempt": execution.attempt,
        "job_id": execution.job_id,
        "schedule_id": execution.schedule_id,
        "error": execution.error,
        "limit": execution.limit,
    }


def _waits_for(platform: Platform, project_id: str, execution: ExecutionSummary) -> str | None:
    spent = execution.status == WAITING and project_id in platform.usage.exceeded
    return OVER_QUOTA if spent else None


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
