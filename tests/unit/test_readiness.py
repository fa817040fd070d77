"""What a node says of itself: what makes it unready, what is only noted, and what is logged."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from engine.api.platform import Degraded
from engine.clock import wall_clock
from engine.readiness import Node, Readiness
from engine.store.database import Database
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.schema import SchemaTooNew, known_revisions
from engine.store.tables import nodes, projects

WAIT_S = 10
HEALTHY = dict.fromkeys(
    ("database", "commits", "schema", "sandbox", "disk", "clock", "release", "draining")
)


class Time:
    """A wall clock and a monotonic one, set by hand; they begin at the time that it is."""

    def __init__(self) -> None:
        self.now_ms = wall_clock()
        self.passed_s = 0.0

    def wall(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        return self.passed_s

    def pass_s(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self.passed_s += seconds


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    write(opened, f"UPDATE alembic_version SET version_num = '{known_revisions()[1]}'")
    opened.close()


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[Journal]:
    opened = Journal(database)
    yield opened
    async with asyncio.timeout(WAIT_S):
        await opened.close()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(autouse=True)
def _a_disk_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's has."""
    _disk(monkeypatch, total=100 << 30, free=50 << 30)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def _disk(monkeypatch: pytest.MonkeyPatch, *, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(total, total - free, free))


class Troubles:
    """What the readiness is told from outside the store."""

    redis: str | None = None
    sandbox_alive = True


def readiness(
    database: Database,
    journal: Journal,
    time: Time,
    troubles: type[Troubles] = Troubles,
    **of_node: Any,
) -> Readiness:
    node = {
        "kind": "serve", "release": "2.0.0", "has_redis": False, "data_dir": Path("/"),
    } | of_node  # fmt: skip
    return Readiness(
        Node(**node),
        database,
        journal,
        time.wall,
        redis_trouble=lambda: troubles.redis,
        sandbox_alive=lambda: troubles.sandbox_alive,
        monotonic=time.monotonic,
    )


async def findings(of: Readiness) -> dict[str, str | Degraded | None]:
    return {name: await check() for name, check in of.checks().items()}


def note(found: object) -> str:
    """Return the text of what is only noted."""
    assert isinstance(found, Degraded), found
    return found.note


def write(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))


def add_node(database: Database, **fields: Any) -> None:
    row = {
        "id": "node_1", "kind": "serve", "host": "here", "pid": 1, "release": "2.0.0",
        "started_ms": 1, "seen_ms": 1, "beat": 0, "journal_seq": 0, "state": "{}",
    }  # fmt: skip
    with database.engine.begin() as connection:
        connection.execute(insert(nodes).values(row | fields))


async def test_a_healthy_node_has_nothing_to_say(
    database: Database, journal: Journal, time: Time
) -> None:
    """Redis and workers are looked at only where there are to be some."""
    assert await findings(readiness(database, journal, time)) == HEALTHY


async def test_a_database_that_cannot_be_read_makes_it_unready(
    journal: Journal, time: Time, tmp_path: Path
) -> None:
    """The check says so; it raises nothing."""
    nowhere = Database(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")

    found = await readiness(nowhere, journal, time).database()
    nowhere.close()

    assert isinstance(found, str)
    assert found.startswith("does not answer")


async def test_a_commit_that_the_database_refused_makes_it_unready_until_it_takes_one(
    database: Database, journal: Journal, time: Time
) -> None:
    """The check tries itself: an unready node may get nothing else to write."""
    commit = Commit()
    commit.insert(projects, ("prj_1", "one", 1, "standard", "{}"))
    working = readiness(database, journal, time)

    async with taking_nothing(database, journal) as reason:
        with pytest.raises(StoreFailed):
            await journal.commit(commit)
        while_full = await working.commits()
    first, second = await working.commits(), await working.commits()

    assert isinstance(while_full, str)
    assert reason in while_full
    assert first is second is None


@asynccontextmanager
async def taking_nothing(database: Database, journal: Journal) -> AsyncIterator[str]:
    """Refuse what writes, as a full disk or a server that became a replica; yield what it says."""
    if database.is_sqlite:

        def refuse(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith(("INSERT", "UPDATE", "DELETE")):
                raise OperationalError(statement, {}, Exception("database or disk is full"))

        event.listen(database.engine, "before_cursor_execute", refuse)
        yield "database or disk is full"
        event.remove(database.engine, "before_cursor_execute", refuse)
    else:
        session = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        await journal.run(lambda connection: connection.execute(session))
        yield "in a read-only transaction"
        session = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        await journal.run(lambda connection: connection.execute(session))


async def test_a_bad_row_does_not_make_it_unready(
    database: Database, journal: Journal, time: Time
) -> None:
    """The database is well; whoever sent the row is told."""
    for _ in range(2):
        commit = Commit()
        commit.insert(projects, ("prj_1", "one", 1, "standard", "{}"))
        try:
            await journal.commit(commit)
        except StoreFailed:
            refused = True
    assert refused

    assert await readiness(database, journal, time).commits() is None


async def test_tables_of_a_newer_release_are_noted_and_it_carries_on(
    database: Database, journal: Journal, time: Time
) -> None:
    """A newer node has started beside it; what that one added does it no harm."""
    write(database, "UPDATE alembic_version SET version_num = '9999'")

    told = note(await readiness(database, journal, time).schema())

    assert "9999" in told
    assert "2.0.0" in told
    assert "start it again with that release" in told


async def test_tables_of_an_older_release_make_it_unready(
    database: Database, journal: Journal, time: Time
) -> None:
    """Somebody has taken them back below it."""
    write(database, "UPDATE alembic_version SET version_num = '0001'")

    found = await readiness(database, journal, time).schema()

    assert isinstance(found, str)
    assert "`cloudcode migrate`" in found


def test_a_node_does_not_start_on_tables_of_a_newer_release(database: Database) -> None:
    """It says which release to start, and how to go back; nothing is touched."""
    head = known_revisions()[1]
    write(database, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(SchemaTooNew) as caught:
        database.migrate()

    assert "9999" in str(caught.value)
    assert f"cloudcode migrate --to {head}" in str(caught.value)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


async def test_nodes_of_other_releases_are_named(
    database: Database, journal: Journal, time: Time
) -> None:
    """A few of them, and how many more there are."""
    add_node(database)
    for number in range(2, 9):
        add_node(database, id=f"node_{number}", host=f"box{number}", release="1.9.0", kind="worker")

    told = note(await readiness(database, journal, time).release())

    assert "this node is of release 2.0.0" in told
    assert "worker box2 (process 1): 1.9.0" in told
    assert "box6" in told
    assert "box7" not in told
    assert "and 2 more" in told


async def test_without_a_worker_what_is_queued_waits(
    database: Database, journal: Journal, time: Time
) -> None:
    """Noted where there is Redis; requests are taken all the same."""
    working = readiness(database, journal, time, has_redis=True)
    told = note((await findings(working))["workers"])
    add_node(database, kind="worker")
    time.pass_s(5)

    assert "`cloudcode worker`" in told
    assert (await findings(working))["workers"] is None


async def test_redis_that_is_away_is_noted(
    database: Database, journal: Journal, time: Time
) -> None:
    """Work is found without it."""

    class Away(Troubles):
        redis = "no connection for 3 s"

    told = note((await findings(readiness(database, journal, time, Away, has_redis=True)))["redis"])

    assert told.startswith("no connection for 3 s")


@pytest.mark.parametrize("jump_s", [3600, -3600, 6, -6])
async def test_a_clock_that_jumped_is_noted_for_a_while(
    jump_s: int, database: Database, journal: Journal, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how much, and when."""
    monkeypatch.setattr("engine.store.nodes_view.database_ms", lambda _connection: None)
    working = readiness(database, journal, time)
    assert await working.clock() is None

    time.now_ms += jump_s * 1000
    time.pass_s(20)
    told = note(await working.clock())
    time.pass_s(60)
    later = note(await working.clock())
    time.pass_s(600)

    assert f"jumped by {jump_s:+d} s, 0 s ago" in told
    assert "60 s ago" in later
    assert await working.clock() is None


async def test_a_clock_that_is_corrected_in_small_steps_has_not_jumped(
    database: Database, journal: Journal, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NTP does that all day."""
    monkeypatch.setattr("engine.store.nodes_view.database_ms", lambda _connection: None)
    working = readiness(database, journal, time)

    for _ in range(10):
        time.pass_s(10)
        time.now_ms += 4000
        assert await working.clock() is None


@pytest.mark.parametrize(("off_s", "way"), [(60, "ahead of"), (-60, "behind")])
async def test_a_clock_that_differs_from_the_databases_is_noted(
    off_s: int, way: str, database: Database, journal: Journal, time: Time
) -> None:
    """The server's clock is what nodes have in common; an embedded database has none."""
    time.now_ms += off_s * 1000

    found = await readiness(database, journal, time).clock()

    if database.is_sqlite:
        assert found is None
    else:
        assert f"s {way} the database's" in note(found)


@pytest.mark.parametrize(
    ("total", "free", "is_low"),
    [
        (100 << 30, 50 << 30, False),
        (100 << 30, 1 << 30, True),  # 1 %
        (10 << 40, 100 << 30, False),  # 1 %, but a hundred GiB
        (1 << 30, 300 << 20, True),  # 30 %, but little
    ],
)
async def test_a_disk_that_fills_up_is_noted(
    total: int,
    free: int,
    is_low: bool,
    database: Database,
    journal: Journal,
    time: Time,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before commits fail; with what to do."""
    _disk(monkeypatch, total=total, free=free)

    found = readiness(database, journal, time).disk()

    assert (found is not None) == is_low
    if is_low:
        assert "make room" in note(found)


async def test_a_node_without_a_data_directory_has_no_disk_to_look_at(
    database: Database, journal: Journal, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PostgreSQL and its key in the environment it needs none."""
    monkeypatch.undo()
    working = readiness(database, journal, time, data_dir=Path("/no/such/folder"))

    assert working.disk() is None


async def test_a_node_that_stops_is_unready(
    database: Database, journal: Journal, time: Time
) -> None:
    """So that nothing new is sent to it."""
    working = readiness(database, journal, time)
    working.draining = True

    assert isinstance((await findings(working))["draining"], str)


async def test_what_changes_is_logged_once(
    database: Database, journal: Journal, time: Time
) -> None:
    """When it begins and when it is over; not at every look."""

    class Later(Troubles):
        pass

    working = readiness(database, journal, time, Later, has_redis=True)
    add_node(database, kind="worker")
    with capture_logs() as logged:
        await working.log_changes()
        Later.redis = "gone"
        Later.sandbox_alive = False
        await working.log_changes()
        await working.log_changes()
        Later.redis = None
        Later.sandbox_alive = True
        await working.log_changes()

    assert [(one["event"], one["check"]) for one in logged] == [
        ("not_ready", "sandbox"),
        ("degraded", "redis"),
        ("well_again", "sandbox"),
        ("well_again", "redis"),
    ]
