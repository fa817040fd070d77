"""`cloudcode keys`: API keys, what each may do, and how often. Needs an admin key."""

from typing import Annotated, Any, Final

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

DEFAULT: Final = "default"
COLUMNS: Final = ("id", "name", "project", "scopes", "requests_per_minute", "created_at")

KeyId = Annotated[str, typer.Argument(help="The key's id, key_...")]
Rate = Annotated[
    str,
    typer.Option(
        help="On each node; 0: no limit; default: as for all keys of its project.",
        show_default=False,
    ),
]


def keys_list(
    session: Session,
    *,
    project: Annotated[str, typer.Option(help="Only of this project: its id or name.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)] = 50,
) -> None:
    """List API keys, without the keys themselves."""
    keys = session.client.items("/v1/api-keys", count_max=limit, project=project)
    if not session.as_json:
        keys = [key | {"scopes": ", ".join(key["scopes"])} for key in keys]
    session.screen.rows(keys, COLUMNS)


def keys_create(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(help="What people call it.")],
    scope: Annotated[
        list[str], typer.Option(help="admin, develop, operate or ingest; may be repeated.")
    ],
    project: Annotated[str, typer.Option(help="Id or name; else that of --project.")] = "",
    requests_per_minute: Rate = "",
) -> None:
    """Make an API key and print it. It is shown once, and stored nowhere."""
    body: dict[str, Any] = {"name": name, "scopes": scope}
    body |= {"project": project} if project else {}
    body |= {"requests_per_minute": _rate(requests_per_minute)} if requests_per_minute else {}
    session.screen.record(session.client.post("/v1/api-keys", body))
    session.screen.say("the key is shown once: keep it now")


def keys_set(session: Session, *, key: KeyId, requests_per_minute: Rate) -> None:
    """Say how many requests a key may make in a minute."""
    body = {"requests_per_minute": _rate(requests_per_minute)}
    path = f"/v1/api-keys/{segment(key)}"
    session.screen.record(session.client.request("PATCH", path, body=body))


def keys_delete(session: Session, *, key: KeyId) -> None:
    """Delete an API key: it opens nothing from then on."""
    session.client.delete(f"/v1/api-keys/{segment(key)}")
    session.screen.say(f"deleted {key}")


def _rate(text: str) -> int | None:
    if text == DEFAULT:
        return None
    try:
        return int(text)
    except ValueError:
        raise Misused(
            f"{text!r} of --requests-per-minute is no number", remedy="for example 600, or default"
        ) from None
