"""`cloudcode functions`, `rollback` and `trigger`: what is deployed, and what makes it run."""

from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused
from engine.cli.session import Session

Function = Annotated[str, typer.Argument(help="The function's name.")]
Limit = Annotated[int, typer.Option(help="How many at most, the newest first.", min=1)]


def functions_list(session: Session, limit: Limit = 50) -> None:
    """List the functions and which of their versions are live."""
    functions = session.client.items("/v1/functions", count_max=limit)
    session.screen.rows(
        [
            function
            if session.as_json
            else {**function, "live": _shares(function), "runtime": _runtime(function)}
            for function in functions
        ],
        ("name", "live", "latest_version", "handlers", "runtime", "created_at"),
    )


def functions_show(session: Session, function: Function) -> None:
    """Show one function: its settings and its source."""
    session.screen.record(session.client.get(f"/v1/functions/{segment(function)}"))


def functions_versions(session: Session, function: Function, limit: Limit = 50) -> None:
    """List a function's versions."""
    path = f"/v1/functions/{segment(function)}/versions"
    versions = session.client.items(path, count_max=limit)
    session.screen.rows(versions, ("version", "live_percent", "message", "handlers", "created_at"))


def functions_delete(session: Session, function: Function) -> None:
    """Delete a function with its triggers and schedules; its executions stay readable."""
    session.client.delete(f"/v1/functions/{segment(function)}")
    session.screen.record({"name": function, "deleted": True})


def rollback(session: Session, function: Function) -> None:
    """Put the deployment before the live one back in force."""
    done = session.client.post(f"/v1/functions/{segment(function)}/rollback")
    session.screen.text(done, f"{function}: live is {_shares({'live': done['versions']})}")


def trigger_add(
    session: Session,
    *,
    function: Function,
    product: Annotated[str, typer.Option(help="Whose devices: id or name.")],
    on: Annotated[str, typer.Option(help="write")] = "write",
    phase: Annotated[str, typer.Option(help="after")] = "after",
    key: Annotated[
        list[str] | None, typer.Option(help="Only for these keys; may be repeated.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="device: one run of a device at a time, in order.")
    ] = None,
    lateness: Annotated[
        float | None, typer.Option(help="With --order: seconds to wait for earlier values.", min=0)
    ] = None,
) -> None:
    """Run a function on what a product's devices write."""
    body: dict[str, Any] = {
        "function": function, "product": product, "on": on, "phase": phase, "keys": key or [],
    }  # fmt: skip
    if order is not None:
        body |= {"order": order, "lateness_seconds": lateness or 0}
    elif lateness is not None:
        raise Misused("--lateness is about an order and needs --order device")
    session.screen.record(session.client.post("/v1/triggers", body))


def trigger_list(
    session: Session,
    *,
    function: Annotated[str, typer.Option(help="Only this function's.")] = "",
    product: Annotated[str, typer.Option(help="Only this product's.")] = "",
    limit: Limit = 50,
) -> None:
    """List triggers."""
    triggers = session.client.items(
        "/v1/triggers", count_max=limit, function=function, product=product
    )
    session.screen.rows(triggers, ("id", "function", "product", "on", "phase", "keys"))


def trigger_delete(
    session: Session, trigger: Annotated[str, typer.Argument(help="The trigger's id.")]
) -> None:
    """Delete a trigger."""
    session.client.delete(f"/v1/triggers/{segment(trigger)}")
    session.screen.record({"id": trigger, "deleted": True})


def _runtime(function: dict[str, Any]) -> str:
    kind = (function.get("wasm") or {}).get("kind")
    return f"{function.get('runtime', '')} {kind}" if kind else function.get("runtime", "")


def _shares(function: dict[str, list[dict[str, int]]]) -> str:
    return ", ".join(f"v{live['version']} {live['percent']} %" for live in function["live"]) or "-"
