"""The host call `timer`: the engine waits, so the guest's clock moves by an answer, on record."""

import asyncio

import msgspec

from engine.errors import HostCallRefused
from engine.run import Run


class _Timer(msgspec.Struct):
    ms: float


async def timer(run: Run, arguments: bytes, _call: int) -> None:
    """Answer after `ms` milliseconds; a run cannot wait past its wall time anyway."""
    ms = msgspec.json.decode(arguments, type=_Timer).ms
    if not ms >= 0:
        raise HostCallRefused("ms must be a number from 0")
    await asyncio.sleep(min(ms, run.limits.wall_ms + 1_000) / 1000)
