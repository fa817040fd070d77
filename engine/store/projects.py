"""Projects as stored: the tenants."""

from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Connection, RowMapping, or_, select, update

from engine.allowances import Allowances, read_allowances, write_allowances
from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import projects
from engine.store.unique import insert_unique


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    id: str
    name: str
    created_ms: int
    isolation: str = "standard"  # or hardened
    allowances: Allowances = field(default_factory=Allowances)


def insert_project(connection: Connection, project: Project) -> None:
    taken = f"a project named {project.name!r} exists already"
    insert_unique(connection, projects, _row(project), taken)
    note_change(connection, "projects", project.id)


def update_project(connection: Connection, project: Project) -> None:
    """Store isolation and allowances of a project that is there."""
    row = _row(project)
    changed = {"isolation": row["isolation"], "allowances": row["allowances"]}
    connection.execute(update(projects).where(projects.c.id == project.id).values(changed))
    note_change(connection, "projects", project.id)


def find_project(connection: Connection, asked: str) -> Project | None:
    """Return the project with this id, else the one with this name."""
    query = (
        select(projects)
        .where(or_(projects.c.id == asked, projects.c.name == asked))
        .order_by((projects.c.id == asked).desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return _project(row) if row else None


def list_projects(connection: Connection, page: Page) -> Paged[Project]:
    rows = connection.execute(page_of(select(projects), projects.c.id, page)).mappings()
    return paged([_project(row) for row in rows], page, lambda project: project.id)


def _row(project: Project) -> dict[str, Any]:
    row = {one.name: getattr(project, one.name) for one in fields(project)}
    return row | {"allowances": write_allowances(project.allowances)}


def _project(row: RowMapping) -> Project:
    return Project(**{**row, "allowances": read_allowances(row["allowances"])})
