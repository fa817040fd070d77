"""What a scheduler reads and writes when due times have come: cursors, fires, runs that are alive.

Path:   engine.scheduler (in the journal's transaction) -> here
Never:  leaves a due time that was fired for a second time: a fire's row is unique, and a cursor
        belongs to whoever holds it until the transaction ends.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    FromClause,
    Select,
    Text,
    and_,
    cast,
    column,
    delete,
    func,
    literal,
    select,
    tuple_,
)

from engine.store.multirow import insert_tuples
from engine.store.schedules import NEVER_MS
from engine.store.tables import devices, run_queue, schedule_cursors, schedule_fires, schedules
from engine.store.unique import insert_absent

FireRow = tuple[str, int, str, int, str, str | None]
"""As in the table: schedule, due time, device or nothing, when, outcome, execution."""
Cursor = tuple[str, str, int]
"""Schedule, time zone, next due time."""


class Due(msgspec.Struct, frozen=True):
    """A cursor whose time has come, held by this transaction."""

    schedule_id: str
    timezone: str
    next_ms: int
    project_id: str
    function_id: str
    spec: str  # JSON
    options: str  # JSON
    payload: str  # JSON
    product_id: str | None
    paused_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A device-local schedule that is not paused."""

    id: str
    spec: str  # JSON
    product_id: str
    updated_ms: int


def next_due(connection: Connection) -> int | None:
    """Return the earliest due time that is to come, of all schedules."""
    found: int | None = connection.execute(
        select(func.min(schedule_cursors.c.next_ms))
    ).scalar_one_or_none()
    return None if found == NEVER_MS else found


def due_cursors(connection: Connection, now_ms: int, limit: int) -> list[Due]:
    """Return cursors that are due, those that have waited longest first, and hold them.

    Those that another scheduler holds are left out.
    """
    query = (
        select(
            schedule_cursors,
            schedules.c.project_id,
            schedules.c.function_id,
            schedules.c.spec,
            schedules.c.options,
            schedules.c.payload,
            schedules.c.product_id,
            schedules.c.paused_ms,
        )
        .join(schedules, schedules.c.id == schedule_cursors.c.schedule_id)
        .where(schedule_cursors.c.next_ms <= now_ms)
        .order_by(schedule_cursors.c.next_ms)
        .limit(limit)
        .with_for_update(of=schedule_cursors, skip_locked=True)
    )
    return [Due(*row) for row in connection.execute(query)]


def fired_among(
    connection: Connection, pairs: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], str | None]:
    """Return those of (schedule, due time) that have a row, with the execution of each."""
    if not pairs:
        return {}
    asked = _pairs(connection, pairs)
    same = and_(
        schedule_fires.c.schedule_id == asked.c.schedule_id,
        schedule_fires.c.due_ms == asked.c.due_ms,
        schedule_fires.c.device_id == "",
    )
    query = (
        select(schedule_fires.c.schedule_id, schedule_fires.c.due_ms, schedule_fires.c.execution_id)
        .select_from(asked)
        .join(schedule_fires, same)
    )
    return {(row.schedule_id, row.due_ms): row.execution_id for row in connection.execute(query)}


def alive(connection: Connection, schedule_ids: Collection[str]) -> dict[str, list[str]]:
    """Return the runs of these schedules that have not ended, wherever they are."""
    found: dict[str, list[str]] = {}
    if schedule_ids:
        query = select(run_queue.c.schedule_id, run_queue.c.id).where(
            run_queue.c.schedule_id.is_not(None),  # as the index has it
            run_queue.c.schedule_id.in_(_named(connection, schedule_ids)),
        )
        for row in connection.execute(query):
            found.setdefault(row.schedule_id, []).append(row.id)
    return found


def alive_by_device(
    connection: Connection, schedule_id: str, device_ids: Collection[str]
) -> dict[str, list[str]]:
    """Return the runs of a schedule that have not ended, of each of these devices."""
    found: dict[str, list[str]] = {}
    if device_ids:
        query = select(run_queue.c.device_id, run_queue.c.id).where(
            run_queue.c.schedule_id == schedule_id, run_queue.c.device_id.in_(device_ids)
        )
        for row in connection.execute(query):
            found.setdefault(row.device_id, []).append(row.id)
    return found


def unfired_devices(connection: Connection, due: Due, after: str, limit: int) -> list[str]:
    """Return devices where the schedule is due and that have no row of this due time yet.

    Args:
        connection: of the transaction that holds the cursor.
        due: of a device-local schedule.
        after: only devices of later ids: the others are known to be done.
        limit: how many at most; fewer mean that these are the last.
    """
    fired = (
        select(schedule_fires.c.device_id)
        .where(
            schedule_fires.c.schedule_id == due.schedule_id,
            schedule_fires.c.due_ms == due.next_ms,
            schedule_fires.c.device_id == devices.c.id,
        )
        .exists()
    )
    query = (
        select(devices.c.id)
        .where(
            devices.c.product_id == due.product_id,
            devices.c.timezone == due.timezone,
            devices.c.id > after,
            ~fired,
        )
        .order_by(devices.c.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def insert_fires(connection: Connection, rows: Sequence[FireRow]) -> None:
    """Insert what became of due times; one that has a row already undoes the whole transaction."""
    insert_tuples(connection, schedule_fires, rows)


def insert_missed(connection: Connection, rows: Iterable[FireRow]) -> None:
    """Insert due times that were missed in one time zone, unless they were in another one too."""
    named = [dict(zip(_FIRE, row, strict=True)) for row in rows]
    if named:
        insert_absent(connection, schedule_fires, named)


def fired_of(
    connection: Connection, schedule_id: str, due_ms: Collection[int]
) -> dict[tuple[int, str], str]:
    """Return what ran for these due times: the execution by due time and device."""
    query = select(
        schedule_fires.c.due_ms, schedule_fires.c.device_id, schedule_fires.c.execution_id
    ).where(
        schedule_fires.c.schedule_id == schedule_id,
        schedule_fires.c.due_ms.in_(due_ms),
        schedule_fires.c.execution_id.is_not(None),
    )
    return {(row.due_ms, row.device_id): row.execution_id for row in connection.execute(query)}


def forget_fires(connection: Connection, keys: Sequence[tuple[str, int, str]]) -> None:
    """Delete rows of due times that came to nothing, by primary key: they are fired after all."""
    if keys:
        key = tuple_(*schedule_fires.primary_key.columns)
        connection.execute(
            delete(schedule_fires).where(key.in_(keys), schedule_fires.c.execution_id.is_(None))
        )


def devices_in(connection: Connection, product_id: str, zone: str, limit: int) -> list[str]:
    """Return devices of a product in a time zone."""
    query = (
        select(devices.c.id)
        .where(devices.c.product_id == product_id, devices.c.timezone == zone)
        .order_by(devices.c.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def advance(connection: Connection, cursors: Sequence[Cursor]) -> None:
    """Move cursors, which the transaction holds, to their next due times."""
    insert_tuples(connection, schedule_cursors, cursors, replace=True)


def insert_runs(
    connection: Connection, rows: Sequence[tuple[Any, ...]]
) -> dict[tuple[str, int], int]:
    """Insert rows of `queue_row`; return the earliest due time by project and priority."""
    insert_tuples(connection, run_queue, rows)
    earliest: dict[tuple[str, int], int] = {}
    for row in rows:
        key = (row[_PROJECT], row[_PRIORITY])
        earliest[key] = min(row[_DUE], earliest.get(key, row[_DUE]))
    return earliest


def local_schedules(connection: Connection) -> list[Local]:
    query = select(
        schedules.c.id, schedules.c.spec, schedules.c.product_id, schedules.c.updated_ms
    ).where(schedules.c.product_id.is_not(None), schedules.c.paused_ms.is_(None))
    return [Local(**row) for row in connection.execute(query).mappings()]


def zones_of(connection: Connection, product_ids: Collection[str]) -> dict[str, set[str]]:
    """Return the time zones in which each product has devices."""
    query = (
        select(devices.c.product_id, devices.c.timezone)
        .where(devices.c.product_id.in_(product_ids))
        .distinct()
    )
    found: dict[str, set[str]] = {product_id: set() for product_id in product_ids}
    for row in connection.execute(query):
        found[row.product_id].add(row.timezone)
    return found


def cursor_zones(connection: Connection, schedule_ids: Collection[str]) -> dict[str, set[str]]:
    """Return the time zones in which each schedule has a cursor."""
    query = select(schedule_cursors.c.schedule_id, schedule_cursors.c.timezone).where(
        schedule_cursors.c.schedule_id.in_(schedule_ids)
    )
    found: dict[str, set[str]] = {schedule_id: set() for schedule_id in schedule_ids}
    for row in connection.execute(query):
        found[row.schedule_id].add(row.timezone)
    return found


def add_cursors(connection: Connection, cursors: Iterable[Cursor]) -> None:
    """Insert cursors unless another scheduler has."""
    named = [dict(zip(_CURSOR, cursor, strict=True)) for cursor in cursors]
    if named:
        insert_absent(connection, schedule_cursors, named)


def remove_cursors(connection: Connection, cursors: Sequence[tuple[str, str]]) -> None:
    """Delete cursors by schedule and time zone."""
    if cursors:
        key = tuple_(schedule_cursors.c.schedule_id, schedule_cursors.c.timezone)
        connection.execute(delete(schedule_cursors).where(key.in_(cursors)))


_FIRE: Final = tuple(schedule_fires.columns.keys())
_CURSOR: Final = tuple(schedule_cursors.columns.keys())
_PROJECT, _PRIORITY, _DUE = map(
    run_queue.columns.keys().index, ("project_id", "priority", "due_ms")
)


# A list goes as one parameter, JSON: so a statement is the same however long it is, and is compiled
# once.


def _pairs(connection: Connection, pairs: Sequence[tuple[str, int]]) -> FromClause:
    """Return a table of these pairs."""
    if connection.dialect.name == "sqlite":
        each = func.json_each(_json(pairs)).table_valued("value")
        return select(
            func.json_extract(each.c.value, "$[0]").label("schedule_id"),
            func.json_extract(each.c.value, "$[1]").label("due_ms"),
        ).subquery()
    listed = _json([{"schedule_id": of, "due_ms": due_ms} for of, due_ms in pairs])
    columns = column("schedule_id", Text), column("due_ms", BigInteger)
    table = func.json_to_recordset(cast(literal(listed, Text), JSON)).table_valued(*columns)
    return table.render_derived(with_types=True)


def _named(connection: Connection, names: Collection[str]) -> Select[Any]:
    """Return a query for these names."""
    listed = _json(list(names))
    if connection.dialect.name == "sqlite":
        return select(func.json_each(listed).table_valued("value").c.value)
    return select(
        func.json_array_elements_text(cast(literal(listed, Text), JSON)).column_valued("name")
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
