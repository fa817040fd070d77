"""A cell without an engine: who takes what it says, in the tests that talk to one themselves."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from runtimes.contract import FRAME_BYTES_MAX, GuestError
from sandbox.supervisor import Cell, Death, Sandbox


class Listener:
    """Takes what one cell says."""

    def __init__(self, cell: Cell) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        cell.listener = self

    def room_for(self, _kind: str, _isolate: int) -> int:
        return FRAME_BYTES_MAX

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        self.heard.put_nowait(messages)
        return iter(())

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self.heard.put_nowait(answer)

    def on_built(self, isolate: int, program: bytes) -> None: ...

    def on_refused(self, isolate: int, error: GuestError) -> None: ...

    def on_stopped(self, isolate: int, stop: bytes) -> None: ...

    def on_death(self, death: Death) -> None: ...


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A zygote with one warm cell."""
    running = Sandbox(warm_count=1, cell_memory_mb=256, strict=False)
    await running.start()
    yield running
    await running.close()
