"""Group commit: what shares a transaction, and who is told what."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, NullPool, Table, create_engine, insert, select

from engine.store import journal as journal_module
from engine.store.database import Database
from engine.store.journal import CHUNK_ROWS, Commit, Journal, Row, StoreFailed, _chunks
from engine.store.run_queue import queue_row
from engine.store.tables import events, kv, products, projects, run_queue

WAIT_S = 10


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """On each kind of database."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[Journal]:
    opened = Journal(database)
    yield opened
    async with asyncio.timeout(WAIT_S):
        await opened.close()


@asynccontextmanager
async def one_group(journal: Journal) -> AsyncIterator[None]:
    """Keep the writer busy inside the block, so that all of the block's commits form one group."""
    gate = threading.Event()
    busy = asyncio.create_task(journal.run(lambda _connection: gate.wait(WAIT_S)))
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)
    gate.set()
    await busy


@contextmanager
def another_process(database: Database) -> Iterator[Connection]:
    """A connection that knows only what is on disk."""
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def ids(database: Database, table: Table = projects) -> list[str]:
    with another_process(database) as connection:
        return list(connection.execute(select(table.c.id).order_by(table.c.id)).scalars())


def project(name: str) -> Row:
    return (name, name, 1)


def an_event(event_id: str) -> Row:
    return (event_id, "prj", "dev", 1, "http", "{}")


def a_run(run_id: str) -> Row:
    return queue_row(
        run_id=run_id,
        project_id="prj",
        function_id="fn",
        cause="write",
        handler="trigger",
        root_id=run_id,
        created_ms=1,
        node_id="node",
    )


PLAIN = ("standard", "{}")  # a project's isolation and allowances


def adding(*rows: Row, table: Table = projects) -> Commit:
    commit = Commit()
    for row in rows:
        commit.insert(table, (*row, *PLAIN) if table is projects else row)
    return commit


def add_project(connection: Connection, name: str) -> str:
    connection.execute(insert(projects).values(id=name, name=name, created_ms=1))
    return f"{name} added"


async def outcomes(tasks: Sequence["asyncio.Task[Any]"]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_answered_is_on_disk(database: Database, journal: Journal) -> None:
    """Another process can read it as soon as the caller is told."""
    await journal.commit(adding(project("a"), project("b")))

    assert ids(database) == ["a", "b"]


async def test_a_commit_is_stored_completely_or_not_at_all(
    database: Database, journal: Journal
) -> None:
    """One row that the database refuses takes the commit's other rows and deletions with it."""
    await journal.commit(adding(project("old")))
    commit = adding(project("a"))
    commit.insert(products, ("prd", "no such project", "x", 1))
    commit.delete(projects, "old")

    with pytest.raises(StoreFailed, match=r"(?i)foreign key"):
        await journal.commit(commit)

    assert ids(database) == ["old"]


async def test_a_bad_commit_fails_alone_in_its_group(database: Database, journal: Journal) -> None:
    """Those that shared its transaction are stored all the same."""
    async with one_group(journal):
        tasks = [
            asyncio.create_task(journal.commit(commit))
            for commit in (
                adding(project("a")),
                adding(project("b"), project("b")),
                adding(project("c")),
            )
        ]

    first, bad, last = await outcomes(tasks)

    assert isinstance(bad, StoreFailed)
    assert (first, last) == (None, None)
    assert ids(database) == ["a", "c"]


async def test_an_exception_of_a_change_comes_back_to_its_caller_alone(
    database: Database, journal: Journal
) -> None:
    """What it had changed is undone; its neighbours' changes stay, and the group stays one."""

    def fail(connection: Connection) -> None:
        add_project(connection, "b")
        raise LookupError("not there")

    async with one_group(journal):
        groups = journal.commits_count
        tasks = [
            asyncio.create_task(journal.run(add_project, "a")),
            asyncio.create_task(journal.run(fail)),
            asyncio.create_task(journal.run(add_project, name="c")),
        ]

    first, failed, last = await outcomes(tasks)

    assert (first, last) == ("a added", "c added")
    assert isinstance(failed, LookupError)
    assert ids(database) == ["a", "c"]
    assert journal.commits_count == groups + 2  # the writer's busy one, and this group


async def test_a_change_that_the_database_refuses_fails_alone(
    database: Database, journal: Journal
) -> None:
    """The whole group is undone then, and each is run again by itself."""
    async with one_group(journal):
        tasks = [asyncio.create_task(journal.run(add_project, name)) for name in ("a", "a", "b")]

    first, bad, last = await outcomes(tasks)

    assert (first, last) == ("a added", "b added")
    assert isinstance(bad, StoreFailed)
    assert ids(database) == ["a", "b"]


async def test_rows_beside_a_change_that_fails_are_not_stored(
    database: Database, journal: Journal
) -> None:
    """A commit is one thing: its change, its rows and its deletions."""

    def fail(_connection: Connection) -> None:
        raise LookupError("not there")

    commit = adding(project("a"))
    commit.change = fail
    with pytest.raises(LookupError):
        await journal.commit(commit)

    assert ids(database) == []


@pytest.mark.parametrize("row", [("\ud800", "half a character", 1), ("a", "too large", 2**70)])
async def test_a_row_that_the_driver_cannot_write_fails_alone(
    database: Database, journal: Journal, row: Row
) -> None:
    """Drivers raise exceptions that are not the database's own for it; the writer must live on."""
    with database.engine.connect() as connection:
        answers = journal._write(connection, [adding(project("b")), adding(row)], [])

    assert answers[0] == (None, None)
    assert isinstance(answers[1][1], StoreFailed)
    assert ids(database) == ["b"]


async def test_changes_run_and_are_answered_in_the_order_of_submission(journal: Journal) -> None:
    """Over group borders too; each gets its own result."""
    ran: list[int] = []
    answered: list[tuple[int, Any]] = []

    def submit(number: int) -> None:
        def change(_connection: Connection) -> int:
            ran.append(number)
            return number * 10

        def done(result: Any, error: BaseException | None) -> None:
            assert error is None
            answered.append((number, result))

        journal.submit(Commit(change=change, done=done))

    submit(0)
    async with one_group(journal):
        for number in range(1, 20):
            submit(number)
    await journal.barrier()

    assert ran == list(range(20))
    assert answered == [(number, number * 10) for number in range(20)]


async def test_a_change_sees_what_earlier_groups_stored(journal: Journal) -> None:
    """One writer: nothing is stored behind its back."""
    await journal.commit(adding(project("a")))

    def names(connection: Connection) -> list[str]:
        return [row[0] for row in connection.execute(projects.select())]

    assert await journal.run(names) == ["a"]


async def test_two_hundred_at_once_share_few_transactions(
    database: Database, journal: Journal
) -> None:
    """The first goes at once; all that arrive meanwhile go together."""
    commits = [adding(project(f"p{number:03}")) for number in range(200)]

    await asyncio.gather(*(journal.commit(commit) for commit in commits))

    assert len(ids(database)) == 200
    assert journal.commits_count <= 3


@pytest.mark.parametrize("count", [1, 7, 8, 9, 129, 513, 1_200])
async def test_any_number_of_rows_goes_in_and_out(
    database: Database, journal: Journal, count: int
) -> None:
    """Statements have fixed sizes; what does not fill one goes by smaller ones."""
    rows = [an_event(f"evt_{number:04}") for number in range(count)]

    await journal.commit(adding(*rows, table=events))
    stored = ids(database, events)
    removing = Commit(deletes={events: [row[0] for row in rows[1:]]})
    await journal.commit(removing)

    assert stored == [row[0] for row in rows]
    assert ids(database, events) == ["evt_0000"]


@given(rows=st.lists(st.integers(), max_size=2_000))
def test_pieces_have_the_fixed_sizes_and_keep_the_order(rows: list[int]) -> None:
    """So that the statements are few, and prepared once."""
    chunks = _chunks(rows)

    assert [row for chunk in chunks for row in chunk] == rows
    assert {len(chunk) for chunk in chunks} <= set(CHUNK_ROWS)


async def test_a_row_that_is_there_already_can_be_passed_over(
    database: Database, journal: Journal
) -> None:
    """`inserts_new` leaves the old row as it is."""
    await journal.commit(adding(("a", "first", 1)))
    commit = Commit()
    commit.insert_new(projects, ("a", "second", 2, *PLAIN))

    await journal.commit(commit)

    with another_process(database) as connection:
        assert connection.execute(select(projects.c.name)).scalars().all() == ["first"]


def an_entry(key: str, value: str) -> Row:
    return ("p", "default", key, None, 1, value)


KV = [column.name for column in kv.columns]


def entries(database: Database) -> dict[str, str]:
    with another_process(database) as connection:
        return {row.key: row.value for row in connection.execute(select(kv))}


async def test_a_row_that_is_put_takes_the_place_of_another(
    database: Database, journal: Journal
) -> None:
    """Of one commit's words on a key the last one counts."""
    commit = adding(project("p"))
    for key, value in (("a", "1"), ("b", "1"), ("c", "1")):
        commit.put(kv, an_entry(key, value))
    await journal.commit(commit)
    second = Commit()
    second.put(kv, an_entry("a", "2"))
    second.put(kv, an_entry("a", "3"))
    second.put(kv, an_entry("b", "2"))
    second.remove(kv, ("p", "default", "b"))
    second.remove(kv, ("p", "default", "c"))
    second.put(kv, an_entry("c", "2"))
    second.remove(kv, ("p", "default", "never there"))

    await journal.commit(second)

    assert entries(database) == {"a": "3", "c": "2"}


async def test_the_later_commit_of_a_group_wins(database: Database, journal: Journal) -> None:
    """Also over a change that was submitted before it; and one that fails says nothing."""
    await journal.commit(adding(project("p")))

    def fail(_connection: Connection) -> None:
        raise LookupError("not there")

    def said(key: str, value: str | None) -> Commit:
        commit = Commit()
        if value is None:
            commit.remove(kv, ("p", "default", key))
        else:
            commit.put(kv, an_entry(key, value))
        return commit

    failing = said("a", "failed")
    failing.change = fail
    async with one_group(journal):
        groups = journal.commits_count
        words = [said("a", "1"), said("b", "1"), said("a", "2"), said("b", None), failing]
        tasks = [asyncio.create_task(journal.commit(commit)) for commit in words]

    *stored, failed = await outcomes(tasks)

    assert stored == [None] * 4
    assert isinstance(failed, LookupError)
    assert entries(database) == {"a": "2"}
    assert journal.commits_count == groups + 2  # the writer's busy one, and this group


@pytest.mark.parametrize("count", [1, 8, 513])
async def test_any_number_of_keys_is_put_and_removed(
    database: Database, journal: Journal, count: int
) -> None:
    """Each is looked up, whatever else there is: the table is not read for it."""
    names = [f"k{number:04}" for number in range(count)]
    commit = adding(project("p"))
    for name in [*names, "stays"]:
        commit.put(kv, an_entry(name, "1"))
    await journal.commit(commit)
    removing = Commit()
    for name in names:
        removing.remove(kv, ("p", "default", name))

    await journal.commit(removing)

    assert entries(database) == {"stays": "1"}
    sql = journal_module._sql("removes", kv, 8, "?" if database.is_sqlite else "%s")
    with another_process(database) as connection:
        if database.is_sqlite:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", ("x",) * 24).all()
            assert plan[0][3].startswith("SEARCH kv USING INDEX")
        else:
            # It reads all of a table that it knows to be small, and would be right to.
            more = [dict(zip(KV, an_entry(f"m{n}", "1"), strict=True)) for n in range(2000)]
            connection.execute(kv.insert(), more)
            connection.exec_driver_sql("SET enable_seqscan = off")
            connection.exec_driver_sql("SET enable_hashjoin = off")
            connection.exec_driver_sql("ANALYZE kv")
            plan = connection.exec_driver_sql(f"EXPLAIN {sql}", ("x",) * 24).scalars().all()
            assert any("Index Cond" in line and "key =" in line for line in plan), plan


async def test_records_are_on_disk_after_a_drain(database: Database, journal: Journal) -> None:
    """With what they end: a run's queue row goes in the same transaction as its record comes."""
    journal.node_id = "node"
    await journal.commit(adding(a_run("exe_1"), a_run("exe_2"), table=run_queue))
    groups = journal.commits_count

    journal.record(events, an_event("evt_1"), claim="exe_1")
    journal.record(events, an_event("evt_2"))
    await journal.drain()

    assert ids(database, events) == ["evt_1", "evt_2"]
    assert ids(database, run_queue) == ["exe_2"]
    assert journal.commits_count == groups + 1


async def test_records_need_nobody_who_waits(database: Database, journal: Journal) -> None:
    """They go by themselves after some milliseconds."""
    journal.record(events, an_event("evt_1"))

    async with asyncio.timeout(WAIT_S):
        await journal._idle.wait()

    assert ids(database, events) == ["evt_1"]


async def test_a_barrier_comes_after_records_and_commits(
    database: Database, journal: Journal
) -> None:
    """Everything that was handed over before it is on disk, whether or not the writer was busy."""
    journal.record(events, an_event("evt_1"))
    await journal.barrier()
    idle = ids(database, events)

    async with one_group(journal):
        journal.record(events, an_event("evt_2"))
        journal.submit(adding(project("a")))
        barrier = asyncio.create_task(journal.barrier())
    await barrier

    assert idle == ["evt_1"]
    assert ids(database, events) == ["evt_1", "evt_2"]
    assert ids(database) == ["a"]


async def test_records_that_were_refused_are_tried_again(
    database: Database, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runs have been answered: they are all that is known of them."""
    monkeypatch.setattr(journal_module, "RETRY_S", 0.01)
    journal.record(products, ("prd_1", "late", "x", 1))
    await journal.barrier()
    refused = ids(database, products)

    await journal.commit(adding(project("late")))
    async with asyncio.timeout(WAIT_S):
        while not ids(database, products):
            await asyncio.sleep(0.01)

    assert refused == []


async def test_a_caller_that_went_away_harms_nobody(database: Database, journal: Journal) -> None:
    """Its commit was handed over: it is stored, and the next ones are answered."""
    async with one_group(journal):
        gone = asyncio.create_task(journal.commit(adding(project("a"))))
        stays = asyncio.create_task(journal.commit(adding(project("b"))))
        await asyncio.sleep(0)
        gone.cancel()

    await stays

    assert ids(database) == ["a", "b"]


async def test_closing_writes_what_is_left(database: Database) -> None:
    """An orderly stop loses nothing."""
    journal = Journal(database)
    journal.submit(adding(project("a")))
    journal.submit(adding(project("b")))
    journal.record(events, an_event("evt_1"))

    await journal.close()

    assert ids(database) == ["a", "b"]
    assert ids(database, events) == ["evt_1"]
