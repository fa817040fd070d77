"""Timelines as stored (table `values`): what a device's resources were, and when."""

import heapq
from dataclasses import dataclass

from sqlalchemy import Connection, and_, or_, select

from engine.store.tables import resources, values


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    key: str
    value_json: str
    at_ms: int
    seq: int  # order of arrival among equal times
    geo_json: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a page ended: the place of its last value in the order newest first."""

    at_ms: int
    seq: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which part of a timeline is asked for; both ends are inside it."""

    start_ms: int | None = None
    end_ms: int | None = None
    limit: int = 50
    before: Moment | None = None


def read_timeline(
    connection: Connection, device_id: str, key: str, window: Window
) -> list[StoredValue]:
    """Return the values of one resource, newest first; at most `window.limit`."""
    query = select(values).where(values.c.device_id == device_id, values.c.key == key)
    if window.start_ms is not None:
        query = query.where(values.c.at_ms >= window.start_ms)
    if window.end_ms is not None:
        query = query.where(values.c.at_ms <= window.end_ms)
    if (before := window.before) is not None:
        # The key breaks ties between resources, so a resource after it may still show its equals.
        seq = values.c.seq <= before.seq if key > before.key else values.c.seq < before.seq
        query = query.where(values.c.at_ms <= before.at_ms).where(
            or_(values.c.at_ms < before.at_ms, and_(values.c.at_ms == before.at_ms, seq))
        )
    query = query.order_by(values.c.at_ms.desc(), values.c.seq.desc()).limit(window.limit)
    return [
        StoredValue(
            key=row.key, value_json=row.value, at_ms=row.at_ms, seq=row.seq, geo_json=row.geo
        )
        for row in connection.execute(query)
    ]


def read_timelines(connection: Connection, device_id: str, window: Window) -> list[StoredValue]:
    """Return the values of all resources of a device together, newest first.

    Every resource's own timeline is in order already, so they are merged, never sorted: what it
    costs depends on the number of resources and the limit, not on how much is stored.
    """
    timelines = [
        read_timeline(connection, device_id, key, window)
        for key in list_resources(connection, device_id)
    ]
    merged = heapq.merge(*timelines, key=lambda value: (-value.at_ms, -value.seq, value.key))
    return [value for value, _ in zip(merged, range(window.limit), strict=False)]


def list_resources(connection: Connection, device_id: str) -> list[str]:
    """Return the keys of a device's resources, in the order of the alphabet."""
    query = select(resources.c.key).where(resources.c.device_id == device_id)
    return list(connection.execute(query.order_by(resources.c.key)).scalars())
