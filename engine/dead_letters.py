"""What becomes of runs that failed at every attempt: edited, redriven, or thrown away.

Path:   api.dead_letters -> here -> store.dead_letters -> journal -> backlog
Never:  makes two runs of one letter, however many ask for it at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from engine.control import Control
from engine.errors import Conflict, Invalid, NotFound, PayloadTooLarge
from engine.events import check_text
from engine.ids import new_id
from engine.policies import Queued
from engine.quotas import BATCH_ITEMS_MAX, BULK_RUNS_MAX, PARAMS_BYTES_MAX
from engine.reruns import Rerun, Workbench, input_of, plan
from engine.store import dead_letters as store
from engine.store.dead_letters import Letter, LetterFilter, Revival
from engine.store.replays import Given

STEP_LETTERS: Final = 100  # of one transaction: with their payloads up to 100 MiB
DELETE_STEP: Final = 500
SHOWN: Final = 10  # ids in the answer to a request that was about many


@dataclass(slots=True, kw_only=True)
class Redriven:
    """What a redrive did, or would do."""

    count: int = 0
    ids: list[str] = field(default_factory=list)  # of the letters, the first ones
    executions: list[str] = field(default_factory=list)  # what became of them
    skipped: dict[str, str] = field(default_factory=dict)  # letter -> why, the first ones
    skipped_count: int = 0


async def get_letter(bench: Workbench, project_id: str, letter_id: str) -> tuple[Letter, str]:
    """Return a letter, and what its run got, as JSON.

    Raises:
        NotFound: the project has none of that id.
    """
    found = await bench.database.read(store.find_letters, project_id, [letter_id])
    if not found:
        raise NotFound("dead letter", letter_id)
    return found[0], await input_of(bench, _given(project_id, found[0])) or "null"


async def edit_payload(control: Control, project_id: str, letter_id: str, payload: bytes) -> None:
    """Give the letter's next run another input.

    Raises:
        Invalid: it is not JSON that can be stored.
        PayloadTooLarge: names the limit.
        NotFound: the project has no such letter.
    """
    if len(payload) > PARAMS_BYTES_MAX:
        raise PayloadTooLarge("the payload", "params_bytes", PARAMS_BYTES_MAX, len(payload))
    check_text(payload, "/payload")
    change = store.edit_payload
    if not await control.journal.run(change, project_id, letter_id, payload.decode()):
        raise NotFound("dead letter", letter_id)


async def redrive_one(bench: Workbench, project_id: str, letter_id: str) -> str:
    """Make the letter's run once more, on what is live now; return the execution's id.

    Raises:
        NotFound: the project has no such letter, or somebody else has just redriven it.
        Conflict: there is nothing that could run it.
    """
    done = await redrive_ids(bench, project_id, [letter_id])
    if letter_id in done.skipped:
        raise Conflict(f"{letter_id} cannot be redriven: {done.skipped[letter_id]}")
    if not done.count:
        raise NotFound("dead letter", letter_id)
    return done.executions[0]


async def redrive_ids(
    bench: Workbench, project_id: str, ids: Sequence[str], *, dry_run: bool = False
) -> Redriven:
    """Redrive those of these letters that are there; `dry_run`: only say which."""
    if not 1 <= len(ids) <= BATCH_ITEMS_MAX:
        raise Invalid(f"has {len(ids)} ids; 1 to {BATCH_ITEMS_MAX} are allowed", "/ids")
    done = Redriven()
    for at in range(0, len(ids), STEP_LETTERS):
        await _redrive_step(bench, project_id, ids[at : at + STEP_LETTERS], done, dry_run=dry_run)
    return done


async def redrive_all(bench: Workbench, project_id: str, wanted: LetterFilter) -> Redriven:
    """Redrive all letters that match and were there when it began.

    Raises:
        Invalid: they are too many for one request.
    """
    wanted = replace(wanted, before_id=new_id("dlq"))
    await count_letters(bench, project_id, wanted)
    done, after = Redriven(), ""
    while ids := await _next(bench, project_id, wanted, after, STEP_LETTERS):
        await _redrive_step(bench, project_id, ids, done)
        after = ids[-1]
    return done


async def delete_all(control: Control, project_id: str, wanted: LetterFilter) -> int:
    """Delete all letters that match and were there when it began; return how many.

    Raises:
        Invalid: they are too many for one request.
    """
    wanted = replace(wanted, before_id=new_id("dlq"))
    await count_letters(control, project_id, wanted)
    count, after = 0, ""
    while ids := await _next(control, project_id, wanted, after, DELETE_STEP):
        count += await control.journal.run(store.delete_letters, project_id, ids)
        after = ids[-1]
    return count


async def delete_one(control: Control, project_id: str, letter_id: str) -> None:
    """Throw a letter away; its job stays as it ended.

    Raises:
        NotFound: the project has none of that id.
    """
    if not await control.journal.run(store.delete_letters, project_id, [letter_id]):
        raise NotFound("dead letter", letter_id)


async def count_letters(control: Control, project_id: str, wanted: LetterFilter) -> int:
    """Return how many letters match.

    Raises:
        Invalid: more than one request may be about.
    """
    count = await control.database.read(store.count_letters, project_id, wanted)
    if count > BULK_RUNS_MAX:
        raise Invalid(
            f"{count} dead letters match; one request takes up to {BULK_RUNS_MAX}: narrow the "
            "filter, for example by its function",
            "/filter",
        )
    return count


async def first_ids(control: Control, project_id: str, wanted: LetterFilter) -> list[str]:
    """Return the ids of the oldest letters that match, as many as are shown."""
    return await _next(control, project_id, wanted, "", SHOWN)


async def _next(
    control: Control, project_id: str, wanted: LetterFilter, after: str, limit: int
) -> list[str]:
    return await control.database.read(store.letter_ids, project_id, wanted, after, limit)


async def _redrive_step(
    bench: Workbench, project_id: str, ids: Sequence[str], done: Redriven, *, dry_run: bool = False
) -> None:
    revivals: dict[str, Revival] = {}
    letters = await bench.database.read(store.find_letters, project_id, ids)
    for letter in letters:
        planned = await plan(bench, _given(project_id, letter), _again(letter.policy))
        if isinstance(planned, Rerun):
            revivals[letter.id] = Revival(
                execution_id=planned.execution_id, policy=planned.policy, lane=planned.lane
            )
            continue
        done.skipped_count += 1
        if len(done.skipped) < SHOWN:
            done.skipped[letter.id] = planned
    redriven = list(revivals)
    if revivals and not dry_run:
        await bench.queue_room.need(project_id, len(revivals))
        redriven, woken = await bench.journal.run(store.revive, project_id, revivals, bench.clock())
        for row in set(woken):
            bench.backlog.wake(*row)
    done.count += len(redriven)
    done.ids = [*done.ids, *redriven][:SHOWN]
    if not dry_run:
        made = [revivals[one].execution_id for one in redriven]
        done.executions = [*done.executions, *made][:SHOWN]


def _again(policy: Queued) -> Queued:
    """Return how a letter's run waits now: at once, alone, and again for a dead letter."""
    return msgspec.structs.replace(
        policy,
        dead_letter=True,
        expires_ms=0,
        flow=None,
        order=False,  # its place in the order is long gone
        watched=False,  # its schedule has counted it already
    )


def _given(project_id: str, letter: Letter) -> Given:
    return Given(
        project_id=project_id,
        function_id=letter.function_id,
        function=letter.function,
        handler=letter.handler,
        device_id=letter.device_id,
        event_id=letter.event_id,
        input=letter.payload,
        event=letter.event,
        source=letter.source,
        received_ms=letter.received_ms,
    )
