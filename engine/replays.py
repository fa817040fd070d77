"""Runs that have ended are made once more: one by its id, or all that a filter finds.

Path:   api.executions -> here -> reruns.plan -> journal -> backlog
Never:  changes the run that is replayed; takes part in its job: a replay is a run of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.cancellations import BY_HAND, Runs, cancel_all
from engine.control import Control
from engine.errors import Conflict, Invalid, NotFound
from engine.policies import write_queued
from engine.quotas import BULK_RUNS_MAX
from engine.reruns import Workbench, plan
from engine.store.executions import AtWork, ExecutionFilter, count_runs, find_execution, run_ids
from engine.store.journal import Commit
from engine.store.replays import Given, ended_runs
from engine.store.run_queue import queue_row
from engine.store.tables import run_queue

STEP_REPLAYS: Final = 100  # of one transaction: with their inputs up to 100 MiB
STEP_CANCELS: Final = 500
SHOWN: Final = 10  # ids in the answer to a request that was about many


class Bulk(Workbench, Runs, Protocol):
    """Port: what a request about many runs needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Which runs a request is about; `wanted.before_id` keeps out what it makes itself."""

    wanted: ExecutionFilter
    at_work: AtWork
    ended: bool  # else those that wait or run


@dataclass(slots=True, kw_only=True)
class Done:
    """What a request about many runs did."""

    count: int = 0
    ids: list[str] = field(default_factory=list)  # the first ones: of the new runs, or the ended
    skipped: dict[str, str] = field(default_factory=dict)  # run -> why, the first ones
    skipped_count: int = 0


async def replay_execution(bench: Workbench, project_id: str, execution_id: str) -> str:
    """Queue a run once more, with what it got, on what is live now; return the new one's id.

    Raises:
        NotFound: the project has no such run.
        QuotaExceeded: there is no room for it in the queue.
        Conflict: it has not ended, or there is nothing that could run it.
    """
    await bench.journal.barrier()  # its record may be on its way
    done = await _replay(bench, project_id, [execution_id])
    if execution_id in done.skipped:
        raise Conflict(f"{execution_id} cannot be replayed: {done.skipped[execution_id]}")
    if done.count:
        return done.ids[0]
    if await bench.database.read(find_execution, project_id, execution_id, AtWork()) is None:
        raise NotFound("execution", execution_id)
    raise Conflict(f"{execution_id} cannot be replayed: it has not ended")


async def replay_all(bench: Workbench, project_id: str, matching: Matching) -> Done:
    """Replay all runs that match and were asked for before it began.

    Raises:
        Invalid: they are too many for one request.
        QuotaExceeded: the queue is full; what was replayed before stays.
    """
    await count_matching(bench, project_id, matching)
    done, after = Done(), ""
    while ids := await _next(bench, project_id, matching, after, STEP_REPLAYS):
        step = await _replay(bench, project_id, ids)
        done.count += step.count
        done.ids = [*done.ids, *step.ids][:SHOWN]
        done.skipped_count += step.skipped_count
        done.skipped = dict([*done.skipped.items(), *step.skipped.items()][:SHOWN])
        after = ids[-1]
    return done


async def cancel_matching(bulk: Bulk, project_id: str, matching: Matching) -> Done:
    """Cancel all runs that match and were asked for before it began.

    Raises:
        Invalid: they are too many for one request.
    """
    count = await count_matching(bulk, project_id, matching)
    done, after = Done(), ""
    while ids := await _next(bulk, project_id, matching, after, STEP_CANCELS):
        ended = await cancel_all(bulk, project_id, ids, BY_HAND)
        done.count += len(ended)
        done.ids = [*done.ids, *ended][:SHOWN]
        after = ids[-1]
    done.skipped_count = max(0, count - done.count)  # they have ended by themselves
    return done


async def count_matching(control: Control, project_id: str, matching: Matching) -> int:
    """Return how many runs match.

    Raises:
        Invalid: more than one request may be about.
    """
    await control.journal.barrier()  # records may be on their way
    count = await control.database.read(
        count_runs, project_id, matching.wanted, matching.at_work, ended=matching.ended
    )
    if count > BULK_RUNS_MAX:
        raise Invalid(
            f"{count} runs match; one request takes up to {BULK_RUNS_MAX}: narrow the filter, for "
            "example by since and until",
            "/filter",
        )
    return count


async def first_ids(control: Control, project_id: str, matching: Matching) -> list[str]:
    """Return the ids of the oldest runs that match, as many as are shown."""
    return await _next(control, project_id, matching, "", SHOWN)


async def _next(
    control: Control, project_id: str, matching: Matching, after: str, limit: int
) -> list[str]:
    return await control.database.read(
        run_ids,
        project_id,
        matching.wanted,
        matching.at_work,
        ended=matching.ended,
        after=after,
        limit=limit,
    )


async def _replay(bench: Workbench, project_id: str, ids: Sequence[str]) -> Done:
    """Queue these runs once more, in one transaction."""
    done, commit = Done(), Commit()
    now_ms = bench.clock()
    found: dict[str, Given] = await bench.database.read(ended_runs, project_id, ids)
    for execution_id, given in found.items():
        planned = await plan(bench, given)
        if isinstance(planned, str):
            done.skipped[execution_id] = planned
            continue
        row = queue_row(
            run_id=planned.execution_id,
            project_id=project_id,
            function_id=given.function_id,
            cause="replay",
            handler=given.handler,
            root_id=planned.execution_id,
            created_ms=now_ms,
            event_id=given.event_id,
            device_id=given.device_id,
            given=given.input,
            lane=planned.lane,
            policy=write_queued(planned.policy),
            origin=given.origin,
        )
        commit.insert(run_queue, row)
        done.ids.append(planned.execution_id)
    done.count, done.skipped_count = len(done.ids), len(done.skipped)
    if done.count:
        await bench.queue_room.need(project_id, done.count)
        await bench.journal.commit(commit)
        bench.backlog.wake(project_id)
    return done
