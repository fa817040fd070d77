"""`cloudcode logs` and `cloudcode tail`: what functions wrote, afterwards and live."""

import contextlib
import time
from typing import Annotated, Any, Final

import typer

from engine.cli.client import Client, segment
from engine.cli.failures import Misused, Refused, Unreachable
from engine.cli.session import Session

LINES_MAX: Final = 1_000  # of one run; the engine keeps fewer
PAUSE_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)  # before each try to come back; the last one repeats
SERVER_ERROR: Final = 500
STYLES: Final = {"error": "red", "warn": "yellow", "debug": "dim"}


def logs(
    session: Session,
    *,
    execution: Annotated[str, typer.Argument(help="An execution's id.")] = "",
    function: Annotated[str, typer.Option(help="Instead: a function's latest runs.")] = "",
    limit: Annotated[int, typer.Option(help="With --function: how many runs.", min=1)] = 20,
) -> None:
    """Show what one run wrote, or what a function's latest runs wrote, oldest first."""
    if bool(execution) == bool(function):
        raise Misused("name either an EXECUTION or --function F")
    if execution:
        lines = _lines(session.client, execution)
        if session.as_json:
            session.screen.value({"items": lines})
            return
        for line in lines:
            _show(session, line)
        if not lines:
            session.screen.say("it wrote nothing")
        return
    runs = session.client.items("/v1/executions", count_max=limit, function=function)
    if not runs:
        session.screen.say(f"no run of {function} yet")
    for run in reversed(runs):
        lines = _lines(session.client, run["id"])
        session.screen.line({**run, "logs": lines}, _headline(run), style="bold")
        if not session.as_json:
            for line in lines:
                _show(session, line)


def tail(
    session: Session,
    *,
    function: Annotated[str, typer.Argument(help="The function's name.")],
    count: Annotated[
        int | None, typer.Option(help="End after so many lines; else with Ctrl-C.", min=1)
    ] = None,
) -> None:
    """Show a function's log lines and run reports as they happen; comes back after a break."""
    session.screen.say(f"waiting for {function}; end with Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        _follow(session, function, count)


def _follow(session: Session, function: str, count: int | None) -> None:
    seen, failed = 0, 0
    while True:
        try:
            with session.client.events(f"/v1/functions/{segment(function)}/tail") as events:
                for kind, item in events:
                    _show_live(session, kind, item)
                    seen, failed = seen + 1, 0
                    if seen == count:
                        return
            session.screen.say("the engine closed the stream; coming back")
        except (Unreachable, Refused) as broken:
            was_there = seen or failed
            if not was_there or (isinstance(broken, Refused) and broken.status < SERVER_ERROR):
                raise  # never was there, or the key or the function is gone: waiting will not help
            session.screen.say(f"{broken.message}; trying again")
        failed += 1
        _pause(failed)


def _pause(failed: int) -> None:
    time.sleep(PAUSE_S[min(failed, len(PAUSE_S)) - 1])


def _lines(client: Client, execution: str) -> list[Any]:
    return client.items(f"/v1/executions/{segment(execution)}/logs", count_max=LINES_MAX)


def _show(session: Session, line: dict[str, Any]) -> None:
    level = str(line.get("level", ""))
    text = f"{line.get('ts', '')}  {level:<5}  {line.get('msg', '')}"
    session.screen.line(line, text, style=STYLES.get(level, ""))


def _show_live(session: Session, kind: str, item: dict[str, Any]) -> None:
    if session.as_json:
        session.screen.line({"event": kind, **item}, "")
    elif kind == "report":
        session.screen.line(item, _headline(item), style="bold")
    else:
        _show(session, item)


def _headline(run: dict[str, Any]) -> str:
    error = run.get("error") or {}
    limit = run.get("limit") or {}
    why = f"  {error['name']}: {error['message']}" if error.get("message") else ""
    if limit:
        why += f"  {limit.get('name')} {limit.get('value')}, used {limit.get('used')}"
    return (
        f"{run.get('created_at')}  {run.get('id')}  {run.get('function')} v{run.get('version')}  "
        f"{run.get('status')}  queue {_ms(run, 'queue')}, wall {_ms(run, 'wall')}, "
        f"cpu {_ms(run, 'cpu')}{why}"
    )


def _ms(run: dict[str, Any], what: str) -> str:
    taken = run.get(f"{what}_ms")
    return "-" if taken is None else f"{taken:.1f} ms"
