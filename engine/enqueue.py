"""Puts a run into the queue: the one place where a Run becomes a row.

Path:   events, commit, api.invocations, jobs -> here -> the caller's commit -> Backlog.submit
Never:  makes a run this node's that needs a decision at its claim: a limit, an order, a later time.
"""

from collections.abc import Callable
from typing import Any

from engine.catalogue import Trigger
from engine.flow import due_at, in_order, queued_for
from engine.policies import NONE, needs_claim, write_queued
from engine.run import Run
from engine.store.flow import note
from engine.store.journal import Commit
from engine.store.run_queue import queue_row
from engine.store.tables import run_queue

Owner = Callable[[str], str | None]
"""Says whose a new run of a project is: this node's id, or None when any node may claim it."""


def as_declared(run: Run) -> None:
    """Have a run that is to be queued keep to what its version declares."""
    version = run.version
    if version.policy is not NONE:
        run.policy, run.lane = queued_for(
            version.policy, run.input, version.project_id, version.function_id
        )
        run.due_ms = due_at(run.policy, run.created_ms, run.due_ms)


def in_turn(run: Run, trigger: Trigger, position_ms: int) -> None:
    """Have a device's run come after those with an earlier place, and beside none."""
    assert run.device is not None
    run.policy, run.lane = in_order(run.policy, trigger.id, run.device.id)
    run.position_ms = position_ms
    if trigger.lateness_ms:
        run.due_ms = max(run.due_ms, run.created_ms + trigger.lateness_ms)


def enqueue(commit: Commit, run: Run, owner: Owner) -> None:
    """Have `run` queued when `commit` is on disk; then hand it to `Backlog.submit`."""
    run.queued = True
    at_once = run.due_ms <= run.created_ms and run.lane is None and not needs_claim(run.policy)
    run.owner = owner(run.version.project_id) if at_once else None
    commit.insert(run_queue, row_of(run, run.execution_id))
    if run.policy.flow is not None:
        note(commit, run.policy, run.execution_id, run.created_ms)


def row_of(run: Run, run_id: str) -> tuple[Any, ...]:
    """Return the run's row under this id: its own, or that of its next attempt."""
    version = run.version
    return queue_row(
        run_id=run_id,
        project_id=version.project_id,
        function_id=version.function_id,
        cause=run.cause,
        handler=run.handler,
        root_id=run.root_id,
        created_ms=run.created_ms,
        depth=run.depth,
        event_id=run.event_id,
        device_id=None if run.device is None else run.device.id,
        given=None if run.event_id is not None else run.input.decode(),
        due_ms=run.due_ms,
        priority=run.priority,
        node_id=run.owner,
        attempt=run.attempt,
        job_id=run.job_id,
        schedule_id=run.schedule_id,
        lane=run.lane,
        position_ms=run.position_ms,
        policy=write_queued(run.policy),
    )
