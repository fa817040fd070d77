"""`cloudcode invoke`: runs a function now and prints its result."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused, NotText
from engine.cli.session import Session


def invoke(
    session: Session,
    *,
    function: Annotated[str, typer.Argument(help="The function's name.")],
    params: Annotated[
        str, typer.Argument(help="JSON; @FILE reads a file, - reads stdin; empty is null.")
    ] = "",
    handler: Annotated[str, typer.Option(help="Which handler, where there are several.")] = "",
    later: Annotated[
        bool, typer.Option("--async", help="Only queue it and print the execution's id.")
    ] = False,
    wait_s: Annotated[float, typer.Option(help="How long to wait for the answer.", min=1)] = 60.0,
) -> None:
    """Run a function with the given params: the result goes to stdout, its timing to stderr."""
    response = session.client.send(
        "POST",
        f"/v1/functions/{segment(function)}/invoke",
        body=params_of(params),
        query={"handler": handler},
        headers={"Prefer": "respond-async"} if later else {},
        answer_s=wait_s,
    )
    result = session.client.json_of(response)
    if later:
        session.screen.text(result, result["execution_id"])
        return
    execution = response.headers.get("Execution-Id", "")
    timing = response.headers.get("Server-Timing", "")
    if session.as_json:
        session.screen.value({"result": result, "execution_id": execution, "server_timing": timing})
    else:
        session.screen.value(result)
        session.screen.say(f"{execution}  {timing}")


def params_of(text: str, name: str = "params") -> Any:
    """Return the JSON that an argument or an option, called `name`, is or says where to find."""
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text) if text.strip() else None
    except OSError as error:
        raise Misused(f"{name}: {text}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise NotText(f"{name}: {text}") from None
    except ValueError as error:
        raise Misused(
            f"{name}: not JSON: {error}",
            remedy="""quote it for the shell: '{"city": "Seattle"}'""",
        ) from error
