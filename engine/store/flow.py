"""Asks and tells the tables what `engine.flow` decides by: lanes of `run_queue`, `flow_marks`.

Path:   store.run_queue.claim -> `admit`;  the end of a run -> `unpark`;  poller -> `unpark_stale`
Never:  counts ahead: what runs is counted where it stands, under the lane's lock, so a node that
        dies takes no place with it.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from engine.flow import (
    BURST,
    HELD,
    Admitted,
    Candidate,
    Decision,
    Lane,
    Mark,
    OrderKey,
    decide,
    has_gates,
    is_ordered,
    lane_limit,
    mark_keys,
    order_key,
    since_key,
)
from engine.policies import Queued, read_queued, write_queued
from engine.store.journal import Commit
from engine.store.tables import PARKED, flow_marks, run_queue

__all__ = ["Admitted", "Candidate", "admit", "note", "unpark", "unpark_stale"]

SWEPT_ROWS: Final = 2_000  # of full lanes, parked beside those that were asked
_rows = run_queue.c
_COLUMNS: Final = tuple(run_queue.columns[name] for name in Candidate.__dataclass_fields__)
_PLACE: Final = (_rows.priority, _rows.position_ms, _rows.event_id, _rows.id)  # as the index has it
_Freed = tuple[str, str, int]  # a row's id, its project and its priority
_IN_A_LANE: Final = _rows.lane.is_not(None)  # PostgreSQL uses the index of lanes where it is said


def admit(connection: Connection, rows: Sequence[Candidate], node_id: str, now_ms: int) -> Admitted:
    """Decide which of the rows the node may run, and put away those that it may not.

    Locks the lanes to the end of the transaction. A transaction takes such locks once, here or in
    `unpark`: two that hold some and want more could wait for each other, until PostgreSQL ends
    one of them, after a second. Rows are never waited for: who has one locked decides about it.

    Args:
        connection: in the transaction that has locked the rows.
        rows: free and due, in the order in which they would be claimed.
        node_id: who claims.
        now_ms: the time.

    Returns:
        The caller makes the rows of `claim` the node's, and ends those of `skip`; rows of `park`
        and `wait` are done with. `claim` may name rows that were not asked for, earlier ones of an
        ordered lane; they are locked too.
    """
    names = sorted({row.lane for row in rows if row.lane is not None})
    keys = mark_keys(rows)
    _lock(connection, {*names, *keys})
    rows, lanes = _lanes(connection, rows, names, node_id)
    decision = decide(rows, lanes, _marks(connection, keys), node_id, now_ms)
    _write(connection, decision)
    _sweep(connection, rows, decision, now_ms)
    # Asked anew: behind a row that was skipped others may be parked, and an owner may have died
    # since it was counted, so that its rows were parked with the rest.
    unclaimed = {name for name in names if not decision.claimed.get(name)}
    freed = _free_parked(connection, unclaimed, now_ms)
    # The caller wakes for the first of `wait`: these too can be claimed then.
    decision.admitted.wait.extend(decision.sooner.items())
    decision.admitted.wait.extend((run_id, now_ms) for run_id, _, _ in freed)
    return decision.admitted


def unpark(
    connection: Connection, lanes: Collection[str], now_ms: int | None = None
) -> list[tuple[str, int]]:
    """Free parked rows of lanes in which a run has ended, as many as there is room for.

    Call it once in a transaction, as its last step, with all lanes: see `admit`.

    Args:
        connection: in the transaction that ends the runs, or in a later one.
        lanes: their names.
        now_ms: the time; with it rows that are free already and due count as takers of the room.

    Returns:
        (project, priority) of what has become free: somebody should claim there.
    """
    _lock(connection, lanes)
    freed = _free_parked(connection, set(lanes), now_ms)
    return sorted({(project_id, priority) for _, project_id, priority in freed})


def unpark_stale(
    connection: Connection, limit: int, now_ms: int | None = None
) -> list[tuple[str, int]]:
    """Free parked rows of lanes where nothing runs: their node died, or their head was cancelled.

    It looks at every lane that has parked rows, once each: for every few seconds, not for less.
    """
    return unpark(connection, _stale(connection, limit), now_ms)


def hold_back(connection: Connection, lane: str, node_id: str) -> list[str]:
    """Park what the node has of an ordered lane: the run at its head will be tried again first.

    Returns:
        The runs that the node must forget; none of them has begun, as they run in turn.
    """
    change = (
        update(run_queue)
        .where(_rows.lane == lane, _IN_A_LANE, _rows.node_id == node_id)
        .values(node_id=PARKED)
        .returning(_rows.id)
    )
    return list(connection.execute(change).scalars())


def note(commit: Commit, queued: Queued, run_id: str, now_ms: int) -> None:
    """Remember a debounced run that the same commit inserts as the newest of its key."""
    for row, is_new in _noted(queued, run_id, now_ms):
        if is_new:
            commit.insert_new(flow_marks, row)
        else:
            commit.put(flow_marks, row)


def note_here(connection: Connection, queued: Queued, run_id: str, now_ms: int) -> None:
    """Do as `note` in a transaction that is under way."""
    for row, is_new in _noted(queued, run_id, now_ms):
        _put_mark(connection, row, keep=is_new)


# -- What there is


def _lock(connection: Connection, names: Iterable[str]) -> None:
    if connection.dialect.name == "sqlite":
        return  # the transaction is the only writer's
    keys = sorted({_lock_key(name) for name in names})
    if keys:
        # A function in FROM yields its rows in their order, so the locks are taken in theirs.
        sql = text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key")
        connection.execute(sql, {"keys": keys})


def _lock_key(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"flow").digest()
    return int.from_bytes(digest, signed=True)


def _lanes(
    connection: Connection, rows: Sequence[Candidate], names: list[str], node_id: str
) -> tuple[list[Candidate], dict[str, Lane]]:
    """Return the candidates with those that an ordered lane adds, and what else the lanes hold."""
    if not names:
        return list(rows), {}
    owners: dict[str, dict[str, int]] = {name: {} for name in names}
    for name, owner, count in _owned(connection, names):
        owners[name][owner] = count
    ordered: dict[str, OrderKey] = {}  # the last candidate of each
    single = set()
    for row in rows:
        if row.lane is None:
            continue
        if is_ordered(row.policy):
            ordered[row.lane] = max(row.key, ordered.get(row.lane, row.key))
        elif row.policy.flow is not None and row.policy.flow.singleton is not None:
            single.add(row.lane)
    mine = {name: last for name, last in ordered.items() if set(owners[name]) <= {node_id}}
    added, blockers = _earlier(connection, {row.id for row in rows}, mine)
    alive, others = _singletons(connection, single, {row.id for row in rows})
    return [*rows, *added], {
        name: Lane(
            owners=owners[name],
            blocker=blockers.get(name),
            alive=name in alive,
            others=tuple(others.get(name, ())),
        )
        for name in names
    }


def _owned(connection: Connection, names: Collection[str]) -> list[tuple[str, str, int]]:
    """Return (lane, node, how many of its rows the node has)."""
    # Two ranges of the index instead of one `<>`, which would read every parked row of the lane.
    halves = [
        select(_rows.lane, _rows.node_id, func.count())
        .where(_of(connection, names), side)
        .group_by(_rows.lane, _rows.node_id)
        for side in (_rows.node_id < PARKED, _rows.node_id > PARKED)
    ]
    return [(row[0], row[1], row[2]) for row in connection.execute(union_all(*halves))]


def _earlier(
    connection: Connection, known: Collection[str], last: Mapping[str, OrderKey]
) -> tuple[list[Candidate], dict[str, OrderKey]]:
    """Find what stands before the candidates in their ordered lanes.

    What waits only for late values is due with them: it is locked and returned. What waits for its
    next attempt, or is another claimer's to decide on, or is parked, is a blocker.
    """
    if not last:
        return [], {}
    query = select(
        _rows.id, _rows.lane, _rows.position_ms, _rows.event_id, _rows.attempt, _rows.policy
    ).where(
        _of(connection, last),
        _rows.node_id.is_(None),
        _rows.position_ms <= max(position_ms for position_ms, _, _ in last.values()),
    )
    blockers = {row.lane or "": row.key for row in _first_parked(connection, last)}
    wanted: dict[str, tuple[str, OrderKey]] = {}
    for row in connection.execute(query):
        key = order_key(row.position_ms, row.event_id, row.id)
        if row.id in known or key > last[row.lane]:
            continue
        if row.attempt == 1 and not read_queued(row.policy).admitted:
            wanted[row.id] = (row.lane, key)
        else:
            _block(blockers, row.lane, key)
    first = sorted(wanted, key=lambda run_id: wanted[run_id][1])[: BURST * len(last)]
    locked = (
        select(*_COLUMNS)
        .where(_rows.id.in_(first), _rows.node_id.is_(None))
        .with_for_update(skip_locked=True)
    )
    added = _candidates(connection, locked) if first else []
    for run_id in wanted.keys() - {row.id for row in added}:
        _block(blockers, *wanted[run_id])
    return added, blockers


def _block(blockers: dict[str, OrderKey], lane: str, key: OrderKey) -> None:
    blockers[lane] = min(key, blockers.get(lane, key))


def _singletons(
    connection: Connection, names: Collection[str], known: Collection[str]
) -> tuple[set[str], dict[str, list[str]]]:
    """Return the lanes whose one waits for its next attempt, and all that a new one cancels."""
    if not names:
        return set(), {}
    query = select(_rows.lane, _rows.id, _rows.node_id).where(
        _of(connection, names),
        or_(_rows.node_id.is_not(None), _rows.attempt > 1, _rows.policy.like(f'%"mode":"{HELD}"%')),
    )
    alive, others = set(), dict[str, list[str]]()
    for row in connection.execute(query):
        if row.node_id is None:
            alive.add(row.lane)
        if row.id not in known:
            others.setdefault(row.lane, []).append(row.id)
    return alive, others


def _first_parked(connection: Connection, names: Collection[str]) -> list[Candidate]:
    """Return the first parked row of each lane that has one: one step along the index each."""
    lanes, inner = _table_of(connection, names), run_queue.alias("inner")
    first = (
        select(inner.c.id)
        .where(inner.c.lane == lanes.c.name, inner.c.lane.is_not(None), inner.c.node_id == PARKED)
        .order_by(inner.c.priority, inner.c.position_ms, inner.c.event_id, inner.c.id)
        .limit(1)
        .correlate(lanes)
        .scalar_subquery()
    )
    query = select(*_COLUMNS).select_from(lanes.join(run_queue, _rows.id == first))
    return _candidates(connection, query)


def _first_free(connection: Connection, lane: str) -> Candidate | None:
    query = (
        select(*_COLUMNS)
        .where(_rows.lane == lane, _IN_A_LANE, _rows.node_id.is_(None))
        .order_by(*_PLACE)
        .limit(1)
    )
    return next(iter(_candidates(connection, query)), None)


def _marks(connection: Connection, keys: Collection[str]) -> dict[str, Mark]:
    if not keys:
        return {}
    query = select(flow_marks).where(_within(connection, flow_marks.c.key, keys))
    return {
        row.key: Mark(
            newest_id=row.newest_id,
            since_ms=row.since_ms,
            free_ms=row.free_ms,
            touched_ms=row.touched_ms,
        )
        for row in connection.execute(query)
    }


def _stale(connection: Connection, limit: int) -> list[str]:
    # From each lane with parked rows straight to the next one, however many rows it has.
    first = select(func.min(_rows.lane).label("lane")).where(_IN_A_LANE, _rows.node_id == PARKED)
    lanes = first.cte("lanes", recursive=True)
    after = (
        select(func.min(_rows.lane))
        .where(_IN_A_LANE, _rows.node_id == PARKED, _rows.lane > lanes.c.lane)
        .correlate(lanes)
        .scalar_subquery()
    )
    lanes = lanes.union_all(select(after).where(lanes.c.lane.is_not(None)))
    in_it = (_rows.lane == lanes.c.lane, _IN_A_LANE)
    query = (
        select(lanes.c.lane)
        .where(
            lanes.c.lane.is_not(None),
            ~exists().where(*in_it, _rows.node_id < PARKED),
            ~exists().where(*in_it, _rows.node_id > PARKED),
            # In an ordered lane a free row is the head, and those behind wait for it.
            or_(lanes.c.lane.like("c:%"), ~exists().where(*in_it, _rows.node_id.is_(None))),
        )
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def _noted(queued: Queued, run_id: str, now_ms: int) -> list[tuple[tuple[Any, ...], bool]]:
    """Return rows of flow_marks, and whether one that is there already stays as it is."""
    flow = queued.flow
    if flow is None or flow.debounce is None or queued.admitted:
        return []
    newest = (flow.debounce.key, run_id, None, None, now_ms)
    if not flow.debounce.timeout_ms:
        return [(newest, False)]
    # It means something until the burst has to end, so nobody may tidy it away before.
    first = (since_key(flow.debounce), None, now_ms, now_ms + flow.debounce.timeout_ms, now_ms)
    return [(newest, False), (first, True)]


# -- What is changed


def _write(connection: Connection, decision: Decision) -> None:
    admitted = decision.admitted
    for key, mark in sorted(decision.marks.items(), key=lambda item: item[0]):
        if mark is None:
            connection.execute(delete(flow_marks).where(flow_marks.c.key == key))
        else:
            row = (key, mark.newest_id, mark.since_ms, mark.free_ms, mark.touched_ms)
            _put_mark(connection, row)
    if decision.stamps:
        stamp = update(run_queue).where(_rows.id == bindparam("run_id"))
        connection.execute(
            stamp.values(policy=bindparam("stamped")),
            [
                {"run_id": run_id, "stamped": write_queued(policy)}
                for run_id, policy in decision.stamps.items()
            ],
        )
    if admitted.wait:
        later = update(run_queue).where(_rows.id == bindparam("run_id"))
        connection.execute(
            later.values(due_ms=bindparam("later_ms")),
            [{"run_id": run_id, "later_ms": due_ms} for run_id, due_ms in admitted.wait],
        )
    if admitted.park:
        _park(connection, admitted.park)
    if admitted.skip:  # they run no more, so they are none of their lanes'
        ids = [run_id for run_id, _, _ in admitted.skip]
        change = update(run_queue).where(_within(connection, _rows.id, ids)).values(lane=None)
        connection.execute(change)
    for run_id, due_ms in decision.sooner.items():
        _sooner(connection, run_id, due_ms)


def _sweep(
    connection: Connection, rows: Sequence[Candidate], decision: Decision, now_ms: int
) -> None:
    """Park the rest of full lanes: the next claims need not look at it one by one."""
    gated = {row.lane for row in rows if has_gates(row.policy)}
    full = decision.full - gated
    if not full:
        return
    rest = (
        select(_rows.id)
        .where(
            _of(connection, full),
            _rows.node_id.is_(None),
            _rows.due_ms <= now_ms,
            _rows.id.not_in(decision.admitted.claim),
        )
        .limit(SWEPT_ROWS)
        .with_for_update(skip_locked=True)
    )
    _park(connection, list(connection.execute(rest).scalars()))


def _park(connection: Connection, ids: Collection[str]) -> None:
    if ids:
        change = update(run_queue).where(_within(connection, _rows.id, ids))
        connection.execute(change.values(node_id=PARKED))


def _free_parked(
    connection: Connection, names: Collection[str], now_ms: int | None
) -> list[_Freed]:
    """Free as many parked rows of these lanes as there is room for, and return them."""
    heads = _first_parked(connection, names) if names else []
    if not heads:
        return []
    counts: dict[str, int] = {}
    for name, _, count in _owned(connection, [head.lane or "" for head in heads]):
        counts[name] = counts.get(name, 0) + count
    freed: list[_Freed] = []
    for head in heads:
        assert head.lane is not None
        count = counts.get(head.lane, 0)
        if is_ordered(head.policy):
            freed += [] if count else _free_in_order(connection, head, head.lane)
        else:
            room = lane_limit(head.policy) - count
            room -= _due_count(connection, head.lane, now_ms, room)
            freed += _free_first(connection, head.lane, room)
    return freed


def _free_in_order(connection: Connection, head: Candidate, lane: str) -> list[_Freed]:
    """Free the first parked rows of an ordered lane where nothing runs."""
    first = _first_free(connection, lane)
    if first is None or first.key > head.key:
        return _free_first(connection, lane, BURST)
    if first.attempt == 1 and not first.policy.admitted:
        _sooner(connection, first.id, head.due_ms)  # it waits only for late values
    return []


def _free_first(connection: Connection, lane: str, count: int) -> list[_Freed]:
    if count <= 0:
        return []
    query = (
        select(_rows.id, _rows.project_id, _rows.priority)
        .where(_rows.lane == lane, _IN_A_LANE, _rows.node_id == PARKED)
        .order_by(*_PLACE)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    found = [(row.id, row.project_id, row.priority) for row in connection.execute(query)]
    if found:
        ids = [run_id for run_id, _, _ in found]
        change = update(run_queue).where(_within(connection, _rows.id, ids)).values(node_id=None)
        connection.execute(change)
    return found


def _due_count(connection: Connection, lane: str, now_ms: int | None, most: int) -> int:
    if now_ms is None or most <= 0:
        return 0
    free = select(_rows.id).where(
        _rows.lane == lane, _IN_A_LANE, _rows.node_id.is_(None), _rows.due_ms <= now_ms
    )
    counted = select(func.count()).select_from(free.limit(most).subquery())
    return connection.execute(counted).scalar_one()


def _sooner(connection: Connection, run_id: str, due_ms: int) -> None:
    query = select(_rows.id).where(
        _rows.id == run_id, _rows.node_id.is_(None), _rows.due_ms > due_ms
    )
    locked = connection.execute(query.with_for_update(skip_locked=True)).first()
    if locked is not None:
        connection.execute(update(run_queue).where(_rows.id == run_id).values(due_ms=due_ms))


def _put_mark(connection: Connection, row: tuple[Any, ...], *, keep: bool = False) -> None:
    marked = dict(zip(flow_marks.columns.keys(), row, strict=True))
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(flow_marks).values(marked)
    if keep:
        connection.execute(insert.on_conflict_do_nothing())
    else:
        rest = {name: value for name, value in marked.items() if name != "key"}
        connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_=rest))


def _candidates(connection: Connection, query: Select[Any]) -> list[Candidate]:
    found = connection.execute(query).mappings()
    return [Candidate(**{**row, "policy": read_queued(row["policy"])}) for row in found]


def _of(connection: Connection, lanes: Collection[str]) -> ColumnElement[bool]:
    """Return `lane IN lanes`, said so that the index of lanes is used."""
    if connection.dialect.name == "sqlite":
        return _rows.lane.in_(lanes)  # `_IN_A_LANE` beside it: SQLite would read the whole index
    return and_(_within(connection, _rows.lane, lanes), _IN_A_LANE)


def _within(
    connection: Connection, column: Column[Any], values: Collection[str]
) -> ColumnElement[bool]:
    """Return `column IN values` as one parameter: the statement stays the same for any number."""
    if connection.dialect.name == "sqlite":
        return column.in_(select(_table_of(connection, values).c.name))
    return column == func.any(bindparam(None, list(values), type_=postgresql.ARRAY(Text)))


def _table_of(connection: Connection, values: Collection[str]) -> FromClause:
    """Return a table with the values in its column `name`."""
    if connection.dialect.name == "sqlite":
        listed = msgspec.json.encode(list(values)).decode()
        each = func.json_each(listed).table_valued("value")
        return select(each.c.value.label("name")).subquery()
    array = bindparam(None, list(values), type_=postgresql.ARRAY(Text))
    # With its column named: `anon.name` is PostgreSQL's cast to its type of 63 bytes.
    return func.unnest(array).table_valued("name", name="listed").render_derived()
