"""`cloudcode events` and `cloudcode explain`: what came in, and what it caused or did not."""

from typing import Annotated

import typer

from engine.cli.client import segment
from engine.cli.session import Session

Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]


def events_list(
    session: Session,
    *,
    device: Annotated[str, typer.Option(help="Only this device's: its id.")] = "",
    since: Annotated[str, typer.Option(help="Only later ones, ISO 8601.")] = "",
    limit: Limit = 50,
) -> None:
    """List what devices, gateways and functions wrote."""
    events = session.client.items("/v1/events", count_max=limit, device=device, since=since)
    session.screen.rows(events, ("id", "received_at", "device_id", "source", "values"))


def explain(
    session: Session, event: Annotated[str, typer.Argument(help="The event's id.")]
) -> None:
    """Say which functions an event ran, and why the others did not."""
    told = session.client.get(f"/v1/events/{segment(event)}/explain")
    session.screen.text(told, told["summary"])
    if not session.as_json and told["items"]:
        columns = ("function", "outcome", "reason", "version", "detail")
        session.screen.rows(told["items"], columns)
