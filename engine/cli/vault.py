"""`cloudcode secret` and `cloudcode connection`: what goes in and is never shown again.

Never:  needs a secret on the command line, where every user of the machine can read it.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

Limit = Annotated[int, typer.Option(help="How many at most.", min=1)]


def secret_put(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="Capitals, digits and _: SLACK_TOKEN.")],
    value: Annotated[
        str | None,
        typer.Option(help="Seen in the process list; left out: typed in, or read from stdin."),
    ] = None,
) -> None:
    """Store a secret; functions that list its name see it in env."""
    if value is None:
        value = _typed_in(f"value of {name}")
    session.client.put(f"/v1/secrets/{segment(name)}", {"value": value})
    session.screen.record({"name": name, "stored": True})


def secret_list(session: Session, limit: Limit = 50) -> None:
    """List the names of the secrets, never their values."""
    secrets = session.client.items("/v1/secrets", count_max=limit)
    session.screen.rows(secrets, ("name", "updated_at"))


def secret_delete(
    session: Session, name: Annotated[str, typer.Argument(help="The secret's name.")]
) -> None:
    """Delete a secret."""
    session.client.delete(f"/v1/secrets/{segment(name)}")
    session.screen.record({"name": name, "deleted": True})


def connection_put(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="Capitals, digits and _: env.ALERTS.")],
    kind: Annotated[str, typer.Option(help="slack or webhook.")],
    credential: Annotated[
        list[str] | None, typer.Option(help="K=V, seen in the process list; may be repeated.")
    ] = None,
    credentials: Annotated[
        str, typer.Option(help="A file of JSON, or - for stdin: not in the process list.")
    ] = "",
) -> None:
    """Store a provider's credentials; functions send through it as env.NAME."""
    body = {"kind": kind, "credentials": _credentials(credential or [], credentials)}
    done = session.client.put(f"/v1/connections/{segment(name)}", body)
    session.screen.record(done or {"name": name, "kind": kind})


def connection_list(session: Session, limit: Limit = 50) -> None:
    """List the connections, never their credentials."""
    connections = session.client.items("/v1/connections", count_max=limit)
    session.screen.rows(connections, ("name", "kind", "settings", "updated_at"))


def connection_delete(
    session: Session, name: Annotated[str, typer.Argument(help="The connection's name.")]
) -> None:
    """Delete a connection."""
    session.client.delete(f"/v1/connections/{segment(name)}")
    session.screen.record({"name": name, "deleted": True})


def _typed_in(what: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(what, hide_input=True, err=True))
    return sys.stdin.read().removesuffix("\n")


def _credentials(pairs: list[str], file: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if file:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            raise Misused(f"--credentials {file}: {error}") from error
        if not isinstance(found, dict):
            raise Misused(f"--credentials {file} must hold a JSON object")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Misused("--credential takes K=V", remedy="for example: webhook_url=https://...")
        found[key] = value
    if not found:
        raise Misused("give --credential K=V or --credentials FILE")
    return found
