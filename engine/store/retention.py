"""Counts and deletes what a project keeps, in the order of ids, which is that of time.

Path:   engine.retention -> what goes: read here; steps: journal -> `delete_rows`, `forget`
Never:  deletes what has not ended. What goes is named by ids that are the same whoever looks: what
        the newest rows leave no room for. So two nodes that do it at once do it once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    Text,
    and_,
    any_,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from engine.store.gates import INLINE
from engine.store.server_time import database_ms
from engine.store.tables import (
    changes,
    connection_gates,
    dead_letters,
    deliveries,
    delivery_attempts,
    delivery_counts,
    events,
    executions,
    flow_marks,
    idempotency_keys,
    jobs,
    nodes,
    projects,
    retentions,
    run_queue,
    schedule_fires,
    schedules,
    value_ids,
)

YOUNG_MS: Final = 30_000  # runs that were queued so lately are looked for again when events go
HELD_EVENTS_MAX: Final = 200_000  # ids of events that are still needed, held in memory for a pass
LAST_MS: Final = (1 << 47) - 1  # later than any id


class octets(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it stands for
    """The bytes of a text; 0 for null."""

    type = BigInteger()
    inherit_cache = True


@compiles(octets)
def _octets(element: octets, compiler: Any, **options: Any) -> str:
    return f"coalesce(octet_length({compiler.process(element.clauses, **options)}), 0)"


@compiles(octets, "sqlite")
def _octets_sqlite(element: octets, compiler: Any, **options: Any) -> str:
    # `length` of a text counts characters; `octet_length` came with SQLite 3.43.
    return f"coalesce(length(CAST({compiler.process(element.clauses, **options)} AS BLOB)), 0)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shelf:
    """One kind of row that a project keeps."""

    table: Table
    prefix: str  # of its ids
    texts: tuple[Column[Any], ...]  # whose bytes count
    row_bytes: int  # what a row takes besides them, about: ids, numbers, its places in indexes
    over_ms: Column[Any]  # when it was over: its age counts from then
    only: ColumnElement[bool] | None = None  # which rows of the table


SHELVES: Final[Mapping[str, Shelf]] = {
    "executions": Shelf(
        table=executions,
        prefix="exe",
        texts=(executions.c.input, executions.c.result, executions.c.report, executions.c.log),
        row_bytes=400,
        over_ms=executions.c.clock_ms,  # its id may be far older: of a job for next month
    ),
    "logs": Shelf(
        table=executions,
        prefix="exe",
        texts=(executions.c.log,),
        row_bytes=0,
        over_ms=executions.c.clock_ms,
        only=executions.c.log.is_not(None),
    ),
    "events": Shelf(
        table=events,
        prefix="evt",
        texts=(events.c.payload,),
        row_bytes=150,
        over_ms=events.c.received_ms,
    ),
    "jobs": Shelf(
        table=jobs,
        prefix="job",
        texts=(jobs.c.payload, jobs.c.policy, jobs.c.result, jobs.c.error, jobs.c.progress),
        row_bytes=400,
        over_ms=jobs.c.ended_ms,
        only=jobs.c.ended_ms.is_not(None),
    ),
    "dead_letters": Shelf(
        table=dead_letters,
        prefix="dlq",
        texts=(dead_letters.c.payload, dead_letters.c.policy, dead_letters.c.error),
        row_bytes=500,
        over_ms=dead_letters.c.created_ms,
    ),
    "deliveries": Shelf(
        table=deliveries,
        prefix="dlv",
        texts=(deliveries.c.payload,),
        row_bytes=500,
        over_ms=deliveries.c.ended_ms,
        only=deliveries.c.ended_ms.is_not(None),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a project has said about a kind; None: it leaves that to the settings."""

    rows_max: int | None = None
    bytes_max: int | None = None
    age_ms_max: int | None = None  # 0: for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Which rows go: those of some projects, up to an id, that were over before a time.

    Events have no index by project: one walk through them is for all projects with one rule.
    """

    kind: str
    project_ids: tuple[str, ...]
    all_but: bool = False  # of all projects but these
    until_id: str
    before_ms: int | None = None  # None: whenever they were over
    after_id: str = ""  # what stands before has been looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Some rows, newest first; `oldest_id` is where to go on."""

    rows: int
    bytes: int
    oldest_id: str
    oldest_ms: int
    over: int  # rows, and their bytes, that were over before the time that was asked for
    over_bytes: int


def id_at(kind: str, at_ms: int) -> str:
    """Return what sorts after the ids made before that time, and before the others.

    An id goes on with 48 bits of milliseconds. Source: RFC 9562, section 5.7 (UUIDv7).
    """
    return f"{SHELVES[kind].prefix}_{min(max(at_ms, 0), LAST_MS):012x}"


# Rules.


def rules_of_all(connection: Connection) -> dict[str, dict[str, Rule]]:
    """Return what each project has said; a project that said nothing has an empty one."""
    found: dict[str, dict[str, Rule]] = {
        row.id: {} for row in connection.execute(select(projects.c.id))
    }
    for row in connection.execute(select(retentions)):
        found[row.project_id][row.kind] = _rule(row)
    return found


def rules_of(connection: Connection, project_id: str) -> dict[str, Rule]:
    query = select(retentions).where(retentions.c.project_id == project_id)
    return {row.kind: _rule(row) for row in connection.execute(query)}


def put_rules(connection: Connection, project_id: str, rules: Mapping[str, Rule]) -> None:
    """Replace all that the project has said."""
    connection.execute(delete(retentions).where(retentions.c.project_id == project_id))
    rows = [
        {
            "project_id": project_id,
            "kind": kind,
            "rows_max": rule.rows_max,
            "bytes_max": rule.bytes_max,
            "age_ms_max": rule.age_ms_max,
        }
        for kind, rule in rules.items()
    ]
    if rows:
        connection.execute(insert(retentions), rows)


def _rule(row: Any) -> Rule:
    return Rule(rows_max=row.rows_max, bytes_max=row.bytes_max, age_ms_max=row.age_ms_max)


def whose_turn(connection: Connection) -> tuple[str | None, int | None]:
    """Return the node that works, and the database's own time, if it has one.

    It is the oldest one that serves, else the oldest; None: there is none yet.
    """
    query = select(nodes.c.id).order_by((nodes.c.kind != "serve"), nodes.c.id).limit(1)
    return connection.execute(query).scalar_one_or_none(), database_ms(connection)


# What goes.


def due(connection: Connection, asks: Sequence[Ask], rows_max: int) -> list[list[str]]:
    """Return for each what goes first, oldest first, at most `rows_max` ids."""
    return [list(connection.execute(_due(ask, rows_max)).scalars()) for ask in asks]


def counted(
    connection: Connection,
    kind: str,
    project_id: str,
    *,
    before_id: str | None,
    after_id: str | None = None,
    over_before_ms: int | None = None,
    rows_max: int,
) -> Counted | None:
    """Count up to `rows_max` rows between two ids, newest first; None: there are none."""
    shelf = SHELVES[kind]
    query = _newest(shelf, project_id, before_id, rows_max)
    if after_id is not None:
        query = query.where(shelf.table.c.id > after_id)
    some = query.subquery()
    over = false() if over_before_ms is None else some.c.over_ms < over_before_ms
    query = select(
        func.count(),
        func.coalesce(func.sum(some.c.bytes), 0),
        func.min(some.c.over_ms),
        func.count().filter(over),
        func.coalesce(func.sum(some.c.bytes).filter(over), 0),
        func.min(some.c.id),
    )
    *numbers, oldest_id = connection.execute(query).one()
    if oldest_id is None:
        return None
    rows, size, oldest_ms, over_rows, over_bytes = map(int, numbers)
    return Counted(
        rows=rows,
        bytes=size,
        oldest_id=oldest_id,
        oldest_ms=oldest_ms,
        over=over_rows,
        over_bytes=over_bytes,
    )


def cut_within(
    connection: Connection,
    kind: str,
    project_id: str,
    *,
    before_id: str | None,
    rows_left: int | None,
    bytes_left: int | None,
    rows_max: int,
) -> str | None:
    """Return the newest of these rows for which there is no room left; None: there is."""
    query = _newest(SHELVES[kind], project_id, before_id, rows_max)
    used = 0
    for count, row in enumerate(connection.execute(query), start=1):
        used += row.bytes
        too_many = rows_left is not None and count > rows_left
        if too_many or (bytes_left is not None and used > bytes_left):
            return str(row.id)
    return None


def events_needed(connection: Connection, until_id: str) -> frozenset[str] | None:
    """Return the older events that a dead letter or a queued run still needs; None: too many.

    Dead letters first: one that is redriven meanwhile is in both.
    """
    needed: set[str] = set()
    for table in (dead_letters, run_queue):
        query = (
            select(table.c.event_id)
            .where(table.c.event_id.is_not(None), table.c.event_id <= until_id)
            .limit(HELD_EVENTS_MAX)
        )
        needed.update(connection.execute(query).scalars())
    return None if len(needed) >= HELD_EVENTS_MAX else frozenset(needed)


def _newest(shelf: Shelf, project_id: str, before_id: str | None, rows_max: int) -> Select[Any]:
    table = shelf.table
    size: ColumnElement[int] = literal(shelf.row_bytes)
    for column in shelf.texts:
        size += octets(column)
    query = select(table.c.id, size.label("bytes"), shelf.over_ms.label("over_ms")).where(
        table.c.project_id == project_id
    )
    if shelf.only is not None:
        query = query.where(shelf.only)
    if before_id is not None:
        query = query.where(table.c.id < before_id)
    return query.order_by(table.c.id.desc()).limit(rows_max)


def _due(ask: Ask, rows_max: int) -> Select[Any]:
    table = SHELVES[ask.kind].table
    query = select(table.c.id).where(
        _goes(ask), table.c.id > ask.after_id, table.c.id <= ask.until_id
    )
    return query.order_by(table.c.id).limit(rows_max)


def _goes(ask: Ask) -> ColumnElement[bool]:
    shelf = SHELVES[ask.kind]
    conditions = [_of_projects(ask)]
    if ask.before_ms is not None:
        conditions.append(shelf.over_ms < ask.before_ms)
    if shelf.only is not None:
        conditions.append(shelf.only)
    return and_(*conditions)


def _of_projects(ask: Ask) -> ColumnElement[bool]:
    project_id = SHELVES[ask.kind].table.c.project_id
    if ask.all_but:
        return project_id.not_in(ask.project_ids)
    if len(ask.project_ids) == 1:  # said so that it is one range of an index by project and id
        return project_id == ask.project_ids[0]
    return project_id.in_(ask.project_ids)


# Steps, in the writer's transaction.


def delete_rows(connection: Connection, ask: Ask, ids: Sequence[str], now_ms: int) -> int:
    """Delete those of `ids` that still go, and return how many; of `logs` only the log goes.

    Args:
        connection: the writer's.
        ask: why they go.
        ids: which.
        now_ms: by the clock that ids are made by.
    """
    table = SHELVES[ask.kind].table
    # Rows that another node is at are left to it: nobody waits, so nobody waits in a circle.
    named = _named(connection, table, ids)
    query = select(table.c.id).where(_goes(ask), named).with_for_update(skip_locked=True)
    if ask.kind == "events":
        young = f"exe_{max(now_ms - YOUNG_MS, 0):012x}"
        queued = select(run_queue.c.event_id).where(
            run_queue.c.id > young, run_queue.c.event_id.is_not(None)
        )
        query = query.where(table.c.id.not_in(queued))
    still = list(connection.execute(query.order_by(table.c.id)).scalars())
    if not still:
        return 0
    here = (_of_projects(ask), _named(connection, table, still))
    if ask.kind == "logs":
        return connection.execute(update(table).where(*here).values(log=None)).rowcount
    if ask.kind == "deliveries":
        attempts = delivery_attempts.c.delivery_id.in_(still)
        connection.execute(delete(delivery_attempts).where(attempts))
    return connection.execute(delete(table).where(*here)).rowcount


def _named(connection: Connection, table: Table, ids: Sequence[str]) -> ColumnElement[bool]:
    """Return "is one of these", which are in order, so that the primary key finds them."""
    if connection.dialect.name == "sqlite":
        return table.c.id.in_(ids)  # with a range beside it, it would go through the range
    # The range is for a PostgreSQL that has no statistics yet: without, it would read them all.
    one_of = table.c.id == any_(literal(list(ids), ARRAY(Text)))
    return and_(table.c.id >= ids[0], table.c.id <= ids[-1], one_of)


def schedules_with_old_fires(
    connection: Connection, project_id: str, before_ms: int, limit: int
) -> list[str]:
    """Return schedules of a project that fired before that time, and have rows of it."""
    old = exists().where(
        schedule_fires.c.schedule_id == schedules.c.id, schedule_fires.c.due_ms < before_ms
    )
    query = select(schedules.c.id).where(schedules.c.project_id == project_id, old)
    return list(connection.execute(query.order_by(schedules.c.id).limit(limit)).scalars())


def delete_fires(
    connection: Connection, schedule_ids: Sequence[str], before_ms: int, rows_max: int
) -> int:
    """Delete the oldest fires of these schedules, `rows_max` in all; the due times tell the age."""
    done = 0
    for schedule_id in schedule_ids:
        old = and_(
            schedule_fires.c.schedule_id == schedule_id,
            schedule_fires.c.due_ms < before_ms,
        )
        done += _delete_some(connection, schedule_fires, old, rows_max - done)
        if done >= rows_max:
            break
    return done


def count_fires(connection: Connection, project_id: str, before_ms: int) -> tuple[int, int, Any]:
    """Return how many fires a project has, how many are older, and the first one's due time."""
    query = (
        select(
            func.count(),
            func.count().filter(schedule_fires.c.due_ms < before_ms),
            func.min(schedule_fires.c.due_ms),
        )
        .join(schedules, schedules.c.id == schedule_fires.c.schedule_id)
        .where(schedules.c.project_id == project_id)
    )
    rows, over, oldest_ms = connection.execute(query).one()
    return rows, over, oldest_ms


# What the engine keeps for itself, of all projects together.


def forget(connection: Connection, name: str, before_ms: int, now_ms: int, rows_max: int) -> int:
    """Delete some of the engine's own rows that nobody needs any more, oldest first."""
    table, old = OWN[name](before_ms, now_ms)
    return _delete_some(connection, table, old, rows_max)


def is_forgettable(connection: Connection, name: str, before_ms: int, now_ms: int) -> bool:
    """Say whether `forget` would find anything; costs no place in the writer's queue."""
    table, old = OWN[name](before_ms, now_ms)
    query = select(next(iter(table.primary_key.columns))).where(old).limit(1)
    return connection.execute(query).first() is not None


_Own = Callable[[int, int], tuple[Table, ColumnElement[bool]]]


def _old_changes(before_ms: int, _now_ms: int) -> tuple[Table, ColumnElement[bool]]:
    # The newest stays: SQLite would begin to count again, and who has read 7 looks for 8.
    newest = select(func.max(changes.c.seq)).scalar_subquery()
    return changes, and_(changes.c.at_ms < before_ms, changes.c.seq < newest)


def _old_marks(before_ms: int, now_ms: int) -> tuple[Table, ColumnElement[bool]]:
    # Not one that still says something: a rate that is used up until later, a burst not over.
    waits = exists().where(run_queue.c.id == flow_marks.c.newest_id)
    return flow_marks, and_(
        flow_marks.c.touched_ms < before_ms,
        or_(flow_marks.c.free_ms.is_(None), flow_marks.c.free_ms < now_ms),
        ~waits,
    )


def _old_gates(before_ms: int, _now_ms: int) -> tuple[Table, ColumnElement[bool]]:
    # Only what says no more than a new one would; and what scripts' own credentials have left.
    table = connection_gates.c
    return connection_gates, and_(
        table.next_ms < before_ms,
        table.until_ms < before_ms,
        or_(
            and_(table.breaker == "closed", table.failures == 0, table.disabled.is_(None)),
            and_(
                table.connection.startswith(INLINE, autoescape=True),
                func.coalesce(table.since_ms, 0) < before_ms,
            ),
        ),
    )


OWN: Final[Mapping[str, _Own]] = {
    "idempotency_keys": lambda before_ms, _: (
        idempotency_keys,
        idempotency_keys.c.created_ms < before_ms,
    ),
    "value_ids": lambda before_ms, _: (value_ids, value_ids.c.created_ms < before_ms),
    "changes": _old_changes,
    "flow_marks": _old_marks,
    "connection_gates": _old_gates,
    "delivery_counts": lambda before_ms, _: (
        delivery_counts,
        delivery_counts.c.window_ms < before_ms,
    ),
}


def _delete_some(
    connection: Connection, table: Table, old: ColumnElement[bool], rows_max: int
) -> int:
    columns = list(table.primary_key.columns)
    some = select(*columns).where(old).limit(rows_max).with_for_update(skip_locked=True)
    key = columns[0] if len(columns) == 1 else tuple_(*columns)
    return connection.execute(delete(table).where(key.in_(some))).rowcount
