"""`cloudcode executions` and `limits`: what ran, and what is allowed."""

from typing import Annotated

import typer

from engine.cli.client import segment
from engine.cli.session import Session

Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]


def executions_list(
    session: Session,
    *,
    function: Annotated[str, typer.Option(help="Only this function's.")] = "",
    status: Annotated[str, typer.Option(help="Only these: queued, succeeded, failed ...")] = "",
    device: Annotated[str, typer.Option(help="Only those that this device's id caused.")] = "",
    since: Annotated[str, typer.Option(help="Only later ones, ISO 8601.")] = "",
    limit: Limit = 50,
) -> None:
    """List runs: what started them, how they ended, how long they waited and took."""
    runs = session.client.items(
        "/v1/executions",
        count_max=limit,
        function=function,
        status=status,
        device=device,
        since=since,
    )
    columns = ("id", "function", "version", "handler", "status", "queue_ms", "wall_ms", "cpu_ms")
    session.screen.rows(runs, (*columns, "created_at"))


def executions_show(
    session: Session, execution: Annotated[str, typer.Argument(help="The execution's id.")]
) -> None:
    """Show everything about one run: input, result, error, limit, effects."""
    session.screen.record(session.client.get(f"/v1/executions/{segment(execution)}"))


def limits(session: Session) -> None:
    """Show every limit of this engine: defaults and the most, by handler."""
    session.screen.record(session.client.get("/v1/limits"))
