"""`cloudcode deliveries`: what was sent to providers, and what to do when it was not."""

from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused, Refused
from engine.cli.session import Session
from engine.clock import iso, wall_clock
from engine.durations import duration_ms
from engine.errors import Invalid

Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]
One = Annotated[str, typer.Argument(help="A delivery's id; else name a filter.")]
State = Annotated[str, typer.Option(help="Only those: queued, retrying, held, failed ...")]
Connection = Annotated[str, typer.Option(help="Only those of this connection.")]
Kind = Annotated[str, typer.Option(help="Only those to this kind of provider.")]
Recipient = Annotated[str, typer.Option(help="Only those for this recipient.")]
Execution = Annotated[str, typer.Option(help="Only those of this run.")]
Function = Annotated[str, typer.Option(help="Only those of this function.")]
Since = Annotated[str, typer.Option(help="Only later ones: ISO 8601, or how long ago, as 2h.")]
Until = Annotated[str, typer.Option(help="Only earlier ones: likewise.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count them.")]

INLINE = "inline:"  # so begins the name of credentials that came from the code
BULK_ANSWER_S = 15 * 60.0  # 100,000 deliveries in steps of some hundred take a while


def deliveries_list(
    session: Session,
    *,
    state: State = "",
    connection: Connection = "",
    kind: Kind = "",
    recipient: Recipient = "",
    execution: Execution = "",
    function: Function = "",
    since: Since = "",
    until: Until = "",
    limit: Limit = 50,
) -> None:
    """List messages on their way out, and what became of them."""
    found = session.client.items(
        "/v1/deliveries",
        count_max=limit,
        state=state,
        connection=connection,
        kind=kind,
        recipient=recipient,
        execution=execution,
        function=function,
        since=_when(since, "--since"),
        until=_when(until, "--until"),
    )
    if not found:
        _doubt(session, connection)
    rows = [{**one, "why": one.get("reason") or one.get("last_error")} for one in found]
    columns = ("id", "connection", "kind", "recipient", "state", "attempts", "created_at", "why")
    session.screen.rows(found if session.as_json else rows, columns)


def deliveries_show(
    session: Session, delivery: Annotated[str, typer.Argument(help="The delivery's id.")]
) -> None:
    """Show one message: what was sent, every attempt, and what the provider told later."""
    found = session.client.get(f"/v1/deliveries/{segment(delivery)}")
    if session.as_json:
        session.screen.record(found)
        return
    attempts = found.pop("attempts_log", [])
    session.screen.record(found)
    columns = ("attempt", "at", "took_ms", "status", "delivered", "message_id", "error")
    if attempts:
        session.screen.rows(attempts, columns)


def deliveries_resend(
    session: Session,
    *,
    delivery: One = "",
    state: State = "",
    connection: Connection = "",
    kind: Kind = "",
    recipient: Recipient = "",
    function: Function = "",
    since: Since = "",
    until: Until = "",
    dry_run: DryRun = False,
) -> None:
    """Send once more, at once: one message, or all of a filter that failed or were cancelled."""
    wanted = _wanted(state, connection, kind, recipient, function, since, until)
    _act(session, "resend", delivery, wanted, dry_run=dry_run)


def deliveries_cancel(
    session: Session,
    *,
    delivery: One = "",
    state: State = "",
    connection: Connection = "",
    kind: Kind = "",
    recipient: Recipient = "",
    function: Function = "",
    since: Since = "",
    until: Until = "",
    dry_run: DryRun = False,
) -> None:
    """Give up what waits or is held: one message, or all of a filter."""
    wanted = _wanted(state, connection, kind, recipient, function, since, until)
    _act(session, "cancel", delivery, wanted, dry_run=dry_run)


def deliveries_hold(
    session: Session,
    *,
    delivery: One = "",
    state: State = "",
    connection: Connection = "",
    kind: Kind = "",
    recipient: Recipient = "",
    function: Function = "",
    since: Since = "",
    until: Until = "",
    dry_run: DryRun = False,
) -> None:
    """Keep what waits from being sent, until it is released."""
    wanted = _wanted(state, connection, kind, recipient, function, since, until)
    _act(session, "hold", delivery, wanted, dry_run=dry_run)


def deliveries_release(
    session: Session,
    *,
    delivery: One = "",
    connection: Connection = "",
    kind: Kind = "",
    recipient: Recipient = "",
    function: Function = "",
    since: Since = "",
    until: Until = "",
    dry_run: DryRun = False,
) -> None:
    """Send what is held, at once, whatever the cost guard says."""
    wanted = _wanted("", connection, kind, recipient, function, since, until)
    _act(session, "release", delivery, wanted, dry_run=dry_run)


def deliveries_recover(
    session: Session,
    *,
    since: Annotated[str, typer.Option(help="ISO 8601, or how long ago, as 2h.")],
    connection: Connection = "",
    kind: Kind = "",
    function: Function = "",
    until: Until = "",
    dry_run: DryRun = False,
) -> None:
    """Send once more all that has failed since then, whenever it was made."""
    wanted = _wanted("failed", connection, kind, "", function, "", until)
    wanted["ended_since"] = _when(since, "--since")
    _act(session, "resend", "", wanted, dry_run=dry_run)


def _wanted(
    state: str,
    connection: str,
    kind: str,
    recipient: str,
    function: str,
    since: str,
    until: str,
) -> dict[str, Any]:
    fields = {
        "state": state,
        "connection": connection,
        "kind": kind,
        "recipient": recipient,
        "function": function,
        "since": _when(since, "--since"),
        "until": _when(until, "--until"),
    }
    return {name: value for name, value in fields.items() if value}


def _act(
    session: Session, action: str, delivery: str, wanted: dict[str, Any], *, dry_run: bool
) -> None:
    if bool(delivery) == bool(wanted):
        raise Misused("name either a DELIVERY or a filter, such as --connection C")
    if delivery and dry_run:
        raise Misused("a dry run counts what a filter finds; it needs no DELIVERY")
    if delivery:
        done = session.client.post(f"/v1/deliveries/{segment(delivery)}/{action}", {})
    else:
        body = {"action": action, "filter": wanted, "dry_run": dry_run}
        with session.screen.progress("working through them ..."):
            done = session.client.post("/v1/deliveries:bulk", body, answer_s=BULK_ANSWER_S)
        if not done.get("count"):
            _doubt(session, wanted.get("connection", ""))
    session.screen.record(done)


def _doubt(session: Session, connection: str) -> None:
    """Tell of a connection that there is not, where a filter with it has found nothing."""
    if not connection or connection.startswith(INLINE):
        return
    try:
        session.client.get(f"/v1/connections/{segment(connection)}")
    except Refused as refused:  # else this key may not ask: no reason to fail
        if refused.code == "not_found":
            session.screen.say(f"no connection {connection}")


def _when(text: str, option: str) -> str:
    """Return a time for the engine: as it was given, or so long before now."""
    if not text or not text[-1].isalpha() or text[-1] in "zZ":
        return text
    try:
        return iso(wall_clock() - duration_ms(text, ""))
    except Invalid as error:
        raise Misused(f"{option}: {error}; or give a time, as 2010-10-29T00:00:00Z") from error
