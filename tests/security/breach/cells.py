"""Real cells of a breached zygote: runs an attempt in a blank one, and tells how it ended."""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from runtimes.contract import MIB, CellKind, GuestError, ToCell, packed
from sandbox.supervisor import Cell, Death, Sandbox

ZYGOTE = str(Path(__file__).with_name("zygote.py"))
ATTEMPT_S = 8
CELL_MEMORY_MB = 256


class _Listener:
    """Port `CellListener`: keeps the first thing that the cell says, or how it died."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def _hear(self, what: Any) -> None:
        if not self.heard.done():
            self.heard.set_result(what)

    def room_for(self, kind: str, isolate: int) -> int:
        return MIB

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        self._hear("an output")
        return iter(())

    def on_built(self, isolate: int, program: bytes) -> None:
        self._hear("a program")

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self._hear(msgspec.json.decode(answer))

    def on_refused(self, isolate: int, error: GuestError) -> None:
        self._hear(f"refused {error.name}: {error.message}")

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        self._hear("stopped")

    def on_death(self, death: Death) -> None:
        self._hear(signal.Signals(death.signal).name if death.signal else f"exit {death.exit_code}")


class Cells:
    """A sandbox on a loop of its own; its zygote can be an ordinary user's, or put no walls up."""

    def __init__(self, *options: str) -> None:
        class Breached(Sandbox):
            zygote_command: ClassVar[tuple[str, ...]] = (sys.executable, "-I", ZYGOTE, *options)

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.sandbox = Breached(warm_count=1, cell_memory_mb=CELL_MEMORY_MB, strict=False)
        self._wait(self.sandbox.start())

    def attempts(self, asked: list[tuple[CellKind, str]]) -> list[Any]:
        """Run each in a fresh cell of its kind, all at once; see `attempt`."""

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self._attempt(kind, code) for kind, code in asked))

        return self._wait(all_of_them())

    def attempt(self, kind: CellKind, code: str) -> Any:
        """Return what the code is worth in a fresh cell, or the signal that ended it."""
        return self._wait(self._attempt(kind, code))

    def close(self) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        while self.sandbox._filling:  # a cell on its way would leave its socket open
            await asyncio.wait(self.sandbox._filling.values())
        await self.sandbox.close()
        await asyncio.sleep(0.05)  # the transports of cells close in a turn of the loop

    async def _attempt(self, kind: CellKind, code: str) -> Any:
        cell, sibling = await self.sandbox.acquire(kind), self._any_other()
        listener = _Listener()
        cell.listener = listener
        assert self.sandbox._zygote is not None
        pids = {"zygote": self.sandbox._zygote.process.pid, "sibling": sibling, "cell": cell.pid}
        header = msgspec.json.encode({"attempt": True, **pids})
        program = msgspec.json.encode({"native": code})
        cell.send(ToCell.LOAD, 1, packed(header, program))
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await listener.heard
        except TimeoutError:
            return f"still running after {ATTEMPT_S} s"
        finally:
            cell.give_up()  # in a cell without walls a child may hold the other end

    def _any_other(self) -> int:
        """Return the pid of a cell that waits, somebody else's; or the zygote's."""
        warm: list[Cell] = [cell for cells in self.sandbox._warm.values() for cell in cells]
        assert self.sandbox._zygote is not None
        return warm[0].pid if warm else self.sandbox._zygote.process.pid

    def _wait(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(ATTEMPT_S * 4)
