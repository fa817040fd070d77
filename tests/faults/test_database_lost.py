"""PostgreSQL goes away under a node that writes: what was answered is stored once; it goes on."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from engine.store import journal as journal_module
from engine.store import nodes as store
from engine.store.database import Database
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.tables import projects
from tests.standins.servers import Postgres

NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that these tests stop and start."""
    with Postgres() as running:
        yield running


async def a_node(database: Database) -> Journal:
    journal = Journal(database)
    new = store.NewNode(id="a", kind="serve", host="h", pid=1, release="1", now_ms=NOW_MS)
    await journal.run(store.register, new)
    journal.node_id = "a"
    return journal


def adding(name: str) -> Commit:
    commit = Commit()
    commit.insert(projects, (name, name, NOW_MS, "standard", "{}"))
    return commit


def stored(database: Database) -> list[str]:
    return database.read_here(
        lambda connection: sorted(connection.execute(select(projects.c.id)).scalars())
    )


@pytest.mark.slow
async def test_commits_wait_while_the_database_restarts(own_postgres: Postgres) -> None:
    """Each is answered when it is stored, and stored once, also when COMMIT's answer is lost."""
    database = Database(own_postgres.new_database())
    database.migrate()
    journal = await a_node(database)
    names = [f"p{number:04}" for number in range(600)]

    async def write_all() -> None:
        for at in range(0, len(names), 5):
            await asyncio.gather(*(journal.commit(adding(name)) for name in names[at : at + 5]))

    writing = asyncio.create_task(write_all())
    for _ in range(3):
        await asyncio.sleep(0.05)  # somewhere in the middle of the writing
        await asyncio.to_thread(own_postgres.restart)
    async with asyncio.timeout(60):
        await writing
    await journal.close()

    assert stored(database) == names
    database.close()


@pytest.mark.slow
async def test_a_database_that_stays_away_is_told_and_comes_back(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever; when it is there again, so is the writer."""
    monkeypatch.setattr(journal_module, "RECONNECT_S", 0.5)
    database = Database(own_postgres.new_database())
    database.migrate()
    journal = await a_node(database)

    await asyncio.to_thread(own_postgres.stop)
    with pytest.raises(StoreFailed, match="does not answer"):
        await journal.commit(adding("lost"))
    with pytest.raises(StoreFailed):
        await journal.commit(adding("lost too"))
    await asyncio.to_thread(own_postgres.start)
    await journal.commit(adding("kept"))
    await journal.close()

    assert stored(database) == ["kept"]
    database.close()
