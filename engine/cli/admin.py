"""`cloudcode admin`: nodes, queues, stuck work, and how much is kept. Needs an admin key."""

from typing import Annotated, Any, Final

import typer

from engine.cli.failures import Failure, Misused
from engine.cli.session import Session

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be.")]
KINDS: Final = (
    "executions", "logs", "events", "values", "jobs", "dead_letters", "deliveries",
    "schedule_fires",
)  # fmt: skip
LIMITS: Final = ("rows", "bytes", "age_days")
RETENTION: Final = "/v1/projects/current/retention"  # --project names another
NONE: Final = "none"
DEFAULT: Final = "default"
USAGE_ANSWER_S: Final = 120.0
ROTATE: Final = "/v1/admin/master-key/rotate"
ROTATE_ANSWER_S: Final = 120.0  # one value may have tens of megabytes, on a slow disk
WAITS_MAX: Final = 12  # answers, each of which has waited for other nodes for some seconds
UNITS: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def nodes(session: Session) -> None:
    """List the nodes that are alive, with what each has in hand."""
    items = session.client.get("/v1/admin/nodes")["items"]
    columns = (
        "id", "kind", "host", "pid", "release", "beat_age_seconds", "silent", "held", "started_at",
    )  # fmt: skip
    session.screen.rows(items, columns)
    others = sorted({item["release"] for item in items})
    if len(others) > 1:
        session.screen.say(f"releases differ: {', '.join(others)}; let all be of one soon")


def stuck(
    session: Session,
    limit: Annotated[int, typer.Option(help="How many of each kind.", min=1, max=1000)] = 100,
) -> None:
    """List what does not go on by itself, and what to do about it."""
    items = session.client.get("/v1/admin/stuck", limit=limit)["items"]
    session.screen.rows(items, ("kind", "id", "age_seconds", "node", "detail", "remedy"))


def queues(session: Session) -> None:
    """Show how much waits in each queue, and for how long: of --project, or of all projects."""
    found = session.client.get("/v1/admin/queues", project=session.project)
    if session.screen.as_json:
        session.screen.value(found)
        return
    columns = (
        "project_name", "queue", "priority", "queued", "delayed", "parked", "held",
        "oldest_age_seconds",
    )  # fmt: skip
    session.screen.rows(found["items"], columns)
    if not found["complete"]:
        session.screen.say("there is more: only the oldest were counted")


def release(
    session: Session,
    *,
    what: Annotated[str, typer.Argument(help="A run, exe_..., or a node, node_....")],
    dry_run: DryRun = False,
) -> None:
    """Take a run, or all that a node has, from whoever has it: others go on with it."""
    kind = {"exe_": "run", "node": "node"}.get(what[:4])
    if kind is None:
        raise Misused(f"{what!r} is no run and no node", remedy="their ids begin exe_ and node_")
    body = {kind: what, "dry_run": dry_run}
    session.screen.record(session.client.post("/v1/admin/release", body))


def tickets_reissue(session: Session, *, dry_run: DryRun = False) -> None:
    """Tell nodes once more of all work that is due and nobody's; does no harm."""
    found = session.client.post("/v1/admin/tickets/reissue", {"dry_run": dry_run})
    if session.screen.as_json:
        session.screen.value(found)
    else:
        session.screen.rows(found["items"], ("project", "priority", "due_at"))


def rotate_key(
    session: Session,
    *,
    keep_old: Annotated[
        bool,
        typer.Option("--keep-old", help="Leave the old key in the file: it opens old backups."),
    ] = False,
) -> None:
    """Change the key that seals secrets: a new one, all sealed anew, the old one gone.

    The engine runs on meanwhile. Ended at any moment, it goes on where it was when it is run again.
    """
    body = {"begin": True, "keep_old": keep_old}
    said, waits = "", 0
    while True:
        found = session.client.post(ROTATE, body, answer_s=ROTATE_ANSWER_S)
        body = {**body, "begin": False}
        if found["phase"] == "done":
            break
        told = _rotated(found)
        waits += bool(found["waits_for"])
        if told != said:
            session.screen.say(told)
        said = told
        if waits == WAITS_MAX:
            raise Failure(told, remedy=f"{found['note']}; then run this again: it goes on")
    session.screen.record(found)


def _rotated(found: dict[str, Any]) -> str:
    phase = found["phase"]
    if found["waits_for"]:
        return f"{phase}: waiting for {', '.join(found['waits_for'])}"
    if phase == "accept":
        return f"{phase}: made the key {found['others'][0]}"
    if phase == "switch":
        return f"{phase}: {found['key']} seals from now on"
    return f"{phase}: {found['checked']} of {found['total']}"


def retention_show(
    session: Session,
    *,
    usage: Annotated[bool, typer.Option(help="Count what there is, and what would go.")] = True,
) -> None:
    """Show how much of what the project keeps, what there is, and what would go now."""
    found = session.client.json_of(
        session.client.send(
            "GET", RETENTION, query={"usage": str(usage).lower()}, answer_s=USAGE_ANSWER_S
        )
    )
    _show(session, found)


def retention_set(
    session: Session,
    *,
    rules: Annotated[
        list[str],
        typer.Argument(help="KIND.LIMIT=VALUE, as executions.rows=1M; `none`: no limit."),
    ],
    dry_run: DryRun = False,
) -> None:
    """Set limits of one or several kinds; the others stay as they are.

    KIND is executions, logs, events, values, jobs, dead_letters, deliveries or schedule_fires;
    LIMIT is rows, bytes or age_days. KIND=default: as the settings of the engine say.
    """
    body = _own(session.client.get(RETENTION))
    for rule in rules:
        _apply(body, rule)
    query = {"dry_run": str(dry_run).lower()}
    found = session.client.json_of(
        session.client.send("PUT", RETENTION, body=body, query=query, answer_s=USAGE_ANSWER_S)
    )
    _show(session, found)


def _own(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the project itself has said, as it is put."""
    own = {}
    for kind in KINDS:
        said = found[kind]
        if said["source"] == "project":
            limits = {limit: said[limit] for limit in LIMITS}
            limits["age_days"] = 0 if limits["age_days"] is None else limits["age_days"]
            own[kind] = {limit: value for limit, value in limits.items() if value is not None}
    return own


def _apply(body: dict[str, dict[str, Any]], rule: str) -> None:
    name, equals, text = rule.partition("=")
    kind, _, limit = name.partition(".")
    if not equals or kind not in KINDS or (limit not in LIMITS and (limit or text != DEFAULT)):
        raise Misused(
            f"{rule!r} is not KIND.LIMIT=VALUE",
            remedy="for example: executions.rows=1M values.age_days=365 logs=default",
        )
    if not limit:
        body.pop(kind, None)
    elif text == NONE and limit == "age_days":
        body.setdefault(kind, {})[limit] = 0
    elif text == NONE:
        body.setdefault(kind, {}).pop(limit, None)
    else:
        body.setdefault(kind, {})[limit] = _number(rule, limit, text)


def _number(rule: str, limit: str, text: str) -> float | int:
    try:
        if limit == "age_days":
            return float(text)
        scale = UNITS.get(text[-1:], 1)
        return round(float(text[:-1] if scale > 1 else text) * scale)
    except (ValueError, OverflowError):
        raise Misused(
            f"{text!r} in {rule!r} is no number", remedy="for example 500, 20k, 1.5M, 10G"
        ) from None


def _show(session: Session, found: dict[str, Any]) -> None:
    if session.screen.as_json:
        session.screen.value(found)
        return
    items = []
    for kind in KINDS:
        said = found[kind]
        there, gone = said.get("usage") or {}, said.get("would_delete") or {}
        more = "" if there.get("complete", True) else "+"
        items.append(
            {
                "kind": kind,
                "rows": _limit(said["rows"]),
                "bytes": _limit(said["bytes"]),
                "age_days": _limit(said["age_days"]),
                "source": said["source"],
                "has_rows": f"{there['rows']}{more}" if there else "",
                "has_bytes": f"{there['bytes']}{more}" if there else "",
                "oldest": there.get("oldest_at") or "",
                "would_go": f"{gone['rows']}{more}" if gone else "",
            }
        )
    columns = ("kind", "rows", "bytes", "age_days", "source")
    counted = ("has_rows", "has_bytes", "oldest", "would_go")
    has_counts = any(item["has_rows"] for item in items)
    session.screen.rows(items, columns + counted if has_counts else columns)


def _limit(value: float | None) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)
