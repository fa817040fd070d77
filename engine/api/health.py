"""`/healthz`: the process answers. `/readyz`: what it needs answers too."""

import asyncio
from typing import Final

from fastapi import APIRouter, Response
from pydantic import Field

from engine.api.openapi import problems
from engine.api.platform import Check, Degraded, PlatformHere
from engine.api.shapes import Shown

router = APIRouter(tags=["operations"])

READY_MS: Final = 2_000  # per check, all at once; an orchestrator asks every few seconds


class Health(Shown):
    status: str


class Readiness(Shown):
    status: str = Field(description="ok | degraded (requests are taken) | unavailable.")
    checks: dict[str, str] = Field(description="`ok`, or what is wrong and what to do.")


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
    """Say whether everything works that a request needs.

    `degraded` is ready: something is not as it should be, and the note says what.
    """
    checks = platform.checks
    found = await asyncio.gather(*map(_checked, checks.values()))
    wrong = any(isinstance(one, str) for one in found)
    noted = any(isinstance(one, Degraded) for one in found)
    response.status_code = 503 if wrong else 200
    return Readiness(
        status="unavailable" if wrong else "degraded" if noted else "ok",
        checks={name: _shown(one) for name, one in zip(checks, found, strict=True)},
    )


def _shown(found: str | Degraded | None) -> str:
    if isinstance(found, Degraded):
        return found.note
    return found or "ok"


async def _checked(check: Check) -> str | Degraded | None:
    try:
        async with asyncio.timeout(READY_MS / 1000):
            return await check()
    except TimeoutError:
        return f"no answer within {READY_MS} ms"
