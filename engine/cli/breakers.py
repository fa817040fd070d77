"""`cloudcode breakers`: functions, and their devices, that are held back."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.jobs import BULK_ANSWER_S, DryRun
from engine.cli.session import Session

Breaker = Annotated[str, typer.Argument(help="The breaker's id.")]
Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]


def breakers_list(
    session: Session,
    *,
    function: Annotated[str, typer.Option(help="Only this function's.")] = "",
    limit: Limit = 50,
) -> None:
    """List what is held back, for what, and until when."""
    breakers = session.client.items("/v1/breakers", count_max=limit, function=function)
    if not session.as_json:
        breakers = [one | {"error": _said(one["error"])} for one in breakers]
    columns = ("id", "function", "version", "device", "state", "error", "failures", "until")
    session.screen.rows(breakers, (*columns, "set_aside"))


def breakers_show(session: Session, breaker: Breaker) -> None:
    """Show one breaker: what it holds back, and its last failure."""
    found = session.client.get(f"/v1/breakers/{segment(breaker)}")
    if not session.as_json:
        found |= {"error": _said(found["error"])}
    session.screen.record(found)


def breakers_close(session: Session, breaker: Breaker) -> None:
    """Hold nothing back any more: what waits for it runs at once."""
    session.screen.record(session.client.post(f"/v1/breakers/{segment(breaker)}/close", {}))


def breakers_redrive(session: Session, *, breaker: Breaker, dry_run: DryRun = False) -> None:
    """Run once more what a breaker, closed by now, had set aside."""
    path = f"/v1/breakers/{segment(breaker)}/redrive"
    with session.screen.progress("working through them ..."):
        response = session.client.send(
            "POST",
            path,
            body={},
            query={"dry_run": "true"} if dry_run else None,
            answer_s=BULK_ANSWER_S,
        )
    session.screen.record(session.client.json_of(response))


def _said(error: Mapping[str, Any]) -> str:
    """Return a failure in a few words, with the numbers of the limit that it hit."""
    if limit := error.get("limit"):
        return f"{error['status']} ({limit['name']} {limit['value']}, used {limit['used']})"
    if error.get("name"):
        return f"{error['status']} ({error['name']}: {error['message']})"
    return str(error["status"])
