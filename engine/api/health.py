"""`/healthz`: the process answers. `/readyz`: what it needs answers too."""

import asyncio
from typing import Final

from fastapi import APIRouter, Response

from engine.api.openapi import problems
from engine.api.platform import Check, PlatformHere
from engine.api.shapes import Shown

router = APIRouter(tags=["operations"])

READY_MS: Final = 2_000  # per check, all at once; an orchestrator asks every few seconds


class Health(Shown):
    status: str


class Readiness(Shown):
    status: str
    checks: dict[str, str]


@router.get("/healthz", responses=problems(public=True))
async def show_health() -> Health:
    """Say that the process lives."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses=problems(public=True)
    | {503: {"model": Readiness, "description": "Something does not work: `checks` says what."}},
)
async def show_readiness(platform: PlatformHere, response: Response) -> Readiness:
    """Say whether everything works that a request needs."""
    checks = platform.checks
    found = await asyncio.gather(*map(_checked, checks.values()))
    wrong = any(problem is not None for problem in found)
    response.status_code = 503 if wrong else 200
    return Readiness(
        status="unavailable" if wrong else "ok",
        checks={name: problem or "ok" for name, problem in zip(checks, found, strict=True)},
    )


async def _checked(check: Check) -> str | None:
    try:
        async with asyncio.timeout(READY_MS / 1000):
            return await check()
    except TimeoutError:
        return f"no answer within {READY_MS} ms"
