"""`/v1/devices`: things, each with a token that is its only credential."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.devices import create_device, get_device, remove_device
from engine.products import get_product
from engine.store.devices import Device, list_devices

router = APIRouter(tags=["devices"])


class DeviceNew(Body):
    model_config = example(
        {
            "product": "thermometer",
            "name": "north wall",
            "timezone": "Europe/Madrid",
            "tags": ["roof"],
        }
    )

    product: str = Field(description="Id or name.")
    name: str
    timezone: str = Field("UTC", description="IANA name.")
    tags: list[str] = Field([])


class DeviceShown(Shown):
    id: str
    token: str
    name: str
    product: str = Field(description="The product's name.")
    timezone: str
    tags: list[str]
    created_at: str


@router.post("/v1/devices", status_code=201, responses=problems(422, body=True))
async def add_device(platform: PlatformHere, access: Operator, body: DeviceNew) -> DeviceShown:
    """Make a device of a product."""
    device = await create_device(
        platform,
        access.project_id,
        product=body.product,
        name=body.name,
        timezone=body.timezone,
        tags=body.tags,
    )
    return _shown(device)


@router.get("/v1/devices", responses=problems(404, 422))
async def show_devices(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    product: Annotated[str | None, Query(description="Id or name.")] = None,
) -> Listed[DeviceShown]:
    """List devices, newest first."""
    product_id = None
    if product is not None:
        product_id = (await get_product(platform, access.project_id, product)).id
    found = await platform.database.read(
        list_devices, access.project_id, page, product_id=product_id
    )
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.get("/v1/devices/{device_id}", responses=problems(404))
async def show_device(platform: PlatformHere, access: Reader, device_id: str) -> DeviceShown:
    """Show one device."""
    return _shown(await get_device(platform, access.project_id, device_id))


@router.delete(
    "/v1/devices/{device_id}", status_code=204, response_class=Response, responses=problems(404)
)
async def drop_device(platform: PlatformHere, access: Operator, device_id: str) -> None:
    """Delete a device with its token and its timelines; its executions stay."""
    await remove_device(platform, access.project_id, device_id)


def _shown(device: Device) -> DeviceShown:
    return DeviceShown(
        id=device.id,
        token=device.token,
        name=device.name,
        product=device.product,
        timezone=device.timezone,
        tags=list(device.tags),
        created_at=iso(device.created_ms),
    )
