"""`/v1/schedules`: functions that run by the clock."""

import asyncio
import json
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Response
from fastapi import Body as BodyOf
from pydantic import Field

from engine.api.access import Developer, Invoker, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.api.times import parse_time
from engine.clock import iso
from engine.durations import duration_text
from engine.errors import Invalid
from engine.fires import OVERLAP_NAMES
from engine.functions import get_function
from engine.quotas import SCHEDULE_PREVIEW_MAX
from engine.schedule_fields import timing
from engine.schedule_runs import ALREADY_FIRED, Backfilled, backfill_schedule, trigger_schedule
from engine.schedules import (
    Preview,
    Previewed,
    change_schedule,
    create_schedule,
    get_schedule,
    pause_schedule,
    preview,
    remove_schedule,
    resume_schedule,
    view_schedule,
    zones_of,
)
from engine.store.run_queue import PRIORITIES
from engine.store.schedules import Fire, Follower, Schedule, list_schedules

router = APIRouter(tags=["schedules"])

UPCOMING: Final = 5  # due times to come that one schedule is shown with
FIRES: Final = 10  # ... and that have been
DEVICE: Final = "device"  # shown as the time zone of a device-local schedule
_PRIORITY_NAMES: Final = {number: name for name, number in PRIORITIES.items()}
_OVERLAPS: Final = ", ".join(OVERLAP_NAMES)

Asked = Annotated[str, Path(description="The schedule's id or name.")]
Duration = str | float
From = Annotated[str | None, Query(alias="from", description="RFC 3339; left out: now.")]
To = Annotated[str | None, Query(description="RFC 3339, itself not included.")]
PreviewLimit = Annotated[int, Query(ge=1, le=SCHEDULE_PREVIEW_MAX, description="Most due times.")]


class Dst(Body):
    """What becomes of local times that do not exist, or that come twice."""

    gap: str | None = Field(None, description="run_after (default): once right after it; skip.")
    fold: str | None = Field(None, description="first (default), or both.")


class FollowerAsked(Body):
    function: str = Field(description="Id or name.")
    times: int | None = Field(None, description="Failures in a row before it runs: 1.")


class RecoveryAsked(Body):
    function: str = Field(description="Id or name.")


class DeviceLocal(Body):
    product: str = Field(description="Id or name.")


class TimingAsked(Body):
    """When a schedule is due: exactly one of `cron`, `every` and `at`."""

    cron: str | None = Field(None, description="Five fields, or a macro such as @daily.")
    every: Duration | None = Field(
        None, description="30s, 5m, 2h, or seconds as a number; hourly, daily, weekly, monthly."
    )
    at: str | None = Field(
        None, description="Once: local time in `timezone`, or with an offset an instant."
    )
    timezone: str | None = Field(None, description="IANA name; UTC if left out.")
    seconds: bool | None = Field(None, description="cron begins with a field of seconds.")
    dst: Dst | None = None
    start_at: str | None = Field(None, description="RFC 3339: not before.")
    end_at: str | None = Field(None, description="RFC 3339: not after.")


class ScheduleFields(TimingAsked):
    payload: Any = Field(None, description="Any JSON; the function gets it.")
    overlap: str | None = Field(
        None, description=f"While an earlier run has not ended: {_OVERLAPS}; skip if left out."
    )
    catchup_window: Duration | None = Field(
        None, description="A due time that is later than this is missed: 1h."
    )
    jitter: Duration | None = Field(None, description="Runs begin up to so much later: 0s.")
    priority: str | None = Field(None, description=", ".join(PRIORITIES))
    queue: str | None = Field(None, description="A label.")
    max_attempts: int | None = Field(None, description="Of a run; as the version says, else 1.")
    pause_on_failure: int | None = Field(
        None, description="Failures in a row after which it is paused."
    )
    on_failure: FollowerAsked | None = Field(None, description="Runs when it begins to fail.")
    on_recovery: RecoveryAsked | None = Field(None, description="Runs when it works again.")
    device_local: DeviceLocal | None = Field(
        None, description="One run for each device of a product, at that local time there."
    )


class ScheduleNew(ScheduleFields):
    model_config = example(
        {
            "name": "morning-report",
            "function": "report",
            "cron": "0 7 * * MON-FRI",
            "timezone": "Europe/Madrid",
            "payload": {"to": "ops"},
        }
    )

    name: str | None = Field(
        None, description="A letter, then up to 63 letters, digits, _ or -; left out: its id."
    )
    function: str = Field(description="Id or name.")


class ScheduleChanged(ScheduleFields):
    """What is sent is changed; null stands for the default."""

    model_config = example({"cron": "0 8 * * MON-FRI", "overlap": "buffer_one"})

    name: str | None = None
    function: str | None = Field(None, description="Id or name.")


class PreviewAsked(TimingAsked):
    model_config = example({"cron": "30 2 * * *", "timezone": "Europe/Madrid", "limit": 3})

    from_: str | None = Field(None, alias="from", description="RFC 3339; left out: now.")
    to: str | None = Field(None, description="RFC 3339, itself not included.")
    limit: int = Field(10, ge=1, le=SCHEDULE_PREVIEW_MAX)


class PauseAsked(Body):
    model_config = example({"reason": "the plant is closed"})

    reason: str = Field("", description="Shown with the schedule.")


Reason = Annotated[PauseAsked | None, BodyOf(examples=[{"reason": "the plant is closed"}])]


class TriggerAsked(Body):
    """Nothing: what there is to say stands in the query."""


NoFields = Annotated[TriggerAsked | None, BodyOf(examples=[{}])]


class BackfillAsked(Body):
    model_config = example(
        {"from": "2026-03-01T00:00:00Z", "to": "2026-03-08T00:00:00Z", "dry_run": True}
    )

    from_: str = Field(alias="from", description="RFC 3339.")
    to: str = Field(description="RFC 3339, itself not included; now at the latest.")
    overlap: str | None = Field(
        None, description="buffer_all: one after another (default); allow_all: side by side."
    )
    dry_run: bool = Field(False, description="Only say what would run.")


class DstShown(Shown):
    gap: str
    fold: str


class FollowerShown(Shown):
    function: str
    times: int


class RecoveryShown(Shown):
    function: str


class DeviceLocalShown(Shown):
    product: str


class ScheduleShown(Shown):
    id: str
    name: str
    function: str = Field(description="Its name.")
    cron: str | None
    every: str | None
    at: str | None
    timezone: str = Field(description="IANA name; `device` if each device's own counts.")
    seconds: bool
    dst: DstShown
    start_at: str | None
    end_at: str | None
    payload: Any
    overlap: str
    catchup_window: str
    jitter: str
    priority: str
    queue: str
    max_attempts: int | None
    pause_on_failure: int | None
    on_failure: FollowerShown | None
    on_recovery: RecoveryShown | None
    device_local: DeviceLocalShown | None
    paused: bool
    paused_at: str | None
    paused_reason: str | None
    failures: int = Field(description="In a row; only counted where something follows from it.")
    next_at: str | None
    created_at: str


class DueShown(Shown):
    at: str = Field(description="UTC.")
    local: str = Field(description="What the clock on the wall shows, with its offset.")
    timezone: str
    note: str = Field(description="What is odd about it; mostly empty.")


class SkippedShown(Shown):
    local: str
    timezone: str
    note: str


class PreviewShown(Shown):
    """Due times in order, and local times that clocks jump over and nothing runs for."""

    items: list[DueShown]
    skipped: list[SkippedShown]


class FireShown(Shown):
    at: str = Field(description="When it was due.")
    fired_at: str
    outcome: str = Field(
        description="queued, buffered, replaced (runs); overlapped, missed, missed_more, "
        "queue_full, nothing_to_run (nothing runs)."
    )
    device_id: str | None
    execution_id: str | None
    status: str | None = Field(description="Of the run.")


class ScheduleWhole(ScheduleShown):
    """A schedule with what it will do, and what it did."""

    next_fires: list[DueShown]
    last_fires: list[FireShown]
    last_status: str | None = Field(description="Of the last run that has ended.")


class Triggered(Shown):
    execution_id: str
    status: str


class BackfillItem(Shown):
    at: str
    local: str
    device_id: str | None
    outcome: str = Field(description="queued, buffered, or already_fired: nothing more runs.")
    execution_id: str | None


class BackfillShown(Shown):
    dry_run: bool
    count: int = Field(description="Runs that were queued, or would be.")
    items: list[BackfillItem]


@router.post("/v1/schedules", status_code=201, responses=problems(409, 422, body=True))
async def add_schedule(
    platform: PlatformHere, access: Developer, body: ScheduleNew
) -> ScheduleShown:
    """Run a function by the clock."""
    return _shown(await create_schedule(platform, access.project_id, _given(body)))


@router.post("/v1/schedules/preview", responses=problems(422, body=True))
async def preview_timing(
    platform: PlatformHere,
    access: Reader,  # noqa: ARG001 - its rights are asked for; it is about no project
    body: PreviewAsked,
) -> PreviewShown:
    """Show when a schedule would be due, without making one."""
    now_ms = platform.clock()
    fields = {name: value for name, value in _given(body).items() if name not in _RANGE}
    spec = timing(fields, None, now_ms)
    from_ms, to_ms = _range(body.from_, body.to, now_ms, "/from", "/to")
    return _preview_shown(
        await asyncio.to_thread(preview, [spec.timezone], spec, from_ms, to_ms, body.limit)
    )


@router.get("/v1/schedules", responses=problems(404, 422))
async def show_schedules(
    platform: PlatformHere,
    access: Reader,
    page: PageAsked,
    function: Annotated[str | None, Query(description="Id or name.")] = None,
) -> Listed[ScheduleShown]:
    """List schedules, newest first."""
    function_id = None
    if function is not None:
        function_id = (await get_function(platform, access.project_id, function)).id
    found = await platform.database.read(
        list_schedules, access.project_id, page, function_id=function_id
    )
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.get("/v1/schedules/{schedule}", responses=problems(404))
async def show_schedule(platform: PlatformHere, access: Reader, schedule: Asked) -> ScheduleWhole:
    """Show one schedule with its next and its last due times."""
    await platform.journal.barrier()  # the record of its last run may be on its way
    found = await view_schedule(
        platform, access.project_id, schedule, fires=FIRES, upcoming=UPCOMING
    )
    return ScheduleWhole(
        **_shown(found.schedule).model_dump(),
        next_fires=list(map(_due_shown, found.upcoming)),
        last_fires=list(map(_fire_shown, found.fires)),
        last_status=found.last_status,
    )


@router.patch("/v1/schedules/{schedule}", responses=problems(404, 409, 422, body=True))
async def alter_schedule(
    platform: PlatformHere, access: Developer, schedule: Asked, body: ScheduleChanged
) -> ScheduleShown:
    """Change what is sent; a new time counts from now on."""
    return _shown(await change_schedule(platform, access.project_id, schedule, _given(body)))


@router.delete(
    "/v1/schedules/{schedule}", status_code=204, response_class=Response, responses=problems(404)
)
async def drop_schedule(platform: PlatformHere, access: Developer, schedule: Asked) -> None:
    """Delete a schedule; runs that it has queued still run."""
    await remove_schedule(platform, access.project_id, schedule)


@router.post("/v1/schedules/{schedule}/pause", responses=problems(404, 422, body=True))
async def hold_schedule(
    platform: PlatformHere, access: Invoker, schedule: Asked, body: Reason = None
) -> ScheduleShown:
    """Let nothing be due until it is resumed; what falls due meanwhile is not made up for."""
    reason = "" if body is None else body.reason
    return _shown(await pause_schedule(platform, access.project_id, schedule, reason))


@router.post("/v1/schedules/{schedule}/resume", responses=problems(404))
async def continue_schedule(
    platform: PlatformHere, access: Invoker, schedule: Asked
) -> ScheduleShown:
    """Let it be due again, from now on."""
    return _shown(await resume_schedule(platform, access.project_id, schedule))


@router.post(
    "/v1/schedules/{schedule}/trigger",
    status_code=202,
    responses=problems(404, 409, 422, body=True),
)
async def fire_schedule(
    platform: PlatformHere,
    access: Invoker,
    response: Response,
    schedule: Asked,
    force: Annotated[bool, Query(description="Also beside a run that has not ended.")] = False,
    device: Annotated[str | None, Query(description="Device-local: for which one.")] = None,
    _body: NoFields = None,
) -> Triggered:
    """Run it now, once more; its due times stay."""
    execution_id = await trigger_schedule(
        platform, access.project_id, schedule, force=force, device=device
    )
    response.headers["Location"] = f"/v1/executions/{execution_id}"
    return Triggered(execution_id=execution_id, status="queued")


@router.post("/v1/schedules/{schedule}/backfill", responses=problems(404, 409, 422, body=True))
async def make_up(
    platform: PlatformHere, access: Invoker, schedule: Asked, body: BackfillAsked
) -> BackfillShown:
    """Run it for due times that have passed and that nothing ran for."""
    from_ms, to_ms = parse_time(body.from_, "/from"), parse_time(body.to, "/to")
    done = await backfill_schedule(
        platform,
        access.project_id,
        schedule,
        from_ms,
        to_ms,
        overlap=body.overlap,
        dry_run=body.dry_run,
    )
    items = list(map(_backfilled, done))
    runs_count = sum(item.outcome != ALREADY_FIRED for item in items)
    return BackfillShown(dry_run=body.dry_run, count=runs_count, items=items)


@router.get("/v1/schedules/{schedule}/preview", responses=problems(404, 422))
async def preview_schedule(
    platform: PlatformHere,
    access: Reader,
    schedule: Asked,
    from_: From = None,
    to: To = None,
    limit: PreviewLimit = 10,
) -> PreviewShown:
    """Show when it is due: exact instants, local and UTC, and what clock changes do to them."""
    found = await get_schedule(platform, access.project_id, schedule)
    zones = await zones_of(platform, found)
    from_ms, to_ms = _range(from_, to, platform.clock(), "?from", "?to")
    return _preview_shown(
        await asyncio.to_thread(preview, zones, found.spec, from_ms, to_ms, limit)
    )


_RANGE: Final = frozenset({"from_", "to", "limit"})


def _given(body: TimingAsked) -> dict[str, Any]:
    """Return what was sent, as the rules take it."""
    sent = {name: getattr(body, name) for name in body.model_fields_set}
    if "dst" in sent:
        dst = sent.pop("dst")
        names = Dst.model_fields if dst is None else dst.model_fields_set
        sent |= {name: dst and getattr(dst, name) for name in names}
    for name in ("start", "end"):
        if f"{name}_at" in sent:
            text = sent.pop(f"{name}_at")
            sent[f"{name}_ms"] = None if text is None else parse_time(text, f"/{name}_at")
    for name in ("on_failure", "on_recovery"):
        if sent.get(name) is not None:
            sent[name] = sent[name].model_dump()
    if "device_local" in sent:
        device_local = sent.pop("device_local")
        sent["product"] = device_local and device_local.product
    if "payload" in sent:
        sent["payload"] = json.dumps(sent["payload"], separators=(",", ":")).encode()
    return sent


def _range(
    from_: str | None, to: str | None, now_ms: int, from_pointer: str, to_pointer: str
) -> tuple[int, int | None]:
    from_ms = now_ms if from_ is None else parse_time(from_, from_pointer)
    to_ms = None if to is None else parse_time(to, to_pointer)
    if to_ms is not None and to_ms < from_ms:
        raise Invalid("must not be earlier than from", to_pointer)
    return from_ms, to_ms


def _shown(schedule: Schedule) -> ScheduleShown:
    spec, options = schedule.spec, schedule.options
    recovery, product = options.on_recovery, schedule.product
    return ScheduleShown(
        id=schedule.id,
        name=schedule.name,
        function=schedule.function,
        cron=spec.cron or None,
        every=duration_text(spec.every_ms) if spec.every_ms else None,
        at=spec.at or None,
        timezone=spec.timezone if product is None else DEVICE,
        seconds=spec.seconds,
        dst=DstShown(gap=spec.gap, fold=spec.fold),
        start_at=_time(spec.start_ms),
        end_at=_time(spec.end_ms),
        payload=json.loads(schedule.payload),
        overlap=options.overlap,
        catchup_window=duration_text(options.catchup_ms),
        jitter=duration_text(options.jitter_ms),
        priority=_PRIORITY_NAMES[options.priority],
        queue=options.queue,
        max_attempts=options.max_attempts or None,
        pause_on_failure=options.pause_on_failure or None,
        on_failure=_follower(options.on_failure),
        on_recovery=None if recovery is None else RecoveryShown(function=recovery.function),
        device_local=None if product is None else DeviceLocalShown(product=product),
        paused=schedule.paused_ms is not None,
        paused_at=_time(schedule.paused_ms),
        paused_reason=schedule.paused_reason,
        failures=schedule.failures,
        next_at=_time(schedule.next_ms),
        created_at=iso(schedule.created_ms),
    )


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso(at_ms)


def _follower(follower: Follower | None) -> FollowerShown | None:
    if follower is None:
        return None
    return FollowerShown(function=follower.function, times=follower.times)


def _preview_shown(found: Preview) -> PreviewShown:
    return PreviewShown(
        items=list(map(_due_shown, found.due)),
        skipped=[
            SkippedShown(local=one.local, timezone=zone, note=one.note)
            for zone, one in found.skipped
        ],
    )


def _due_shown(due: Previewed) -> DueShown:
    instant = due.instant
    return DueShown(
        at=iso(instant.at_ms), local=instant.local, timezone=due.timezone, note=instant.note
    )


def _fire_shown(fire: Fire) -> FireShown:
    return FireShown(
        at=iso(fire.due_ms),
        fired_at=iso(fire.fired_ms),
        outcome=fire.outcome,
        device_id=fire.device_id,
        execution_id=fire.execution_id,
        status=fire.status,
    )


def _backfilled(one: Backfilled) -> BackfillItem:
    return BackfillItem(
        at=iso(one.instant.at_ms),
        local=one.instant.local,
        device_id=one.device_id,
        outcome=one.outcome,
        execution_id=one.execution_id,
    )
