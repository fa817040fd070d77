"""`/v1/events`: what was written, what it caused, and why the rest did not run."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Listed, PageAsked, Shown
from engine.api.times import parse_time
from engine.clock import iso
from engine.errors import NotFound
from engine.explain import Item, explain
from engine.store.events import StoredEvent, find_event, list_events
from engine.store.explain import Attempt, facts

router = APIRouter(tags=["executions"])


class EventShown(Shown):
    id: str
    device_id: str
    received_at: str
    source: str = Field(description="http, gateway or function.")
    values: list[Any]


class AttemptShown(Shown):
    id: str
    attempt: int
    status: str
    version: int | None
    created_at: str
    error: dict[str, Any] | None


class ExplainedFunction(Shown):
    """What became of one function: `outcome` for programs, `detail` for people."""

    function: str
    trigger_id: str | None
    outcome: str = Field(
        description="ran, running, queued, waiting, quarantined, skipped, cancelled, "
        "dead_lettered, set_aside, filtered, no_handler, not_bound_then, not_bound, too_deep, "
        "over_budget or unknown."
    )
    reason: str | None = Field(
        description="ran: the status. skipped: expired, rate_limited, debounced, singleton, "
        "overlapped. waiting: retry, debounced, throttled, limit, order, lateness, later, "
        "breaker_open, over_quota. set_aside: breaker_open. queued: claimed, unclaimed."
    )
    detail: str
    keys: list[str] = Field(description="Those that the trigger wants; none: every one.")
    version: int | None
    version_why: str | None
    executions: list[AttemptShown] = Field(description="Attempts that have ended.")
    waiting_execution: str | None = Field(description="The attempt that has not ended.")
    due_at: str | None
    dead_letter: str | None
    quarantined_until: str | None = Field(description="On the node that was asked.")


class Explained(Shown):
    event: EventShown
    device: str | None = Field(description="Its name; null: it was deleted.")
    product: str | None
    keys: list[str] = Field(description="Of the event's values.")
    summary: str
    written_by: str | None = Field(description="The run that wrote it, where that says why.")
    items: list[ExplainedFunction]


@router.get("/v1/events", responses=problems(422))
async def show_events(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    device: Annotated[str | None, Query(description="A device's id.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: received then or later.")] = None,
) -> Listed[EventShown]:
    """List events, newest first.

    A page looks at a bounded number of rows, so it may have fewer items than `limit`, or none,
    and a `next_cursor` all the same.
    """
    since_ms = None if since is None else parse_time(since, "?since")
    found = await platform.database.read(
        list_events, access.project_id, page, device_id=device, since_ms=since_ms
    )
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.get("/v1/events/{event_id}", responses=problems(404))
async def show_event(platform: PlatformHere, access: Reader, event_id: str) -> EventShown:
    """Show one event with its values."""
    return _shown(await _event(platform, access.project_id, event_id))


@router.get("/v1/events/{event_id}/explain", responses=problems(404))
async def explain_event(platform: PlatformHere, access: Reader, event_id: str) -> Explained:
    """Say what an event has caused: for each function what became of it, and why."""
    event = await _event(platform, access.project_id, event_id)
    await platform.journal.barrier()  # a record may be on its way to disk for some ms
    known = await platform.database.read(facts, event)
    told = explain(
        known,
        now_ms=platform.clock(),
        running=frozenset(platform.running()),
        quarantined=platform.quarantined(),
        held_back=platform.held_back(),
        exceeded=platform.usage.exceeded.get(access.project_id),
    )
    return Explained(
        event=_shown(event),
        device=known.device,
        product=known.product,
        keys=list(told.keys),
        summary=told.summary,
        written_by=told.written_by,
        items=list(map(_item, told.items)),
    )


async def _event(platform: PlatformHere, project_id: str, event_id: str) -> StoredEvent:
    found = await platform.database.read(find_event, project_id, event_id)
    if found is None:
        raise NotFound("event", event_id[:80])
    return found


def _shown(event: StoredEvent) -> EventShown:
    return EventShown(
        id=event.id,
        device_id=event.device_id,
        received_at=iso(event.received_ms),
        source=event.source,
        values=msgspec.json.decode(event.payload)["values"],
    )


def _item(item: Item) -> ExplainedFunction:
    until_ms = item.quarantined_until_ms
    return ExplainedFunction(
        function=item.function,
        trigger_id=item.trigger_id,
        outcome=item.verdict.value,
        reason=item.reason,
        detail=item.detail,
        keys=list(item.wanted_keys),
        version=item.version,
        version_why=item.version_why,
        executions=list(map(_attempt, item.attempts)),
        waiting_execution=None if item.waiting is None else item.waiting.id,
        due_at=None if item.due_ms is None else iso(item.due_ms),
        dead_letter=item.dead_letter_id,
        quarantined_until=None if until_ms is None else iso(until_ms),
    )


def _attempt(attempt: Attempt) -> AttemptShown:
    return AttemptShown(
        id=attempt.id,
        attempt=attempt.attempt,
        status=attempt.status,
        version=attempt.version or None,
        created_at=iso(attempt.created_ms),
        error=attempt.error,
    )
