"""`cloudcode connections`: providers' credentials go in, and whether they work comes out.

Never:  takes a credential on the command line, where every user of the machine can read it.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused, NotText
from engine.cli.invoke import params_of
from engine.cli.session import Session
from engine.cli.vault import AllFunctions, Functions, allowed_functions

Name = Annotated[str, typer.Argument(help="The connection's name.")]
Limit = Annotated[int, typer.Option(help="How many at most.", min=1)]

TEST_ANSWER_S = 90.0


def connections_put(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="Capitals, digits and _: env.SMS.")],
    kind: Annotated[str, typer.Option(help="See `cloudcode connections kinds`.")],
    from_file: Annotated[
        str,
        typer.Option(
            "--from-file",
            "--credentials",
            help="A file of JSON, or - for stdin; left out: typed in unseen, or read from stdin.",
        ),
    ] = "",
    keep: Annotated[
        bool, typer.Option("--keep-credentials", help="Change only the rest; the kind stays.")
    ] = False,
    settings: Annotated[
        str, typer.Option(help="JSON; @FILE reads a file. Left out: as they were.")
    ] = "",
    function: Functions = None,
    all_functions: AllFunctions = False,
) -> None:
    """Store a provider's credentials; functions send through it as env.NAME."""
    if keep and from_file:
        raise Misused("give --from-file or --keep-credentials, not both")
    body: dict[str, Any] = {
        "kind": kind,
        **allowed_functions(function, all_functions=all_functions),
    }
    if settings:
        body["settings"] = params_of(settings, "--settings")
    if not keep:
        body["credentials"] = _credentials(session, kind, from_file)
    done = session.client.put(f"/v1/connections/{segment(name)}", body)
    session.screen.record(done or {"name": name, "kind": kind})


def connections_list(session: Session, limit: Limit = 50) -> None:
    """List the connections and how they do, never their credentials."""
    found = session.client.items("/v1/connections", count_max=limit)
    if session.as_json:
        session.screen.rows(found, ())
        return
    rows = [{**one, "state": _state(one.get("gate") or {})} for one in found]
    session.screen.rows(rows, ("name", "kind", "state", "functions", "settings", "updated_at"))


def connections_show(session: Session, name: Name) -> None:
    """Show one connection: settings, who may use it, and how it does."""
    session.screen.record(session.client.get(f"/v1/connections/{segment(name)}"))


def connections_test(
    session: Session,
    *,
    name: Name,
    message: Annotated[
        str, typer.Option(help="Sent for real: JSON; @FILE reads a file, - reads stdin.")
    ] = "",
    action: Annotated[str, typer.Option(help="Of the provider, for the message.")] = "",
) -> None:
    """Ask the provider whether it takes the credentials; fails if it does not."""
    if action and not message:
        raise Misused("--action needs a --message")
    body = {"message": params_of(message, "--message")} if message else {}
    body |= {"action": action} if action else {}
    path = f"/v1/connections/{segment(name)}/test"
    with session.screen.progress("waiting for the provider ..."):
        done = session.client.post(path, body, answer_s=TEST_ANSWER_S)
    session.screen.record(done)
    if not done["ok"]:
        raise typer.Exit(1)


def connections_enable(session: Session, name: Name) -> None:
    """Send through a connection again that has failed; what was held for it is released."""
    session.screen.record(session.client.post(f"/v1/connections/{segment(name)}/enable", {}))


def connections_delete(session: Session, name: Name) -> None:
    """Delete a connection."""
    session.client.delete(f"/v1/connections/{segment(name)}")
    session.screen.record({"name": name, "deleted": True})


def connections_kinds(
    session: Session,
    kind: Annotated[str, typer.Argument(help="Only this one, with its schemas.")] = "",
) -> None:
    """List the kinds of provider, what they can do and which credentials they take."""
    if kind:
        session.screen.record(session.client.get(f"/v1/connectors/{segment(kind)}"))
        return
    found = session.client.get("/v1/connectors")["items"]
    if session.as_json:
        session.screen.rows(found, ())
        return
    rows = [{**one, "credentials": sorted(_fields(one["credentials"]))} for one in found]
    session.screen.rows(rows, ("kind", "title", "actions", "credentials"))


def _state(gate: dict[str, Any]) -> str:
    if gate.get("disabled"):
        return f"disabled: {gate['disabled']}"
    breaker = gate.get("breaker", "closed")
    return "ok" if breaker == "closed" else f"{breaker}: {gate.get('last_error')}"


def _credentials(session: Session, kind: str, file: str) -> Any:
    if not file and sys.stdin.isatty():
        return _typed_in(session, kind)
    where = file or "-"
    try:
        text = sys.stdin.read() if where == "-" else Path(where).read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise Misused(f"--from-file {where}: {error}") from error
    except UnicodeDecodeError:  # `from None`: it holds the text, and so the secret
        raise NotText(f"--from-file {where}") from None
    except json.JSONDecodeError as error:  # likewise
        at = f"line {error.lineno}, column {error.colno}"
        raise Misused(f"--from-file {where}: {error.msg} at {at}") from None
    if not isinstance(found, dict):
        raise Misused(f"--from-file {where} must hold a JSON object, the credentials")
    return found


def _typed_in(session: Session, kind: str) -> dict[str, Any]:
    """Ask for each field of the kind's credentials, unseen."""
    schema = session.client.get(f"/v1/connectors/{segment(kind)}")["credentials"]
    found: dict[str, Any] = {}
    for name, (needed, is_text) in _fields(schema).items():
        what = name if needed else f"{name} (Enter: none)"
        default = None if needed else ""
        given = str(typer.prompt(what, hide_input=True, err=True, default=default,
                                 show_default=False))  # fmt: skip
        if given:
            found[name] = given if is_text else params_of(given, name)
    return found


def _fields(schema: dict[str, Any]) -> dict[str, tuple[bool, bool]]:
    """Return of each field of a JSON Schema whether it is needed, and whether it is a text."""
    place = schema.get("$ref", "").rpartition("/")[2]
    shape = schema.get("$defs", {}).get(place, schema)
    needed = shape.get("required", ())
    return {
        name: (name in needed, '"string"' in json.dumps(field))
        for name, field in shape.get("properties", {}).items()
    }
