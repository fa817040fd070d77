"""Makes, changes, pauses and shows schedules; and says when they are due.

Path:   api.schedules -> here -> store.schedules;  what fires: scheduler, by hand schedule_runs
Never:  changes a schedule without holding its cursors: a scheduler would fire what was.
"""

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection

from engine.control import Control
from engine.errors import Conflict, Invalid, NotFound
from engine.fires import HANDLERS
from engine.ids import new_id
from engine.names import check_function_name
from engine.schedule_fields import (
    Given,
    check_local,
    function_of,
    options_of,
    payload_of,
    timing,
)
from engine.store import schedules as store
from engine.store.fires import zones_of as zones_of_products
from engine.store.products import find_product
from engine.store.schedules import NEVER_MS, Fire, Options, Schedule
from jobs.schedule import (
    Instant,
    Skipped,
    Spec,
    explain,
    instants,
    next_after,
    over_by,
    skipped,
)
from jobs.zones import is_zone

REASON_CHARS_MAX: Final = 500
BY_HAND: Final = "by hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Previewed:
    """One due time to come, or that has been."""

    instant: Instant
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Due times of a range, and the local times of it that clocks jump over."""

    due: tuple[Previewed, ...]
    skipped: tuple[tuple[str, Skipped], ...]  # with their time zone


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A schedule with what people want to know about it."""

    schedule: Schedule
    upcoming: tuple[Previewed, ...]
    fires: tuple[Fire, ...]
    last_status: str | None


def preview(
    zones: Collection[str], spec: Spec, from_ms: int, to_ms: int | None, limit: int
) -> Preview:
    """Return the first due times of a range, in order; `zones`: those that the schedule goes by."""

    def of(zone: str) -> Iterator[tuple[int, str]]:
        return ((at_ms, zone) for at_ms in instants(spec.in_zone(zone), from_ms, to_ms))

    due = tuple(
        Previewed(instant=explain(spec.in_zone(zone), at_ms), timezone=zone)
        for at_ms, zone in islice(heapq.merge(*map(of, sorted(zones))), limit)
    )
    until_ms = over_by(spec) if to_ms is None else to_ms
    if len(due) >= limit:
        until_ms = due[-1].instant.at_ms
    gaps = tuple(
        (zone, one)
        for zone in sorted(zones)
        for one in skipped(spec.in_zone(zone), from_ms, until_ms)
    )
    return Preview(due=due, skipped=gaps[:limit])


# -- Schedules


async def create_schedule(control: Control, project_id: str, given: Given) -> Schedule:
    """Make a schedule; it fires from now on.

    Args:
        control: what it takes.
        project_id: whose it is.
        given: besides what `timing` takes: name, function, payload (JSON), overlap,
            catchup_window, jitter, priority, queue, max_attempts, pause_on_failure, on_failure,
            on_recovery, product (device-local).

    Raises:
        Invalid: names the field.
        Conflict: the name is taken.
    """
    now_ms = control.clock()
    spec = timing(given, None, now_ms)
    made: Schedule = await control.journal.run(
        _insert, project_id, given, spec, schedule_id=new_id("sch"), now_ms=now_ms
    )
    return made


async def change_schedule(control: Control, project_id: str, asked: str, given: Given) -> Schedule:
    """Change what was sent of a schedule; a new timing counts from now on.

    Raises:
        NotFound: the project has no such schedule.
        Invalid: names the field.
        Conflict: the name is taken.
    """
    made: Schedule = await control.journal.run(
        _change, project_id, asked, given, now_ms=control.clock()
    )
    return made


async def remove_schedule(control: Control, project_id: str, asked: str) -> None:
    """Delete a schedule; runs that it has queued still run."""
    await control.journal.run(_delete, project_id, asked)


async def get_schedule(control: Control, project_id: str, asked: str) -> Schedule:
    found = await control.database.read(store.find_schedule, project_id, asked)
    if found is None:
        raise NotFound("schedule", asked[:80])
    return found


async def pause_schedule(control: Control, project_id: str, asked: str, reason: str) -> Schedule:
    """Let nothing be due until it is resumed; what falls due meanwhile is not made up for."""
    if len(reason) > REASON_CHARS_MAX or not all(char.isprintable() for char in reason):
        raise Invalid(
            f"must be at most {REASON_CHARS_MAX} printable characters on one line", "/reason"
        )
    made: Schedule = await control.journal.run(
        _pause, project_id, asked, reason or BY_HAND, now_ms=control.clock()
    )
    return made


async def resume_schedule(control: Control, project_id: str, asked: str) -> Schedule:
    made: Schedule = await control.journal.run(_resume, project_id, asked, now_ms=control.clock())
    return made


async def view_schedule(
    control: Control, project_id: str, asked: str, *, fires: int, upcoming: int
) -> View:
    """Return a schedule with its last and its next due times."""
    return await control.database.read(
        _view, project_id, asked, control.clock(), fires=fires, upcoming=upcoming
    )


async def zones_of(control: Control, schedule: Schedule) -> Collection[str]:
    """Return the time zones that a schedule goes by."""
    if schedule.product_id is None:
        return [schedule.spec.timezone]
    return await control.database.read(zones_here, schedule)


# -- In the writer's transaction


def _insert(
    connection: Connection,
    project_id: str,
    given: Given,
    spec: Spec,
    *,
    schedule_id: str,
    now_ms: int,
) -> Schedule:
    blank = Schedule(
        id=schedule_id,
        project_id=project_id,
        name=schedule_id,
        function_id="",
        function="",
        spec=spec,
        options=Options(),
        payload="null",
        product_id=None,
        product=None,
        paused_ms=None,
        paused_reason=None,
        failures=0,
        created_ms=now_ms,
        updated_ms=now_ms,
    )
    schedule = _with(connection, blank, given)
    cursors = _cursors(connection, schedule, now_ms)
    store.insert_schedule(connection, schedule, cursors)
    return _stored(connection, schedule)


def _change(
    connection: Connection, project_id: str, asked: str, given: Given, *, now_ms: int
) -> Schedule:
    known = held(connection, project_id, asked)
    spec = timing(given, known.spec, now_ms)
    schedule = _with(connection, replace(known, spec=spec), given)
    if schedule.name != known.name and store.name_is_taken(
        connection, project_id, schedule.name, schedule.id
    ):
        raise Conflict(f"a schedule named {schedule.name!r} exists already")
    is_due_anew = (spec, schedule.product_id) != (known.spec, known.product_id)
    if is_due_anew:
        schedule = replace(schedule, updated_ms=now_ms)
    store.update_schedule(connection, schedule)
    if is_due_anew and known.paused_ms is None:
        store.put_cursors(connection, known.id, _cursors(connection, schedule, now_ms))
    return _stored(connection, schedule)


def _delete(connection: Connection, project_id: str, asked: str) -> None:
    store.delete_schedule(connection, held(connection, project_id, asked).id)


def _pause(
    connection: Connection, project_id: str, asked: str, reason: str, *, now_ms: int
) -> Schedule:
    known = held(connection, project_id, asked)
    store.pause(connection, known.id, reason, now_ms)
    return _stored(connection, known)


def _resume(connection: Connection, project_id: str, asked: str, *, now_ms: int) -> Schedule:
    known = held(connection, project_id, asked)
    if known.paused_ms is None:
        return known
    schedule = replace(known, paused_ms=None, paused_reason=None, failures=0, updated_ms=now_ms)
    store.update_schedule(connection, schedule)
    store.put_cursors(connection, known.id, _cursors(connection, schedule, now_ms, ends=True))
    return _stored(connection, schedule)


def held(connection: Connection, project_id: str, asked: str) -> Schedule:
    """Return a schedule that no scheduler touches until the transaction ends."""
    found = store.find_schedule(connection, project_id, asked)
    if found is not None:
        store.lock_cursors(connection, found.id)
        found = store.find_schedule(connection, project_id, found.id)  # as it is now
    if found is None:
        raise NotFound("schedule", asked[:80])
    return found


def _stored(connection: Connection, schedule: Schedule) -> Schedule:
    found = store.find_schedule(connection, schedule.project_id, schedule.id)
    assert found is not None, schedule.id
    return found


def _with(connection: Connection, known: Schedule, given: Given) -> Schedule:
    """Return the schedule with what was sent."""
    changes: dict[str, Any] = {
        "options": options_of(connection, known.project_id, given, known.options),
        "payload": payload_of(given, known.payload),
    }
    if given.get("name") is not None:
        if given["name"] != known.name:
            check_function_name(given["name"])  # it stands in URLs as well
        changes["name"] = given["name"]
    if given.get("function") is not None:
        name = given["function"]
        function = function_of(connection, known.project_id, name, "/function", HANDLERS)
        changes |= {"function_id": function.id, "function": function.name}
    if "product" in given:
        changes |= _product(connection, known.project_id, given["product"])
    schedule = replace(known, **changes)
    if schedule.product_id is not None:
        check_local(schedule.spec, given)
    return schedule


def _product(connection: Connection, project_id: str, asked: str | None) -> dict[str, Any]:
    if asked is None:
        return {"product_id": None, "product": None}
    product = find_product(connection, project_id, asked)
    if product is None:
        pointer = "/device_local/product"
        raise Invalid(f"there is no product {asked[:80]!r} in this project", pointer)
    return {"product_id": product.id, "product": product.name}


def _cursors(
    connection: Connection, schedule: Schedule, now_ms: int, *, ends: bool = False
) -> dict[str, int]:
    """Return the next due time in each time zone; `ends`: there may be none."""
    found = {}
    for zone in zones_here(connection, schedule):
        next_ms = next_after(schedule.spec.in_zone(zone), now_ms)
        if next_ms is None and not ends and schedule.product_id is None:
            at = "/at" if schedule.spec.at else "/end_at"
            raise Invalid("there is no due time to come: it would never run", at)
        found[zone] = NEVER_MS if next_ms is None else next_ms
    return found


def zones_here(connection: Connection, schedule: Schedule) -> list[str]:
    if schedule.product_id is None:
        return [schedule.spec.timezone]
    product_id = schedule.product_id
    zones = zones_of_products(connection, [product_id])[product_id]
    return sorted(zone for zone in zones if is_zone(zone))


def _view(
    connection: Connection, project_id: str, asked: str, now_ms: int, *, fires: int, upcoming: int
) -> View:
    schedule = store.find_schedule(connection, project_id, asked)
    if schedule is None:
        raise NotFound("schedule", asked[:80])
    due: tuple[Previewed, ...] = ()
    if schedule.paused_ms is None:
        zones = zones_here(connection, schedule)
        due = preview(zones, schedule.spec, now_ms, None, upcoming).due
    return View(
        schedule=schedule,
        upcoming=due,
        fires=tuple(store.fires_of(connection, schedule, fires)),
        last_status=store.last_status(connection, schedule.id),
    )
