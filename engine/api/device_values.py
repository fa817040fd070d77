"""`/v1/devices/{id}/values` and `/resources`: what a device was, and when. Writing: `writes`."""

import base64
import binascii
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Cursor, Limit, Listed, Shown
from engine.api.times import parse_time
from engine.clock import iso
from engine.devices import get_device
from engine.errors import Invalid
from engine.store.device_values import (
    Moment,
    StoredValue,
    Window,
    list_resources,
    read_timeline,
    read_timelines,
)
from engine.store.pages import PAGE_ITEMS

router = APIRouter(tags=["devices"])


class ValueShown(Shown):
    key: str
    value: Any
    datetime: str
    geo: Any = None


class ResourceShown(Shown):
    key: str


_decode: Final = msgspec.json.decode
Time = Annotated[str | None, Query(description="RFC 3339; inside the window.")]


@router.get("/v1/devices/{device_id}/values", responses=problems(404, 422))
async def show_values(
    platform: PlatformHere,
    access: Reader,
    device_id: str,
    key: Annotated[str | None, Query(description="One resource; else all together.")] = None,
    start: Time = None,
    end: Time = None,
    limit: Limit = PAGE_ITEMS,
    cursor: Cursor = None,
) -> Listed[ValueShown]:
    """List a device's values, newest first."""
    device = await get_device(platform, access.project_id, device_id)
    window = Window(
        start_ms=None if start is None else parse_time(start, "?start"),
        end_ms=None if end is None else parse_time(end, "?end"),
        limit=limit + 1,
        before=None if cursor is None else _moment(cursor),
    )
    if key is None:
        found = await platform.database.read(read_timelines, device.id, window)
    else:
        found = await platform.database.read(read_timeline, device.id, key, window)
    more = len(found) > limit
    return Listed(
        items=list(map(_shown, found[:limit])),
        next_cursor=_cursor(found[limit - 1]) if more else None,
    )


@router.get("/v1/devices/{device_id}/resources", responses=problems(404))
async def show_resources(
    platform: PlatformHere, access: Reader, device_id: str
) -> Listed[ResourceShown]:
    """List the keys of all timelines of a device, by name, on one page."""
    device = await get_device(platform, access.project_id, device_id)
    keys = await platform.database.read(list_resources, device.id)
    return Listed(items=[ResourceShown(key=key) for key in keys])


def _shown(value: StoredValue) -> ValueShown:
    return ValueShown(
        key=value.key,
        value=_decode(value.value_json),
        datetime=iso(value.at_ms),
        geo=_decode(value.geo_json) if value.geo_json else None,
    )


def _cursor(value: StoredValue) -> str:
    place = msgspec.json.encode((value.at_ms, value.seq, value.key))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _moment(cursor: str) -> Moment:
    try:
        place = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        at_ms, seq, key = _decode(place, type=tuple[int, int, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise Invalid("is no cursor of this list; take next_cursor as it is", "?cursor") from error
    return Moment(at_ms=at_ms, seq=seq, key=key)
