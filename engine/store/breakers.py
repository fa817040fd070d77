"""Breakers of functions and devices as stored: the same for all nodes, and there after a restart.

Path:   engine.breakers -> journal -> here;  engine.deployments -> `forget_replaced`
Never:  lets two nodes try the same breaker: the trial is whoever's UPDATE finds it due.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from engine.breaker_rules import AHEAD_MS_MAX, LOOK_MS, look_again_ms
from engine.clock import wall_clock
from engine.store.changes import note_change
from engine.store.deployments import live_deployment
from engine.store.flow import hold_back
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.run_queue import PRIORITIES
from engine.store.server_time import database_ms
from engine.store.tables import breakers, dead_letters, devices, functions, run_queue, versions

OPEN: Final = "open"
HALF_OPEN: Final = "half_open"  # a trial is under way; it is lost with its node, or at `until`
CHANGE: Final = "breakers"  # in the feed of changes
OLD_MS: Final = 24 * 3_600_000  # a breaker that nobody has asked for so long is forgotten
Woken = list[tuple[str, int, int]]
"""(project, priority, due) of rows, for `Backlog.wake`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """One that is not closed: a closed one has no row."""

    id: str
    project_id: str
    function_id: str
    version_id: str
    device_id: str  # empty: the whole version
    state: str
    node_id: str | None = None  # whose the trial is that is under way
    error: dict[str, Any]  # {status, name, message, limit} of the last failure
    failures: int
    openings: int
    opened_ms: int
    until_ms: int  # open: then a run is let through; half_open: its trial counts as lost then


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView(Breaker):
    """As people see it."""

    function: str
    version: int
    device: str | None  # its name
    set_aside: int  # dead letters that it has made, and that are still there


def all_breakers(connection: Connection, project_id: str | None = None) -> list[Breaker]:
    """Return those of a project, or of all."""
    query = select(breakers)
    if project_id is not None:
        query = query.where(_rows.project_id == project_id)
    return [Breaker(**_fields(row)) for row in connection.execute(query).mappings()]


def list_breakers(
    connection: Connection, project_id: str, function_id: str | None, page: Page
) -> Paged[BreakerView]:
    """Return breakers, newest first."""
    query = _view().where(_rows.project_id == project_id)
    if function_id is not None:
        query = query.where(_rows.function_id == function_id)
    found = connection.execute(page_of(query, _rows.id, page)).mappings()
    return paged([BreakerView(**_fields(row)) for row in found], page, lambda one: one.id)


def find_breaker(connection: Connection, project_id: str, breaker_id: str) -> BreakerView | None:
    query = _view().where(_rows.project_id == project_id, _rows.id == breaker_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else BreakerView(**_fields(row))


def open_breaker(connection: Connection, breaker: Breaker) -> bool:
    """Insert it; False: another node was first, or the version is not live any more.

    Who deploys deletes the breakers of what it replaces (`forget_replaced`): what is live is asked
    here, so that none comes after that which nobody would delete.
    """
    old = delete(breakers).where(
        _rows.project_id == breaker.project_id, _rows.until_ms < breaker.opened_ms - OLD_MS
    )
    connection.execute(old)
    known = select(versions.c.number).where(versions.c.id == breaker.version_id)
    number = connection.execute(known).scalar()
    live = live_deployment(connection, breaker.function_id)
    if live is None or number not in {share.version for share in live.versions}:
        return False
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    row = {name: getattr(breaker, name) for name in breakers.c.keys()}  # noqa: SIM118 - no dict: it yields columns
    row["error"] = msgspec.json.encode(breaker.error).decode()
    fresh = dialect.insert(breakers).values(row).on_conflict_do_nothing().returning(_rows.id)
    if connection.execute(fresh).first() is None:
        return False
    note_change(connection, CHANGE, breaker.project_id)
    return True


def begin_trial(connection: Connection, breaker: Breaker, now_ms: int, until_ms: int) -> bool:
    """Claim the trial that is due; it counts as lost at `until_ms`. False: somebody else has it."""
    claimed = (
        update(breakers)
        .where(
            _rows.id == breaker.id,
            or_(_rows.until_ms <= now_ms, _rows.until_ms > now_ms + AHEAD_MS_MAX),  # see `is_due`
        )
        .values(state=HALF_OPEN, until_ms=until_ms, node_id=connection.info.get("node_id"))
    )
    if connection.execute(claimed).rowcount != 1:
        return False
    note_change(connection, CHANGE, breaker.project_id)
    return True


def open_again(connection: Connection, breaker: Breaker, until_ms: int) -> bool:
    """Open it after its trial, with its openings and its error; False: it was closed meanwhile."""
    changed = (
        update(breakers)
        .where(_rows.id == breaker.id)
        .values(
            state=OPEN,
            node_id=None,
            until_ms=until_ms,
            openings=breaker.openings,
            error=msgspec.json.encode(breaker.error).decode(),
        )
    )
    if connection.execute(changed).rowcount != 1:
        return False
    note_change(connection, CHANGE, breaker.project_id)
    return True


def free_trials(connection: Connection, node_id: str | None) -> None:
    """Make another trial due now: the node of the one under way is gone; None: every node is.

    What is locked, a transaction of that node has, and `until_ms` holds for it as before.
    """
    lost = select(_rows.id, _rows.project_id).where(_rows.state == HALF_OPEN)
    if node_id is not None:
        lost = lost.where(_rows.node_id == node_id)
    found = connection.execute(lost.with_for_update(skip_locked=True)).all()
    if not found:
        return
    now_ms = database_ms(connection) or wall_clock()
    due = update(breakers).where(_rows.id.in_([row.id for row in found]))
    connection.execute(due.values(until_ms=now_ms, node_id=None))
    for project_id in sorted({row.project_id for row in found}):
        note_change(connection, CHANGE, project_id, also_here=True)


def close_breaker(
    connection: Connection, project_id: str, breaker_id: str, now_ms: int
) -> tuple[bool, Woken]:
    """Delete it, and make due what waits for it; False: it was closed before."""
    gone = (
        delete(breakers)
        .where(_rows.project_id == project_id, _rows.id == breaker_id)
        .returning(breakers)
    )
    row = connection.execute(gone).mappings().first()
    if row is None:
        return False, []
    note_change(connection, CHANGE, project_id)
    return True, wake_waiting(connection, Breaker(**_fields(row)), now_ms)


def wake_waiting(connection: Connection, gone: Breaker, now_ms: int) -> Woken:
    """Make due now what was put off to the end of a breaker that is gone.

    Nothing else is due just then. What a device's breaker has set aside waits for people.
    """
    if gone.device_id:
        return []
    dues_ms = {gone.until_ms}
    if gone.state == HALF_OPEN:
        look_ms = look_again_ms(gone.until_ms, now_ms)
        dues_ms |= {look_ms, look_ms + LOOK_MS}
    return _wake(connection, gone.project_id, gone.function_id, dues_ms, now_ms)


def forget_replaced(
    connection: Connection, function_id: str, live: Collection[str], now_ms: int
) -> None:
    """Delete the breakers of a function's versions that are live no more, or just became so.

    Args:
        connection: in the transaction that makes other versions live.
        function_id: whose.
        live: ids of versions that were live before, and stay so: theirs are kept.
        now_ms: when what waits for them is due; the backlog finds it within a second.
    """
    gone = (
        delete(breakers)
        .where(_rows.function_id == function_id, _rows.version_id.not_in(live))
        .returning(breakers)
    )
    found = [Breaker(**_fields(row)) for row in connection.execute(gone).mappings()]
    for breaker in found:
        wake_waiting(connection, breaker, now_ms)
    if found:
        note_change(connection, CHANGE, found[0].project_id)


def put_off_runs(
    connection: Connection,
    node_id: str,
    ids: Collection[str],
    due_ms: int,
    lane: str | None = None,
) -> list[str]:
    """Give runs of this node back unstarted, to be claimed when they are due.

    Args:
        connection: in a transaction.
        node_id: this node's.
        ids: theirs.
        due_ms: when they may be claimed again.
        lane: their ordered lane: what the node has of it waits behind them, as for a retry.
    """
    change = (
        update(run_queue)
        .where(run_queue.c.id.in_(ids), run_queue.c.node_id == node_id)
        .values(node_id=None, due_ms=due_ms)
        .returning(run_queue.c.id)
    )
    given_back = list(connection.execute(change).scalars())
    if lane is not None:
        hold_back(connection, lane, node_id)
    return given_back


def _wake(
    connection: Connection, project_id: str, function_id: str, dues_ms: set[int], now_ms: int
) -> Woken:
    change = (
        update(run_queue)
        .where(
            run_queue.c.project_id == project_id,
            run_queue.c.node_id.is_(None),
            run_queue.c.priority.in_(PRIORITIES.values()),  # for the index
            run_queue.c.due_ms.in_(dues_ms),
            run_queue.c.due_ms > now_ms,
            run_queue.c.function_id == function_id,
        )
        .values(due_ms=now_ms)
        .returning(run_queue.c.priority)
    )
    priorities = set(connection.execute(change).scalars())
    return [(project_id, priority, now_ms) for priority in sorted(priorities)]


_rows: Final = breakers.c


def _view() -> Select[Any]:
    aside = (
        select(func.count())
        .select_from(dead_letters)
        .where(dead_letters.c.breaker_id == _rows.id)
        .scalar_subquery()
    )
    return (
        select(
            breakers,
            functions.c.name.label("function"),
            func.coalesce(versions.c.number, 0).label("version"),
            devices.c.name.label("device"),
            aside.label("set_aside"),
        )
        .join(functions, functions.c.id == _rows.function_id)
        .outerjoin(versions, versions.c.id == _rows.version_id)
        .outerjoin(devices, devices.c.id == _rows.device_id)
    )


def _fields(row: RowMapping) -> dict[str, Any]:
    return dict(row) | {"error": msgspec.json.decode(row["error"])}
