"""Jobs as stored (table `jobs`), with where their next run stands (table `run_queue`).

Path:   intake -> job_row -> journal; api.jobs -> list_jobs, find_job
        hostcalls.jobs -> keep_progress
Never:  decides what a job may become: see engine.jobs.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    literal,
    or_,
    select,
    union_all,
    update,
)

from engine.jobs import Status, stored
from engine.policies import Queued, read_queued
from engine.store.executions import ID_SLACK_MS, WAITING, AtWork
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import executions, jobs, run_queue

RUNS_MAX: Final = 200  # of one job that are shown: it has up to 100, and those of its redrives


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """One line of a list of jobs."""

    id: str
    function_id: str
    function: str
    handler: str
    queue: str
    priority: int
    status: Status
    policy: Queued
    run_at_ms: int
    next_ms: int | None  # when its next attempt is due; None: it runs, or has ended
    created_ms: int
    ended_ms: int | None
    attempts: int
    execution_id: str | None
    error: dict[str, Any] | None
    progress: dict[str, Any] | None
    batch_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JobSummary):
    """Everything known about one job."""

    payload_json: str
    result_json: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One attempt of a job, ended or waiting."""

    id: str
    status: str
    attempt: int
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are asked for; None: whatever it is."""

    status: Status | None = None
    queue: str | None = None
    function_id: str | None = None
    function: str | None = None  # a name that no function has now, but one may have had
    batch_id: str | None = None
    since_ms: int | None = None


def job_row(
    *,
    job_id: str,
    project_id: str,
    function_id: str,
    function: str,
    handler: str,
    queue: str,
    priority: int,
    payload: str,
    policy: str,
    run_at_ms: int,
    created_ms: int,
    execution_id: str,
    batch_id: str | None,
) -> tuple[Any, ...]:
    """Return the row of a new job for `Commit.insert(jobs, ...)`."""
    return (
        job_id, project_id, function_id, function, handler, queue, priority, Status.QUEUED.value,
        payload, policy, run_at_ms, created_ms, None, 0, execution_id, None, None, None, batch_id,
    )  # fmt: skip


def list_jobs(
    connection: Connection, project_id: str, wanted: JobFilter, page: Page, at_work: AtWork
) -> Paged[JobSummary]:
    """Return jobs, newest first."""
    query = _select(at_work, *_SUMMARY).where(jobs.c.project_id == project_id)
    if wanted.status is not None:
        query = query.where(jobs.c.status.in_(stored((wanted.status,))))
        if wanted.status is Status.RUNNING:
            query = query.where(at_work.runs())
        elif wanted.status is Status.QUEUED:
            query = query.where(or_(run_queue.c.node_id.is_(None), ~at_work.runs()))
    for column, asked in (
        (jobs.c.queue, wanted.queue),
        (jobs.c.function_id, wanted.function_id),
        (jobs.c.function, wanted.function),
        (jobs.c.batch_id, wanted.batch_id),
    ):
        if asked is not None:
            query = query.where(column == asked)
    if wanted.since_ms is not None:
        oldest_id = f"job_{max(0, wanted.since_ms - ID_SLACK_MS):012x}"
        query = query.where(jobs.c.created_ms >= wanted.since_ms, jobs.c.id >= oldest_id)
    rows = connection.execute(page_of(query, jobs.c.id, page)).mappings()
    return paged([JobSummary(**_fields(row)) for row in rows], page, lambda job: job.id)


def find_job(connection: Connection, project_id: str, job_id: str, at_work: AtWork) -> Job | None:
    query = _select(at_work, *_SUMMARY, jobs.c.payload, jobs.c.result).where(
        jobs.c.project_id == project_id, jobs.c.id == job_id
    )
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    return Job(**_fields(row), payload_json=row["payload"], result_json=row["result"])


def find_status(connection: Connection, project_id: str, job_id: str) -> Status | None:
    """Return the stored status, which does not tell whether an open job runs."""
    query = select(jobs.c.status).where(jobs.c.project_id == project_id, jobs.c.id == job_id)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else Status(found)


def runs_of(connection: Connection, job_id: str) -> list[JobRun]:
    """Return the latest attempts of a job, oldest first."""
    ended = select(
        executions.c.id, executions.c.status, executions.c.attempt, executions.c.created_ms
    ).where(executions.c.job_id == job_id)
    together = (  # a message's last one is its batch's, which is no job's own
        select(executions.c.id, executions.c.status, jobs.c.attempts, executions.c.created_ms)
        .join(
            jobs,
            and_(
                jobs.c.project_id == executions.c.project_id,
                jobs.c.execution_id == executions.c.id,
            ),
        )
        .where(jobs.c.id == job_id, executions.c.job_id.is_(None))
    )
    waiting = select(
        run_queue.c.id,
        literal(WAITING).label("status"),
        run_queue.c.attempt,
        run_queue.c.created_ms,
    ).where(run_queue.c.job_id == job_id)
    merged = union_all(ended, together, waiting).subquery()
    query = select(merged).order_by(merged.c.id.desc()).limit(RUNS_MAX)
    return [JobRun(**row) for row in reversed(connection.execute(query).mappings().all())]


def waiting_runs(connection: Connection, job_id: str) -> list[str]:
    """Return the ids of the runs that a job still has to make: one, or none."""
    query = select(run_queue.c.id).where(run_queue.c.job_id == job_id)
    return list(connection.execute(query).scalars())


def keep_progress(connection: Connection, job_id: str, execution_id: str, progress: str) -> None:
    """Write how far a job is, unless the run that says so is over."""
    still = select(run_queue.c.id).where(run_queue.c.id == execution_id).exists()
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status == Status.QUEUED.value, still)
        .values(progress=progress)
    )


_SUMMARY: Final = (
    jobs.c.id,
    jobs.c.function_id,
    jobs.c.function,
    jobs.c.handler,
    jobs.c.queue,
    jobs.c.priority,
    jobs.c.status,
    jobs.c.policy,
    jobs.c.run_at_ms,
    jobs.c.created_ms,
    jobs.c.ended_ms,
    jobs.c.attempts,
    jobs.c.execution_id,
    jobs.c.error,
    jobs.c.progress,
    jobs.c.batch_id,
)


def _select(at_work: AtWork, *columns: ColumnElement[Any]) -> Select[Any]:
    next_run = (run_queue.c.due_ms, at_work.runs().label("runs"))
    return select(*columns, *next_run).outerjoin(run_queue, run_queue.c.job_id == jobs.c.id)


def _fields(row: RowMapping) -> dict[str, Any]:
    known = {name: row[name] for name in JobSummary.__dataclass_fields__ if name in row}
    status, next_ms = Status(row["status"]), None
    if status is Status.QUEUED:
        if row["runs"]:
            status = Status.RUNNING
        else:
            next_ms = row["due_ms"]
    return known | {
        "status": status,
        "policy": read_queued(row["policy"]),
        "next_ms": next_ms,
        "error": _json(row["error"]),
        "progress": _json(row["progress"]),
    }


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
