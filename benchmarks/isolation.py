"""Part (j) of `make bench`: what a world and a user of its own cost a cell at its start.

Cells of two sandboxes, in turn: one as in the engine, one whose zygote, which is this file, forks
plainly and leaves out the layers `namespaces` and `identity`. From the order to the first frame.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sandbox import zygote_unsafe
from sandbox.lockdown import Birth, Layer, namespaces_unsafe
from sandbox.lockdown.layer import missing
from sandbox.supervisor import JAVASCRIPT, Sandbox

if TYPE_CHECKING:
    from run import Bench

ROUNDS = 50
CELL_MEMORY_MB = 512


class SharingSandbox(Sandbox):
    """Its cells share the namespaces and the user of the zygote."""

    zygote_command: ClassVar[tuple[str, ...]] = (sys.executable, "-I", __file__)


def lockdown_cost(bench: "Bench") -> None:
    """(j)."""
    whole, sharing = asyncio.run(_start_times_ms())
    bench.add("(j) a cell from fork to ready, every layer", median(whole), "ms")
    bench.add("(j) of it namespaces and identity", median(whole) - median(sharing), "ms")


async def _start_times_ms() -> tuple[list[float], list[float]]:
    settings: dict[str, Any] = {"warm_count": 0, "cell_memory_mb": CELL_MEMORY_MB, "strict": False}
    sandboxes = (Sandbox(**settings), SharingSandbox(**settings))
    times: tuple[list[float], list[float]] = ([], [])
    for sandbox in sandboxes:
        await sandbox.start()
    for _ in range(ROUNDS):
        for sandbox, kept in zip(sandboxes, times, strict=True):
            started = time.perf_counter()
            cell = await sandbox.acquire(JAVASCRIPT)  # none is warm
            kept.append((time.perf_counter() - started) * 1000)
            cell.kill()
    for sandbox in sandboxes:
        await sandbox.close()
    return times


def _fork_plainly(live: Callable[[Birth], NoReturn]) -> int:
    gate, its_gate = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(its_gate, b"%d" % os.getpid())
        live(Birth(gate=gate, privileged=False))
    os.close(gate)
    os.close(its_gate)
    return pid


def _share(_birth: Birth, _become: Callable[[], Layer]) -> tuple[Layer, Layer]:
    left_out = missing(namespaces_unsafe.NAME, "left out, to be measured", "none")
    return left_out, left_out


if __name__ == "__main__":
    zygote_unsafe.spawn = _fork_plainly  # type: ignore[attr-defined]
    namespaces_unsafe.settle = _share  # type: ignore[assignment]
    zygote_unsafe.main()
