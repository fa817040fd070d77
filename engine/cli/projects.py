"""`cloudcode projects`: tenants, how their code is walled in, and what each may use."""

import math
from typing import Annotated, Any, Final

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

DEFAULT: Final = "default"
COLUMNS: Final = ("id", "name", "isolation", "created_at")

Name = Annotated[str, typer.Argument(help="Id or name; `current`: the key's own.")]
Isolation = Annotated[
    str, typer.Option(help="standard or hardened: all code is interpreted.", show_default=False)
]
Amount = Annotated[
    str,
    typer.Option(help="A number; 0: no limit; default: as for all projects.", show_default=False),
]


def projects_list(
    session: Session,
    limit: Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)] = 50,
) -> None:
    """List the projects. Needs an admin key."""
    session.screen.rows(session.client.items("/v1/projects", count_max=limit), COLUMNS)


def projects_create(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="The project's name.")],
    isolation: Isolation = "",
    concurrency: Amount = "",
    queued: Amount = "",
    cpu_seconds_per_minute: Amount = "",
    cpu_seconds_per_month: Amount = "",
    key_requests_per_minute: Amount = "",
    device_requests_per_minute: Amount = "",
) -> None:
    """Make a project and print the key that it comes with. Needs an admin key."""
    body = _body(
        isolation,
        concurrency=concurrency,
        queued=queued,
        cpu_seconds_per_minute=cpu_seconds_per_minute,
        cpu_seconds_per_month=cpu_seconds_per_month,
        key_requests_per_minute=key_requests_per_minute,
        device_requests_per_minute=device_requests_per_minute,
    )
    session.screen.record(session.client.post("/v1/projects", {"name": name, **body}))


def projects_show(session: Session, name: Name = "current") -> None:
    """Show a project: its isolation, what it has been allowed, and what holds."""
    session.screen.record(session.client.get(f"/v1/projects/{segment(name)}"))


def projects_set(
    session: Session,
    *,
    name: Name,
    isolation: Isolation = "",
    concurrency: Amount = "",
    queued: Amount = "",
    cpu_seconds_per_minute: Amount = "",
    cpu_seconds_per_month: Amount = "",
    key_requests_per_minute: Amount = "",
    device_requests_per_minute: Amount = "",
) -> None:
    """Change a project; what is not named stays. Needs an admin key."""
    body = _body(
        isolation,
        concurrency=concurrency,
        queued=queued,
        cpu_seconds_per_minute=cpu_seconds_per_minute,
        cpu_seconds_per_month=cpu_seconds_per_month,
        key_requests_per_minute=key_requests_per_minute,
        device_requests_per_minute=device_requests_per_minute,
    )
    if not body:
        raise Misused("nothing to change was named", remedy="for example: --isolation hardened")
    path = f"/v1/projects/{segment(name)}"
    session.screen.record(session.client.request("PATCH", path, body=body))


def _body(isolation: str, **amounts: str) -> dict[str, Any]:
    allowances = {name: _amount(name, text) for name, text in amounts.items() if text}
    return {
        **({"isolation": isolation} if isolation else {}),
        **({"allowances": allowances} if allowances else {}),
    }


def _amount(name: str, text: str) -> float | int | None:
    if text == DEFAULT:
        return None
    try:
        amount = float(text) if name.startswith("cpu_seconds") else int(text)
        if math.isfinite(amount):
            return amount
    except ValueError:
        pass
    option = name.replace("_", "-")
    raise Misused(f"{text!r} of --{option} is no number", remedy="for example 50, or default")
