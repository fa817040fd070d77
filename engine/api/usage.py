"""`/v1/usage`: what projects have used of the CPU, in a month and in the current minute."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import Field

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere
from engine.api.shapes import Shown
from engine.errors import Invalid
from engine.store.live import all_projects
from engine.store.usage import Used, used
from engine.usage import minute_of, month_of, month_period

router = APIRouter(tags=["projects"])

MONTH: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_NOTHING: Final = Used(project_id="", cpu_us=0, runs=0)


class UsedShown(Shown):
    """Of all nodes, as of a second ago."""

    cpu_seconds: float = Field(description="Of its cells, as the kernel counts it.")
    runs: int = Field(description="Attempts that have ended.")


class ProjectUsage(Shown):
    project_id: str
    project: str
    month: UsedShown
    minute: UsedShown = Field(description="The current one.")
    allowances: dict[str, float] = Field(description="What it may use; 0: without a limit.")
    exceeded: str | None = Field(description="The budget that is used up, of those two.")


class UsageShown(Shown):
    month: str
    items: list[ProjectUsage]


@router.get("/v1/usage", responses=problems(422))
async def show_usage(
    platform: PlatformHere,
    access: Reader,
    request: Request,
    month: Annotated[str | None, Query(description="YYYY-MM, UTC; the current one.")] = None,
) -> UsageShown:
    """Show what the project has used; with an admin key that names no project, what each has."""
    if month is not None and not MONTH.fullmatch(month):
        raise Invalid(f"{month[:20]!r} is no month; write it as 2026-11", "?month")
    now_ms = platform.clock()
    asked = month_of(now_ms) if month is None else month_period(month)
    sees_all = "admin" in access.scopes and "x-project" not in request.headers
    only = None if sees_all else access.project_id
    months = {one.project_id: one for one in await platform.database.read(used, asked, only)}
    minutes = {
        one.project_id: one for one in await platform.database.read(used, minute_of(now_ms), only)
    }
    projects = await platform.database.read(all_projects)
    items = [
        _shown(platform, one.id, one.name, months.get(one.id), minutes.get(one.id))
        for one in sorted(projects, key=lambda one: one.name)
        if only is None or one.id == only
    ]
    return UsageShown(month=asked.removeprefix("month:"), items=items)


def _shown(
    platform: Platform, project_id: str, name: str, month: Used | None, minute: Used | None
) -> ProjectUsage:
    allowed = platform.catalogue.allowances(project_id)
    exceeded = platform.usage.exceeded.get(project_id)
    return ProjectUsage(
        project_id=project_id,
        project=name,
        month=_used(month or _NOTHING),
        minute=_used(minute or _NOTHING),
        allowances={field: getattr(allowed, field) for field in allowed.__struct_fields__},
        exceeded=None if exceeded is None else exceeded.name,
    )


def _used(of: Used) -> UsedShown:
    return UsedShown(cpu_seconds=of.cpu_us / 1e6, runs=of.runs)
