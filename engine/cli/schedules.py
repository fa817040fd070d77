"""`cloudcode schedule`: functions that run by the clock."""

import json
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

Schedule = Annotated[str, typer.Argument(help="The schedule's id or name.")]
Start = Annotated[str, typer.Option("--from", help="The earliest, ISO 8601.")]
End = Annotated[str, typer.Option("--to", help="Until before then, ISO 8601.")]
COLUMNS = ("id", "name", "function", "when", "timezone", "next_at", "paused")


def schedule_list(
    session: Session,
    *,
    function: Annotated[str, typer.Option(help="Only this function's: id or name.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)] = 50,
) -> None:
    """List schedules."""
    found = session.client.items("/v1/schedules", count_max=limit, function=function)
    session.screen.rows([_with_when(one) for one in found], COLUMNS)


def schedule_create(
    session: Session,
    *,
    function: Annotated[str, typer.Argument(help="What runs: id or name.")],
    cron: Annotated[str, typer.Option(help="Five fields, or a macro such as @daily.")] = "",
    every: Annotated[str, typer.Option(help="30s, 5m, 2h; hourly, daily.")] = "",
    at: Annotated[str, typer.Option(help="Once: local time, or with an offset an instant.")] = "",
    timezone: Annotated[str, typer.Option(help="IANA name; UTC if left out.")] = "",
    name: Annotated[str, typer.Option(help="Else its id.")] = "",
    payload: Annotated[str, typer.Option(help="JSON that the function gets.")] = "",
    overlap: Annotated[
        str, typer.Option(help="skip, buffer_one, buffer_all, cancel_other, allow_all.")
    ] = "",
    jitter: Annotated[str, typer.Option(help="Begin up to so much later: 30s.")] = "",
    catchup_window: Annotated[str, typer.Option(help="Missed when later than this: 1h.")] = "",
    start_at: Annotated[str, typer.Option(help="Not before, ISO 8601.")] = "",
    end_at: Annotated[str, typer.Option(help="Not after, ISO 8601.")] = "",
    product: Annotated[
        str, typer.Option(help="Run for each of its devices, at that local time there.")
    ] = "",
    seconds: Annotated[
        bool, typer.Option("--seconds", help="The line begins with a field of seconds.")
    ] = False,
    dst_gap: Annotated[
        str, typer.Option(help="Of a local time that does not exist: run_after, skip.")
    ] = "",
    dst_fold: Annotated[
        str, typer.Option(help="Of a local time that comes twice: first, both.")
    ] = "",
    max_attempts: Annotated[int | None, typer.Option(help="Of a run, with the first.")] = None,
    priority: Annotated[str, typer.Option(help="high, default or low.")] = "",
    queue: Annotated[str, typer.Option(help="A label of its runs.")] = "",
    pause_on_failure: Annotated[
        int | None, typer.Option(help="Pause it after so many failures in a row.")
    ] = None,
    on_failure: Annotated[str, typer.Option(help="Function that runs when it fails.")] = "",
    on_failure_times: Annotated[
        int | None, typer.Option(help="With --on-failure: after so many in a row; else 1.")
    ] = None,
    on_recovery: Annotated[str, typer.Option(help="Function that runs when it works again.")] = "",
) -> None:
    """Run a function by the clock, and print when it is due first."""
    if on_failure_times is not None and not on_failure:
        raise Misused("--on-failure-times needs a function", remedy="give --on-failure as well")
    given = {
        "function": function, "cron": cron, "every": every, "at": at, "timezone": timezone,
        "name": name, "overlap": overlap, "jitter": jitter, "catchup_window": catchup_window,
        "start_at": start_at, "end_at": end_at, "seconds": seconds, "priority": priority,
        "queue": queue,
    }  # fmt: skip
    counts = {"max_attempts": max_attempts, "pause_on_failure": pause_on_failure}
    body: dict[str, Any] = {field: value for field, value in given.items() if value}
    body |= {field: value for field, value in counts.items() if value is not None}
    dst = {"gap": dst_gap, "fold": dst_fold}
    if any(dst.values()):
        body["dst"] = {field: value for field, value in dst.items() if value}
    if on_failure:
        times = {} if on_failure_times is None else {"times": on_failure_times}
        body["on_failure"] = {"function": on_failure} | times
    if on_recovery:
        body["on_recovery"] = {"function": on_recovery}
    if payload:
        body["payload"] = _json(payload)
    if product:
        body["device_local"] = {"product": product}
    session.screen.record(session.client.post("/v1/schedules", body))


def schedule_show(session: Session, schedule: Schedule) -> None:
    """Show a schedule with its next and its last due times."""
    session.screen.record(session.client.get(f"/v1/schedules/{segment(schedule)}"))


def schedule_preview(
    session: Session,
    *,
    schedule: Annotated[str, typer.Argument(help="Its id or name; left out: give --cron.")] = "",
    cron: Annotated[str, typer.Option(help="Of a schedule that does not exist yet.")] = "",
    timezone: Annotated[str, typer.Option(help="With --cron: IANA name.")] = "",
    start: Start = "",
    end: End = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 10,
) -> None:
    """Show exact due times, local and UTC, and what clock changes do to them."""
    if bool(schedule) == bool(cron):
        raise Misused("give a schedule, or --cron", remedy="for example: --cron '0 7 * * MON-FRI'")
    if schedule:
        path = f"/v1/schedules/{segment(schedule)}/preview"
        query = {"from": start, "to": end, "limit": limit}
        found = session.client.request("GET", path, query=query)
    else:
        given = {"cron": cron, "timezone": timezone, "from": start, "to": end, "limit": limit}
        body = {field: value for field, value in given.items() if value}
        found = session.client.post("/v1/schedules/preview", body)
    if session.as_json:
        session.screen.value(found)
        return
    session.screen.rows(found["items"], ("at", "local", "timezone", "note"))
    for one in found["skipped"]:
        session.screen.say(f"skipped: {one['local']} {one['timezone']}: {one['note']}")


def schedule_pause(
    session: Session,
    *,
    schedule: Schedule,
    reason: Annotated[str, typer.Option(help="Shown with the schedule.")] = "",
) -> None:
    """Let nothing be due until it is resumed."""
    path = f"/v1/schedules/{segment(schedule)}/pause"
    session.screen.record(session.client.post(path, {"reason": reason}))


def schedule_resume(session: Session, schedule: Schedule) -> None:
    """Let it be due again, from now on."""
    path = f"/v1/schedules/{segment(schedule)}/resume"
    session.screen.record(session.client.post(path, {}))


def schedule_trigger(
    session: Session,
    *,
    schedule: Schedule,
    force: Annotated[
        bool, typer.Option("--force", help="Also beside a run that has not ended.")
    ] = False,
    device: Annotated[str, typer.Option(help="Device-local: the id of the device.")] = "",
) -> None:
    """Run it now, once more."""
    path = f"/v1/schedules/{segment(schedule)}/trigger"
    query = {"force": "true" if force else "", "device": device}
    session.screen.record(session.client.request("POST", path, query=query))


def schedule_backfill(
    session: Session,
    *,
    schedule: Schedule,
    start: Annotated[str, typer.Option("--from", help="The earliest, ISO 8601.")],
    end: Annotated[str, typer.Option("--to", help="Until before then; now at the latest.")],
    overlap: Annotated[
        str, typer.Option(help="buffer_all: one after another; allow_all: side by side.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
) -> None:
    """Run it for due times that have passed and that nothing ran for."""
    body: dict[str, Any] = {"from": start, "to": end, "dry_run": dry_run}
    if overlap:
        body["overlap"] = overlap
    found = session.client.post(f"/v1/schedules/{segment(schedule)}/backfill", body)
    session.screen.rows(found["items"], ("at", "local", "device_id", "outcome", "execution_id"))


def schedule_delete(session: Session, schedule: Schedule) -> None:
    """Delete a schedule; runs that it has queued still run."""
    session.client.delete(f"/v1/schedules/{segment(schedule)}")
    session.screen.record({"schedule": schedule, "deleted": True})


def _with_when(one: dict[str, Any]) -> dict[str, Any]:
    every = one["every"] and f"every {one['every']}"
    at = one["at"] and f"at {one['at']}"
    return {**one, "when": one["cron"] or every or at}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Misused(
            f"--payload is not JSON: {error}", remedy="""for example: '{"n": 1}'"""
        ) from None
