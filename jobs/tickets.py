"""Tells workers that a project has work: the port; `local_tickets` and `rq_tickets` keep it.

Path:   engine.backlog -> `issue` -> here -> `take` -> engine.backlog, there or in another process
Never:  says what the work is. The table of runs does; a ticket may be lost or come twice.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ticket:
    """Project `project_id` has runs of `priority` that are due: 0 high, 1 default, 2 low."""

    project_id: str
    priority: int


class Tickets(Protocol):
    """Port: carries tickets to whoever takes them.

    Whatever was committed before `issue` is seen by a `take` that begins after it: a ticket that
    still waits stands for both, one that is being taken does not. So a wake-up is lost only with
    its transport; whoever issues looks into the table from time to time, and issues again.
    """

    def issue(self, ticket: Ticket) -> None:
        """Have it taken once more, soon. Called on the loop; costs microseconds, raises nothing."""
        ...

    async def start(self) -> None:
        """Begin to carry; what was issued before waits until then."""
        ...

    async def close(self) -> None:
        """Carry nothing more; what still waits is dropped."""
        ...

    def trouble(self) -> str | None:
        """Return what is wrong with the transport, for an operator, or None."""
        ...
