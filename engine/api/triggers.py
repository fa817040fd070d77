"""`/v1/triggers`: functions bound to the writes of a product's devices."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.functions import get_function
from engine.products import get_product
from engine.store.triggers import Trigger, list_triggers
from engine.triggers import create_trigger, remove_trigger

router = APIRouter(tags=["triggers"])


class TriggerNew(Body):
    model_config = example({"function": "alarm", "product": "thermometer", "keys": ["temperature"]})

    function: str = Field(description="Id or name.")
    product: str = Field(description="Id or name.")
    on: str = Field("write", description="write")
    phase: str = Field("after", description="after")
    keys: list[str] = Field([], description="Only writes with one of these keys; none: every one.")
    order: str | None = Field(
        None,
        description="device: a device's runs come one after another, in the order of their values' "
        "times. None: as they come, beside each other.",
    )
    lateness_seconds: float | None = Field(
        None, description="With order: how long each waits for values with an earlier time."
    )


class TriggerShown(Shown):
    id: str
    function: str = Field(description="Its name.")
    product: str = Field(description="Its name.")
    on: str
    phase: str
    keys: list[str]
    order: str | None
    lateness_seconds: float | None
    created_at: str


@router.post("/v1/triggers", status_code=201, responses=problems(422, body=True))
async def add_trigger(platform: PlatformHere, access: Developer, body: TriggerNew) -> TriggerShown:
    """Run a function after each write of a device of a product."""
    trigger = await create_trigger(
        platform,
        access.project_id,
        function=body.function,
        product=body.product,
        on=body.on,
        phase=body.phase,
        keys=body.keys,
        order=body.order,
        lateness_seconds=body.lateness_seconds,
    )
    return _shown(trigger)


@router.get("/v1/triggers", responses=problems(404, 422))
async def show_triggers(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    function: Annotated[str | None, Query(description="Id or name.")] = None,
    product: Annotated[str | None, Query(description="Id or name.")] = None,
) -> Listed[TriggerShown]:
    """List triggers, newest first."""
    function_id = product_id = None
    if function is not None:
        function_id = (await get_function(platform, access.project_id, function)).id
    if product is not None:
        product_id = (await get_product(platform, access.project_id, product)).id
    found = await platform.database.read(
        list_triggers, access.project_id, page, function_id=function_id, product_id=product_id
    )
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.delete(
    "/v1/triggers/{trigger_id}", status_code=204, response_class=Response, responses=problems(404)
)
async def drop_trigger(platform: PlatformHere, access: Developer, trigger_id: str) -> None:
    """Delete a trigger; runs that it has caused still run."""
    await remove_trigger(platform, access.project_id, trigger_id)


def _shown(trigger: Trigger) -> TriggerShown:
    return TriggerShown(
        id=trigger.id,
        function=trigger.function,
        product=trigger.product,
        on=trigger.on,
        phase=trigger.phase,
        keys=list(trigger.keys),
        order=trigger.order,
        lateness_seconds=None if trigger.lateness_ms is None else trigger.lateness_ms / 1000,
        created_at=iso(trigger.created_ms),
    )
