"""`/v1/usage`: what projects have used of the CPU, in a month and in the current minute."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import Field

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere
from engine.api.projects import project_of
from engine.api.shapes import Shown
from engine.errors import Invalid
from engine.store.live import StoredProject, all_projects
from engine.store.usage import Used, used
from engine.usage import minute_of, month_of, month_period, owed_of

router = APIRouter(tags=["projects"])

MONTH: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_NOTHING: Final = Used(project_id="", cpu_us=0, runs=0)
_NOT_NOW: Final = {"minute": None, "owed_cpu_seconds": None, "exceeded": None}


class UsedShown(Shown):
    """Of all nodes, as of a second ago."""

    cpu_seconds: float = Field(description="Of its cells, as the kernel counts it.")
    runs: int = Field(description="Attempts that have ended.")


class ProjectUsage(Shown):
    project_id: str
    project: str
    month: UsedShown
    minute: UsedShown | None = Field(description="The current one; null of another month.")
    owed_cpu_seconds: float | None = Field(
        description="Used over the budgets of the minutes before: counts in this one, too."
    )
    allowances: dict[str, int | float] = Field(description="What it may use; 0: without a limit.")
    exceeded: str | None = Field(description="The budget that is used up now, of those two.")


class UsageShown(Shown):
    month: str
    items: list[ProjectUsage]


@router.get("/v1/usage", responses=problems(422))
async def show_usage(
    platform: PlatformHere,
    access: Reader,
    request: Request,
    month: Annotated[str | None, Query(description="YYYY-MM, UTC; the current one.")] = None,
    project: Annotated[str | None, Query(description="Only this one: its id or name.")] = None,
) -> UsageShown:
    """Show what the project has used; with an admin key that names no project, what each has."""
    if month is not None and not MONTH.fullmatch(month):
        raise Invalid(f"{month[:20]!r} is no month; write it as 2026-11", "?month")
    now_ms = platform.clock()
    asked = month_of(now_ms) if month is None else month_period(month)
    sees_all = "admin" in access.scopes and "x-project" not in request.headers
    only = None if sees_all else access.project_id
    if project is not None:
        only = await project_of(platform, access, project)
    months = {one.project_id: one for one in await platform.database.read(used, asked, only)}
    minutes = {
        one.project_id: one for one in await platform.database.read(used, minute_of(now_ms), only)
    }
    owed = {
        one.project_id: one for one in await platform.database.read(used, owed_of(now_ms), only)
    }
    projects = await platform.database.read(all_projects)
    items = [
        _shown(platform, one, *(found.get(one.id, _NOTHING) for found in (months, minutes, owed)))
        for one in sorted(projects, key=lambda one: one.name)
        if only is None or one.id == only
    ]
    if asked != month_of(now_ms):
        items = [one.model_copy(update=_NOT_NOW) for one in items]
    return UsageShown(month=asked.removeprefix("month:"), items=items)


def _shown(
    platform: Platform, project: StoredProject, month: Used, minute: Used, owed: Used
) -> ProjectUsage:
    allowed = platform.catalogue.allowances(project.id)
    exceeded = platform.usage.exceeded.get(project.id)
    return ProjectUsage(
        project_id=project.id,
        project=project.name,
        month=_used(month),
        minute=_used(minute),
        owed_cpu_seconds=owed.cpu_us / 1e6,
        allowances={field: getattr(allowed, field) for field in allowed.__struct_fields__},
        exceeded=None if exceeded is None else exceeded.name,
    )


def _used(of: Used) -> UsedShown:
    return UsedShown(cpu_seconds=of.cpu_us / 1e6, runs=of.runs)
