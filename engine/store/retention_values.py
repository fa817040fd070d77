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

TIMELINES: Final = 200  # of one read
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
) -> tuple[list[Key], Timeline | None]:
    """Return values from before that time, timeline after timeline, from `since` on.

    And where to go on; None: there are no more.
    """
    # A query of its own for each row, not a join: no plan of any database goes through all values.
    first_ms = (
        select(func.min(values.c.at_ms))
        .where(values.c.device_id == resources.c.device_id, values.c.key == resources.c.key)
        .scalar_subquery()
    )
    query = (
        select(resources.c.device_id, resources.c.key)
        .join(devices, devices.c.id == resources.c.device_id)
        .where(
            devices.c.project_id == project_id,
            tuple_(resources.c.device_id, resources.c.key) >= tuple_(*since),
            first_ms < before_ms,
        )
        .order_by(resources.c.device_id, resources.c.key)
        .limit(TIMELINES)
    )
    timelines = connection.execute(query).all()
    keys: list[Key] = []
    for device_id, key in timelines:
        oldest = (
            select(values.c.at_ms, values.c.seq)
            .where(values.c.device_id == device_id, values.c.key == key, values.c.at_ms < before_ms)
            .order_by(values.c.at_ms, values.c.seq)
            .limit(limit - len(keys))
        )
        keys += [(device_id, key, at_ms, seq) for at_ms, seq in connection.execute(oldest)]
        if len(keys) >= limit:
            return keys, (device_id, key)
    last = timelines[-1] if len(timelines) == TIMELINES else None
    return keys, None if last is None else (last.device_id, last.key)


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
