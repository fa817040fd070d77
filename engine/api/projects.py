"""`/v1/projects`: tenants, how their code is walled in, and what each may use.

Admin keys make and change them; a project's own keys may read it.
"""

from typing import Literal

import msgspec
from fastapi import APIRouter
from pydantic import Field

from engine.allowances import defaults, effective
from engine.api.access import ADMIN, Access, Admin, ForbiddenScope, Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.errors import NotFound
from engine.projects import CURRENT, change_project, create_project
from engine.store.projects import Project, find_project, list_projects

router = APIRouter(tags=["projects"])
HARDENED = (
    "hardened: all code is interpreted, and the kernel refuses executable memory; slower, and "
    "without `WebAssembly` in JavaScript."
)


class AllowancesAsked(Body):
    """What is left out stays; null: as the operator has set it for all; 0: no limit."""

    concurrency: int | None = Field(
        default=None, description="Runs in cells at a time, on each node."
    )
    queued: int | None = Field(default=None, description="Runs that wait in the queue.")
    cpu_seconds_per_minute: float | None = Field(default=None, description="On all nodes together.")
    cpu_seconds_per_month: float | None = Field(
        default=None, description="Of a calendar month, UTC."
    )
    key_requests_per_minute: int | None = Field(
        default=None, description="Of each API key without a rate of its own, on each node."
    )
    device_requests_per_minute: int | None = Field(
        default=None, description="Of each device, on each node."
    )


class ProjectNew(Body):
    model_config = example(
        {"name": "greenhouses", "isolation": "hardened", "allowances": {"concurrency": 50}}
    )

    name: str
    isolation: Literal["standard", "hardened"] = Field("standard", description=HARDENED)
    allowances: AllowancesAsked = AllowancesAsked()


class ProjectChange(Body):
    """What is left out stays."""

    model_config = example(
        {
            "isolation": "hardened",
            "allowances": {"cpu_seconds_per_minute": 20, "concurrency": None},
        }
    )

    isolation: Literal["standard", "hardened"] | None = Field(None, description=HARDENED)
    allowances: AllowancesAsked = AllowancesAsked()


class AllowancesShown(Shown):
    concurrency: int | None
    queued: int | None
    cpu_seconds_per_minute: float | None
    cpu_seconds_per_month: float | None
    key_requests_per_minute: int | None
    device_requests_per_minute: int | None


class EffectiveShown(Shown):
    concurrency: int
    queued: int
    cpu_seconds_per_minute: float
    cpu_seconds_per_month: float
    key_requests_per_minute: int
    device_requests_per_minute: int


class ProjectShown(Shown):
    id: str
    name: str
    created_at: str
    isolation: str = Field(description="standard | hardened")
    allowances: AllowancesShown = Field(description="null: as the operator has set it for all.")
    effective: EffectiveShown = Field(description="What holds; 0: no limit.")


class ProjectMade(ProjectShown):
    key: str


@router.post("/v1/projects", status_code=201, responses=problems(409, 422, body=True))
async def add_project(platform: PlatformHere, _: Admin, body: ProjectNew) -> ProjectMade:
    """Make a project. Its `key` has the scopes develop, operate and ingest; it is shown once."""
    project, secret = await create_project(
        platform,
        body.name,
        isolation=body.isolation,
        allowances=body.allowances.model_dump(exclude_unset=True),
    )
    return ProjectMade(**_shown(platform, project).model_dump(), key=secret)


@router.get("/v1/projects", responses=problems(422))
async def show_projects(platform: PlatformHere, _: Admin, page: PageAsked) -> Listed[ProjectShown]:
    """List all projects, newest first."""
    found = await platform.database.read(list_projects, page)
    items = [_shown(platform, project) for project in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/projects/{project}", responses=problems(404))
async def show_project(platform: PlatformHere, access: Reader, project: str) -> ProjectShown:
    """Show a project, by id or name. `current` is the key's own; others take an admin key."""
    project_id = await project_of(platform, access, project)
    found = await platform.database.read(find_project, project_id)
    if found is None:
        raise NotFound("project", project)
    return _shown(platform, found)


@router.patch("/v1/projects/{project}", responses=problems(404, 422, body=True))
async def patch_project(
    platform: PlatformHere, access: Admin, project: str, body: ProjectChange
) -> ProjectShown:
    """Change a project's isolation, or what it may use.

    With the answer no run begins in a cell of the former kind on the node that answers, on
    others within a second; what has begun ends where it is.
    """
    changed = await change_project(
        platform,
        await project_of(platform, access, project),
        isolation=body.isolation,
        allowances=body.allowances.model_dump(exclude_unset=True),
    )
    return _shown(platform, changed)


async def project_of(platform: Platform, access: Access, asked: str) -> str:
    """Return the project that a path names: `current`, an id or a name.

    Raises:
        ForbiddenScope: another one than the key's, and not an admin key.
        NotFound: there is none.
    """
    if asked in (CURRENT, access.project_id):
        return access.project_id
    found = platform.catalogue.project(asked)
    if found != access.project_id and "admin" not in access.scopes:
        raise ForbiddenScope(ADMIN, access.scopes)
    if found is None and await platform.catalogue.fresh():  # another node may just have made it
        found = platform.catalogue.project(asked)
    if found is None:
        raise NotFound("project", asked)
    return found


def _shown(platform: Platform, project: Project) -> ProjectShown:
    holds = effective(project.allowances, defaults(platform.settings))
    return ProjectShown(
        id=project.id,
        name=project.name,
        created_at=iso(project.created_ms),
        isolation=project.isolation,
        allowances=AllowancesShown(**msgspec.structs.asdict(project.allowances)),
        effective=EffectiveShown(**msgspec.structs.asdict(holds)),
    )
