"""The migrations build the schema that the code expects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, create_engine, insert, inspect, select

from engine.store import database as database_module
from engine.store.database import Database
from engine.store.tables import (
    artifacts,
    deployments,
    functions,
    metadata,
    projects,
    versions,
    wasm_modules,
)

ALEMBICS_OWN = "alembic_version"
FOLDER = Path(database_module.__file__).parent / "migrations"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty file, opened as the engine opens it: with foreign keys enforced."""
    opened = Database(f"sqlite:///{tmp_path / 'engine.db'}")
    yield opened
    opened.close()


def downgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def upgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def a_row(table: Table) -> dict[str, Any]:
    """Return a row that fits every other one: all ids are `x`."""
    of_type = {str: "x", int: 1, bytes: b"x", bool: True}
    return {column.name: of_type[column.type.python_type] for column in table.columns}


def fill(database: Database) -> None:
    with database.engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(insert(table).values(a_row(table)))


def stored(connection: Connection) -> dict[str, list[Any]]:
    return {
        table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
        for table in metadata.sorted_tables
    }


def table_names(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


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


def test_the_tables_are_laid_out_on_disk_as_the_code_says(database: Database) -> None:
    """WITHOUT ROWID is what Alembic does not compare."""
    database.migrate()
    direct = create_engine("sqlite://")
    with direct.begin() as connection:
        metadata.create_all(connection)
        expected = without_rowid(connection)
    direct.dispose()

    with database.engine.connect() as connection:
        found = without_rowid(connection)

    assert found == expected
    assert "values" in found


def test_every_table_takes_a_row_and_gives_it_back(database: Database) -> None:
    """The columns hold what the code puts in, foreign keys included."""
    database.migrate()

    fill(database)

    with database.engine.connect() as connection:
        assert stored(connection) == {
            table.name: [a_row(table)] for table in metadata.sorted_tables
        }
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def test_upgrading_again_changes_nothing(database: Database) -> None:
    """Every start of the engine upgrades; what is there stays."""
    database.migrate()
    fill(database)
    with database.engine.connect() as connection:
        before = stored(connection)

    database.migrate()

    with database.engine.connect() as connection:
        assert stored(connection) == before


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


def fill_release_0_1(database: Database) -> None:
    """Put a row into every table of the first schema, whatever the code expects today."""
    with database.engine.begin() as connection:
        reflected = MetaData()
        reflected.reflect(connection)
        for table in reflected.sorted_tables:
            if table.name != ALEMBICS_OWN:
                connection.execute(insert(table).values(a_row(table)))


def test_a_database_of_release_0_1_keeps_its_rows(database: Database) -> None:
    """Its versions get empty options; nothing that refers to them is lost."""
    upgrade(database, "0001")
    fill_release_0_1(database)

    database.migrate()

    with database.engine.connect() as connection:
        found = stored(connection)
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    assert found["versions"] == [a_row(versions) | {"options": "{}"}]
    assert found["wasm_modules"] == found["artifacts"] == found["kv"] == []
    new = {"versions", "wasm_modules", "artifacts", "kv"}
    for table in metadata.sorted_tables:
        if table.name not in new:
            assert found[table.name] == [a_row(table)], table.name


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

    downgrade(database, "0001")

    with database.engine.connect() as connection:
        for table in (functions, versions, deployments):
            assert list(connection.execute(select(table.c.id)).scalars()) == ["javascript"]
        assert "options" not in {row["name"] for row in inspect(connection).get_columns("versions")}


def test_going_back_takes_the_key_value_store_alone(database: Database) -> None:
    """What stood in it is gone; a new one is empty."""
    database.migrate()
    fill(database)

    downgrade(database, "0002")
    without = table_names(database)
    database.migrate()

    with database.engine.connect() as connection:
        found = stored(connection)
    assert without == {ALEMBICS_OWN, *metadata.tables} - {"kv"}
    assert found.pop("kv") == []
    assert found == {name: [a_row(metadata.tables[name])] for name in found}


@pytest.mark.parametrize("step", [("0001", "0002"), ("0002", "0001")], ids=str)
def test_postgresql_is_migrated_too(step: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    """Alembic writes its statements; none is one that only SQLite has."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    script = ScriptDirectory.from_config(config)
    start, end = step
    go = script._upgrade_revs if start == "0001" else script._downgrade_revs
    context = MigrationContext.configure(
        dialect_name="postgresql",
        opts={"as_sql": True, "fn": lambda rev, _: go(end, rev), "starting_rev": start},
    )

    with Operations.context(context):
        context.run_migrations()

    written = capsys.readouterr().out
    assert ("ADD COLUMN options TEXT DEFAULT '{}' NOT NULL" in written) == (start == "0001")
    assert ("sealed BYTEA NOT NULL" in written) == (start == "0001")
    assert ("DROP COLUMN options" in written) == (end == "0001")


def test_keys_are_in_the_order_of_their_bytes_on_postgresql_too(
    capsys: pytest.CaptureFixture,
) -> None:
    """Whatever collation its database has: lists by prefix need it."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    script = ScriptDirectory.from_config(config)
    context = MigrationContext.configure(
        dialect_name="postgresql",
        opts={
            "as_sql": True,
            "fn": lambda rev, _: script._upgrade_revs("0003", rev),
            "starting_rev": "0002",
        },
    )

    with Operations.context(context):
        context.run_migrations()

    written = capsys.readouterr().out
    assert 'key TEXT COLLATE "C" NOT NULL' in written
    assert "WHERE expires_ms IS NOT NULL" in written


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
