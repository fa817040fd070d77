"""`/v1/deliveries`: what runs sent to providers, what became of it, and what to do about it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere, shown_json, shown_text
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.api.times import parse_time
from engine.clock import iso
from engine.deliveries import State
from engine.errors import Invalid
from engine.ledger import change_matching, change_one, count_matching, first_ids, states_for
from engine.store.deliveries import Attempt
from engine.store.delivery_actions import Action
from engine.store.delivery_views import Delivery, DeliveryFilter, get, page
from engine.store.functions import find_function

router = APIRouter(tags=["deliveries"])

STATES = ", ".join(State)
ACTIONS = ", ".join(Action)
Hide = Callable[[str | None], str | None]
"""Returns a text without the values of secrets."""


class DeliveryShown(Shown):
    id: str
    connection: str
    kind: str
    action: str
    recipient: str | None = Field(description="Whom it is for; those to one keep their order.")
    function: str | None = Field(description="Its name, as it was.")
    execution_id: str = Field(description="The first run that wanted it.")
    state: str = Field(description=STATES)
    reason: str | None = Field(description="Why it is held, cancelled, or failed after all.")
    attempts: int
    created_at: str
    ended_at: str | None
    next_attempt_at: str | None
    last_error: str | None
    message_id: str | None = Field(description="The provider's name for it.")
    provider_status: str | None = Field(description="What the provider told later, in its word.")
    provider_status_at: str | None


class AttemptShown(Shown):
    attempt: int
    at: str
    took_ms: int
    status: int | None
    error: str | None
    delivered: bool
    message_id: str | None


class DeliveryWhole(DeliveryShown):
    """A delivery with what was sent, and every attempt."""

    payload: Any
    attempts_log: list[AttemptShown]


class DeliveryChanged(Shown):
    id: str
    state: str


class DeliveriesWanted(Body):
    """At least one of these."""

    state: str | None = Field(None, description=STATES)
    connection: str | None = Field(None, description="A connection's name.")
    kind: str | None = Field(None, description="twilio, slack ...")
    recipient: str | None = None
    execution: str | None = Field(None, description="An execution's id.")
    function: str | None = Field(None, description="Name or id.")
    since: str | None = Field(None, description="RFC 3339: made then or later.")
    until: str | None = Field(None, description="RFC 3339: made before then.")
    ended_since: str | None = Field(None, description="RFC 3339: failed or ended then or later.")


class BulkAsked(Body):
    model_config = example(
        {
            "action": "resend",
            "filter": {"connection": "SMS", "ended_since": "2010-10-29T00:00:00Z"},
            "dry_run": True,
        }
    )

    action: str = Field(description=ACTIONS)
    filter: DeliveriesWanted
    dry_run: bool = Field(False, description="Only count them.")


class BulkDone(Shown):
    """What was done, or would be: the first ids stand for the others."""

    action: str
    dry_run: bool
    count: int
    ids: list[str]
    skipped: int = Field(description="Changed meanwhile, or are being sent right now.")
    reasons: dict[str, str] = Field(description="Why, of the first ones, by id.")


@router.get("/v1/deliveries", responses=problems(422))
async def show_deliveries(
    platform: PlatformHere,
    access: Reader,
    asked: PageAsked,
    state: Annotated[str | None, Query(description=STATES)] = None,
    connection: Annotated[str | None, Query(description="A connection's name.")] = None,
    kind: Annotated[str | None, Query(description="twilio, slack ...")] = None,
    recipient: Annotated[str | None, Query(description="Whom they are for.")] = None,
    execution: Annotated[str | None, Query(description="An execution's id.")] = None,
    function: Annotated[str | None, Query(description="Name or id.")] = None,
    since: Annotated[str | None, Query(description="RFC 3339: made then or later.")] = None,
    until: Annotated[str | None, Query(description="RFC 3339: made before then.")] = None,
    ended_since: Annotated[
        str | None, Query(description="RFC 3339: failed or ended then or later.")
    ] = None,
) -> Listed[DeliveryShown]:
    """List deliveries, newest first."""
    wanted = DeliveriesWanted(
        state=state,
        connection=connection,
        kind=kind,
        recipient=recipient,
        execution=execution,
        function=function,
        since=since,
        until=until,
        ended_since=ended_since,
    )
    only = _state(state, "?state")
    filtered = await _filter(
        platform, access.project_id, wanted, None if only is None else (only,), "?"
    )
    found = await platform.database.read(page, access.project_id, filtered, asked)
    hide = partial(shown_text, platform, access.project_id)
    items = [_shown(delivery, hide) for delivery in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/deliveries/{delivery_id}", responses=problems(404))
async def show_delivery(platform: PlatformHere, access: Reader, delivery_id: str) -> DeliveryWhole:
    """Show one delivery with its payload and all its attempts, first to last."""
    delivery, payload, attempts = await platform.database.read(get, access.project_id, delivery_id)
    hide = partial(shown_text, platform, access.project_id)
    return DeliveryWhole(
        **_shown(delivery, hide).model_dump(),
        payload=shown_json(platform, access.project_id, payload),
        attempts_log=[_attempt_shown(attempt, hide) for attempt in attempts],
    )


@router.post("/v1/deliveries/{delivery_id}/resend", status_code=202, responses=problems(404, 409))
async def resend_delivery(
    platform: PlatformHere, access: Operator, delivery_id: str
) -> DeliveryChanged:
    """Send a delivery once more, at once and with all its attempts, whatever became of it."""
    return await _changed(platform, access.project_id, delivery_id, Action.RESEND)


@router.post("/v1/deliveries/{delivery_id}/cancel", responses=problems(404, 409))
async def cancel_delivery(
    platform: PlatformHere, access: Operator, delivery_id: str
) -> DeliveryChanged:
    """Give a delivery up that waits or is held."""
    return await _changed(platform, access.project_id, delivery_id, Action.CANCEL)


@router.post("/v1/deliveries/{delivery_id}/hold", responses=problems(404, 409))
async def hold_delivery(
    platform: PlatformHere, access: Operator, delivery_id: str
) -> DeliveryChanged:
    """Keep a delivery that waits from being sent, until it is released."""
    return await _changed(platform, access.project_id, delivery_id, Action.HOLD)


@router.post("/v1/deliveries/{delivery_id}/release", responses=problems(404, 409))
async def release_delivery(
    platform: PlatformHere, access: Operator, delivery_id: str
) -> DeliveryChanged:
    """Send a delivery that is held, at once, also if the cost guard held it."""
    return await _changed(platform, access.project_id, delivery_id, Action.RELEASE)


@router.post("/v1/deliveries:bulk", responses=problems(422, body=True))
async def change_deliveries(platform: PlatformHere, access: Operator, body: BulkAsked) -> BulkDone:
    """Resend, cancel, hold or release all that match; a dry run says how many they are.

    A resend takes what failed or was cancelled; what was delivered only where `state` says so.
    """
    project_id, asked = access.project_id, body.filter
    if body.action not in set(Action):
        raise Invalid(f"{body.action[:80]!r} is none of {ACTIONS}", "/action")
    if not asked.model_dump(exclude_none=True):
        raise Invalid(f"give at least one of {', '.join(DeliveriesWanted.model_fields)}", "/filter")
    action = Action(body.action)
    states = states_for(action, _state(asked.state, "/filter/state"))
    wanted = await _filter(platform, project_id, asked, states, "/filter/")
    count = await count_matching(platform, project_id, wanted)
    if body.dry_run:
        ids = await first_ids(platform, project_id, wanted)
        return BulkDone(action=action, dry_run=True, count=count, ids=ids, skipped=0, reasons={})
    done = await change_matching(platform, project_id, action, wanted)
    return BulkDone(
        action=action,
        dry_run=False,
        count=done.count,
        ids=done.ids,
        skipped=done.skipped_count,
        reasons=done.skipped,
    )


async def _changed(
    platform: Platform, project_id: str, delivery_id: str, action: Action
) -> DeliveryChanged:
    state = await change_one(platform, project_id, delivery_id, action)
    return DeliveryChanged(id=delivery_id, state=state.value)


def _state(asked: str | None, pointer: str) -> State | None:
    if asked is None:
        return None
    if asked not in set(State):
        raise Invalid(f"{asked[:80]!r} is none of {STATES}", pointer)
    return State(asked)


async def _filter(
    platform: Platform,
    project_id: str,
    asked: DeliveriesWanted,
    states: tuple[State, ...] | None,
    place: str,
) -> DeliveryFilter:
    function = asked.function
    if function is not None:
        known = await platform.database.read(find_function, project_id, function)
        function = function if known is None else known.name  # one that is deleted had that name
    return DeliveryFilter(
        states=states,
        connection=asked.connection,
        kind=asked.kind,
        recipient=asked.recipient,
        execution_id=asked.execution,
        function=function,
        since_ms=None if asked.since is None else parse_time(asked.since, f"{place}since"),
        until_ms=None if asked.until is None else parse_time(asked.until, f"{place}until"),
        ended_since_ms=(
            None
            if asked.ended_since is None
            else parse_time(asked.ended_since, f"{place}ended_since")
        ),
    )


def _shown(delivery: Delivery, hide: Hide) -> DeliveryShown:
    return DeliveryShown(
        id=delivery.id,
        connection=delivery.connection,
        kind=delivery.kind,
        action=delivery.action,
        recipient=hide(delivery.recipient),
        function=delivery.function,
        execution_id=delivery.execution_id,
        state=delivery.state.value,
        reason=hide(delivery.reason),
        attempts=delivery.attempts,
        created_at=iso(delivery.created_ms),
        ended_at=_iso(delivery.ended_ms),
        next_attempt_at=_iso(delivery.next_attempt_ms),
        last_error=hide(delivery.last_error),
        message_id=hide(delivery.message_id),
        provider_status=hide(delivery.provider_status),
        provider_status_at=_iso(delivery.provider_ms),
    )


def _attempt_shown(attempt: Attempt, hide: Hide) -> AttemptShown:
    return AttemptShown(
        attempt=attempt.attempt,
        at=iso(attempt.at_ms),
        took_ms=attempt.took_ms,
        status=attempt.status,
        error=hide(attempt.error),
        delivered=attempt.delivered,
        message_id=hide(attempt.message_id),
    )


def _iso(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)
