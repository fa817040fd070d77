"""`/v1/dead-letters`: runs that failed at every attempt they had, and what shall become of them."""

from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from engine.api.access import Invoker, Reader
from engine.api.edge import check_json
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere, shown_json
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.api.times import parse_time
from engine.clock import iso
from engine.dead_letters import (
    Redriven,
    count_letters,
    delete_all,
    delete_one,
    edit_payload,
    first_ids,
    get_letter,
    redrive_all,
    redrive_ids,
    redrive_one,
)
from engine.errors import Invalid, explained
from engine.store.dead_letters import (
    Attempt,
    LetterFilter,
    LetterSummary,
    attempts_of,
    list_letters,
)
from engine.store.functions import find_function

router = APIRouter(tags=["jobs"])

_FILTERS: Final = ("function", "queue", "cause", "breaker", "since")


class LetterShown(Shown):
    id: str
    function: str
    handler: str
    cause: str
    queue: str
    status: str
    error: dict[str, Any] | None
    attempts: int
    execution_id: str
    job_id: str | None
    event_id: str | None
    device_id: str | None
    schedule_id: str | None
    breaker_id: str | None = Field(
        description="It did not run, or as the breaker's trial: its device is set aside."
    )
    created_at: str


class AttemptShown(Shown):
    id: str
    attempt: int
    status: str
    created_at: str
    error: dict[str, Any] | None


class LetterWhole(LetterShown):
    """A dead letter with what its run got, and the attempts that are still on record."""

    payload: Any
    attempts_log: list[AttemptShown]


class _Edit(msgspec.Struct, forbid_unknown_fields=True):
    payload: msgspec.Raw


class LettersWanted(Body):
    function: str | None = None
    queue: str | None = None
    cause: str | None = None
    breaker: str | None = None
    since: str | None = None


class RedriveAsked(Body):
    model_config = example({"filter": {"function": "report"}, "dry_run": True})

    ids: list[str] | None = None
    filter: LettersWanted | None = None
    dry_run: bool = False


class RedriveDone(Shown):
    """What was done, or would be: the first ids stand for the others."""

    dry_run: bool
    count: int
    ids: list[str]
    executions: list[str]
    skipped: int
    reasons: dict[str, str]


class LettersDropped(Shown):
    dry_run: bool
    count: int
    ids: list[str]


class RedriveTaken(Shown):
    id: str
    execution_id: str
    status: str


@router.get("/v1/dead-letters", responses=problems(422))
async def show_letters(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
    queue: Annotated[str | None, Query(description="The name of a queue.")] = None,
    cause: Annotated[str | None, Query(description="write, job, schedule, call ...")] = None,
    breaker: Annotated[str | None, Query(description="That set them aside: its id.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: given up then or later.")] = None,
) -> Listed[LetterShown]:
    """List dead letters, newest first."""
    asked = LettersWanted(function=function, queue=queue, cause=cause, breaker=breaker, since=since)
    wanted = await _filter(platform, access.project_id, asked, "?")
    found = await platform.database.read(list_letters, access.project_id, wanted, page)
    items = [LetterShown(**_shown(one)) for one in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/dead-letters/{letter_id}", responses=problems(404))
async def show_letter(platform: PlatformHere, access: Reader, letter_id: str) -> LetterWhole:
    """Show one dead letter with its payload, its error and its attempts."""
    letter, payload = await get_letter(platform, access.project_id, letter_id)
    attempts = await platform.database.read(attempts_of, access.project_id, letter)
    return LetterWhole(
        **_shown(letter),
        payload=shown_json(platform, access.project_id, payload),
        attempts_log=list(map(_attempt_shown, attempts)),
    )


@router.patch(
    "/v1/dead-letters/{letter_id}",
    responses=problems(404, 422, body=True),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["payload"],
                        "properties": {"payload": {"description": "Any JSON."}},
                    },
                    "example": {"payload": {"day": "2010-10-29"}},
                }
            },
        }
    },
)
async def change_letter(
    platform: PlatformHere, access: Invoker, letter_id: str, request: Request
) -> LetterWhole:
    """Give the run another input for when it is redriven."""
    body = await request.body()
    check_json(body)
    try:
        edit = msgspec.json.decode(body, type=_Edit)
    except msgspec.ValidationError as error:
        raise Invalid(*explained(error)) from None
    await edit_payload(platform, access.project_id, letter_id, bytes(edit.payload))
    return await show_letter(platform, access, letter_id)


@router.post("/v1/dead-letters:redrive", responses=problems(422, body=True))
async def redrive_letters(
    platform: PlatformHere, access: Invoker, body: RedriveAsked
) -> RedriveDone:
    """Run letters once more, on what is live now: some by their ids, or all of a filter."""
    project_id = access.project_id
    if (body.ids is None) == (body.filter is None):
        raise Invalid("give either ids or filter; an empty filter means all", "/ids")
    if body.filter is not None:
        wanted = await _filter(platform, project_id, body.filter, "/filter/")
        if body.dry_run:
            count = await count_letters(platform, project_id, wanted)
            return redrive_counted(count, await first_ids(platform, project_id, wanted))
        return redrive_done(await redrive_all(platform, project_id, wanted))
    ids = list(dict.fromkeys(body.ids or ()))
    return redrive_done(
        await redrive_ids(platform, project_id, ids, dry_run=body.dry_run), dry_run=body.dry_run
    )


@router.post("/v1/dead-letters/{letter_id}/redrive", status_code=202, responses=problems(404, 409))
async def redrive_letter(
    platform: PlatformHere, access: Invoker, letter_id: str, response: Response
) -> RedriveTaken:
    """Run one letter once more, on what is live now."""
    execution_id = await redrive_one(platform, access.project_id, letter_id)
    response.headers["location"] = f"/v1/executions/{execution_id}"
    return RedriveTaken(id=letter_id, execution_id=execution_id, status="queued")


@router.delete("/v1/dead-letters", responses=problems(422))
async def drop_letters(
    platform: PlatformHere,
    access: Invoker,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
    queue: Annotated[str | None, Query(description="The name of a queue.")] = None,
    cause: Annotated[str | None, Query(description="write, job, schedule, call ...")] = None,
    breaker: Annotated[str | None, Query(description="That set them aside: its id.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: given up then or later.")] = None,
    everything: Annotated[
        bool, Query(alias="all", description="Needed where no filter is given.")
    ] = False,
    dry_run: Annotated[bool, Query(description="Only count them.")] = False,
) -> LettersDropped:
    """Throw dead letters away: all that match."""
    asked = LettersWanted(function=function, queue=queue, cause=cause, breaker=breaker, since=since)
    if not everything and all(getattr(asked, name) is None for name in _FILTERS):
        raise Invalid(f"give one of {', '.join(_FILTERS)}, or all=true", "?all")
    wanted = await _filter(platform, access.project_id, asked, "?")
    ids = await first_ids(platform, access.project_id, wanted)
    if dry_run:
        count = await count_letters(platform, access.project_id, wanted)
    else:
        count = await delete_all(platform, access.project_id, wanted)
    return LettersDropped(dry_run=dry_run, count=count, ids=ids)


@router.delete(
    "/v1/dead-letters/{letter_id}",
    status_code=204,
    response_class=Response,
    responses=problems(404),
)
async def drop_letter(platform: PlatformHere, access: Invoker, letter_id: str) -> None:
    """Throw one dead letter away; its job stays as it ended."""
    await delete_one(platform, access.project_id, letter_id)


async def _filter(
    platform: Platform, project_id: str, asked: LettersWanted, place: str
) -> LetterFilter:
    known = None
    if asked.function is not None:
        known = await platform.database.read(find_function, project_id, asked.function)
    return LetterFilter(
        function_id=known.id if known else None,
        function=asked.function if known is None else None,
        queue=asked.queue,
        cause=asked.cause,
        breaker_id=asked.breaker,
        since_ms=None if asked.since is None else parse_time(asked.since, f"{place}since"),
    )


def redrive_counted(count: int, ids: list[str]) -> RedriveDone:
    """Return what a redrive would do, as it is shown."""
    return RedriveDone(dry_run=True, count=count, ids=ids, executions=[], skipped=0, reasons={})


def redrive_done(done: Redriven, *, dry_run: bool = False) -> RedriveDone:
    """Return what a redrive did as it is shown."""
    return RedriveDone(
        dry_run=dry_run,
        count=done.count,
        ids=done.ids,
        executions=done.executions,
        skipped=done.skipped_count,
        reasons=done.skipped,
    )


def _shown(letter: LetterSummary) -> dict[str, Any]:
    return {
        "id": letter.id,
        "function": letter.function,
        "handler": letter.handler,
        "cause": letter.cause,
        "queue": letter.queue,
        "status": letter.status,
        "error": letter.error,
        "attempts": letter.attempts,
        "execution_id": letter.execution_id,
        "job_id": letter.job_id,
        "event_id": letter.event_id,
        "device_id": letter.device_id,
        "schedule_id": letter.schedule_id,
        "breaker_id": letter.breaker_id,
        "created_at": iso(letter.created_ms),
    }


def _attempt_shown(attempt: Attempt) -> AttemptShown:
    return AttemptShown(
        id=attempt.id,
        attempt=attempt.attempt,
        status=attempt.status,
        created_at=iso(attempt.created_ms),
        error=attempt.error,
    )
