"""`cloudcode kv`: the key-value store of the project, which its functions know as env.KV."""

import json
from typing import Annotated

import typer

from engine.cli.client import segment
from engine.cli.session import Session

Key = Annotated[str, typer.Argument(help="The key.", metavar="KEY")]
Namespace = Annotated[str, typer.Option(help="Letters, digits, _ and -.")]


def kv_get(session: Session, *, entry: Key, namespace: Namespace = "default") -> None:
    """Print the value of a key."""
    session.screen.value(session.client.get(_path(namespace, entry)))


def kv_put(
    session: Session,
    *,
    entry: Key,
    value: Annotated[str, typer.Argument(help="As JSON, or as text.")],
    namespace: Namespace = "default",
    ttl_seconds: Annotated[
        int | None, typer.Option(help="Forget it after so long: 60 to 31536000.")
    ] = None,
) -> None:
    """Give a key a value, whether or not it had one."""
    query = {"ttl_seconds": ttl_seconds}
    session.client.send("PUT", _path(namespace, entry), body_json=_as_json(value), query=query)
    session.screen.record({"key": entry, "namespace": namespace, "stored": True})


def kv_list(
    session: Session,
    *,
    prefix: Annotated[str, typer.Option(help="Only keys that begin so.")] = "",
    namespace: Namespace = "default",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
) -> None:
    """List keys in the order of their bytes."""
    keys = session.client.items(f"/v1/kv/{segment(namespace)}", count_max=limit, prefix=prefix)
    session.screen.rows(keys, ("key", "expires_at", "updated_at"))


def kv_delete(session: Session, *, entry: Key, namespace: Namespace = "default") -> None:
    """Delete a key."""
    session.client.delete(_path(namespace, entry))
    session.screen.record({"key": entry, "namespace": namespace, "deleted": True})


def _path(namespace: str, key: str) -> str:
    return f"/v1/kv/{segment(namespace)}/{segment(key)}"


def _as_json(text: str) -> str:
    try:
        json.loads(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return text
