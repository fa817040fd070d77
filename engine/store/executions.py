"""Runs as stored: those that ended (`executions`) and those that must still run (`run_queue`).

A run is in exactly one of the two, under the same id; one statement reads both, so that a run
which ends meanwhile is neither missing nor double.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)

from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import PARKED, events, executions, functions, run_queue

WAITING: Final = "queued"
RUNNING: Final = "running"
OPEN: Final = frozenset({WAITING, RUNNING})
ID_SLACK_MS: Final = 3_600_000  # ids carry their own time; an hour allows for a clock set back


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionSummary:
    """One line of a list. Of a run that has not ended: version 0, times None."""

    id: str
    function: str
    version: int
    cause: str
    handler: str
    event_id: str | None
    device_id: str | None
    status: str
    created_ms: int
    queue_us: int | None
    wall_us: int | None
    cpu_us: int | None
    attempt: int
    job_id: str | None
    schedule_id: str | None
    error: dict[str, Any] | None
    limit: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(ExecutionSummary):
    """Everything known about one run. JSON stays JSON: nobody here looks into it."""

    clock_ms: int | None
    seed: str
    peak_memory_bytes: int | None
    input_json: str | None
    result_json: str | None
    report: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilter:
    """Which runs are asked for; None: whatever it is."""

    function_id: str | None = None
    function: str | None = None  # a name that no function has now, but one may have had
    status: str | None = None
    device_id: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None  # not those asked for then or later
    before_id: str | None = None  # not this one, nor those with later ids


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """How to tell a run that runs from one that a node has taken up and not yet begun."""

    node_id: str | None = None  # the node that asks
    running: Collection[str] = ()  # what its cells have now; of other nodes it cannot know

    def runs(self) -> ColumnElement[bool]:
        """Say of a row of run_queue whether it is at work, as far as is known."""
        taken = and_(run_queue.c.node_id.is_not(None), run_queue.c.node_id != PARKED)
        if self.node_id is None:
            return taken
        here = run_queue.c.id.in_(self.running)
        return and_(taken, or_(run_queue.c.node_id != self.node_id, here))


def list_executions(
    connection: Connection, project_id: str, wanted: ExecutionFilter, page: Page, at_work: AtWork
) -> Paged[ExecutionSummary]:
    """Return ended and waiting runs together, newest first."""
    halves: list[Select[Any]] = []
    if wanted.status not in OPEN:
        ended = _filtered(_ended(connection), executions, project_id, wanted)
        halves.append(page_of(ended, executions.c.id, page))
    if wanted.status is None or wanted.status in OPEN:
        waiting = _filtered(_waiting(at_work), run_queue, project_id, wanted, at_work)
        halves.append(page_of(waiting, run_queue.c.id, page))
    if not halves:
        return Paged((), None)
    merged = union_all(*(select(half.subquery()) for half in halves)).subquery()
    query = select(merged).order_by(merged.c.id.desc()).limit(page.limit + 1)
    rows = connection.execute(query).mappings()
    return paged([_summary(row) for row in rows], page, lambda execution: execution.id)


def find_execution(
    connection: Connection, project_id: str, execution_id: str, at_work: AtWork
) -> Execution | None:
    """Return one run, ended or waiting, with its input wherever that is kept."""
    name, runs = functions.c.name.label("function"), at_work.runs().label("runs")
    waiting = connection.execute(
        select(run_queue, name, runs, events.c.payload)
        .outerjoin(functions, functions.c.id == run_queue.c.function_id)
        .outerjoin(events, events.c.id == run_queue.c.event_id)
        .where(run_queue.c.project_id == project_id, run_queue.c.id == execution_id)
    ).mappings().first()  # fmt: skip
    if waiting is not None:
        return _execution_waiting(waiting)
    # Asked in this order, a run that ends between the two statements is still found.
    ended = connection.execute(
        select(executions, events.c.payload)
        .outerjoin(events, events.c.id == executions.c.event_id)
        .where(executions.c.project_id == project_id, executions.c.id == execution_id)
    ).mappings().first()  # fmt: skip
    return _execution(ended) if ended is not None else None


def find_log(connection: Connection, project_id: str, execution_id: str) -> str | None:
    """Return the log as stored, JSON [[level, at_ms, text], ...]; None: no such ended run."""
    query = select(executions.c.log).where(
        executions.c.project_id == project_id, executions.c.id == execution_id
    )
    row = connection.execute(query).first()
    return None if row is None else row.log or "[]"


def count_runs(
    connection: Connection,
    project_id: str,
    wanted: ExecutionFilter,
    at_work: AtWork,
    *,
    ended: bool,
) -> int:
    """Return how many runs match: of those that have ended, or of the others."""
    table = executions if ended else run_queue
    query = select(func.count()).select_from(table)
    found = _filtered(query, table, project_id, wanted, at_work)
    count: int = connection.execute(found).scalar_one()
    return count


def run_ids(
    connection: Connection,
    project_id: str,
    wanted: ExecutionFilter,
    at_work: AtWork,
    *,
    ended: bool,
    after: str,
    limit: int,
) -> list[str]:
    """Return the ids of the next runs that match, oldest first."""
    table = executions if ended else run_queue
    query = _filtered(select(table.c.id), table, project_id, wanted, at_work)
    query = query.where(table.c.id > after).order_by(table.c.id).limit(limit)
    return list(connection.execute(query).scalars())


def _filtered(
    query: Select[Any],
    table: Table,
    project_id: str,
    wanted: ExecutionFilter,
    at_work: AtWork | None = None,
) -> Select[Any]:
    query = query.where(table.c.project_id == project_id)
    if table is executions and wanted.status is not None:
        query = query.where(executions.c.status == wanted.status)
    elif at_work is not None and wanted.status == RUNNING:
        query = query.where(at_work.runs())
    elif at_work is not None and wanted.status == WAITING:
        query = query.where(or_(run_queue.c.node_id.is_(None), ~at_work.runs()))
    if wanted.function_id is not None:
        query = query.where(table.c.function_id == wanted.function_id)
    elif wanted.function is not None:
        deleted = executions.c.function == wanted.function
        query = query.where(deleted if table is executions else false())  # then none is waiting
    if wanted.device_id is not None:
        query = query.where(table.c.device_id == wanted.device_id)
    if wanted.since_ms is not None:
        oldest_id = f"exe_{max(0, wanted.since_ms - ID_SLACK_MS):012x}"
        query = query.where(table.c.created_ms >= wanted.since_ms, table.c.id >= oldest_id)
    if wanted.until_ms is not None:
        query = query.where(table.c.created_ms < wanted.until_ms)
    if wanted.before_id is not None:
        query = query.where(table.c.id < wanted.before_id)
    return query


def _ended(connection: Connection) -> Select[Any]:
    # A report may hold a long transcript, so the database itself picks what a list shows of it.
    text = _shielded(executions.c.report)
    postgres = connection.dialect.name == "postgresql"
    report = cast(text, JSON) if postgres else type_coerce(text, JSON)
    went_well = executions.c.status == "succeeded"
    shown = {
        "error": case((went_well, null()), else_=cast(report["error"], Text)).label("error"),
        "limit": case((went_well, null()), else_=cast(report["limit"], Text)).label("limit"),
    }
    return select(*(shown[name] if name in shown else executions.c[name] for name in _COLUMNS))


def _shielded(json: ColumnElement[str | None]) -> ColumnElement[str]:
    r"""Hide what a string in JSON escapes by number, `\u0000`, from a database that picks from it.

    PostgreSQL refuses all of a text with one that it could not keep as text itself; guests may
    write any. After this, a pair of backslashes is followed by `b` or `u`, always.
    """
    return func.replace(func.replace(json, r"\\", r"\\b"), r"\u", r"\\u")


def _unshielded(json: str) -> str:
    return json.replace(r"\\u", r"\u").replace(r"\\b", r"\\")


def _waiting(at_work: AtWork) -> Select[Any]:
    filled: dict[str, ColumnElement[Any]] = {
        "function": functions.c.name.label("function"),
        "version": literal(0).label("version"),
        "status": case((at_work.runs(), RUNNING), else_=WAITING).label("status"),
        "queue_us": cast(null(), BigInteger).label("queue_us"),
        "wall_us": cast(null(), BigInteger).label("wall_us"),
        "cpu_us": cast(null(), BigInteger).label("cpu_us"),
        "error": cast(null(), Text).label("error"),
        "limit": cast(null(), Text).label("limit"),
    }
    columns = (filled[name] if name in filled else run_queue.c[name] for name in _COLUMNS)
    return select(*columns).join(functions, functions.c.id == run_queue.c.function_id)


_COLUMNS: Final = tuple(ExecutionSummary.__dataclass_fields__)


def _summary(row: RowMapping) -> ExecutionSummary:
    fields = dict(row)
    for name in ("error", "limit"):
        fields[name] = msgspec.json.decode(_unshielded(fields[name])) if fields[name] else None
    return ExecutionSummary(**fields)


def _execution(row: RowMapping) -> Execution:
    report = msgspec.json.decode(row["report"]) if row["report"] else {}
    fields = {name: row[name] for name in _COLUMNS if name in row}
    return Execution(
        **fields,
        error=report.get("error"),
        limit=report.get("limit"),
        clock_ms=row["clock_ms"],
        seed=row["seed"],
        peak_memory_bytes=row["peak_memory_bytes"],
        input_json=row["input"] if row["input"] is not None else row["payload"],
        result_json=row["result"],
        report=report,
    )


def _execution_waiting(row: RowMapping) -> Execution:
    fields = {name: row[name] for name in _COLUMNS if name in row}
    return Execution(
        **fields,
        version=0,
        status=RUNNING if row["runs"] else WAITING,
        queue_us=None,
        wall_us=None,
        cpu_us=None,
        error=None,
        limit=None,
        clock_ms=None,
        seed="",
        peak_memory_bytes=None,
        input_json=row["input"] if row["input"] is not None else row["payload"],
        result_json=None,
        report={"root_id": row["root_id"], "depth": row["depth"]},
    )
