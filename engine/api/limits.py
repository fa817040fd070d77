"""`/v1/limits`: every limit there is, as numbers. Needs no key."""

from typing import Any

from fastapi import APIRouter

from engine.api.openapi import problems
from engine.quotas import published

router = APIRouter(tags=["operations"])


@router.get("/v1/limits", responses=problems(public=True))
async def show_limits() -> dict[str, Any]:
    """Show all limits: per handler (default and most), sizes of requests, what one run may do."""
    return published()
