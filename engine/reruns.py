"""Says how a run is made once more, on what is live now: for replays and dead letters.

Path:   replays, dead_letters -> `plan` -> a row of run_queue
Never:  runs anything that the function's live version has no handler for.
"""

from dataclasses import dataclass
from typing import Protocol

from engine import control
from engine.catalogue import Device, Function
from engine.control import Control
from engine.errors import NotFound
from engine.events import joined_values, write_input
from engine.flow import past_gates, queued_for
from engine.ids import new_id
from engine.policies import Queued
from engine.store.replays import Given


class Catalogue(control.Catalogue, Protocol):
    """Port: adds what is live."""

    def function_by_id(self, function_id: str) -> Function | None: ...

    async def device_by_id(self, project_id: str, device_id: str) -> Device:
        """Return a device of the project.

        Raises:
            NotFound: there is none.
        """
        ...


class Backlog(Protocol):
    """Port: has free rows claimed. Adapter: `engine.backlog`."""

    def wake(self, project_id: str, priority: int = 1, due_ms: int = 0) -> None:
        """Say that there is a free row. Cheap; never raises."""
        ...


class QueueRoom(Protocol):
    """Port: how much a project may have in the queue. Adapter: `engine.queue_room`."""

    async def need(self, project_id: str, count: int) -> None:
        """Refuse what would add so many rows to a queue without room for them.

        Raises:
            QuotaExceeded: names the allowance.
        """
        ...


class Workbench(Control, Protocol):
    """Port: what making a run once more needs besides."""

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def backlog(self) -> Backlog: ...

    @property
    def queue_room(self) -> QueueRoom: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    execution_id: str
    policy: Queued
    lane: str | None


async def plan(bench: Workbench, given: Given, base: Queued | None = None) -> Rerun | str:
    """Return how the run is queued once more, or why it cannot be.

    Args:
        bench: what it takes.
        given: the run.
        base: how often it is tried; None: as the live version declares.
    """
    function = bench.catalogue.function_by_id(given.function_id)
    if function is None:
        return f"the function {given.function} was deleted"
    execution_id = new_id("exe")
    version = function.choose(execution_id)
    if given.handler not in version.handlers:
        return f"version {version.number} of {function.name} has no handler {given.handler}"
    text = await input_of(bench, given)
    if text is None:
        return "its event is not kept any more"
    queued, lane = queued_for(version.policy, text, given.project_id, function.id, base=base)
    return Rerun(execution_id=execution_id, policy=past_gates(queued), lane=lane)


async def input_of(bench: Workbench, given: Given) -> str | None:
    """Return what the handler gets, as JSON; None: it was the event's, which is gone."""
    if given.input is not None:
        return given.input
    if given.event is None or given.event_id is None or given.device_id is None:
        return given.event
    try:
        device = await bench.catalogue.device_by_id(given.project_id, given.device_id)
    except NotFound:
        return given.event  # what is left of it
    values, at_ms = joined_values(given.event), given.received_ms or 0
    source = given.source or "http"
    return write_input(given.handler, device, given.event_id, values, at_ms, source).decode()
