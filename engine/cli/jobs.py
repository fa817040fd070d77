"""`cloudcode jobs`, `dlq`, `replay` and `cancel`: runs for later, those that failed, once more."""

from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.invoke import params_of
from engine.cli.session import Session
from engine.durations import duration_ms
from engine.errors import Invalid

Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]
Function = Annotated[str, typer.Option(help="Only this function's.")]
Queue = Annotated[str, typer.Option(help="Only those of this queue.")]
Since = Annotated[str, typer.Option(help="Only later ones, ISO 8601.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count them.")]
Breaker = Annotated[str, typer.Option(help="Only those that this breaker has set aside.")]
Letter = Annotated[str, typer.Argument(help="A dead letter's id; else name a filter.")]
Cause = Annotated[str, typer.Option(help="Only these: write, job, schedule, call ...")]
Every = Annotated[bool, typer.Option("--all", help="Where no filter is given: all there are.")]

BULK_ANSWER_S = 15 * 60.0  # 100,000 runs in steps of a hundred take a while


def jobs_create(
    session: Session,
    *,
    function: Annotated[str, typer.Argument(help="The function's name.")],
    payload: Annotated[
        str, typer.Argument(help="JSON; @FILE reads a file, - reads stdin; empty is null.")
    ] = "",
    handler: Annotated[str, typer.Option(help="Which handler, where there are several.")] = "",
    at: Annotated[str, typer.Option(help="When to run, ISO 8601; else now.")] = "",
    delay: Annotated[str, typer.Option(help="Instead: how long from now, as 30s, 5m, 2h.")] = "",
    queue: Annotated[str, typer.Option(help="Its label.")] = "default",
    priority: Annotated[str, typer.Option(help="high, default or low.")] = "default",
    key: Annotated[str, typer.Option(help="Makes one job a day, however often it is sent.")] = "",
    max_attempts: Annotated[int | None, typer.Option(help="1 to 100; 3 unless given.")] = None,
    backoff: Annotated[str, typer.Option(help="Between attempts: exponential or fixed.")] = "",
    base: Annotated[str, typer.Option(help="The longest first wait, as 1s.")] = "",
    cap: Annotated[str, typer.Option(help="The longest wait of all, as 1h.")] = "",
    ttl: Annotated[str, typer.Option(help="Skip it if it cannot start within, as 10m.")] = "",
) -> None:
    """Have a function run later, or now and again until it succeeds."""
    waits = {
        "kind": backoff or None,
        "base_seconds": _seconds(base, "--base"),
        "cap_seconds": _seconds(cap, "--cap"),
    }
    body = {
        "function": function,
        "handler": handler or None,
        "run_at": at or None,
        "delay_seconds": _seconds(delay, "--delay"),
        "queue": queue,
        "priority": priority,
        "idempotency_key": key or None,
        "max_attempts": max_attempts,
        "backoff": _given(waits) or None,
        "ttl_seconds": _seconds(ttl, "--ttl"),
    }
    made = session.client.post(
        "/v1/jobs", {**_given(body), "payload": params_of(payload, "payload")}
    )
    session.screen.record(made)


def jobs_list(
    session: Session,
    *,
    status: Annotated[str, typer.Option(help="Only these: queued, running, failed ...")] = "",
    queue: Queue = "",
    function: Function = "",
    batch: Annotated[str, typer.Option(help="Only those of one call that made several.")] = "",
    since: Since = "",
    limit: Limit = 50,
) -> None:
    """List jobs: where they stand, how often they were tried."""
    jobs = session.client.items(
        "/v1/jobs",
        count_max=limit,
        status=status,
        queue=queue,
        function=function,
        batch=batch,
        since=since,
    )
    columns = ("id", "function", "queue", "priority", "status", "attempts", "next_attempt_at")
    session.screen.rows(jobs, (*columns, "created_at"))


def jobs_show(
    session: Session,
    *,
    job: Annotated[str, typer.Argument(help="The job's id.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end.", min=0, max=30)] = 0.0,
) -> None:
    """Show one job: payload, progress, result, error, attempts."""
    query = {"wait": wait} if wait else {}
    session.screen.record(session.client.get(f"/v1/jobs/{segment(job)}", **query))


def jobs_cancel(
    session: Session, job: Annotated[str, typer.Argument(help="The job's id.")]
) -> None:
    """Cancel a job that is queued or running."""
    session.client.delete(f"/v1/jobs/{segment(job)}")
    session.screen.record({"id": job, "status": "cancelled"})


def dlq_list(
    session: Session,
    *,
    function: Function = "",
    queue: Queue = "",
    cause: Cause = "",
    breaker: Breaker = "",
    since: Since = "",
    limit: Limit = 50,
) -> None:
    """List dead letters: runs that failed at every attempt they had."""
    letters = session.client.items(
        "/v1/dead-letters",
        count_max=limit,
        function=function,
        queue=queue,
        cause=cause,
        breaker=breaker,
        since=since,
    )
    columns = ("id", "function", "handler", "cause", "queue", "status", "attempts", "error")
    session.screen.rows(letters, (*columns, "created_at"))


def dlq_show(
    session: Session, letter: Annotated[str, typer.Argument(help="The dead letter's id.")]
) -> None:
    """Show one dead letter: payload, error, attempts."""
    session.screen.record(session.client.get(f"/v1/dead-letters/{segment(letter)}"))


def dlq_edit(
    session: Session,
    *,
    letter: Annotated[str, typer.Argument(help="The dead letter's id.")],
    payload: Annotated[str, typer.Argument(help="JSON; @FILE reads a file, - reads stdin.")],
) -> None:
    """Give a dead letter another payload, for when it is redriven."""
    body = {"payload": params_of(payload, "payload")}
    path = f"/v1/dead-letters/{segment(letter)}"
    session.screen.record(session.client.request("PATCH", path, body=body))


def dlq_redrive(
    session: Session,
    *,
    letter: Letter = "",
    function: Function = "",
    queue: Queue = "",
    cause: Cause = "",
    breaker: Breaker = "",
    since: Since = "",
    every: Every = False,
    dry_run: DryRun = False,
) -> None:
    """Run dead letters once more, on what is live now: one, or all of a filter."""
    wanted = {"function": function, "queue": queue, "cause": cause}
    wanted = _given(wanted | {"breaker": breaker, "since": since})
    _check_which(letter, wanted, every=every)
    if letter and not dry_run:
        done = session.client.post(f"/v1/dead-letters/{segment(letter)}/redrive", {})
    else:
        which = {"ids": [letter]} if letter else {"filter": wanted}
        done = _bulk(session, "/v1/dead-letters:redrive", {**which, "dry_run": dry_run})
    session.screen.record(done)


def dlq_delete(
    session: Session,
    *,
    letter: Letter = "",
    function: Function = "",
    queue: Queue = "",
    cause: Cause = "",
    breaker: Breaker = "",
    since: Since = "",
    every: Every = False,
    dry_run: DryRun = False,
) -> None:
    """Throw dead letters away: one, or all of a filter."""
    wanted = {"function": function, "queue": queue, "cause": cause}
    wanted = _given(wanted | {"breaker": breaker, "since": since})
    _check_which(letter, wanted, every=every)
    if letter:
        path = f"/v1/dead-letters/{segment(letter)}"
        session.client.request("GET" if dry_run else "DELETE", path)
        session.screen.record({"count": 1, "ids": [letter], "dry_run": dry_run})
        return
    query = {**wanted, "all": str(every).lower(), "dry_run": str(dry_run).lower()}
    response = session.client.send(
        "DELETE", "/v1/dead-letters", query=query, answer_s=BULK_ANSWER_S
    )
    session.screen.record(session.client.json_of(response))


def replay(
    session: Session,
    *,
    execution: Annotated[str, typer.Argument(help="An execution's id; else name a filter.")] = "",
    function: Function = "",
    status: Annotated[str, typer.Option(help="Only these: failed, timed_out ...")] = "",
    device: Annotated[str, typer.Option(help="Only those that this device's id caused.")] = "",
    since: Since = "",
    until: Annotated[str, typer.Option(help="Only earlier ones, ISO 8601.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Run once more what has ended, with what it got, on what is live now."""
    wanted = {"function": function, "status": status, "device": device}
    wanted |= {"since": since, "until": until}
    _runs(session, "replay", execution, _given(wanted), dry_run=dry_run)


def cancel(
    session: Session,
    *,
    execution: Annotated[
        str, typer.Argument(help="The id of an execution or a job; else name a filter.")
    ] = "",
    function: Function = "",
    status: Annotated[str, typer.Option(help="Only these: queued or running.")] = "",
    device: Annotated[str, typer.Option(help="Only those that this device's id caused.")] = "",
    since: Since = "",
    until: Annotated[str, typer.Option(help="Only earlier ones, ISO 8601.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Cancel what is queued or running: nothing of it is applied."""
    if execution.startswith("job_") and not dry_run:
        jobs_cancel(session, execution)
        return
    wanted = {"function": function, "status": status, "device": device}
    wanted |= {"since": since, "until": until}
    _runs(session, "cancel", execution, _given(wanted), dry_run=dry_run)


def _runs(
    session: Session, action: str, execution: str, wanted: dict[str, Any], *, dry_run: bool
) -> None:
    if bool(execution) == bool(wanted):
        raise Misused("name either an EXECUTION or a filter, such as --function F")
    if execution and dry_run:
        raise Misused("a dry run counts what a filter finds; it needs no EXECUTION")
    if execution:
        done = session.client.post(f"/v1/executions/{segment(execution)}/{action}", {})
    else:
        body = {"action": action, "filter": wanted, "dry_run": dry_run}
        done = _bulk(session, "/v1/executions:bulk", body)
    session.screen.record(done)


def _bulk(session: Session, path: str, body: dict[str, Any]) -> Any:
    with session.screen.progress("working through them ..."):
        response = session.client.send("POST", path, body=body, answer_s=BULK_ANSWER_S)
    return session.client.json_of(response)


def _check_which(letter: str, wanted: dict[str, Any], *, every: bool) -> None:
    if bool(letter) + bool(wanted) + every != 1:
        raise Misused("name one of: a LETTER, a filter such as --function F, --all")


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _seconds(text: str, option: str) -> float | None:
    if not text:
        return None
    try:
        return duration_ms(float(text) if text.replace(".", "", 1).isdigit() else text, "") / 1000
    except Invalid as error:
        raise Misused(f"{option}: {error}") from error
