"""What the raw routes are handed: one object, filled by `engine.wiring`."""

from dataclasses import dataclass

from engine.backlog import Backlog
from engine.catalogue import Catalogue
from engine.clock import Clock
from engine.dispatch import Dispatcher
from engine.events import Events
from engine.idempotency import Idempotency
from engine.queue_room import QueueRoom
from engine.rate_limits import RateLimits
from engine.store.database import Database
from engine.store.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The engine, as far as a raw route reaches into it."""

    catalogue: Catalogue
    database: Database
    journal: Journal
    events: Events
    idempotency: Idempotency
    rate_limits: RateLimits
    backlog: Backlog
    queue_room: QueueRoom
    dispatcher: Dispatcher
    clock: Clock
