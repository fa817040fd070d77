"""Runs a schedule by hand: now, or for due times that have passed.

Path:   api.schedules -> here -> fires.launch -> store.fires, run_queue -> backlog
Never:  decides without holding the schedule's cursors, as a scheduler does when it fires; runs a
        due time that something has run for.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Protocol

from sqlalchemy import Connection

from engine.cancellations import Runs
from engine.errors import Conflict, Invalid
from engine.fires import (
    HANDLERS,
    OVERLAP_NAMES,
    Launch,
    Outcome,
    Overlap,
    Task,
    decide,
    launch,
)
from engine.ids import new_id
from engine.policies import LANES
from engine.quotas import SCHEDULE_BACKFILL_MAX
from engine.reruns import Workbench
from engine.schedules import held, zones_here
from engine.store import fires as store
from engine.store.cancellations import cancel_runs, lanes_of
from engine.store.devices import find_device
from engine.store.flow import note_here
from engine.store.journal import Commit
from engine.store.run_queue import insert_rows
from engine.store.schedules import Schedule
from jobs.schedule import Instant, explain, instants

ALREADY_FIRED: Final = "already_fired"
REPLACED: Final = "the schedule was triggered by hand, and that run takes its place"


class Timekeeper(Workbench, Runs, Protocol):
    """Port: what making the runs of a schedule needs besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfilled:
    """What became of one due time that has passed."""

    instant: Instant
    device_id: str | None
    outcome: str  # queued | buffered | already_fired
    execution_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What a transaction made."""

    run_ids: list[str]
    woken: list[tuple[str, int, int]]
    cancelled: list[str]
    shown: list[Backfilled]


async def trigger_schedule(
    keeper: Timekeeper, project_id: str, asked: str, *, force: bool, device: str | None
) -> str:
    """Run a schedule now, once more; return the execution's id.

    Args:
        keeper: what it takes.
        project_id: whose it is.
        asked: id or name.
        force: also beside runs that have not ended.
        device: the device's id, of a device-local schedule.

    Raises:
        NotFound: the project has no such schedule.
        Invalid: `device` is missing, or needless, or none of the product's.
        QuotaExceeded: there is no room for it in the queue.
        Conflict: an earlier run has not ended, or there is nothing that could run.
    """
    await keeper.queue_room.need(project_id, 1)
    commit = Commit()
    commit.change = partial(
        _trigger,
        commit=commit,
        keeper=keeper,
        project_id=project_id,
        asked=asked,
        force=force,
        device=device,
    )
    done = await _commit(keeper, commit)
    return done.run_ids[0]


async def backfill_schedule(
    keeper: Timekeeper,
    project_id: str,
    asked: str,
    from_ms: int,
    to_ms: int,
    *,
    overlap: str | None,
    dry_run: bool,
) -> list[Backfilled]:
    """Run a schedule for due times from `from_ms` until before `to_ms` that nothing ran for.

    Args:
        keeper: what it takes.
        project_id: whose it is.
        asked: id or name.
        from_ms: when the range begins.
        to_ms: when it ends: now at the latest.
        overlap: `buffer_all` lets them run one after another, `allow_all` side by side; None: the
            latter if that is the schedule's own policy.
        dry_run: only say what would run.

    Raises:
        NotFound: the project has no such schedule.
        Invalid: the range is none, or holds too much.
        QuotaExceeded: there is no room in the queue.
        Conflict: there is nothing that could run.
    """
    if not from_ms < to_ms <= keeper.clock():
        raise Invalid("must be later than from, and not in the future", "/to")
    chosen = None if overlap is None else OVERLAP_NAMES.get(overlap)
    if overlap is not None and chosen not in (Overlap.BUFFER_ALL, Overlap.ALLOW_ALL):
        raise Invalid(f"{overlap[:40]!r} is neither buffer_all nor allow_all", "/overlap")
    if not dry_run:
        await keeper.queue_room.need(project_id, 1)
    commit = Commit()
    commit.change = partial(
        _backfill,
        keeper=keeper,
        project_id=project_id,
        asked=asked,
        between=(from_ms, to_ms),
        overlap=chosen,
        dry_run=dry_run,
    )
    return (await _commit(keeper, commit)).shown


async def _commit(keeper: Timekeeper, commit: Commit) -> _Done:
    done: _Done = await keeper.journal.commit(commit)
    if done.cancelled:
        keeper.cancelled(done.cancelled)
    for woken in done.woken:
        keeper.backlog.wake(*woken)
    return done


def _trigger(
    connection: Connection,
    *,
    commit: Commit,
    keeper: Timekeeper,
    project_id: str,
    asked: str,
    force: bool,
    device: str | None,
) -> _Done:
    schedule = held(connection, project_id, asked)
    zone = _zone_of(connection, schedule, device)
    now_ms = keeper.clock()
    if device is None:
        alive = store.alive(connection, [schedule.id]).get(schedule.id, [])
    else:
        alive = store.alive_by_device(connection, schedule.id, [device]).get(device, [])
    overlap = Overlap.ALLOW_ALL if force else Overlap(schedule.options.overlap)
    outcome = decide(overlap, len(alive))
    if outcome is Outcome.OVERLAPPED:
        raise Conflict(
            f"{alive[0]} of this schedule has not ended, and overlap is {overlap}; "
            "?force=true runs it beside that"
        )
    made = _launch(keeper, schedule, zone, now_ms, now_ms=now_ms, device_id=device, overlap=overlap)
    cancelled: list[str] = []
    if outcome is Outcome.REPLACED:
        for lane in lanes_of(connection, project_id, alive):
            commit.gather(LANES, lane)
        cancelled = cancel_runs(connection, project_id, alive, now_ms, REPLACED)
    return _done(connection, [made], now_ms, cancelled=cancelled)


def _zone_of(connection: Connection, schedule: Schedule, device_id: str | None) -> str:
    """Return by which time zone a run by hand goes."""
    if schedule.product_id is None:
        if device_id is not None:
            raise Invalid("this schedule is not device-local; leave it out", "?device")
        return schedule.spec.timezone
    if device_id is None:
        raise Invalid("this schedule is device-local: give the id of one device", "?device")
    device = find_device(connection, schedule.project_id, device_id)
    if device is None or device.product_id != schedule.product_id:
        raise Invalid(f"there is no device {device_id[:80]!r} of {schedule.product}", "?device")
    return device.timezone


def _backfill(
    connection: Connection,
    *,
    keeper: Timekeeper,
    project_id: str,
    asked: str,
    between: tuple[int, int],
    overlap: Overlap | None,
    dry_run: bool,
) -> _Done:
    schedule = held(connection, project_id, asked)
    asked_for = _passed(connection, schedule, between)
    known = store.fired_of(connection, schedule.id, {at_ms for at_ms, _, _ in asked_for})
    if overlap is None:
        is_free = schedule.options.overlap == Overlap.ALLOW_ALL
        overlap = Overlap.ALLOW_ALL if is_free else Overlap.BUFFER_ALL
    now_ms = keeper.clock()
    outcome = Outcome.QUEUED if overlap is Overlap.ALLOW_ALL else Outcome.BUFFERED
    made: list[Launch] = []
    shown: list[Backfilled] = []
    fires: list[store.FireRow] = []
    for at_ms, zone, device_id in asked_for:
        before = known.get((at_ms, device_id or ""))
        run_id = None
        if before is None and not dry_run:
            run = _launch(
                keeper, schedule, zone, at_ms,
                now_ms=now_ms, device_id=device_id, overlap=overlap,
            )  # fmt: skip
            run_id = run.run_id
            made.append(run)
            fires.append((schedule.id, at_ms, device_id or "", now_ms, outcome.value, run.run_id))
        shown.append(
            Backfilled(
                instant=explain(schedule.spec.in_zone(zone), at_ms),
                device_id=device_id,
                outcome=ALREADY_FIRED if before is not None else outcome.value,
                execution_id=before or run_id,
            )
        )
    store.forget_fires(connection, [(of, at_ms, device) for of, at_ms, device, *_ in fires])
    store.insert_fires(connection, fires)
    return _done(connection, made, now_ms, shown=shown)


def _passed(
    connection: Connection, schedule: Schedule, between: tuple[int, int]
) -> list[tuple[int, str, str | None]]:
    """Return (due time, time zone, device) of what a range asks for, in order."""
    found: list[tuple[int, str, str | None]] = []
    for zone in zones_here(connection, schedule):
        most = SCHEDULE_BACKFILL_MAX + 1
        times = list(islice(instants(schedule.spec.in_zone(zone), *between), most))
        devices: list[str | None] = [None]
        if schedule.product_id is not None:
            devices = list(store.devices_in(connection, schedule.product_id, zone, most))
        if len(found) + len(times) * len(devices) > SCHEDULE_BACKFILL_MAX:
            raise Invalid(
                f"more than {SCHEDULE_BACKFILL_MAX} runs are due between from and to; take a "
                "shorter range",
                "/to",
            )
        found += [(at_ms, zone, device_id) for at_ms in times for device_id in devices]
    return sorted(found, key=lambda one: (one[0], one[2] or ""))


def _launch(
    keeper: Timekeeper,
    schedule: Schedule,
    zone: str,
    due_ms: int,
    *,
    now_ms: int,
    device_id: str | None,
    overlap: Overlap,
) -> Launch:
    function = keeper.catalogue.function_by_id(schedule.function_id)
    task = Task(
        schedule_id=schedule.id,
        project_id=schedule.project_id,
        function_id=schedule.function_id,
        spec=schedule.spec.in_zone(zone),
        options=schedule.options,
        payload=schedule.payload,
    )
    made = None
    if function is not None:
        made = launch(
            task,
            function,
            run_id=new_id("exe"),
            due_ms=due_ms,
            now_ms=now_ms,
            device_id=device_id,
            overlap=overlap,
            by_hand=True,
        )
    if made is None:
        raise Conflict(f"{schedule.function} has no live version with {' or '.join(HANDLERS)}")
    return made


def _done(
    connection: Connection,
    made: list[Launch],
    now_ms: int,
    *,
    cancelled: list[str] | None = None,
    shown: list[Backfilled] | None = None,
) -> _Done:
    for run in made:
        note_here(connection, run.queued, run.run_id, now_ms)
    return _Done(
        run_ids=[run.run_id for run in made],
        woken=sorted(set(insert_rows(connection, [run.row for run in made]))),
        cancelled=cancelled or [],
        shown=shown or [],
    )
