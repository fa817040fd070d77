"""Makes and forgets devices. A device's token is its only credential, so it is made of chance."""

import secrets as chance
from collections.abc import Sequence

from engine.control import Control
from engine.errors import Invalid, NotFound
from engine.ids import new_id
from engine.names import check_name
from engine.quotas import DEVICE_TAGS_MAX
from engine.store.devices import (
    Device,
    delete_device,
    find_device,
    forget_timelines,
    insert_device,
)
from engine.store.products import find_product
from jobs.zones import is_zone


def new_token() -> str:
    """Return a device token: 32 random bytes as 43 URL-safe characters."""
    return chance.token_urlsafe(32)


async def create_device(
    control: Control,
    project_id: str,
    *,
    product: str,
    name: str,
    timezone: str = "UTC",
    tags: Sequence[str] = (),
) -> Device:
    """Make a device of the product with this id or name."""
    check_name(name)
    if not is_zone(timezone):  # one that its schedules would go by
        raise Invalid(f"{timezone[:80]!r} is no IANA time zone; try Europe/Madrid", "/timezone")
    _check_tags(tags)
    kind = await control.database.read(find_product, project_id, product)
    if kind is None:
        raise Invalid(f"there is no product {product[:80]!r} in this project", "/product")
    device = Device(
        id=new_id("dev"),
        project_id=project_id,
        product_id=kind.id,
        product=kind.name,
        name=name,
        token=new_token(),
        timezone=timezone,
        tags=tuple(tags),
        created_ms=control.clock(),
    )
    await control.journal.run(insert_device, device)
    await control.catalogue.device_changed(device.id)
    return device


async def get_device(control: Control, project_id: str, device_id: str) -> Device:
    device = await control.database.read(find_device, project_id, device_id)
    if device is None:
        raise NotFound("device", device_id)
    return device


async def remove_device(control: Control, project_id: str, device_id: str) -> None:
    """Delete a device and its timelines.

    Its token stops working first. The timelines follow in steps, so that a device with years of
    values holds nobody's writes up; ids are never used again, so what a crash leaves behind
    cannot be reached.
    """
    if not await control.journal.run(delete_device, project_id, device_id):
        raise NotFound("device", device_id)
    await control.catalogue.device_changed(device_id)
    while await control.journal.run(forget_timelines, device_id):
        pass


def _check_tags(tags: Sequence[str]) -> None:
    if len(tags) > DEVICE_TAGS_MAX:
        raise Invalid(f"at most {DEVICE_TAGS_MAX} tags, not {len(tags)}", "/tags")
    for position, tag in enumerate(tags):
        check_name(tag, f"/tags/{position}")
