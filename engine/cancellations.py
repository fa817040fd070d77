"""Ends runs and jobs by hand, before they have ended by themselves.

Path:   api.executions, api.jobs -> here -> store.cancellations -> journal; then the nodes are told
Never:  undoes anything: what a run has committed stays.
"""

from collections.abc import Collection
from typing import Final, Protocol

from sqlalchemy import Connection

from engine.control import Control
from engine.errors import Conflict, NotFound
from engine.jobs import ENDED
from engine.policies import LANES
from engine.store.cancellations import cancel_runs, lanes_of
from engine.store.executions import OPEN, AtWork, find_execution
from engine.store.jobs import find_status, waiting_runs
from engine.store.journal import Commit

TRIES: Final = 5  # a job goes from one attempt to the next while it is looked for
BY_HAND: Final = "it was cancelled"


class Runs(Control, Protocol):
    """Port: what cancelling needs besides."""

    def cancelled(self, ids: Collection[str]) -> None:
        """Stop these runs, whose rows are gone, on this node and on all others. Never blocks."""
        ...


async def cancel_execution(runs: Runs, project_id: str, execution_id: str) -> None:
    """End a run that waits or runs, and its job if it is an attempt of one.

    Raises:
        NotFound: the project has no such run.
        Conflict: it has ended.
    """
    if await cancel_all(runs, project_id, [execution_id], BY_HAND):
        return
    await runs.journal.barrier()  # the record of its end may be on its way
    found = await runs.database.read(find_execution, project_id, execution_id, AtWork())
    if found is None:
        raise NotFound("execution", execution_id)
    if found.status in OPEN:
        raise Conflict(f"execution {execution_id} has just changed hands; ask again in a moment")
    raise Conflict(f"execution {execution_id} has ended: {found.status}")


async def cancel_job(runs: Runs, project_id: str, job_id: str) -> None:
    """End a job that waits or runs.

    Raises:
        NotFound: the project has no such job.
        Conflict: it has ended.
    """
    for _ in range(TRIES):
        ids = await runs.database.read(_open_runs, project_id, job_id)
        if await cancel_all(runs, project_id, ids, BY_HAND):
            return
        await runs.journal.barrier()  # an attempt that has just ended says so here
    raise Conflict(f"job {job_id!r} is between two attempts; ask again in a moment")


async def cancel_all(runs: Runs, project_id: str, ids: Collection[str], why: str) -> list[str]:
    """End those of these runs that have not ended; return which."""
    if not ids:
        return []
    now_ms = runs.clock()
    commit = Commit(change=lambda connection: cancel_runs(connection, project_id, ids, now_ms, why))
    for lane in await runs.database.read(lanes_of, project_id, ids):
        commit.gather(LANES, lane)
    ended: list[str] = await runs.journal.commit(commit)
    if ended:
        runs.cancelled(ended)
    return ended


def _open_runs(connection: Connection, project_id: str, job_id: str) -> list[str]:
    status = find_status(connection, project_id, job_id)
    if status is None:
        raise NotFound("job", job_id)
    if status in ENDED:
        raise Conflict(f"job {job_id} has ended: {status}")
    return waiting_runs(connection, job_id)
