"""The migrations build the schema that the code expects, on both databases, and lose no rows."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, create_engine, insert, inspect, select

from engine.store.database import Database, UnknownRevision
from engine.store.tables import (
    artifacts,
    deliveries,
    deployments,
    functions,
    jobs,
    kv,
    metadata,
    projects,
    run_queue,
    versions,
    wasm_modules,
)
from tests.standins.servers import Postgres

ALEMBICS_OWN = "alembic_version"
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
OLD_MS = 1


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """An empty file, opened as the engine opens it: with foreign keys enforced."""
    opened = Database(f"sqlite:///{tmp_path / 'engine.db'}")
    yield opened
    opened.close()


@pytest.fixture
def postgresql(postgres: Postgres) -> Iterator[Database]:
    """An empty database, opened as the engine opens it."""
    opened = Database(postgres.new_database())
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    return request.getfixturevalue(request.param)


def upgrade(database: Database, revision: str) -> None:
    database._migrate(command.upgrade, revision)


def downgrade(database: Database, revision: str) -> None:
    database._migrate(command.downgrade, revision)


def a_row(table: Table) -> dict[str, Any]:
    """Return a row that fits every other one: all ids are `x`."""
    of_type = {str: "x", int: 1, bytes: b"x", bool: True}
    return {column.name: of_type[column.type.python_type] for column in table.columns}


def fill(database: Database) -> None:
    """Put a row into every table that there is and that has none."""
    with database.engine.begin() as connection:
        for table in tables_there(connection):
            if connection.execute(select(table).limit(1)).first() is None:
                connection.execute(insert(table).values(a_row(table)))


def tables_there(connection: Connection) -> list[Table]:
    reflected = MetaData()
    reflected.reflect(connection)
    return [table for table in reflected.sorted_tables if table.name != ALEMBICS_OWN]


def stored(database: Database) -> dict[str, list[Any]]:
    """Return all rows by table; what refers to nothing is an error."""
    with database.engine.connect() as connection:
        if database.is_sqlite:
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        return {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in tables_there(connection)
        }


def table_names(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def defaults(names: set[str], table: Table) -> dict[str, Any]:
    """Return what rows have in columns that came after them."""
    found = {}
    for name in names:
        column = table.columns[name]
        text = None if column.server_default is None else column.server_default.arg
        known = {"false": False}.get(str(text).lower(), text)
        found[name] = None if text is None else column.type.python_type(known)
    return found


def without_rowid(connection: Connection) -> set[str]:
    found = connection.exec_driver_sql("PRAGMA table_list").mappings()
    return {row["name"] for row in found if row["wr"] and row["name"] in metadata.tables}


def test_the_migrations_build_what_the_code_expects(database: Database) -> None:
    """Alembic would have nothing to add: tables, columns, types, indexes, constraints."""
    database.migrate()

    with database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, metadata)

    assert differences == []


def test_indexes_of_some_rows_hold_the_same_rows(database: Database) -> None:
    """Their conditions are what Alembic does not compare."""
    database.migrate()

    with database.engine.connect() as connection:
        seen = inspect(connection)
        found = {
            index["name"]: index["dialect_options"].get(f"{connection.dialect.name}_where")
            for name in metadata.tables
            for index in seen.get_indexes(name)
        }
    expected = {
        index.name: index.dialect_options[connection.dialect.name]["where"]
        for table in metadata.tables.values()
        for index in table.indexes
    }

    for name, condition in expected.items():
        said = str(found[name]).replace("(", "").replace(")", "").replace("::text", "")
        assert said == str(condition), name


def test_the_tables_are_laid_out_on_disk_as_the_code_says(sqlite: Database) -> None:
    """WITHOUT ROWID is what Alembic does not compare."""
    sqlite.migrate()
    direct = create_engine("sqlite://")
    with direct.begin() as connection:
        metadata.create_all(connection)
        expected = without_rowid(connection)
    direct.dispose()

    with sqlite.engine.connect() as connection:
        found = without_rowid(connection)

    assert found == expected
    assert "values" in found


def test_every_table_takes_a_row_and_gives_it_back(database: Database) -> None:
    """The columns hold what the code puts in, foreign keys included."""
    database.migrate()

    with database.engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(insert(table).values(a_row(table)))

    assert stored(database) == {table.name: [a_row(table)] for table in metadata.sorted_tables}


def test_upgrading_again_changes_nothing(database: Database) -> None:
    """Every start of the engine upgrades; what is there stays."""
    database.migrate()
    fill(database)
    before = stored(database)

    database.migrate()

    assert stored(database) == before


def test_each_step_up_keeps_every_row(database: Database) -> None:
    """From the first release to this one, with rows in all that each release had."""
    upgrade(database, REVISIONS[0])
    for revision in REVISIONS[1:]:
        fill(database)
        before = stored(database)

        upgrade(database, revision)

        after = stored(database)
        for name, rows in before.items():
            (found,) = after.pop(name)
            new = found.keys() - rows[0].keys()
            assert found == rows[0] | defaults(new, metadata.tables[name]), (revision, name)
        assert not any(after.values()), revision


def test_each_step_down_keeps_every_row_that_the_older_release_knows(database: Database) -> None:
    """All but what its tables and columns have no room for; and one can go up again."""
    database.migrate()
    fill(database)
    for revision in reversed(REVISIONS[:-1]):
        before = stored(database)

        database.downgrade(revision)

        after = stored(database)
        assert after.keys() <= before.keys()
        for name, rows in after.items():
            kept = [{column: row[column] for column in rows[0]} for row in before[name]]
            assert rows == kept, (revision, name)
    database.migrate()
    assert table_names(database) == {ALEMBICS_OWN, *metadata.tables}


def test_downgrading_removes_full_tables_in_an_order_that_foreign_keys_allow(
    database: Database,
) -> None:
    """And what was removed can be built again."""
    database.migrate()
    fill(database)

    downgrade(database, "base")
    after_downgrade = table_names(database)
    database.migrate()

    assert after_downgrade == {ALEMBICS_OWN}
    assert table_names(database) == {ALEMBICS_OWN, *metadata.tables}


def test_what_waits_is_free_for_any_node_after_the_upgrade(database: Database) -> None:
    """It is due, of the ordinary priority, and nobody's; deliveries are nobody's too."""
    upgrade(database, "0003")
    fill(database)

    database.migrate()

    found = stored(database)
    (row,) = found["run_queue"]
    told = {"due_ms": 0, "priority": 1, "node_id": None, "attempt": 1, "takeovers": 0}
    assert {name: row[name] for name in told} == told
    assert found["deliveries"][0]["node_id"] is None


def test_going_back_to_one_node_frees_all_but_jobs_for_a_later_time(database: Database) -> None:
    """The older release runs every row at once: a retry too early, a job for next year never."""
    hour_ms = 3_600_000
    later_ms = time.time_ns() // 1_000_000 + hour_ms
    database.migrate()
    with database.engine.begin() as connection:
        for job, run_at_ms in (("due", OLD_MS), ("retried", OLD_MS), ("later", later_ms)):
            connection.execute(
                insert(jobs).values(a_row(jobs) | {"id": job, "run_at_ms": run_at_ms})
            )
        for run, fields in (
            ("owned", {"node_id": "node_1", "job_id": None}),
            ("parked", {"node_id": "parked", "lane": "o:1", "job_id": None}),
            ("write again", {"attempt": 2, "due_ms": later_ms, "job_id": None}),
            ("due", {"job_id": "due"}),
            ("retried", {"job_id": "retried", "attempt": 2, "due_ms": later_ms}),
            ("later", {"job_id": "later", "due_ms": later_ms}),
        ):
            row = a_row(run_queue) | {"schedule_id": None, "id": run} | fields
            connection.execute(insert(run_queue).values(row))

    database.downgrade("0003")

    left = {row["id"] for row in stored(database)["run_queue"]}
    assert left == {"owned", "parked", "write again", "due", "retried"}


def test_going_back_sends_nothing_that_the_older_release_would_send_wrongly(
    database: Database,
) -> None:
    """It knows no held ones, no credentials of a script, and neither other actions nor kinds."""
    database.migrate()
    plain = {"state": "queued", "kind": "slack", "action": "send", "sealed": None, "ended_ms": None}
    with database.engine.begin() as connection:
        for number, (name, fields) in enumerate(
            {
                "plain": {},
                "retrying": {"state": "retrying", "kind": "webhook"},
                "delivered": {"state": "delivered", "kind": "twilio", "ended_ms": 1},
                "held": {"state": "held"},
                "inline": {"sealed": b"x"},
                "call": {"action": "call"},
                "twilio": {"kind": "twilio", "state": "sending"},
            }.items()
        ):
            row = a_row(deliveries) | plain | fields | {"id": name, "position": number}
            connection.execute(insert(deliveries).values(row))

    database.downgrade("0004")

    states = {row["id"]: row["state"] for row in stored(database)["deliveries"]}
    assert states == {
        "plain": "queued", "retrying": "retrying", "delivered": "delivered", "held": "cancelled",
        "inline": "cancelled", "call": "cancelled", "twilio": "cancelled",
    }  # fmt: skip


def test_going_back_to_release_0_1_keeps_javascript(database: Database) -> None:
    """Functions of WebAssembly go, for they could not run there; the others stay whole."""
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(insert(projects).values(a_row(projects)))
        for runtime in ("javascript", "wasm"):
            name = {"id": runtime, "name": runtime, "runtime": runtime}
            connection.execute(insert(functions).values(a_row(functions) | name))
            row = a_row(versions) | {"id": runtime, "function_id": runtime}
            connection.execute(insert(versions).values(row))
            row = a_row(deployments) | {"id": runtime, "function_id": runtime}
            connection.execute(insert(deployments).values(row))
        connection.execute(
            insert(wasm_modules).values(a_row(wasm_modules) | {"version_id": "wasm"})
        )
        connection.execute(insert(artifacts).values(a_row(artifacts) | {"version_id": "wasm"}))

    database.downgrade("0001")

    found = stored(database)
    for name in ("functions", "versions", "deployments"):
        assert [row["id"] for row in found[name]] == ["javascript"]
    assert "options" not in found["versions"][0]


@pytest.mark.parametrize("asked", ["0006", "0007", "base", "-1", ""])
def test_one_goes_back_to_a_revision_that_there_was(database: Database, asked: str) -> None:
    """Not to this one, a later one, or none: that would be no database of ours any more."""
    database.migrate()
    fill(database)
    before = stored(database)

    with pytest.raises(UnknownRevision) as refused:
        database.downgrade(asked)

    assert list(refused.value.known) == ["0005", "0004", "0003", "0002", "0001"]
    assert stored(database) == before


def test_keys_are_in_the_order_of_their_bytes(database: Database) -> None:
    """Whatever collation the database has (here: people's): lists by prefix need it."""
    names = ["a", "B", "a-b", "a/b", "ab", "a_b", "é", "z", "Z"]
    database.migrate()
    with database.engine.begin() as connection:
        connection.execute(insert(projects).values(a_row(projects)))
        for name in names:
            row = a_row(kv) | {"key": name, "expires_ms": None}
            connection.execute(insert(kv).values(row))

    with database.engine.connect() as connection:
        found = list(connection.execute(select(kv.c.key).order_by(kv.c.key)).scalars())

    assert found == sorted(names, key=str.encode)


def test_nodes_that_start_together_migrate_once(postgresql: Database) -> None:
    """Each finds the schema as it has to be; none trips over another one's tables."""
    nodes = [Database(str(postgresql.url)) for _ in range(4)]
    ready = threading.Barrier(len(nodes))

    def start(node: Database) -> None:
        ready.wait(timeout=30)
        node.migrate()

    with ThreadPoolExecutor(len(nodes)) as threads:
        started = [threads.submit(start, node) for node in nodes]

    assert [one.exception() for one in started] == [None] * len(nodes)
    assert table_names(postgresql) == {ALEMBICS_OWN, *metadata.tables}
    for node in nodes:
        node.close()


def test_a_migration_that_fails_leaves_nothing_half_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is killed, or whose disk fills up, can start again afterwards."""

    def upgrade_then_fail(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise OSError("disk full")

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", upgrade_then_fail)
    with pytest.raises(OSError, match="disk full"):
        database.migrate()
    monkeypatch.undo()
    left = table_names(database)

    database.migrate()

    assert left == set()
    assert table_names(database) == {ALEMBICS_OWN, *metadata.tables}


def test_a_downgrade_that_fails_leaves_nothing_half_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every table and row is where it was."""
    database.migrate()
    fill(database)
    before = stored(database)

    def downgrade_then_fail(config: Config, revision: str) -> None:
        downgrade(config, revision)
        raise OSError("disk full")

    downgrade = command.downgrade
    monkeypatch.setattr(command, "downgrade", downgrade_then_fail)
    with pytest.raises(OSError, match="disk full"):
        database.downgrade("0001")

    assert stored(database) == before
