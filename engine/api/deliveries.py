"""`/v1/deliveries`: what runs sent to providers, and what became of it."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Listed, PageAsked, Shown
from engine.clock import iso
from engine.deliveries import State
from engine.errors import Invalid
from engine.store import deliveries as store
from engine.store.deliveries import Attempt, Delivery

router = APIRouter(tags=["deliveries"])


class DeliveryShown(Shown):
    id: str
    connection: str
    kind: str
    execution_id: str
    state: str
    attempts: int
    created_at: str
    ended_at: str | None
    next_attempt_at: str | None
    last_error: str | None


class AttemptShown(Shown):
    attempt: int
    at: str
    took_ms: int
    status: int | None
    error: str | None
    delivered: bool


class DeliveryWhole(DeliveryShown):
    """A delivery with what was sent, and every attempt."""

    payload: Any
    attempts_log: list[AttemptShown]


class ResendTaken(Shown):
    id: str
    state: str


@router.get("/v1/deliveries", responses=problems(422))
async def show_deliveries(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    state: Annotated[str | None, Query(description=", ".join(State))] = None,
    connection: Annotated[str | None, Query(description="A connection's name.")] = None,
    execution: Annotated[str | None, Query(description="An execution's id.")] = None,
) -> Listed[DeliveryShown]:
    """List deliveries, newest first."""
    if state is not None and state not in set(State):
        raise Invalid(f"{state[:80]!r} is none of {', '.join(State)}", "?state")
    items, before = await platform.database.read(
        store.page,
        access.project_id,
        state=None if state is None else State(state),
        name=connection,
        execution_id=execution,
        limit=page.limit,
        before=page.before,
    )
    return Listed(items=list(map(_shown, items)), next_cursor=before)


@router.get("/v1/deliveries/{delivery_id}", responses=problems(404))
async def show_delivery(platform: PlatformHere, access: Reader, delivery_id: str) -> DeliveryWhole:
    """Show one delivery with its payload and all its attempts, first to last."""
    delivery, payload, attempts = await platform.database.read(
        store.get, access.project_id, delivery_id
    )
    return DeliveryWhole(
        **_shown(delivery).model_dump(),
        payload=msgspec.json.decode(payload),
        attempts_log=list(map(_attempt_shown, attempts)),
    )


@router.post("/v1/deliveries/{delivery_id}/resend", status_code=202, responses=problems(404, 409))
async def resend_delivery(
    platform: PlatformHere, access: Operator, delivery_id: str
) -> ResendTaken:
    """Send a delivery once more, at once, whatever became of it before."""
    await platform.journal.run(
        store.resend, access.project_id, delivery_id, platform.clock(), platform.outbox_node()
    )
    platform.outbox.notice((delivery_id,))
    return ResendTaken(id=delivery_id, state=State.QUEUED.value)


def _shown(delivery: Delivery) -> DeliveryShown:
    return DeliveryShown(
        id=delivery.id,
        connection=delivery.connection,
        kind=delivery.kind,
        execution_id=delivery.execution_id,
        state=delivery.state.value,
        attempts=delivery.attempts,
        created_at=iso(delivery.created_ms),
        ended_at=_iso(delivery.ended_ms),
        next_attempt_at=_iso(delivery.next_attempt_ms),
        last_error=delivery.last_error,
    )


def _attempt_shown(attempt: Attempt) -> AttemptShown:
    return AttemptShown(
        attempt=attempt.attempt,
        at=iso(attempt.at_ms),
        took_ms=attempt.took_ms,
        status=attempt.status,
        error=attempt.error,
        delivered=attempt.delivered,
    )


def _iso(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)
