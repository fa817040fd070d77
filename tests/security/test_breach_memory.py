"""The assumed breach, and memory that no limit of the kernel counts: the engine looks, and ends it.

RLIMIT_DATA counts what can be written. Native code fills pages, makes them read-only, and asks for
more; see GLANCE_S in engine/memory_budget.py.
"""

import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from runtimes.contract import MIB
from tests.conftest import Engine
from tests.security.breach.attacker import MARK

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only")

CELL_MB = 64
CELL_MAX_MB = 192
# 1 GiB in a second at the least: by a look each second it would mostly be had.
HOARD = f"""{MARK}
def batch(messages):
    for _ in range(64):
        at = call('mmap', 0, 16 * MIB, 3, 0x8022, -1, 0)  # MAP_POPULATE: it is there at once
        assert call('mprotect', at, 16 * MIB, 1) == 0
        time.sleep(0.015)
    cell.done(messages[0][1], 'had it all')
"""


class BreachedEngine(Engine):
    """An engine in whose cells the attacker already is."""

    command: ClassVar[tuple[str, ...]] = (
        sys.executable, "-P", str(Path(__file__).parent / "breach" / "serve.py"),
    )  # fmt: skip


def test_memory_that_is_made_read_only_is_counted(tmp_path: Path) -> None:
    """The cell is ended soon after it is over its share, and the engine answers others."""
    engine = BreachedEngine(tmp_path / "data", cell_memory_mb=str(CELL_MB), warm_cells="1")
    engine.start()
    try:
        engine.deploy("hoard", HOARD)
        engine.deploy("honest", "function main(p, callback) { callback(null, p + 1); }")

        engine.ok(
            "POST", "/v1/functions/hoard/invoke", {}, headers={"Prefer": "respond-async"}
        )  # fmt: skip
        engine.until(lambda: len(reclaimed_mb(engine)) > 1)  # it starts again
        honest = engine.invoke("honest", 1)

        assert honest.json() == 2
        assert max(reclaimed_mb(engine)) < 1.6 * CELL_MAX_MB
    finally:
        engine.stop()


def reclaimed_mb(engine: Engine) -> list[int]:
    """Return what each cell held when the engine ended it."""
    lines = [line for line in engine.stderr().splitlines() if "cell_reclaimed" in line]
    return [json.loads(line)["bytes"] // MIB for line in lines]
