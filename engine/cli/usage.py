"""`cloudcode usage`: what projects have used of the CPU, and what they may."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from engine.cli.session import Session

COLUMNS: Final = (
    "project", "runs", "cpu_seconds", "of_month", "this_minute", "owed", "of_minute", "exceeded",
)  # fmt: skip


def usage(
    session: Session,
    *,
    month: Annotated[str, typer.Option(help="YYYY-MM, UTC; the current one.")] = "",
    project: Annotated[str, typer.Option(help="Only this one: its id or name.")] = "",
) -> None:
    """Show CPU seconds and runs; with an admin key and no --project, of every project."""
    told = session.client.get("/v1/usage", month=month, project=project)
    if session.as_json:
        session.screen.value(told)
    else:
        session.screen.rows([_row(one) for one in told["items"]], COLUMNS)


def _row(of: Mapping[str, Any]) -> dict[str, Any]:
    allowed = of["allowances"]
    return {
        "project": of["project"],
        "runs": of["month"]["runs"],
        "cpu_seconds": of["month"]["cpu_seconds"],
        "of_month": allowed["cpu_seconds_per_month"] or "no limit",
        "this_minute": (of["minute"] or {}).get("cpu_seconds"),
        "owed": of["owed_cpu_seconds"],
        "of_minute": allowed["cpu_seconds_per_minute"] or "no limit",
        "exceeded": of["exceeded"],
    }
