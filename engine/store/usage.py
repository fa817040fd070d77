"""What projects have used (table `usage`): added up by all nodes, read by each.

Path:   engine.usage (once a second, in the journal's transaction), api.usage -> here
Never:  replaces a sum: every node only adds to it. What is owed is stored once, and stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from engine.store.tables import usage

Delta = tuple[str, str, int, int]
"""Project, period, CPU in microseconds, runs: as in the table."""
Totals = dict[tuple[str, str], tuple[int, int]]
"""By project and period: CPU in microseconds, runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """One project in one period."""

    project_id: str
    cpu_us: int
    runs: int


def add(
    connection: Connection,
    deltas: Sequence[Delta],
    periods: Sequence[str],
    *,
    watched: Sequence[str] | None,
) -> Totals:
    """Add what a node has counted, and return the sums of these periods.

    Args:
        connection: of the transaction.
        deltas: in the order of their keys, so that two nodes cannot wait for each other.
        periods: the current ones.
        watched: projects whose sums are wanted; None: all.
    """
    if deltas:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(usage)
        more = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=list(usage.primary_key),
            set_={"cpu_us": usage.c.cpu_us + more.cpu_us, "runs": usage.c.runs + more.runs},
        )
        names = usage.columns.keys()
        connection.execute(statement, [dict(zip(names, row, strict=True)) for row in deltas])
    query = select(usage).where(usage.c.period.in_(periods))
    if watched is not None:
        if not watched:
            return {}
        query = query.where(usage.c.project_id.in_(watched))
    return {
        (row.project_id, row.period): (row.cpu_us, row.runs) for row in connection.execute(query)
    }


def carry(connection: Connection, owed: Sequence[Delta]) -> None:
    """Store what projects owe to a minute, where no other node has."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    names = usage.columns.keys()
    rows = [dict(zip(names, row, strict=True)) for row in owed]
    connection.execute(dialect.insert(usage).on_conflict_do_nothing(), rows)


def forget(connection: Connection, minute: str) -> None:
    """Delete what is of minutes before this one; months stay, for their names come later."""
    connection.execute(delete(usage).where(usage.c.period < minute))


def used(connection: Connection, period: str, project_id: str | None = None) -> list[Used]:
    """Return what was used in a period, of one project or of all, the most of CPU first."""
    query = select(usage.c.project_id, usage.c.cpu_us, usage.c.runs).where(usage.c.period == period)
    if project_id is not None:
        query = query.where(usage.c.project_id == project_id)
    rows = connection.execute(query.order_by(usage.c.cpu_us.desc(), usage.c.project_id))
    return [Used(**row) for row in rows.mappings()]
