"""`/v1/jobs`: one-off runs, and how far they are. They are made in `api.submissions`."""

import asyncio
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field

from engine.api.access import Invoker, Reader
from engine.api.executions import at_work
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere, shown_json
from engine.api.shapes import Listed, PageAsked, Shown
from engine.api.times import parse_time
from engine.cancellations import cancel_job
from engine.clock import iso
from engine.errors import Invalid, NotFound
from engine.jobs import ENDED, Status
from engine.quotas import JOB_WAIT_S_MAX
from engine.store.functions import find_function
from engine.store.jobs import Job, JobFilter, JobRun, JobSummary, find_job, list_jobs, runs_of
from engine.store.run_queue import PRIORITIES

router = APIRouter(tags=["jobs"])

LOOK_S: Final = (0.05, 0.1, 0.25, 0.5)  # between two looks at a job that is waited for
_PRIORITY: Final = {number: name for name, number in PRIORITIES.items()}


class JobShown(Shown):
    id: str
    function: str
    handler: str
    queue: str
    priority: str
    status: str
    attempts: int = Field(description="Made so far.")
    max_attempts: int
    run_at: str
    next_attempt_at: str | None
    created_at: str
    ended_at: str | None
    execution_id: str | None = Field(description="Of the last attempt; of a new job, of the first.")
    progress: dict[str, Any] | None = Field(description="value (0 to 1), message, at.")
    error: dict[str, Any] | None = Field(description="Of the last attempt.")
    batch: str | None = Field(description="Jobs of one call have the same.")


class JobRunShown(Shown):
    id: str
    status: str
    attempt: int
    created_at: str


class JobWhole(JobShown):
    """A job with what went in and what came out."""

    payload: Any
    result: Any
    expires_at: str | None
    executions: list[JobRunShown]


@router.get("/v1/jobs", responses=problems(422))
async def show_jobs(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    status: Annotated[str | None, Query(description=", ".join(Status))] = None,
    queue: Annotated[str | None, Query(description="The name of a queue.")] = None,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
    batch: Annotated[str | None, Query(description="Of one call that made several.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: made then or later.")] = None,
) -> Listed[JobShown]:
    """List jobs, newest first."""
    if status is not None and status not in set(Status):
        raise Invalid(f"{status[:80]!r} is none of {', '.join(Status)}", "?status")
    known = None
    if function is not None:
        known = await platform.database.read(find_function, access.project_id, function)
    wanted = JobFilter(
        status=None if status is None else Status(status),
        queue=queue,
        function_id=known.id if known else None,
        function=function if known is None else None,
        batch_id=batch,
        since_ms=None if since is None else parse_time(since, "?since"),
    )
    found = await platform.database.read(
        list_jobs, access.project_id, wanted, page, at_work(platform)
    )
    items = [JobShown(**_shown(job)) for job in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/jobs/{job_id}", responses=problems(404, 422))
async def show_job(
    platform: PlatformHere,
    access: Reader,
    job_id: str,
    wait: Annotated[
        float, Query(ge=0, le=JOB_WAIT_S_MAX, description="Seconds to wait for its end.")
    ] = 0,
) -> JobWhole:
    """Show one job with its payload, result and attempts."""
    job = await _job(platform, access.project_id, job_id)
    looks_count, deadline = 0, asyncio.get_running_loop().time() + wait
    while job.status not in ENDED and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(left_s, LOOK_S[min(looks_count, len(LOOK_S) - 1)]))
        looks_count += 1
        job = await _job(platform, access.project_id, job_id)
    await platform.journal.barrier()  # the record of an attempt may be on its way for some ms
    runs = await platform.database.read(runs_of, job_id)
    expires_ms = job.policy.expires_ms
    return JobWhole(
        **_shown(job),
        payload=shown_json(platform, access.project_id, job.payload_json),
        result=None if job.result_json is None else msgspec.json.decode(job.result_json),
        expires_at=iso(expires_ms) if expires_ms else None,
        executions=list(map(_run_shown, runs)),
    )


@router.delete(
    "/v1/jobs/{job_id}", status_code=204, response_class=Response, responses=problems(404, 409)
)
async def drop_job(platform: PlatformHere, access: Invoker, job_id: str) -> None:
    """Cancel a job that is queued or running; one that has ended stays as it is."""
    await cancel_job(platform, access.project_id, job_id)


async def _job(platform: Platform, project_id: str, job_id: str) -> Job:
    job = await platform.database.read(find_job, project_id, job_id, at_work(platform))
    if job is None:
        raise NotFound("job", job_id)
    return job


def _shown(job: JobSummary) -> dict[str, Any]:
    return {
        "id": job.id,
        "function": job.function,
        "handler": job.handler,
        "queue": job.queue,
        "priority": _PRIORITY.get(job.priority, str(job.priority)),
        "status": job.status.value,
        "attempts": job.attempts,
        "max_attempts": job.policy.max_attempts,
        "run_at": iso(job.run_at_ms),
        "next_attempt_at": None if job.next_ms is None else iso(job.next_ms),
        "created_at": iso(job.created_ms),
        "ended_at": None if job.ended_ms is None else iso(job.ended_ms),
        "execution_id": job.execution_id,
        "progress": job.progress,
        "error": job.error,
        "batch": job.batch_id,
    }


def _run_shown(run: JobRun) -> JobRunShown:
    return JobRunShown(
        id=run.id, status=run.status, attempt=run.attempt, created_at=iso(run.created_ms)
    )
