"""`cloudcode secret`: what goes in and is never shown again.

Never:  needs a secret on the command line, where every user of the machine can read it.
"""

import sys
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused, NotText
from engine.cli.session import Session

Limit = Annotated[int, typer.Option(help="How many at most.", min=1)]
Functions = Annotated[
    list[str] | None,
    typer.Option(help="Only this function may have it; may be repeated. Left out: as it was."),
]
AllFunctions = Annotated[
    bool, typer.Option("--all-functions", help="Every function of the project may have it.")
]


def allowed_functions(names: list[str] | None, *, all_functions: bool) -> dict[str, Any]:
    """Return the field of a body that says who may have it; none: as it was."""
    if all_functions and names:
        raise Misused("give --function or --all-functions, not both")
    return {"functions": names or None} if names or all_functions else {}


def secret_put(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="Capitals, digits and _: SLACK_TOKEN.")],
    value: Annotated[
        str | None,
        typer.Option(help="Seen in the process list; left out: typed in, or read from stdin."),
    ] = None,
    function: Functions = None,
    all_functions: AllFunctions = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if it takes it from a live function that needs it."),
    ] = False,
) -> None:
    """Store a secret; functions that list its name see it in env."""
    allowed = allowed_functions(function, all_functions=all_functions)
    if value is None:
        value = typed_in(f"value of {name}")
    query = {"force": "true"} if force else {}
    body = {"value": value, **allowed}
    session.client.request("PUT", f"/v1/secrets/{segment(name)}", body=body, query=query)
    session.screen.record({"name": name, "stored": True, **allowed})


def secret_list(session: Session, limit: Limit = 50) -> None:
    """List the names of the secrets, never their values."""
    secrets = session.client.items("/v1/secrets", count_max=limit)
    session.screen.rows(secrets, ("name", "functions", "updated_at"))


def secret_delete(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="The secret's name.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if a live function needs it.")
    ] = False,
) -> None:
    """Delete a secret."""
    query = {"force": "true"} if force else {}
    session.client.request("DELETE", f"/v1/secrets/{segment(name)}", query=query)
    session.screen.record({"name": name, "deleted": True})


def typed_in(what: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:  # `from None`: it holds the text, and so the secret
        raise NotText(what) from None
