"""Puts a run into the queue: the one place where a Run becomes a row.

Path:   events, commit, api.invocations, jobs -> here -> the caller's commit -> Backlog.submit
Never:  makes a run this node's that needs a decision at its claim: a limit, an order, a later time.
"""

from collections.abc import Callable
from typing import Any, Final

from engine.catalogue import Trigger
from engine.flow import due_at, in_order, queued_for
from engine.policies import NONE, PLAIN, needs_claim, write_queued
from engine.run import Run
from engine.store.flow import note
from engine.store.journal import Commit
from engine.store.tables import run_queue

ROW_COLUMNS: Final = 24
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
    is_plain = run.policy is PLAIN or not needs_claim(run.policy)
    at_once = is_plain and run.lane is None and run.due_ms <= run.created_ms
    run.owner = owner(run.version.project_id) if at_once else None
    commit.insert(run_queue, row_of(run, run.execution_id))
    if run.policy.flow is not None:
        note(commit, run.policy, run.execution_id, run.created_ms)


def row_of(run: Run, run_id: str) -> tuple[Any, ...]:
    """Return the run's row under this id: its own, or that of its next attempt.

    As `queue_row` does, column by column: this is on the way of every event.
    """
    version = run.version
    return (
        run_id, version.project_id, version.function_id, run.cause, run.handler, run.event_id,
        None if run.device is None else run.device.id,
        None if run.event_id is not None else run.input.decode(),
        run.root_id, run.depth, run.created_ms, run.due_ms or run.created_ms, run.priority,
        run.owner, run.attempt, 0, run.job_id, run.schedule_id, run.lane, run.position_ms,
        None if run.policy is PLAIN else write_queued(run.policy), run.origin or None,
        run.path or None, run.budget,
    )  # fmt: skip


assert len(run_queue.columns) == ROW_COLUMNS, "row_of has another number of columns"
