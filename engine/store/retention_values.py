"""Counts and deletes values. They stand by device and key, so their age is that of their datetime.

Path:   engine.retention -> what goes: read here; it goes by `Commit.remove`
Never:  looks at another project's devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    func,
    literal,
    select,
    tuple_,
)

from engine.store.retention import octets
from engine.store.tables import devices, resources, values

Timeline = tuple[str, str]
"""Device and key."""
Key = tuple[Any, ...]
"""A value's primary key: its timeline, datetime and place among equal times."""

ROW_BYTES: Final = 100  # what a value takes besides its texts, about: device, key, times
_SHIFT_MS: Final = 1 << 46  # makes every datetime positive: division rounds towards zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The values of one span of time: those with from_ms <= datetime < from_ms + its width."""

    from_ms: int
    rows: int
    bytes: int
    oldest_ms: int


def old_values(
    connection: Connection, project_id: str, before_ms: int, since: Timeline, limit: int
) -> list[Key]:
    """Return the first values from before that time, timeline after timeline, from `since` on."""
    query = (
        select(*values.primary_key.columns)
        .select_from(resources)
        .join(devices, devices.c.id == resources.c.device_id)
        .join(
            values,
            and_(
                values.c.device_id == resources.c.device_id,
                values.c.key == resources.c.key,
                values.c.at_ms < before_ms,
            ),
        )
        .where(
            devices.c.project_id == project_id,
            tuple_(resources.c.device_id, resources.c.key) >= tuple_(*since),
        )
        .order_by(resources.c.device_id, resources.c.key, values.c.at_ms, values.c.seq)
        .limit(limit)
    )
    return [tuple(row) for row in connection.execute(query)]


def devices_after(connection: Connection, project_id: str, after_id: str, limit: int) -> list[str]:
    """Return ids of a project's devices in their order."""
    query = select(devices.c.id).where(devices.c.project_id == project_id, devices.c.id > after_id)
    return list(connection.execute(query.order_by(devices.c.id).limit(limit)).scalars())


def histogram(
    connection: Connection,
    device_ids: Sequence[str],
    *,
    unit_ms: int,
    from_ms: int | None = None,
    to_ms: int | None = None,
) -> list[Bucket]:
    """Count the values of some devices by spans of `unit_ms`, of which `from_ms` begins one."""
    start_ms = from_ms or 0
    of = (
        values.c.at_ms - literal(start_ms - _SHIFT_MS // unit_ms * unit_ms, BigInteger)
    ) // unit_ms
    query = select(
        of.label("of"),
        func.count().label("rows"),
        func.sum(ROW_BYTES + octets(values.c.value) + octets(values.c.geo)).label("bytes"),
        func.min(values.c.at_ms).label("oldest_ms"),
    ).where(_of_devices(device_ids))
    if from_ms is not None:
        query = query.where(values.c.at_ms >= from_ms)
    if to_ms is not None:
        query = query.where(values.c.at_ms < to_ms)
    return [
        Bucket(
            from_ms=(int(row.of) - _SHIFT_MS // unit_ms) * unit_ms + start_ms,
            rows=row.rows,
            bytes=int(row.bytes),
            oldest_ms=row.oldest_ms,
        )
        for row in connection.execute(query.group_by("of"))
    ]


def count_older(
    connection: Connection, device_ids: Sequence[str], before_ms: int
) -> tuple[int, int]:
    """Return how many values of these devices are older, and their bytes."""
    size = ROW_BYTES + octets(values.c.value) + octets(values.c.geo)
    row: Any = connection.execute(
        select(func.count(), func.coalesce(func.sum(size), 0)).where(
            _of_devices(device_ids), values.c.at_ms < before_ms
        )
    ).one()
    return int(row[0]), int(row[1])


def _of_devices(device_ids: Sequence[str]) -> ColumnElement[bool]:
    return values.c.device_id.in_(device_ids)
