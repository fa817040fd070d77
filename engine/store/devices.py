"""Devices as stored, with the name of their product."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, Select, Table, delete, insert, select, tuple_

from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import devices, products, resources, values

FORGET_ROWS: Final = 5_000  # deleted in one transaction: some 10 ms, so that no write waits long


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    id: str
    project_id: str
    product_id: str
    product: str  # its name
    name: str
    token: str
    timezone: str  # IANA name
    tags: tuple[str, ...]
    created_ms: int


def insert_device(connection: Connection, device: Device) -> None:
    row = {
        "id": device.id,
        "project_id": device.project_id,
        "product_id": device.product_id,
        "name": device.name,
        "token": device.token,
        "timezone": device.timezone,
        "tags": msgspec.json.encode(device.tags).decode(),
        "created_ms": device.created_ms,
    }
    connection.execute(insert(devices).values(row))


def find_device(connection: Connection, project_id: str, device_id: str) -> Device | None:
    query = _select().where(devices.c.project_id == project_id, devices.c.id == device_id)
    row = connection.execute(query).mappings().first()
    return _device(row) if row else None


def list_devices(
    connection: Connection, project_id: str, page: Page, *, product_id: str | None = None
) -> Paged[Device]:
    query = _select().where(devices.c.project_id == project_id)
    if product_id is not None:
        query = query.where(devices.c.product_id == product_id)
    rows = connection.execute(page_of(query, devices.c.id, page)).mappings()
    return paged([_device(row) for row in rows], page, lambda device: device.id)


def delete_device(connection: Connection, project_id: str, device_id: str) -> bool:
    """Delete the device itself and say whether there was one; its timelines are still there."""
    query = delete(devices).where(devices.c.project_id == project_id, devices.c.id == device_id)
    note_change(connection, "device", device_id)
    return connection.execute(query).rowcount > 0


def forget_timelines(connection: Connection, device_id: str) -> bool:
    """Delete some rows of a deleted device's timelines; False when none are left."""
    return any(
        _delete_some(connection, table, device_id) == FORGET_ROWS for table in (values, resources)
    )


def _delete_some(connection: Connection, table: Table, device_id: str) -> int:
    key = tuple_(*table.primary_key.columns)
    some = (
        select(*table.primary_key.columns).where(table.c.device_id == device_id).limit(FORGET_ROWS)
    )
    return connection.execute(delete(table).where(key.in_(some))).rowcount


def _select() -> Select[Any]:
    return select(devices, products.c.name.label("product")).join(
        products, products.c.id == devices.c.product_id
    )


def _device(row: RowMapping) -> Device:
    return Device(**{**row, "tags": msgspec.json.decode(row["tags"], type=tuple[str, ...])})
