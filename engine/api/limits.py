"""`/v1/limits`: every limit there is, as numbers. Needs no key."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request

from engine.api.access import access_of
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.quotas import published

router = APIRouter(tags=["operations"])


@router.get("/v1/limits", responses=problems(public=True))
async def show_limits(platform: PlatformHere, request: Request) -> dict[str, Any]:
    """Show all limits: per handler (default and most), sizes of requests, what one run may do.

    With a key, also what its project may use (`project`; 0: without a limit).
    """
    if "authorization" not in request.headers:
        return published()
    access = await access_of(platform.catalogue, request.headers)
    allowed = platform.catalogue.allowances(access.project_id)
    return published() | {"project": msgspec.to_builtins(allowed)}
