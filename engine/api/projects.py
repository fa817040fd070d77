"""`/v1/projects`: tenants. Admin keys only."""

from fastapi import APIRouter

from engine.api.access import Admin
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.projects import create_project
from engine.store.projects import Project, list_projects

router = APIRouter(tags=["projects"])


class ProjectNew(Body):
    model_config = example({"name": "greenhouses"})

    name: str


class ProjectShown(Shown):
    id: str
    name: str
    created_at: str


class ProjectMade(ProjectShown):
    key: str


@router.post("/v1/projects", status_code=201, responses=problems(409, 422, body=True))
async def add_project(platform: PlatformHere, _: Admin, body: ProjectNew) -> ProjectMade:
    """Make a project. Its `key` has the scopes develop, operate and ingest; it is shown once."""
    project, secret = await create_project(platform, body.name)
    return ProjectMade(**_shown(project).model_dump(), key=secret)


@router.get("/v1/projects", responses=problems(422))
async def show_projects(platform: PlatformHere, _: Admin, page: PageAsked) -> Listed[ProjectShown]:
    """List all projects, newest first."""
    found = await platform.database.read(list_projects, page)
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


def _shown(project: Project) -> ProjectShown:
    return ProjectShown(id=project.id, name=project.name, created_at=iso(project.created_ms))
