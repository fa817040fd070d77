"""Nodes on one database: each run is one node's, and of the node that has it now alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from engine import nodes as nodes_module
from engine.nodes import Nodes
from engine.store import nodes as store
from engine.store.changes import note_change, noted_after
from engine.store.database import Database
from engine.store.deliveries import delivery_row
from engine.store.journal import Commit, Journal, LeaseLost
from engine.store.run_queue import claim, queue_row, soonest
from engine.store.tables import deliveries, kv, projects, run_queue
from engine.store.tables import nodes as nodes_table
from tests.standins.servers import Postgres

NOW_MS = 1_800_000_000_000


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """On each kind of database."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@asynccontextmanager
async def node(database: Database, node_id: str) -> AsyncIterator[Journal]:
    """A journal that writes in the name of a node that is registered."""
    journal = Journal(database)
    new = store.NewNode(id=node_id, kind="worker", host="h", pid=1, release="1", now_ms=NOW_MS)
    await journal.run(store.register, new)
    journal.node_id = node_id
    yield journal
    await journal.close()


def queued(*ids: str, due_ms: int = 0, project_id: str = "prj", **fields: Any) -> Commit:
    commit = Commit()
    for run_id in ids:
        row = queue_row(
            run_id=run_id,
            project_id=project_id,
            function_id="fn",
            cause="job",
            handler="job",
            root_id=run_id,
            created_ms=NOW_MS,
            given="{}",
            due_ms=due_ms,
            **fields,
        )
        commit.insert(run_queue, row)
    return commit


def ending(run_id: str) -> Commit:
    """Return what a node commits when a run has ended: here, a key of the store as its effect."""
    commit = Commit(claims=[run_id])
    commit.insert(projects, (run_id, run_id, NOW_MS, "standard", "{}"))
    return commit


def owners(database: Database) -> dict[str, str | None]:
    def read(connection: Connection) -> dict[str, str | None]:
        rows = connection.execute(select(run_queue.c.id, run_queue.c.node_id))
        return {row.id: row.node_id for row in rows}

    return database.read_here(read)


def effects(database: Database) -> list[str]:
    def read(connection: Connection) -> list[str]:
        return sorted(connection.execute(select(projects.c.id)).scalars())

    return database.read_here(read)


async def test_a_claim_takes_what_is_due_and_free_high_priority_first(database: Database) -> None:
    """What is later, another project's or somebody's already is left alone."""
    async with node(database, "a") as journal:
        await journal.commit(queued("r1", "r2"))
        await journal.commit(queued("r3", priority=0))
        await journal.commit(queued("later", due_ms=NOW_MS + 1))
        await journal.commit(queued("taken", node_id="b"))
        await journal.commit(queued("other", project_id="prj2"))

        first = await journal.run(claim, "prj", "a", NOW_MS, 2)
        second = await journal.run(claim, "prj", "a", NOW_MS, 2)

    assert [row.id for row in first.rows] == ["r3", "r1"]
    assert first.more
    assert [row.id for row in second.rows] == ["r2"]
    assert not second.more


async def test_two_nodes_that_claim_at_once_share_the_rows(database: Database) -> None:
    """No row goes to both, and none is left."""
    async with node(database, "a") as one, node(database, "b") as other:
        await one.commit(queued(*(f"r{number:03}" for number in range(300))))

        claims = await asyncio.gather(
            *(
                journal.run(claim, "prj", journal.node_id, NOW_MS, 20)
                for _ in range(15)
                for journal in (one, other)
            )
        )

    claimed = [row.id for got in claims for row in got.rows]
    assert len(claimed) == len(set(claimed)) == 300


async def test_the_end_of_a_run_that_was_taken_over_stores_nothing(database: Database) -> None:
    """The fence: whoever lost its lease cannot apply an effect, however late it comes."""
    async with node(database, "a") as slow, node(database, "b") as quick:
        await slow.commit(queued("r1", "r2", node_id="a"))

        taken = await quick.run(store.take_over, "a", 0)
        claimed = await quick.run(claim, "prj", "b", NOW_MS, 10)
        with pytest.raises(LeaseLost):
            await slow.commit(ending("r1"))
        await quick.commit(ending("r1"))

    assert taken is not None
    assert taken.runs == 2
    assert [(row.id, row.takeovers) for row in claimed.rows] == [("r1", 1), ("r2", 1)]
    assert effects(database) == ["r1"]
    assert owners(database) == {"r2": "b"}


async def test_one_lost_run_does_not_spoil_the_group_it_is_committed_with(
    database: Database,
) -> None:
    """Group commit: each commit for itself, also when a lease in it is lost."""
    async with node(database, "a") as journal:
        await journal.commit(queued("mine", node_id="a"))
        await journal.commit(queued("lost", node_id="b"))

        answers = await asyncio.gather(
            journal.commit(ending("mine")), journal.commit(ending("lost")), return_exceptions=True
        )

    assert [type(answer) for answer in answers] == [type(None), LeaseLost]
    assert effects(database) == ["mine"]
    assert owners(database) == {"lost": "b"}


async def test_a_commit_with_several_runs_needs_all_of_them(database: Database) -> None:
    """A batch of messages: when one of them is somebody else's, the others have not ended."""
    async with node(database, "a") as journal:
        await journal.commit(queued("m1", "m2", node_id="a"))
        await journal.commit(queued("m3", node_id="b"))
        batch = ending("m1")
        batch.claims += ["m2", "m3"]

        answers = await asyncio.gather(
            journal.commit(batch), journal.commit(queued("other")), return_exceptions=True
        )

    assert [type(answer) for answer in answers] == [LeaseLost, type(None)]
    assert effects(database) == []
    assert owners(database) == {"m1": "a", "m2": "a", "m3": "b", "other": None}


async def test_a_lazy_record_of_a_lost_run_is_dropped(database: Database) -> None:
    """And does not delete the row, which is somebody else's."""
    async with node(database, "a") as journal:
        await journal.commit(queued("lost", node_id="b"))
        await journal.commit(queued("mine", node_id="a"))

        for run_id in ("lost", "mine"):
            row = (run_id, run_id, NOW_MS, "standard", "{}")
            journal.record(projects, row, claim=run_id)
        await journal.drain()

    assert effects(database) == ["mine"]
    assert owners(database) == {"lost": "b"}
    assert journal.leases_lost_count == 1


async def test_a_node_that_beats_is_not_taken_over(database: Database) -> None:
    """Whoever saw an older beat is too late."""
    async with node(database, "a") as alive, node(database, "b") as other:
        await alive.commit(queued("r1", node_id="a"))
        await alive.run(store.beat, "a", "{}", NOW_MS)

        taken = await other.run(store.take_over, "a", 0)

    assert taken is None
    assert owners(database) == {"r1": "a"}


async def test_runs_of_nodes_that_are_gone_are_freed(database: Database) -> None:
    """Committed in the name of a node after it had been taken over: nobody's, but owned."""
    async with node(database, "a") as journal:
        await journal.commit(queued("stray", node_id="gone"))
        await journal.commit(queued("parked", node_id="parked"))
        await journal.commit(queued("mine", node_id="a"))

        freed_count = await journal.run(store.free_orphans)

    assert freed_count == 1
    assert owners(database) == {"stray": None, "parked": "parked", "mine": "a"}


def become(connection: Connection, delivery_id: str, state: str) -> None:
    mine = update(deliveries).where(deliveries.c.id == delivery_id)
    connection.execute(mine.values(state=state))


async def test_deliveries_of_a_dead_node_are_adopted_once(database: Database) -> None:
    """What it was sending is told apart: whether that arrived is not known."""
    async with node(database, "a") as one, node(database, "b") as other:
        states = ("queued", "sending", "delivered")
        for at, state in enumerate(states):
            row = delivery_row(
                delivery_id=f"d{at}", project_id="prj", execution_id="exe", position=at,
                connection="c", kind="k", payload="{}", now_ms=NOW_MS, node_id="dead",
            )  # fmt: skip
            commit = Commit()
            commit.insert_new(deliveries, row)
            await one.commit(commit)
            await one.run(become, f"d{at}", state)
        await one.run(store.register, store.NewNode(
            id="dead", kind="serve", host="h", pid=1, release="1", now_ms=NOW_MS))  # fmt: skip

        await one.run(store.take_over, "dead", 0)
        adopted = await asyncio.gather(
            *(journal.run(store.adopt_deliveries, journal.node_id, 10) for journal in (one, other))
        )

    assert sorted(adopted) == [([], False), (["d0"], True)]


async def test_the_first_due_time_of_each_project_and_priority_is_found(
    database: Database,
) -> None:
    """One step along the index for each; what is owned does not count."""
    async with node(database, "a") as journal:
        await journal.commit(queued("r1", due_ms=NOW_MS + 5))
        await journal.commit(queued("r2", due_ms=NOW_MS + 3))
        await journal.commit(queued("r3", due_ms=NOW_MS + 9, priority=2))
        await journal.commit(queued("r4", project_id="prj2", node_id="a"))
        await journal.commit(queued("r5", project_id="prj3", due_ms=NOW_MS + 1))

        due = database.read_here(soonest)

    assert [(one.project_id, one.priority, one.due_ms - NOW_MS) for one in due] == [
        ("prj", 1, 3), ("prj", 2, 9), ("prj3", 1, 1),
    ]  # fmt: skip


class Told:
    """What a node's surroundings are told."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.heard: list[str] = []

    def nodes(self, journal: Journal, lease_s: float) -> Nodes:
        return Nodes(
            journal,
            lambda: NOW_MS,
            kind="worker",
            release="1",
            lease_s=lease_s,
            alone=False,
            counts=self.counts,
            on_lost=lambda: self.heard.append("lost"),
            on_freed=lambda: self.heard.append("freed"),
            on_adopted=lambda waiting, interrupted: self.heard.append("adopted"),
            on_checked=lambda: None,
            state=dict,
        )


async def test_a_silent_node_is_taken_over_after_the_lease_and_not_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the watcher's own monotonic clock, and only for time that the watcher was there."""
    told, now_s = Told(), 100.0
    monkeypatch.setattr(nodes_module.time, "monotonic", lambda: now_s)
    async with node(database, "silent") as silent:
        await silent.commit(queued("r1", node_id="silent"))
        journal = Journal(database)
        watcher = told.nodes(journal, lease_s=6)
        await watcher.start()

        takeovers = []
        for step_s in (0, 1, 1, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1, 1):
            now_s += step_s
            await watcher._beat()
            takeovers.append(told.counts["lease_takeovers"])
        await journal.close()

    # The jump of 9 s was the watcher's own pause: what it had seen before does not count.
    assert takeovers == [0] * 14 + [1]
    assert owners(database) == {"r1": None}


async def test_a_node_that_was_taken_over_is_born_again(database: Database) -> None:
    """It drops what it held, and ends no run in its old name any more."""
    told = Told()
    async with node(database, "other") as other:
        journal = Journal(database)
        node_ = told.nodes(journal, lease_s=6)
        await node_.start()
        old_id = node_.id
        await journal.commit(queued("r1", node_id=old_id))

        await other.run(store.take_over, old_id, 0)
        await node_._beat()
        with pytest.raises(LeaseLost):
            await journal.commit(ending("r1"))
        await node_.close()
        await journal.close()

    assert node_.id != old_id
    assert told.heard[0] == "lost"
    assert told.counts["lease_lost"] == 1
    assert effects(database) == []


async def test_a_node_that_leaves_leaves_nothing_behind(database: Database) -> None:
    """What it had is free at once, without anybody waiting for the lease."""
    told = Told()
    journal = Journal(database)
    leaving = told.nodes(journal, lease_s=6)
    await leaving.start()
    await journal.commit(queued("r1", node_id=leaving.id))

    await leaving.close()
    await journal.close()

    assert owners(database) == {"r1": None}
    assert database.read_here(lambda c: c.execute(select(nodes_table)).all()) == []


async def test_changes_are_numbered_in_the_order_in_which_they_become_visible(
    postgres: Postgres,
) -> None:
    """Whoever has read number n never misses a smaller one, however many nodes write.

    On PostgreSQL alone: a database of one process has no feed.
    """
    database = Database(postgres.new_database())
    database.migrate()
    async with node(database, "a") as one, node(database, "b") as other:
        seen: list[int] = []

        async def read_on() -> None:
            while len(seen) < 60:
                after = seen[-1] if seen else 0
                seen.extend(row.seq for row in await database.read(noted_after, after, 500))

        async with asyncio.timeout(20):
            reader = asyncio.create_task(read_on())
            await asyncio.gather(
                *(
                    journal.run(note_change, "function", f"fn{number}")
                    for number in range(30)
                    for journal in (one, other)
                )
            )
            await reader

    database.close()
    assert len(seen) == len(set(seen)) == 60
    assert seen == sorted(seen)


async def test_puts_of_two_nodes_in_opposite_order_do_not_wait_in_a_circle(
    database: Database,
) -> None:
    """Rows are locked in the order of their keys, whatever order they came in."""
    keys = [("prj", "ns", f"k{number}") for number in range(40)]

    def putting(names: list[tuple[str, str, str]], value: str) -> Commit:
        commit = Commit()
        for key in names:
            commit.put(kv, (*key, None, NOW_MS, value))
        return commit

    async with node(database, "a") as one, node(database, "b") as other:
        await one.run(
            lambda c: c.execute(insert(projects).values(id="prj", name="p", created_ms=1))
        )
        async with asyncio.timeout(30):
            await asyncio.gather(
                *(one.commit(putting(keys, '"1"')) for _ in range(20)),
                *(other.commit(putting(keys[::-1], '"2"')) for _ in range(20)),
            )

    values = database.read_here(lambda c: set(c.execute(select(kv.c.value)).scalars()))
    assert len(values) == 1
