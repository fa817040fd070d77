"""What an operator does by hand about work that does not go on.

Path:   api.admin -> here -> journal; backlog
Never:  lets anything happen twice: what is freed is fenced, as when a node dies.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from engine.errors import Conflict, NotFound
from engine.reruns import Workbench
from engine.store import nodes as nodes_store
from engine.store import nodes_view
from engine.store.run_queue import Due, soonest


class Bench(Workbench, Protocol):
    """Port: what it takes."""

    @property
    def cancelled(self) -> Callable[[Collection[str]], None]:
        """Stop these runs, wherever they are: their rows are nobody's, or gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What was freed, or would be; `node_id` had it."""

    node_id: str | None
    runs: int
    deliveries: int


async def release_run(bench: Bench, run_id: str, *, dry_run: bool) -> Freed:
    """Take a run of the queue from whoever has it, so that it begins anew.

    Raises:
        NotFound: it is not in the queue.
    """
    if dry_run:
        found = await bench.database.read(nodes_view.find_run, run_id)
        return Freed(node_id=found.node_id, runs=1, deliveries=0)
    found = await bench.journal.run(nodes_view.release_run, run_id)
    if found.node_id is not None:
        bench.cancelled([run_id])
    bench.backlog.wake(found.project_id, found.priority)
    return Freed(node_id=found.node_id, runs=1, deliveries=0)


async def release_node(bench: Bench, node_id: str, *, dry_run: bool) -> Freed:
    """Take from a node all that it has, as if it had died. If it lives, it begins a new life.

    Raises:
        NotFound: there is no such node, and nothing is said to be its.
        Conflict: it is the only one on its database: there is nobody to give it to.
    """
    there = await bench.database.read(nodes_view.count_of_node, node_id)
    if there is None:
        raise NotFound("node", node_id)
    if bench.database.is_sqlite and node_id == bench.journal.node_id:
        raise Conflict(
            f"{node_id} is the only node on its database; start it again, and it begins anew"
        )
    if dry_run:
        return Freed(node_id=node_id, runs=there.runs, deliveries=there.deliveries)
    done = await bench.journal.run(nodes_store.leave, node_id)
    for due in await bench.database.read(soonest):
        bench.backlog.wake(due.project_id, due.priority, due.due_ms)
    return Freed(node_id=node_id, runs=done.runs, deliveries=done.deliveries)


async def reissue_tickets(bench: Bench, *, dry_run: bool) -> list[Due]:
    """Tell nodes once more of all work that is due and free; return what they are told of."""
    now_ms = bench.clock()
    found = [one for one in await bench.database.read(soonest) if one.due_ms <= now_ms]
    for one in [] if dry_run else found:
        bench.backlog.wake(one.project_id, one.priority, one.due_ms)
    return found
