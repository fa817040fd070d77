"""What all cells of a node hold together: idle ones go first, and nothing is lost with them."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from engine.memory_budget import Holding, Plan, memory_here, plan, warn_if_small
from engine.settings import Settings
from sandbox.supervisor import Sandbox
from tests.conftest import Engine

MB = 1024 * 1024
BUDGET_MB = 200  # of six cells with 45 to 55 MB each, four fit
PROJECTS = ("one", "two", "three", "four", "five", "six")
HOLD = """
const kept = [];
export default async function (p) {
  while (kept.length < p.mb) kept.push(new Uint8Array(1048576).fill(7));
  if (p.waitMs) await new Promise((done) => setTimeout(done, p.waitMs));
  return kept.length;
}
"""


def holding(*sizes: int, warm: Sequence[int] = (), idle: Sequence[int] = ()) -> list[Holding]:
    """Return cells of these sizes; `idle`: places, the longest idle one first."""
    return [
        Holding(
            bytes=size,
            is_warm=at in warm,
            idle_since_ns=idle.index(at) if at in idle else None,
        )
        for at, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (holding(40, 40, idle=[0, 1]), Plan()),
        (holding(60, 60, idle=[1, 0]), Plan(reclaimed=(1,), is_over=True)),
        (holding(60, 30, 30, warm=[2], idle=[0]), Plan(reclaimed=(2,), is_over=True)),
        (holding(30, 40, 50, idle=[2]), Plan(reclaimed=(2,), is_over=True)),
        (holding(50, 55), Plan(is_over=True)),
        (holding(50, 70), Plan(largest=1, is_over=True, is_tight=True)),
        (
            holding(50, 80, 5, idle=[2]),
            Plan(reclaimed=(2,), largest=1, is_over=True, is_tight=True),
        ),
        (holding(30, 95), Plan(over=(1,))),
    ],
    ids=["enough", "oldest", "warm first", "one is enough", "a little", "tight", "both", "greedy"],
)
def test_who_goes(cells: list[Holding], expected: Plan) -> None:
    """Of a budget of 100, and 90 a cell: first blank ones, then idle ones, at last the largest."""
    assert plan(cells, budget=100, cell_max=90) == expected


def test_a_container_counts_as_the_machine(tmp_path: Path) -> None:
    """The smallest limit on the way up to the root; `max` is none."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{100 * MB}\n")

    assert memory_here("0::/outer/inner\n", tmp_path) == 100 * MB
    assert memory_here("0::/\n", tmp_path) == psutil.virtual_memory().total


@pytest.mark.parametrize(("budget_mb", "is_small"), [(639, True), (640, False)])
def test_a_budget_with_no_room_for_one_working_cell_is_warned_of(
    capsys: pytest.CaptureFixture[str], budget_mb: int, is_small: bool
) -> None:
    """A warm cell and one that takes all that it may do not fit: working cells would be ended."""
    settings = Settings(memory_budget_mb=budget_mb, warm_cells=1, cell_memory_mb=512)

    warn_if_small(settings)

    assert ("memory_budget_small" in "".join(capsys.readouterr())) is is_small


async def test_no_cell_starts_while_there_is_no_room() -> None:
    """Whoever needs one waits, and has it as soon as there is."""
    sandbox = Sandbox(warm_count=1, cell_memory_mb=64, strict=False)
    await sandbox.start()
    sandbox.limit_cells(no_warm=True, none=True)

    waits = asyncio.create_task(sandbox.acquire())
    await asyncio.wait({waits}, timeout=0.1)
    had_to_wait = not waits.done()
    sandbox.limit_cells(no_warm=True, none=False)
    cell = await waits

    assert had_to_wait
    assert cell in sandbox.cells()
    assert not sandbox.warm_cells()
    await sandbox.close()


def call(engine: Engine, project: str, mb: int = 30, wait_ms: int = 0) -> int:
    response = engine.client.post(
        "/v1/functions/hold/invoke",
        json={"mb": mb, "waitMs": wait_ms},
        headers={"X-Project": project},
    )
    assert response.is_success, response.text
    return response.json()


def metric(engine: Engine, name: str) -> float:
    lines = engine.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def deployed(
    own_engine: Callable[..., Engine], projects: Sequence[str] = PROJECTS, **settings: str
) -> Engine:
    engine = own_engine(**settings)
    for name in projects:
        engine.ok("POST", "/v1/projects", {"name": name})
        engine.ok(
            "POST",
            "/v1/functions",
            {"name": "hold", "source": HOLD, "limits": {"memory_mb": 128}},
            headers={"X-Project": name},
        )
    return engine


def test_idle_cells_go_and_come_again(own_engine: Callable[..., Engine]) -> None:
    """Six projects one after another: the oldest are gone, the working one is not, all answer."""
    engine = deployed(own_engine, memory_budget_mb=str(BUDGET_MB), warm_cells="1")

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(call, engine, "one", 30, 5_000)
        first = [call(engine, name) for name in PROJECTS[1:]]
        engine.until(lambda: metric(engine, 'cloudcode_cells_reclaimed_total{reason="budget"}') > 1)
        engine.until(lambda: metric(engine, "cloudcode_cells_memory_bytes") <= BUDGET_MB * MB)
        kept = call(engine, "six", mb=1)
        again = [call(engine, name) for name in PROJECTS[1:]]
        held = busy.result(timeout=30)

    assert first == again == [30] * 5
    assert kept == 30  # its module was still loaded: the last one used
    assert held == 30
    assert metric(engine, 'cloudcode_retries_total{reason="lost"}') == 0


def test_a_cell_that_works_goes_when_nothing_else_can(own_engine: Callable[..., Engine]) -> None:
    """The largest one; its run starts again, and the others do not notice."""
    engine = deployed(own_engine, PROJECTS[:2], memory_budget_mb="110", warm_cells="0")

    with ThreadPoolExecutor(2) as pool:
        small = pool.submit(call, engine, "one", 10, 3_000)
        pool.submit(call, engine, "two", 100, 3_000)
        engine.until(lambda: metric(engine, 'cloudcode_cells_reclaimed_total{reason="tight"}'))

        assert small.result(timeout=30) == 10
        assert "cell_reclaimed" in engine.stderr()
        engine.kill()  # or the large one would be tried four times more
