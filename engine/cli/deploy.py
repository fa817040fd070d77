"""`cloudcode deploy`: makes a function, or uploads a new version of it and puts that live.

Path:   files, module -> source -> here -> POST functions | versions -> deployments -> triggers
Never:  sends what the user did not give: the latest version's limits, hosts and so on then stay.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from engine.cli.client import segment
from engine.cli.failures import Misused, Refused
from engine.cli.session import Session
from engine.cli.source import DoesNotCompile, is_module, read_module, read_source

ALL: Final = 100  # percent
COMPILE_S: Final = 240.0  # the engine's own deadlines are shorter, and say more


def deploy(
    session: Session,
    *,
    path: Annotated[
        Path, typer.Argument(help="A .js or .ts file, a folder of them, or a .wasm module.")
    ],
    name: Annotated[str, typer.Option(help="The function's name; else the file's.")] = "",
    main: Annotated[str, typer.Option(help="In a folder: the file that starts.")] = "",
    message: Annotated[str, typer.Option("--message", "-m", help="Why, for the history.")] = "",
    host: Annotated[
        list[str] | None, typer.Option(help="A host that fetch may reach; may be repeated.")
    ] = None,
    var: Annotated[
        list[str] | None, typer.Option(help="K=V: a variable in env; may be repeated.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="A secret that env shows; may be repeated.")
    ] = None,
    cpu_ms: Annotated[int | None, typer.Option(help="Limit of CPU per run.", min=1)] = None,
    wall_ms: Annotated[int | None, typer.Option(help="Limit of time per run.", min=1)] = None,
    memory_mb: Annotated[int | None, typer.Option(help="Limit of the memory.", min=1)] = None,
    fuel: Annotated[
        int | None, typer.Option(help=".wasm: limit of instructions per run, about.", min=1)
    ] = None,
    handler: Annotated[
        list[str] | None,
        typer.Option(
            help=".wasm: what it is run for: fetch, afterStore ...; may be repeated. "
            "fetch makes it public."
        ),
    ] = None,
    arg: Annotated[
        list[str] | None, typer.Option(help=".wasm: an argument of a command; may be repeated.")
    ] = None,
    io: Annotated[str, typer.Option(help=".wasm: json or text.")] = "",
    export: Annotated[
        list[str] | None,
        typer.Option(help=".wasm: alloc=NAME or handle=NAME: other names of these functions."),
    ] = None,
    reuse: Annotated[
        bool | None,
        typer.Option("--reuse/--no-reuse", help=".wasm: one instance serves many runs."),
    ] = None,
    retries: Annotated[
        str, typer.Option(help='JSON or @FILE, e.g. {"max_attempts": 5}: try again what fails.')
    ] = "",
    flow: Annotated[
        str,
        typer.Option(help='JSON or @FILE, e.g. {"concurrency": {"limit": 2}}: limits of runs.'),
    ] = "",
    queue: Annotated[
        str,
        typer.Option(help='JSON or @FILE, e.g. {"max_batch_size": 50}: how `queue` is called.'),
    ] = "",
    percent: Annotated[
        int, typer.Option(help="Share of runs that get the new version.", min=1, max=ALL)
    ] = ALL,
    product: Annotated[str, typer.Option(help="Run it on what this product's devices do.")] = "",
    on: Annotated[str, typer.Option(help="With --product: write.")] = "write",
    key: Annotated[
        list[str] | None, typer.Option(help="With --product: only these keys; may be repeated.")
    ] = None,
    order: Annotated[
        str, typer.Option(help="With --product: device: each device's runs one after another.")
    ] = "",
    lateness: Annotated[
        float | None, typer.Option(help="With --order: seconds to wait for earlier values.", min=0)
    ] = None,
) -> None:
    """Upload a function and put it live; the second time, a new version of it."""
    if key and not product:
        raise Misused(
            "--key here names a device's value and needs --product",
            remedy="the API key goes before the verb: cloudcode --key cck_... deploy ...",
        )
    if (order or lateness is not None) and not product:
        raise Misused("--order and --lateness are about a device's writes and need --product")
    options = {
        "handlers": handler,
        "args": arg,
        "io": io or None,
        "exports": None if export is None else dict(_pair(pair, "--export") for pair in export),
        "reuse": reuse,
    }
    code = _code(path, main, options | {"fuel": fuel})
    function = name or _name_of(path)
    wanted = options | {
        "allowed_hosts": host,
        "variables": None if var is None else dict(_pair(pair, "--var") for pair in var),
        "secrets": secret,
        "limits": _limits(cpu_ms=cpu_ms, wall_ms=wall_ms, memory_mb=memory_mb, fuel=fuel),
        "retries": _json(retries, "--retries"),
        "flow": _json(flow, "--flow"),
        "queue": _json(queue, "--queue"),
        "message": message or None,
    }
    body = code | {field: value for field, value in wanted.items() if value is not None}
    with session.screen.progress(f"compiling {path.name} ..."):
        done = _upload(session, function, body, percent)
    if product:
        bound: dict[str, Any] = {"on": on, "keys": key or []}
        if order:
            bound |= {"order": order, "lateness_seconds": lateness or 0}
        done["trigger"] = _trigger(session, function, product, bound)
    session.screen.text(done, _summary(done))
    for warning in done.get("warnings", ()):  # older engines say none
        place = "{file}:{line}:{column}".format_map(warning)
        session.screen.warn(f"{place}: {warning['message']}")


def _code(path: Path, main: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an upload that carry the code itself."""
    if is_module(path):
        if main:
            raise Misused("--main names a script in a folder; a module starts by its exports")
        return {"wasm": read_module(path)}
    flags = {"handlers": "handler", "args": "arg", "exports": "export"}
    if given := [name for name, value in options.items() if value is not None]:
        raise Misused(f"--{flags.get(given[0], given[0])} is for .wasm modules, and {path} is none")
    source = read_source(path, main=main)
    return {"files": source.files, "main": source.main}


def _upload(session: Session, function: str, body: dict[str, Any], percent: int) -> dict[str, Any]:
    live = _live(session, function)
    try:
        if live is None:
            if percent != ALL:
                raise Misused(
                    f"{function} is new: there is no version to share with at {percent} %"
                )
            new = {"name": function, **body}
            return dict(session.client.post("/v1/functions", new, answer_s=COMPILE_S))
        path = f"/v1/functions/{segment(function)}"
        at_once = percent == ALL or not live
        deploy = "true" if at_once else "false"
        made = session.client.post(f"{path}/versions", body, answer_s=COMPILE_S, deploy=deploy)
    except Refused as refused:
        if refused.code == "compile_error":
            raise DoesNotCompile(refused.problem, body.get("files", {})) from None
        raise
    done = {"name": function, **made}
    if not at_once:
        shares = [
            {"version": made["version"], "percent": percent},
            {"version": max(live, key=live.__getitem__), "percent": ALL - percent},
        ]
        message = body.get("message", "")
        session.client.post(f"{path}/deployments", {"versions": shares, "message": message})
        done |= {"deployed": True, "percent": percent}
    return done


def _live(session: Session, function: str) -> dict[int, int] | None:
    """Return the live versions and their percent; None when there is no such function."""
    try:
        found = session.client.get(f"/v1/functions/{segment(function)}")
    except Refused as refused:
        if refused.code == "not_found":
            return None
        raise
    return {live["version"]: live["percent"] for live in found["live"]}


def _trigger(
    session: Session, function: str, product: str, wanted: dict[str, Any]
) -> dict[str, Any]:
    # Deploying twice must not run the function twice for each write.
    named = session.client.get(f"/v1/products/{segment(product)}")
    for trigger in session.client.items("/v1/triggers", count_max=1000, function=function):
        same_product = trigger["product"] in (named["id"], named["name"])
        same_keys = sorted(trigger["keys"]) == sorted(wanted["keys"])
        if not (same_product and same_keys and trigger["on"] == wanted["on"]):
            continue
        order = ("order", "lateness_seconds")
        if any(trigger.get(name) != wanted.get(name) for name in order):
            raise Misused(
                f"{trigger['id']} runs {function} on the same writes in another order",
                remedy=f"delete it first: DELETE /v1/triggers/{trigger['id']}",
            )
        return dict(trigger)
    return dict(
        session.client.post("/v1/triggers", {"function": function, "product": product, **wanted})
    )


def _json(text: str, option: str) -> dict[str, Any] | None:
    """Return the object that an option has, or the file that it names; None: not given."""
    if not text:
        return None
    try:
        found = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise Misused(f"{option} {text}: {error.strerror}") from error
    except ValueError as error:
        raise Misused(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Misused(f"{option} must be a JSON object, in braces")
    return found


def _limits(**limits: int | None) -> dict[str, int] | None:
    return {name: value for name, value in limits.items() if value is not None} or None


def _pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise Misused(f"{option} {pair!r} is not K=V")
    return name, value


def _name_of(path: Path) -> str:
    stem = path.resolve().stem if path.is_file() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")


def _summary(done: dict[str, Any]) -> str:
    share = f" at {done['percent']} %" if "percent" in done else ""
    lines = [
        f"{done['name']} version {done['version']} is live{share}",
        f"handlers: {', '.join(done['handlers']) or 'none'}",
    ]
    if trigger := done.get("trigger"):
        keys = ", ".join(trigger["keys"]) or "every key"
        lines.append(f"runs on {trigger['on']} of product {trigger['product']} ({keys})")
    return "\n".join(lines)
