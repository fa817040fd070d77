"""Events as stored: what devices, gateways and functions wrote."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, RowMapping, func, select

from engine.store.pages import Page, Paged
from engine.store.tables import events

SCAN_ROWS: Final = 20_000  # that one page looks at: other projects' events stand between these
ID_SLACK_MS: Final = 3_600_000  # ids carry their own time; an hour allows for a clock set back


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    id: str
    project_id: str
    device_id: str
    received_ms: int
    source: str  # http | gateway | function
    payload: str  # JSON {"values": [...]}


def find_event(connection: Connection, project_id: str, event_id: str) -> StoredEvent | None:
    query = select(events).where(events.c.id == event_id, events.c.project_id == project_id)
    row = connection.execute(query).mappings().first()
    return _event(row) if row is not None else None


def list_events(
    connection: Connection,
    project_id: str,
    page: Page,
    *,
    device_id: str | None = None,
    since_ms: int | None = None,
) -> Paged[StoredEvent]:
    """Return events, newest first.

    A page may have fewer than were asked for, even none, and a next one all the same: that goes on
    where this one stopped looking. No index serves this, as each would cost every write.
    """
    newest = select(events.c.id).order_by(events.c.id.desc()).limit(SCAN_ROWS)
    if page.before is not None:
        newest = newest.where(events.c.id < page.before)
    if since_ms is not None:
        newest = newest.where(events.c.id >= first_id("evt", since_ms - ID_SLACK_MS))
    looked = newest.subquery()
    oldest, count = connection.execute(select(func.min(looked.c.id), func.count())).one()
    if not count:
        return Paged((), None)
    query = select(events).where(events.c.id >= oldest, events.c.project_id == project_id)
    if page.before is not None:
        query = query.where(events.c.id < page.before)
    if device_id is not None:
        query = query.where(events.c.device_id == device_id)
    if since_ms is not None:
        query = query.where(events.c.received_ms >= since_ms)
    rows = connection.execute(query.order_by(events.c.id.desc()).limit(page.limit + 1)).mappings()
    found = [_event(row) for row in rows]
    if len(found) > page.limit:
        return Paged(tuple(found[: page.limit]), found[page.limit - 1].id)
    return Paged(tuple(found), oldest if count == SCAN_ROWS else None)


def first_id(prefix: str, at_ms: int) -> str:
    """Return what sorts before every id of that time and later ones."""
    return f"{prefix}_{max(0, at_ms):012x}"


def made_ms(made_id: str) -> int:
    """Return when an id was made, by the clock of whoever made it."""
    return int(made_id.partition("_")[2][:12], 16)


def _event(row: RowMapping) -> StoredEvent:
    return StoredEvent(**row)
