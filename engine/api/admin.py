"""`/v1/admin`: nodes, what waits, and what does not go on by itself. Admin keys only."""

import json
from importlib.metadata import version
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi import Body as BodyOf
from pydantic import Field

from engine.api.access import Admin
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, Shown, example
from engine.clock import iso
from engine.errors import Invalid, NotFound
from engine.store.live import all_projects
from engine.store.nodes_view import Stuck, list_nodes, stuck
from engine.store.queue_view import ROWS_MAX, waiting
from engine.stuck_work import reissue_tickets, release_node, release_run

router = APIRouter(prefix="/v1/admin", tags=["operations"])
RELEASE: Final = version("cloudcode-engine")
STUCK_MAX: Final = 1_000
REMEDIES: Final = {
    Stuck.ORPHANED: "freed within seconds by any node; else release the node",
    Stuck.PARKED: "freed within a minute by any node; else release the run",
    Stuck.UNCLAIMED: "is a node alive that runs things? then reissue tickets",
    Stuck.SENDING: "taken up within seconds by any node; else release the node",
    Stuck.OVERDUE: "is a node alive that serves? its log says why the schedule does not fire",
    Stuck.ANSWERING: "nothing to do: whoever sends it again is answered",
}


class NodeShown(Shown):
    id: str
    kind: str = Field(description="serve | worker")
    host: str
    pid: int
    release: str
    other_release: bool = Field(description="Not that of the node that answers.")
    this: bool = Field(description="The node that answers.")
    started_at: str
    beat_age_seconds: float | None = Field(
        description="Since it last showed that it lives; null: it is the only one."
    )
    silent: bool = Field(description="For longer than the lease: it will be taken over.")
    held: int = Field(description="Runs of the queue that are its.")
    state: dict[str, Any]


class StuckShown(Shown):
    kind: str = Field(description="orphaned | parked | unclaimed | sending | overdue | answering")
    id: str = Field(description="Of the run, delivery, schedule or idempotency key.")
    project: str
    since: str
    age_seconds: float
    node: str | None
    detail: str | None = Field(description="Its lane, connection or time zone.")
    remedy: str


class QueueShown(Shown):
    project: str
    project_name: str
    queue: str
    priority: str
    queued: int = Field(description="Due, and nobody's.")
    delayed: int
    parked: int = Field(description="Their lane is full.")
    held: int = Field(description="A node has them.")
    oldest_age_seconds: float = Field(description="How long the oldest one has been due.")


class Queues(Listed[QueueShown]):
    complete: bool = Field(description=f"false: only the {ROWS_MAX} oldest rows were counted.")


class ReleaseAsked(Body):
    model_config = example({"run": "exe_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f", "dry_run": True})

    run: str | None = Field(None, description="A run of the queue; or:")
    node: str | None = Field(None, description="A node, alive or not: all that it has.")
    dry_run: bool = False


class Released(Shown):
    dry_run: bool
    node: str | None = Field(description="Who had it.")
    runs: int
    deliveries: int


class ReissueAsked(Body):
    model_config = example({"dry_run": True})

    dry_run: bool = False


Reissue = Annotated[ReissueAsked | None, BodyOf(examples=[{"dry_run": True}])]


class TicketShown(Shown):
    project: str
    priority: int = Field(description="0 high, 1 default, 2 low")
    due_at: str = Field(description="Of the first run that it is for.")


class Reissued(Shown):
    dry_run: bool
    items: list[TicketShown]


@router.get("/nodes", responses=problems())
async def show_nodes(platform: PlatformHere, _: Admin) -> Listed[NodeShown]:
    """List the nodes that are alive, or were within the lease."""
    now_ms, lease_s = platform.clock(), platform.settings.lease_seconds
    alone = platform.database.is_sqlite
    items = []
    for node in await platform.database.read(list_nodes):
        age_s = None if alone else max(0.0, (now_ms - node.seen_ms) / 1000)
        shown = NodeShown(
            id=node.id,
            kind=node.kind,
            host=node.host,
            pid=node.pid,
            release=node.release,
            other_release=node.release != RELEASE,
            this=node.id == platform.journal.node_id,
            started_at=iso(node.started_ms),
            beat_age_seconds=age_s,
            silent=age_s is not None and age_s > lease_s,
            held=node.held,
            state=json.loads(node.state),
        )
        items.append(shown)
    return Listed(items=items)


@router.get("/stuck", responses=problems(422))
async def show_stuck(
    platform: PlatformHere,
    _: Admin,
    limit: Annotated[int, Query(ge=1, le=STUCK_MAX, description="Of each kind.")] = 100,
) -> Listed[StuckShown]:
    """List what does not go on by itself: runs, deliveries, schedules, idempotency keys."""
    now_ms = platform.clock()
    found = await platform.database.read(stuck, now_ms, limit)
    items = [
        StuckShown(
            kind=one.kind,
            id=one.id,
            project=one.project_id,
            since=iso(one.since_ms),
            age_seconds=max(0, now_ms - one.since_ms) / 1000,
            node=one.node_id,
            detail=one.detail,
            remedy=REMEDIES[one.kind],
        )
        for one in found
    ]
    return Listed(items=items)


@router.post("/release", responses=problems(404, 409, 422, body=True))
async def release(platform: PlatformHere, _: Admin, body: ReleaseAsked) -> Released:
    """Take a run, or all that a node has, from whoever has it; others go on with it.

    What was begun of it does not count: its end is refused. Of nothing two ends count.
    """
    if (body.run is None) == (body.node is None):
        raise Invalid("name a run or a node, one of them", "/run")
    if body.run is not None:
        freed = await release_run(platform, body.run, dry_run=body.dry_run)
    else:
        freed = await release_node(platform, body.node or "", dry_run=body.dry_run)
    return Released(
        dry_run=body.dry_run, node=freed.node_id, runs=freed.runs, deliveries=freed.deliveries
    )


@router.get("/queues", responses=problems(404, 422))
async def show_queues(
    platform: PlatformHere,
    _: Admin,
    project: Annotated[str | None, Query(description="Only this one's: id or name.")] = None,
) -> Queues:
    """Show how much waits in each queue, and for how long."""
    now_ms, project_id = platform.clock(), None
    if project is not None:
        project_id = platform.catalogue.project(project)
        if project_id is None:
            raise NotFound("project", project)
    names = {one.id: one.name for one in await platform.database.read(all_projects)}
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    ages_s: dict[tuple[str, str, str], float] = {}
    found = await platform.database.read(waiting, now_ms, project_id)
    for one in found:
        key = (one.project_id, one.queue, one.priority)
        counts.setdefault(key, {})[one.state] = one.rows
        ages_s[key] = max(ages_s.get(key, 0.0), (now_ms - one.oldest_due_ms) / 1000)
    items = [
        QueueShown(
            project=key[0],
            project_name=names.get(key[0], ""),
            queue=key[1],
            priority=key[2],
            queued=states.get("queued", 0),
            delayed=states.get("delayed", 0),
            parked=states.get("parked", 0),
            held=states.get("held", 0),
            oldest_age_seconds=ages_s[key],
        )
        for key, states in counts.items()
    ]
    return Queues(items=items, complete=sum(one.rows for one in found) < ROWS_MAX)


@router.post("/tickets/reissue", responses=problems(422, body=True))
async def reissue(platform: PlatformHere, _: Admin, body: Reissue = None) -> Reissued:
    """Tell nodes once more of all work that is due and nobody's. Does no harm."""
    dry_run = body is not None and body.dry_run
    found = await reissue_tickets(platform, dry_run=dry_run)
    return Reissued(
        dry_run=dry_run,
        items=[
            TicketShown(project=one.project_id, priority=one.priority, due_at=iso(one.due_ms))
            for one in found
        ],
    )
