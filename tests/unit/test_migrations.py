"""The migrations build the schema that the code expects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Table, create_engine, insert, inspect, select

from engine.store import database as database_module
from engine.store.database import Database
from engine.store.tables import metadata

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
