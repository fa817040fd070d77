"""A node hangs in the middle of a transaction, and the server is away: nobody waits for ever."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from engine.store import nodes as store
from engine.store.database import Database
from engine.store.deliveries import delivery_row
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.run_queue import queue_row
from engine.store.tables import deliveries, projects, run_queue
from tests.standins.servers import Postgres

NOW_MS = 1_800_000_000_000
AT_ONCE_S = 5.0  # a wait for a lock would last for as long as its holder hangs
ODD = [
    "tab\there",
    "line\nhere",
    "back\\slash",
    "\\N",
    "\\.",
    "",
    "quote'\"",
    "é 漢 🙂",
    "a" * 9_000,
]


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    with postgres.database() as url:
        opened = Database(url)
        opened.migrate()
        yield opened
        opened.close()


async def a_node(database: Database, node_id: str) -> Journal:
    journal = Journal(database)
    new = store.NewNode(id=node_id, kind="worker", host="h", pid=1, release="1", now_ms=NOW_MS)
    await journal.run(store.register, new)
    journal.node_id = node_id
    return journal


def a_run(run_id: str, node_id: str) -> tuple[Any, ...]:
    return queue_row(
        run_id=run_id, project_id="prj", function_id="fn", cause="job", handler="job",
        root_id=run_id, created_ms=NOW_MS, given="{}", node_id=node_id,
    )  # fmt: skip


def a_delivery(delivery_id: str, node_id: str) -> tuple[Any, ...]:
    return delivery_row(
        delivery_id=delivery_id, project_id="prj", execution_id=delivery_id, position=0,
        connection="HOOK", kind="webhook", payload="{}", now_ms=NOW_MS, node_id=node_id,
    )  # fmt: skip


def owners(database: Database) -> dict[str, str | None]:
    def read(connection: Connection) -> dict[str, str | None]:
        found = connection.execute(select(run_queue.c.id, run_queue.c.node_id)).all()
        found += connection.execute(select(deliveries.c.id, deliveries.c.node_id)).all()
        return {row.id: row.node_id for row in found}

    return database.read_here(read)


def project_ids(connection: Connection) -> list[str]:
    return list(connection.execute(select(projects.c.id)).scalars())


async def test_nobody_waits_for_the_locks_of_a_node_that_hangs(database: Database) -> None:
    """What it has locked is freed later; the others beat on, and take over what they can."""
    journal = await a_node(database, "b")
    await journal.run(
        store.register,
        store.NewNode(id="a", kind="worker", host="h", pid=1, release="1", now_ms=NOW_MS),
    )
    commit = Commit()
    for row in (a_run("r1", "a"), a_run("r2", "a")):
        commit.insert(run_queue, row)
    await journal.commit(commit)

    with database.engine.connect() as hung:
        hung.execute(update(run_queue).where(run_queue.c.id == "r1").values(priority=2))
        async with asyncio.timeout(AT_ONCE_S):
            freed = await journal.run(store.take_over, "a", 0)
            freed_later = await journal.run(store.free_orphans)
        hung.rollback()
    found = await journal.run(store.free_orphans)
    await journal.close()

    assert freed == store.Takeover(runs=1, deliveries=0)
    assert (freed_later, found) == (0, 1)
    assert owners(database) == {"r1": None, "r2": None}


async def test_a_node_that_hangs_while_it_beats_is_left_for_the_next_time(
    database: Database,
) -> None:
    """Its row is locked: perhaps it is about to say that it lives."""
    journal = await a_node(database, "b")
    await journal.run(
        store.register,
        store.NewNode(id="a", kind="worker", host="h", pid=1, release="1", now_ms=NOW_MS),
    )

    with database.engine.connect() as hung:
        store.beat(hung, "a", "{}", NOW_MS)
        async with asyncio.timeout(AT_ONCE_S):
            taken = await journal.run(store.take_over, "a", 0)
        hung.commit()
    await journal.close()

    assert taken is None


async def test_deliveries_that_a_dead_node_commits_late_are_freed(database: Database) -> None:
    """Its last transaction was on its way when it was taken over; its messages are sent."""
    journal = await a_node(database, "b")
    commit = Commit()
    commit.insert(deliveries, a_delivery("d1", "dead"))
    commit.insert(deliveries, a_delivery("d2", "b"))
    await journal.commit(commit)

    await journal.run(store.free_orphans)
    await journal.close()

    assert owners(database) == {"d1": None, "d2": "b"}


@pytest.mark.parametrize("count", [1, 200], ids=["by INSERT", "by COPY"])
async def test_any_text_comes_back_as_it_was_committed(database: Database, count: int) -> None:
    """Whatever way the rows take to the server."""
    journal = await a_node(database, "a")
    texts = [f"{text} {number}" for text in ODD for number in range(count)]

    for at in range(0, len(texts), count):
        commit = Commit()
        for text in texts[at : at + count]:
            commit.insert(projects, (text, text, NOW_MS, "standard", "{}"))
        await journal.commit(commit)
    await journal.close()

    assert set(database.read_here(project_ids)) == set(texts)


async def test_a_bad_row_of_many_spoils_only_its_own_commit(database: Database) -> None:
    """The group is refused, and then each commit goes alone."""
    journal = await a_node(database, "a")
    good, bad = Commit(), Commit()
    for number in range(20):
        good.insert(projects, (f"p{number}", f"p{number}", NOW_MS, "standard", "{}"))
        bad.insert(projects, (f"q{number}", "the same name", NOW_MS, "standard", "{}"))

    results = await asyncio.gather(
        journal.commit(good), journal.commit(bad), return_exceptions=True
    )
    await journal.close()

    assert results[0] is None
    assert isinstance(results[1], StoreFailed)

    assert len(database.read_here(project_ids)) == 20


@pytest.mark.slow
async def test_a_read_waits_for_a_server_that_is_away() -> None:
    """A guest that asks during a restart gets its answer, and not an error."""
    with Postgres() as server:
        database = Database(server.new_database())
        database.migrate()
        await asyncio.to_thread(server.stop)

        reading = asyncio.create_task(database.read(project_ids))
        await asyncio.sleep(0.5)  # it has met nobody by now
        early = reading.done()
        await asyncio.to_thread(server.start)
        answer = await reading
        database.close()

    assert (early, answer) == (False, [])
