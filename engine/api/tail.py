"""`/v1/functions/{name}/tail`: log lines and reports while they happen, as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path
from starlette.responses import StreamingResponse

from engine.api.access import Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.functions import get_function

router = APIRouter(tags=["executions"])

SILENCE_S: Final = 15.0  # then a comment, so that proxies and callers know that it still lives
_STREAM: Final[dict[str, Any]] = {
    "description": "`event: log` (execution_id, ts, level, msg) and `event: report` (an execution)",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@router.get(
    "/v1/functions/{name}/tail",
    response_class=StreamingResponse,
    responses=problems(404) | {200: _STREAM},
)
async def tail_function(
    platform: PlatformHere,
    access: Reader,
    name: Annotated[str, Path(description="The function's name or id.")],
) -> StreamingResponse:
    """Follow a function: what its runs log, and how each ended, from now on."""
    function = await get_function(platform, access.project_id, name)
    events = _events(platform.tails.subscribe(function.id))
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(items: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    yield b": following\n\n"  # the caller learns at once that it is on
    following = _following(items)
    try:
        while True:
            # Not wait_for: it would cancel the subscription itself at each silence.
            await asyncio.wait({following}, timeout=SILENCE_S)
            if not following.done():
                yield b": nothing new\n\n"
                continue
            item = following.result()
            if item is None:
                return
            yield _event(item)
            following = _following(items)
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        if (close := getattr(items, "aclose", None)) is not None:
            await close()


def _following(items: AsyncIterator[dict[str, Any]]) -> asyncio.Task[dict[str, Any] | None]:
    async def follow() -> dict[str, Any] | None:
        return await anext(items, None)

    return asyncio.create_task(follow())


def _event(item: dict[str, Any]) -> bytes:
    kind = b"log" if "msg" in item else b"report"
    return b"event: " + kind + b"\ndata: " + msgspec.json.encode(item) + b"\n\n"
