"""Projects as stored: the tenants."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, or_, select

from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import projects
from engine.store.unique import insert_unique


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    id: str
    name: str
    created_ms: int


def insert_project(connection: Connection, project: Project) -> None:
    taken = f"a project named {project.name!r} exists already"
    insert_unique(connection, projects, asdict(project), taken)
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
    return Project(**row) if row else None


def list_projects(connection: Connection, page: Page) -> Paged[Project]:
    rows = connection.execute(page_of(select(projects), projects.c.id, page)).mappings()
    return paged([Project(**row) for row in rows], page, lambda project: project.id)
