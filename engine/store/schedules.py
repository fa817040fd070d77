"""Schedules as stored: what they run and when, where each stands, and how its runs ended.

Path:   engine.schedules -> here;  commit -> `run_ended`;  engine.scheduler -> store.fires
Locks:  whoever decides about a schedule holds its cursors first (`lock_cursors`), then its row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from engine.clock import iso
from engine.ids import new_id
from engine.quotas import SCHEDULE_CATCHUP_S
from engine.store.deployments import live_deployment
from engine.store.functions import find_summaries
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.run_queue import DEFAULT, queue_row
from engine.store.tables import (
    executions,
    functions,
    products,
    run_queue,
    schedule_cursors,
    schedule_fires,
    schedules,
)
from engine.store.unique import insert_unique
from jobs.schedule import Spec

NEVER_MS: Final = 2**53 - 1  # as a cursor: no due time is to come, or the schedule is paused
FOLLOWER_HANDLERS: Final = ("job", "main", "default", "scheduled")  # of on_failure, on_recovery
CAUSE: Final = "schedule"
_encode: Final = msgspec.json.encode


class Follower(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that runs when a schedule begins to fail, or works again."""

    function_id: str
    function: str  # its name
    times: int = 1  # failures in a row before it runs


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the due times of a schedule become runs."""

    overlap: str = "skip"  # see engine.fires.Overlap
    catchup_ms: int = SCHEDULE_CATCHUP_S * 1000  # a due time that is later than this is missed
    jitter_ms: int = 0
    priority: int = DEFAULT
    queue: str = "default"
    max_attempts: int = 0  # 0: as the version declares, else 1
    pause_on_failure: int = 0  # failures in a row; 0: never
    on_failure: Follower | None = None
    on_recovery: Follower | None = None

    @property
    def watched(self) -> bool:
        """Whether the schedule wants to know how its runs end."""
        return bool(self.pause_on_failure or self.on_failure or self.on_recovery)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    id: str
    project_id: str
    name: str
    function_id: str
    function: str  # its name
    spec: Spec
    options: Options
    payload: str  # JSON
    product_id: str | None  # device-local: one run for each of its devices
    product: str | None  # its name
    paused_ms: int | None
    paused_reason: str | None
    failures: int  # in a row
    created_ms: int
    updated_ms: int
    next_ms: int | None = None  # of all its cursors; None: there is none to come


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """What became of one due time."""

    due_ms: int
    device_id: str | None
    fired_ms: int
    outcome: str
    execution_id: str | None
    status: str | None  # of the run


_SPEC: Final = msgspec.json.Decoder(Spec)
_OPTIONS: Final = msgspec.json.Decoder(Options)


@lru_cache(maxsize=16_384)
def read_spec(text: str) -> Spec:
    return _SPEC.decode(text)


@lru_cache(maxsize=16_384)
def read_options(text: str) -> Options:
    return _OPTIONS.decode(text)


def insert_schedule(connection: Connection, schedule: Schedule, cursors: Mapping[str, int]) -> None:
    """Insert the schedule with its cursors, the next due time by time zone.

    Raises:
        Conflict: the name is taken.
    """
    row = {
        "id": schedule.id,
        "project_id": schedule.project_id,
        "created_ms": schedule.created_ms,
        **_changing(schedule),
    }
    insert_unique(connection, schedules, row, _taken(schedule.name))
    put_cursors(connection, schedule.id, cursors)


def update_schedule(connection: Connection, schedule: Schedule) -> None:
    """Write all that may change of a schedule whose cursors the caller holds."""
    connection.execute(
        update(schedules).where(schedules.c.id == schedule.id).values(_changing(schedule))
    )


def name_is_taken(connection: Connection, project_id: str, name: str, but: str) -> bool:
    """Say whether a schedule of the project, other than `but`, has this name."""
    query = select(schedules.c.id).where(
        schedules.c.project_id == project_id, schedules.c.name == name, schedules.c.id != but
    )
    return connection.execute(query).first() is not None


def delete_schedule(connection: Connection, schedule_id: str) -> None:
    """Delete a schedule with its cursors and fires; its runs stay."""
    lock_cursors(connection, schedule_id)
    connection.execute(delete(schedules).where(schedules.c.id == schedule_id))


def let_go(connection: Connection, function_id: str) -> None:
    """Delete the cursors of a function's schedules, before they are deleted with the function.

    A scheduler that fires holds cursors and then looks at schedules: this keeps to that order.
    """
    of = select(schedules.c.id).where(schedules.c.function_id == function_id)
    connection.execute(delete(schedule_cursors).where(schedule_cursors.c.schedule_id.in_(of)))


def find_schedule(connection: Connection, project_id: str, asked: str) -> Schedule | None:
    """Return the project's schedule with this id or name."""
    named = or_(schedules.c.id == asked, schedules.c.name == asked)
    # One may be called as the id of another: the id counts.
    by_id_first = case((schedules.c.id == asked, 0), else_=1)
    query = _select().where(schedules.c.project_id == project_id, named).order_by(by_id_first)
    row = connection.execute(query.limit(1)).mappings().first()
    return _schedule(row) if row else None


def list_schedules(
    connection: Connection, project_id: str, page: Page, *, function_id: str | None = None
) -> Paged[Schedule]:
    query = _select().where(schedules.c.project_id == project_id)
    if function_id is not None:
        query = query.where(schedules.c.function_id == function_id)
    rows = connection.execute(page_of(query, schedules.c.id, page)).mappings()
    return paged([_schedule(row) for row in rows], page, lambda schedule: schedule.id)


def schedules_of_function(connection: Connection, function_id: str, limit: int) -> list[str]:
    """Return names of schedules that run this function."""
    query = select(schedules.c.name).where(schedules.c.function_id == function_id)
    return list(connection.execute(query.order_by(schedules.c.id).limit(limit)).scalars())


def cursors_of(connection: Connection, schedule_id: str) -> dict[str, int]:
    """Return the next due time of each time zone that the schedule goes by."""
    query = select(schedule_cursors.c.timezone, schedule_cursors.c.next_ms).where(
        schedule_cursors.c.schedule_id == schedule_id
    )
    return {row.timezone: row.next_ms for row in connection.execute(query)}


def lock_cursors(connection: Connection, schedule_id: str) -> None:
    """Keep every scheduler off this schedule until the transaction ends."""
    if connection.dialect.name != "sqlite":  # there the transaction is alone anyway
        query = select(schedule_cursors.c.timezone).where(
            schedule_cursors.c.schedule_id == schedule_id
        )
        connection.execute(query.order_by(schedule_cursors.c.timezone).with_for_update())


def put_cursors(connection: Connection, schedule_id: str, cursors: Mapping[str, int]) -> None:
    """Replace the cursors, which the caller holds."""
    connection.execute(
        delete(schedule_cursors).where(schedule_cursors.c.schedule_id == schedule_id)
    )
    rows = [
        {"schedule_id": schedule_id, "timezone": zone, "next_ms": next_ms}
        for zone, next_ms in sorted(cursors.items())
    ]
    if rows:
        connection.execute(insert(schedule_cursors), rows)


def fires_of(connection: Connection, schedule: Schedule, limit: int) -> list[Fire]:
    """Return the latest due times, newest first, with how their runs stand."""
    ended = and_(
        executions.c.project_id == schedule.project_id,
        executions.c.id == schedule_fires.c.execution_id,
    )
    waiting = run_queue.c.id == schedule_fires.c.execution_id
    status = func.coalesce(executions.c.status, case((run_queue.c.id.is_not(None), "queued")))
    query = (
        select(schedule_fires, status.label("status"))
        .outerjoin(executions, ended)
        .outerjoin(run_queue, waiting)
        .where(schedule_fires.c.schedule_id == schedule.id)
        .order_by(schedule_fires.c.due_ms.desc(), schedule_fires.c.device_id.desc())
        .limit(limit)
    )
    return [
        Fire(
            due_ms=row.due_ms,
            device_id=row.device_id or None,
            fired_ms=row.fired_ms,
            outcome=row.outcome,
            execution_id=row.execution_id,
            status=row.status,
        )
        for row in connection.execute(query)
    ]


def last_status(connection: Connection, schedule_id: str) -> str | None:
    """Return how the last run that has ended did; None: none has."""
    query = (
        select(executions.c.status)
        .where(executions.c.schedule_id == schedule_id)
        .order_by(executions.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none()


def run_ended(
    connection: Connection,
    schedule_id: str,
    succeeded: bool,
    execution_id: str,
    error_json: str | None,
    now_ms: int,
) -> list[tuple[Any, ...]]:
    """Count how a run of a watched schedule ended; return rows for the queue that this makes due.

    Args:
        connection: in the transaction that ends the run, after its last attempt.
        schedule_id: whose run; a schedule that is gone counts nothing.
        succeeded: whether it did.
        execution_id: of the last attempt.
        error_json: of it; None: it has none.
        now_ms: the time.
    """
    row = _counted(connection, schedule_id, lock=False)
    if row is None or (succeeded and not row["failures"]):
        return []
    options = read_options(row["options"])
    if not succeeded and options.pause_on_failure:
        lock_cursors(connection, schedule_id)
    row = _counted(connection, schedule_id, lock=True)
    if row is None:
        return []
    count = row["failures"] if succeeded else row["failures"] + 1  # in a row, until this run
    connection.execute(
        update(schedules)
        .where(schedules.c.id == schedule_id)
        .values(failures=0 if succeeded else count)
    )
    paused = row["paused_ms"] is not None
    if not succeeded and not paused and 0 < options.pause_on_failure <= count:
        paused = True
        _pause(connection, schedule_id, f"failed {count} times in a row", now_ms)
    follower = _follower(options, count, succeeded=succeeded)
    if follower is None:
        return []
    told = {
        "type": "schedule.recovered" if succeeded else "schedule.failed",
        "scheduleId": schedule_id,
        "schedule": row["name"],
        "executionId": execution_id,
        "time": iso(now_ms),
        "failures": count,
        "paused": paused,
        "error": None if error_json is None else msgspec.Raw(error_json.encode()),
    }
    return _follow(connection, row["project_id"], follower, told, now_ms)


def pause(connection: Connection, schedule_id: str, reason: str, now_ms: int) -> None:
    """Let nothing be due until the schedule is resumed."""
    lock_cursors(connection, schedule_id)
    _pause(connection, schedule_id, reason, now_ms)


def _counted(connection: Connection, schedule_id: str, *, lock: bool) -> RowMapping | None:
    query = select(
        schedules.c.project_id,
        schedules.c.name,
        schedules.c.options,
        schedules.c.paused_ms,
        schedules.c.failures,
    ).where(schedules.c.id == schedule_id)
    if lock:
        query = query.with_for_update(key_share=True)  # fires may go on referring to it
    return connection.execute(query).mappings().first()


def _pause(connection: Connection, schedule_id: str, reason: str, now_ms: int) -> None:
    connection.execute(
        update(schedules)
        .where(schedules.c.id == schedule_id)
        .values(paused_ms=now_ms, paused_reason=reason)
    )
    connection.execute(
        update(schedule_cursors)
        .where(schedule_cursors.c.schedule_id == schedule_id)
        .values(next_ms=NEVER_MS)
    )


def _follower(options: Options, count: int, *, succeeded: bool) -> Follower | None:
    """Return whom the end of a run concerns, after `count` failures in a row."""
    failing, recovered = options.on_failure, options.on_recovery
    if not succeeded:
        return failing if failing is not None and count == failing.times else None
    return recovered if count >= (1 if failing is None else failing.times) else None


def _follow(
    connection: Connection,
    project_id: str,
    follower: Follower,
    told: dict[str, Any],
    now_ms: int,
) -> list[tuple[Any, ...]]:
    """Return the run of a follower; none if the function is gone, or cannot be called so."""
    live = live_deployment(connection, follower.function_id)
    if live is None:
        return []
    numbers = [share.version for share in live.versions]
    found = find_summaries(connection, follower.function_id, numbers)
    handlers = [set(one.handlers) for one in found.values()]
    common = set.intersection(*handlers) if handlers else set()
    handler = next((name for name in FOLLOWER_HANDLERS if name in common), None)
    if handler is None:
        return []
    return [
        queue_row(
            run_id=new_id("exe"),
            project_id=project_id,
            function_id=follower.function_id,
            cause=CAUSE,
            handler=handler,
            root_id=told["executionId"],
            created_ms=now_ms,
            depth=1,
            given=_encode(told).decode(),
        )
    ]


def _select() -> Select[Any]:
    following = (
        select(func.min(schedule_cursors.c.next_ms))
        .where(schedule_cursors.c.schedule_id == schedules.c.id)
        .scalar_subquery()
    )
    return (
        select(
            schedules,
            functions.c.name.label("function"),
            products.c.name.label("product"),
            following.label("next_ms"),
        )
        .join(functions, functions.c.id == schedules.c.function_id)
        .outerjoin(products, products.c.id == schedules.c.product_id)
    )


def _schedule(row: RowMapping) -> Schedule:
    next_ms = row["next_ms"]
    known = {
        "spec": read_spec(row["spec"]),
        "options": read_options(row["options"]),
        "next_ms": None if next_ms == NEVER_MS else next_ms,
    }
    return Schedule(**{**row, **known})


def _changing(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "function_id": schedule.function_id,
        "spec": _encode(schedule.spec).decode(),
        "options": _encode(schedule.options).decode(),
        "payload": schedule.payload,
        "product_id": schedule.product_id,
        "paused_ms": schedule.paused_ms,
        "paused_reason": schedule.paused_reason,
        "failures": schedule.failures,
        "updated_ms": schedule.updated_ms,
    }


def _taken(name: str) -> str:
    return f"a schedule named {name!r} exists already"
