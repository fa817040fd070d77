"""`/v1/breakers`: functions, and devices of functions, that are held back for what they did."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from engine.api.access import Invoker, Reader
from engine.api.dead_letters import RedriveDone, redrive_counted, redrive_done
from engine.api.openapi import problems
from engine.api.platform import PlatformHere, shown_text
from engine.api.shapes import Listed, PageAsked, Shown
from engine.clock import iso
from engine.dead_letters import count_letters, first_ids, redrive_all
from engine.errors import Conflict, EngineError, NotFound
from engine.store import dead_letters as store_letters
from engine.store.breakers import HALF_OPEN, OPEN, BreakerView, find_breaker, list_breakers
from engine.store.dead_letters import LetterFilter
from engine.store.functions import find_function

router = APIRouter(tags=["executions"])


class BreakerShown(Shown):
    """What is held back, for what, and until when."""

    id: str
    scope: str = Field(description="function: all runs of a version; device: its events' runs.")
    function: str
    version: int
    device_id: str | None
    device: str | None = Field(description="The device's name.")
    state: str = Field(
        description="open: nothing runs; half_open: the next run is a trial, or one is under way."
    )
    error: dict[str, Any] = Field(description="The last failure: status, name, message, limit.")
    failures: int = Field(description="That opened it.")
    openings: int = Field(description="In a row: each is twice as long as the one before.")
    opened_at: str
    until: str = Field(description="Then one run is let through.")
    set_aside: int = Field(description="Dead letters that it has made, and that are still there.")


class _Gone(EngineError):
    """Nothing in the project knows of this breaker any more."""

    code = "not_found"

    def __init__(self, breaker_id: str) -> None:
        super().__init__(f"the breaker {breaker_id[:80]!r} is closed already, or never was")


class BreakerClosed(Shown):
    id: str
    state: str


@router.get("/v1/breakers", responses=problems(404, 422))
async def show_breakers(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
) -> Listed[BreakerShown]:
    """List what is held back, newest first; what is not has no breaker."""
    function_id = None
    if function is not None:
        known = await platform.database.read(find_function, access.project_id, function)
        if known is None:
            raise NotFound("function", function)
        function_id = known.id
    found = await platform.database.read(list_breakers, access.project_id, function_id, page)
    items = [_shown(platform, access.project_id, one) for one in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/breakers/{breaker_id}", responses=problems(404))
async def show_breaker(platform: PlatformHere, access: Reader, breaker_id: str) -> BreakerShown:
    """Show one breaker."""
    found = await platform.database.read(find_breaker, access.project_id, breaker_id)
    if found is None:
        raise NotFound("breaker", breaker_id[:80])
    return _shown(platform, access.project_id, found)


@router.post("/v1/breakers/{breaker_id}/close", responses=problems(404))
async def close_breaker(platform: PlatformHere, access: Invoker, breaker_id: str) -> BreakerClosed:
    """Hold nothing back any more: what waits runs at once; what was set aside can be redriven."""
    closed = await platform.breakers.close_by_hand(access.project_id, breaker_id)
    if not closed:
        named = LetterFilter(breaker_id=breaker_id)
        if not await platform.database.read(store_letters.count_letters, access.project_id, named):
            raise _Gone(breaker_id)
    return BreakerClosed(id=breaker_id, state="closed")


@router.post("/v1/breakers/{breaker_id}/redrive", responses=problems(404, 409, 422))
async def redrive_breaker(
    platform: PlatformHere,
    access: Invoker,
    breaker_id: str,
    dry_run: Annotated[bool, Query(description="Only count them.")] = False,
) -> RedriveDone:
    """Run once more what a breaker had set aside, on what is live now; also when it is gone."""
    project_id = access.project_id
    known = await platform.database.read(find_breaker, project_id, breaker_id)
    if known is not None:
        raise Conflict(
            f"{breaker_id} is {_state(platform, known)}: what is redriven would be set aside "
            f"again. Deploy a version that can bear it, or POST /v1/breakers/{breaker_id}/close "
            "first"
        )
    wanted = LetterFilter(breaker_id=breaker_id)
    count = await count_letters(platform, project_id, wanted)
    if not count:
        raise _Gone(breaker_id)
    if dry_run:
        return redrive_counted(count, await first_ids(platform, project_id, wanted))
    return redrive_done(await redrive_all(platform, project_id, wanted))


def _state(platform: PlatformHere, breaker: BreakerView) -> str:
    return OPEN if breaker.state == OPEN and breaker.until_ms > platform.clock() else HALF_OPEN


def _shown(platform: PlatformHere, project_id: str, breaker: BreakerView) -> BreakerShown:
    message = shown_text(platform, project_id, breaker.error.get("message"))
    return BreakerShown(
        id=breaker.id,
        scope="device" if breaker.device_id else "function",
        function=breaker.function,
        version=breaker.version,
        device_id=breaker.device_id or None,
        device=breaker.device,
        state=_state(platform, breaker),
        error=breaker.error | {"message": message},
        failures=breaker.failures,
        openings=breaker.openings,
        opened_at=iso(breaker.opened_ms),
        until=iso(breaker.until_ms),
        set_aside=breaker.set_aside,
    )
