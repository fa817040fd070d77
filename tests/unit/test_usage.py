"""What is charged, and what is owed: with cells whose CPU time a test says, and a real database."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.allowances import Effective
from engine.errors import QuotaExceeded
from engine.store import usage as store
from engine.store.database import Database
from engine.store.journal import Journal
from engine.usage import MINUTE_MS, OWED_MAX, Usage, owed_of

S = 1_000_000_000
NOW_MS = 1_800_000_000_000
NONE = Effective(
    concurrency=0, queued=0, cpu_seconds_per_minute=0, cpu_seconds_per_month=0,
    key_requests_per_minute=0, device_requests_per_minute=0,
)  # fmt: skip


class Cell:
    """A cell that has used as much as the kernel says here."""

    used_ns = 0

    def cpu_ns(self) -> int:
        return self.used_ns


class World:
    """One project `p`, its budgets, and its usage on one node."""

    def __init__(self, journal: Journal) -> None:
        self.now_ms = NOW_MS - NOW_MS % MINUTE_MS
        self.journal = journal
        self.allowed = NONE
        self.usage = self.node()

    def node(self) -> Usage:
        return Usage(
            self.journal,
            lambda: self.now_ms,
            lambda _: self.allowed,
            lifted=lambda: None,
            refused=Counter(),
        )

    def allow(self, **seconds: float) -> None:
        self.allowed = Effective(**{name: getattr(NONE, name) for name in NONE.__struct_fields__}
                                 | seconds)  # fmt: skip

    async def owed_s(self) -> float:
        found = await self.journal.run(store.used, owed_of(self.now_ms))
        return sum(one.cpu_us for one in found) / 1e6

    async def minutes_later(self, count: int = 1) -> None:
        self.now_ms += count * MINUTE_MS
        await self.usage.look()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(f"sqlite:///{tmp_path}/usage.db")
    database.migrate()
    journal = Journal(database)
    yield World(journal)
    await journal.close()
    database.close()


@pytest.mark.parametrize("budget", ["cpu_seconds_per_minute", "cpu_seconds_per_month"])
async def test_a_run_that_lasts_several_looks_is_charged_once(world: World, budget: str) -> None:
    """With 1.5 times its CPU as budget nobody is refused: neither at its end nor later."""
    world.allow(**{budget: 3})
    cell = Cell()
    await world.usage.look()
    world.usage.cell_begun("p", cell)
    for used_ns in (1 * S, 2 * S):
        cell.used_ns = used_ns
        await world.usage.look()

    world.usage.add("p", 2 * S)
    world.usage.check("p")
    await world.usage.look()
    world.usage.check("p")

    cell.used_ns += 1 * S
    world.usage.add("p", 1 * S)
    with pytest.raises(QuotaExceeded) as refused:
        world.usage.check("p")  # the budget is used up now, before any look
    assert refused.value.limit["used"] == pytest.approx(3, abs=0.2)


async def test_debts_are_paid_with_the_budgets_of_the_next_minutes(world: World) -> None:
    """3.5 s in a minute of 1 s: three minutes later there is half a budget again."""
    world.allow(cpu_seconds_per_minute=1)
    await world.usage.look()
    world.usage.add("p", 3_500_000_000)
    await world.usage.look()
    with pytest.raises(QuotaExceeded) as refused:
        world.usage.check("p")
    assert refused.value.retry_after_s == 180

    owed = []
    for _ in range(4):
        await world.minutes_later()
        owed.append((await world.owed_s(), "p" in world.usage.exceeded))

    assert owed == [(2.5, True), (1.5, True), (0.5, False), (0, False)]


async def test_debts_go_on_in_another_node_and_over_a_gap(world: World) -> None:
    """One that starts in the next minute knows them; minutes in which nobody looked pay, too."""
    world.allow(cpu_seconds_per_minute=1)
    await world.usage.look()
    world.usage.add("p", 3_500_000_000)
    await world.usage.look()
    world.now_ms += MINUTE_MS

    other = world.node()
    await other.look()
    assert (await world.owed_s(), "p" in other.exceeded) == (2.5, True)
    await world.usage.look()
    assert await world.owed_s() == 2.5  # both nodes have counted: it is owed once

    await world.minutes_later(2)
    assert (await world.owed_s(), "p" in world.usage.exceeded) == (0.5, False)


async def test_debts_have_an_end(world: World) -> None:
    """However much was overspent: an hour later it is forgotten."""
    world.allow(cpu_seconds_per_minute=1)
    await world.usage.look()
    world.usage.add("p", 10_000 * S)
    await world.usage.look()

    await world.minutes_later()
    assert await world.owed_s() == OWED_MAX
    await world.usage.sweep()
    assert await world.owed_s() == OWED_MAX  # it is of this minute
    await world.minutes_later(OWED_MAX)

    assert (await world.owed_s(), "p" in world.usage.exceeded) == (0, False)


async def test_a_new_budget_has_no_debts(world: World) -> None:
    """What was used before there was one, nobody owes."""
    await world.usage.look()
    world.usage.add("p", 10 * S)
    await world.usage.look()
    await world.minutes_later()
    world.allow(cpu_seconds_per_minute=1)
    await world.usage.look()
    assert (await world.owed_s(), "p" in world.usage.exceeded) == (0, False)

    await world.minutes_later()
    assert await world.owed_s() == 0


async def test_the_end_of_a_run_asks_after_its_own_project_alone(world: World) -> None:
    """With a thousand projects that have budgets, each end would else cost as much as a look."""
    asked: Counter[str] = Counter()

    def allowances(project_id: str) -> Effective:
        asked[project_id] += 1
        return world.allowed

    world.allow(cpu_seconds_per_minute=1)
    clock_ms = world.now_ms
    usage = Usage(
        world.journal, lambda: clock_ms, allowances, lifted=lambda: None, refused=Counter()
    )
    for project_id in ("p", "q", "r"):
        usage.add(project_id, 1)
    asked.clear()

    usage.add("p", 2 * S)

    assert set(asked) == {"p"}
    assert usage.exceeded.keys() == {"p"}


async def test_projects_that_do_nothing_are_forgotten_and_their_sum_is_kept(world: World) -> None:
    """Deleted ones, too: else a node would know of every project there ever was."""
    cell = Cell()
    world.usage.add("idle", 2 * S)
    world.usage.cell_begun("housed", cell)
    cell.used_ns = 1 * S
    await world.usage.look()
    world.usage.add("fresh", 3 * S)

    await world.usage.sweep()

    assert world.usage.spent_ns() == pytest.approx(6 * S, abs=0.1 * S)
    assert world.usage._accounts.keys() == {"housed", "fresh"}


async def test_a_look_that_fails_in_whatever_way_is_not_the_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without looks no budget would be used up any more, and none lifted."""
    monkeypatch.setattr("engine.usage.EVERY_S", 0.001)
    looks: list[int] = []
    await world.usage.start()
    broken = Cell()

    def fails() -> int:
        looks.append(1)
        raise RuntimeError

    monkeypatch.setattr(broken, "cpu_ns", lambda: 0)
    world.usage.cell_begun("p", broken)
    monkeypatch.setattr(broken, "cpu_ns", fails)
    async with asyncio.timeout(5):
        while len(looks) < 2:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(broken, "cpu_ns", lambda: 0)

    await world.usage.close()
