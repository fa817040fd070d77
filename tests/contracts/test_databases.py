"""What differs between SQLite and PostgreSQL, and must not show."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select

from engine.clock import wall_clock
from engine.store.database import Database
from engine.store.nodes import NewNode, leave, register
from engine.store.tables import events, projects
from tests.standins.command_line import run
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    Project,
    http,
    platform,
    project,
)
from tests.standins.servers import Postgres

THROWS = "export default { async job(text) { throw new Error(text) } }"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that one test stops and starts."""
    with Postgres() as running:
        yield running


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """On PostgreSQL, migrated."""
    with postgres.database() as url:
        opened = Database(url)
        opened.migrate()
        yield opened
        opened.close()


def setting(database: Database, name: str) -> str:
    return database.read_here(
        lambda connection: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_an_error_may_hold_any_text(project: Project) -> None:
    """What PostgreSQL cannot keep as text, and what looks as if it were that, in the list too."""
    texts = ["a\0b", r"C:\u0000\users", r"\\u0000", '"\\"', "\\", "\u2028 \x1b[0m é 🌡", r"\\\b\n"]
    await project.function("throws", THROWS)

    for text in texts:
        await project.develop.call("POST", "/v1/functions/throws/invoke", text)

    listed = await project.operate.items("/v1/executions")
    assert [one["error"]["message"] for one in listed] == texts[::-1]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "path",
    [
        "/v1/functions/{}",
        "/v1/executions/{}",
        "/v1/products/{}",
        "/v1/devices/{}",
        "/v1/deliveries/{}",
        "/v1/triggers?product={}",
        "/v1/jobs/{}",
        "/v1/dead-letters/{}",
        "/v1/schedules/{}",
        "/v1/events/{}/explain",
    ],
)
async def test_a_name_that_no_row_can_have_is_not_found(project: Project, path: str) -> None:
    """PostgreSQL has no text with NUL in it; asking for one is no fault of ours."""
    answer = await project.admin.call("GET", path.format("a%00b"))

    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] == "not_found"


@pytest.mark.asyncio(loop_scope="module")
async def test_text_comes_back_as_it_was_sent(project: Project) -> None:
    """Also what JSON escapes: it is kept as JSON, and nobody looks into it."""
    given = {"a\0b": ["\0", "\\u0000", "🌡", "\u2028"], "long": "x" * 300_000}
    await project.function("echo", ECHO)

    answer = await project.develop.call("POST", "/v1/functions/echo/invoke", given)

    assert answer.json() == given
    path = f"/v1/executions/{answer.headers['execution-id']}"
    assert (await project.operate.ok("GET", path))["input"] == given


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_plain_url_of_postgresql_is_enough(postgres: Postgres, scheme: str) -> None:
    """Nobody has to know which driver we have."""
    url = postgres.url.replace("postgresql+psycopg", scheme)
    opened = Database(url)

    assert opened.read_here(lambda connection: connection.execute(select(1)).scalar_one()) == 1
    assert opened.engine.dialect.driver == "psycopg"
    opened.close()


def test_what_the_url_says_of_the_driver_counts(postgres: Postgres) -> None:
    """An operator knows the network better than we do; all else stays ours."""
    opened = Database(f"{postgres.url}?application_name=theirs&connect_timeout=3")

    with opened.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        used = driver.info.get_parameters()

    assert used["application_name"] == "theirs"
    assert used["connect_timeout"] == "3"
    assert used["keepalives_idle"] == "15"
    opened.close()


def test_a_node_that_hangs_does_not_keep_its_locks(database: Database) -> None:
    """The server ends a transaction that nobody goes on with, sooner than the lease ends."""
    assert setting(database, "idle_in_transaction_session_timeout") == "10s"
    assert setting(database, "tcp_keepalives_idle") in {"15", "0"}  # 0: not over TCP
    assert setting(database, "application_name") == "cloudcode"


def test_a_statement_is_prepared_once_whatever_the_size_of_its_numbers(database: Database) -> None:
    """Else each size would be another statement, and the server would plan nearly every one."""
    sql = 'INSERT INTO "events" VALUES (%s,%s,%s,%s,%s,%s)'

    def write(connection: Connection) -> list[str]:
        for number in (1, 40_000, 3_000_000_000, 2, 1 << 50, 3, 70_000):
            row = (f"evt_{number}", "prj", "dev", number, "http", "{}")
            connection.exec_driver_sql(sql, row)
        names = "SELECT statement FROM pg_prepared_statements WHERE statement LIKE 'INSERT%%'"
        assert len(connection.execute(select(events.c.id)).all()) == 7
        return list(connection.exec_driver_sql(names).scalars())

    assert len(database.read_here(write)) == 1


@pytest.mark.slow
def test_a_read_survives_a_restart_of_the_server(own_postgres: Postgres) -> None:
    """Its connections are gone, but nobody has to hear of it."""
    opened = Database(own_postgres.new_database())
    opened.migrate()

    def many(connection: Connection) -> int:
        return len(connection.execute(select(projects)).all())

    for _ in range(3):
        assert opened.read_here(many) == 0
        own_postgres.restart()
    assert opened.read_here(many) == 0
    opened.close()


def migrate(url: str, *arguments: str) -> tuple[int, str, str]:
    environment = {"CLOUDCODE_DATABASE_URL": url, "COLUMNS": "200"}
    ran = run(["--json", "migrate", *arguments], environment)
    return ran.code, ran.out, ran.err


def test_the_tables_go_forth_and_back_by_command(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And say what they were and are."""
    if database_kind == "sqlite":
        database_url = f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        database_url = request.getfixturevalue("postgres").new_database()
    revisions = []
    for arguments in ([], [], ["--to", "0002"], []):
        code, out, _ = migrate(database_url, *arguments)
        assert code == 0
        revisions.append(tuple(json.loads(out).values()))

    assert revisions == [(None, "0006"), ("0006", "0006"), ("0006", "0002"), ("0002", "0006")]


def test_the_tables_do_not_go_back_under_a_node_that_runs(database: Database) -> None:
    """It would fail at every statement; whoever stops it first loses nothing."""
    url = database.url.render_as_string()
    node = NewNode(id="n", kind="serve", host="pump", pid=7, release="1", now_ms=wall_clock())
    with database.engine.begin() as connection:
        register(connection, node)
    refused = migrate(url, "--to", "0003")
    with database.engine.begin() as connection:
        leave(connection, "n")

    code, _, _ = migrate(url, "--to", "0003")

    assert refused[0] == 1
    assert "pump (process 7)" in refused[2]
    assert code == 0
    database.migrate()


def test_an_unknown_revision_is_refused_with_those_there_are(database_url: str) -> None:
    """Nothing has changed then."""
    migrate(database_url)

    code, _, err = migrate(database_url, "--to", "0009")

    assert code == 1
    assert "'0009'" in err
    assert "0003, 0002, 0001" in err
