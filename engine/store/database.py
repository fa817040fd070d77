"""Opens the database and runs reads on it. Writes go through `journal` alone.

Path:   wiring -> here; rule files -> `Database.read`
Never:  holds a transaction open across an await.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 4  # threads: SQLite reads take tens of microseconds; more would queue on two cores
BUSY_MS: Final = 30_000
MIGRATIONS_LOCK: Final = 0x636C6F7564636F64  # any number that nobody else takes: "cloudcod"


class Database:
    """One SQLAlchemy engine and the threads that read from it."""

    def __init__(self, url: str) -> None:
        self.url = _with_our_driver(make_url(url))
        options: dict[str, Any] = {
            "pool_size": READERS + 2,
            "max_overflow": 0,
            "hide_parameters": True,  # of a failed statement: megabytes, or a tenant's
        }
        if self.is_sqlite:
            self.engine: Engine = create_engine(self.url, **options)
            event.listen(self.engine, "connect", _configure_sqlite)
        else:
            from engine.store.postgresql import create_postgresql_engine  # late: see there

            self.engine = create_postgresql_engine(self.url, **options)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def migrate(self) -> None:
        """Bring the schema to this version's, whatever older version of ours it has.

        In one transaction: all of it or nothing. Of nodes that start together one does it, and the
        others find it done.
        """
        self._migrate(command.upgrade, "head")

    def downgrade(self, revision: str) -> None:
        """Take the schema back to an older revision, `0001` or later, in one transaction.

        What the older release has no room for is lost; each migration's `downgrade` says what.
        """
        self._migrate(command.downgrade, revision)

    def _migrate(self, go: Callable[[Config, str], None], revision: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.engine.begin() as connection:
            if self.is_sqlite:
                # The driver begins by itself before rows change, not before tables do: without
                # this, a kill in the middle would leave some tables and no version.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATIONS_LOCK})")
            config.attributes["connection"] = connection
            go(config, revision)

    async def read(self, query: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `query(connection, *args, **kwargs)` in a reader thread and return its answer."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_here, query, args, kwargs)

    def read_here(
        self,
        query: Callable[..., T],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> T:
        """Run `query` in the calling thread: at start, and where a thread is at hand already."""

        def bound(connection: Connection) -> T:
            return query(connection, *args, **(kwargs or {}))

        try:
            with self.engine.connect() as connection:
                return bound(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        # The server has restarted, or dropped what was idle; the pool has dropped all of that age.
        with self.engine.connect() as connection:
            return bound(connection)

    def close(self) -> None:
        self._readers.shutdown()
        self.engine.dispose()


def _with_our_driver(url: URL) -> URL:
    """Return `postgresql://...`, which says nothing of a driver, with ours; others as they are."""
    is_plain = url.drivername in {"postgresql", "postgres"}
    return url.set(drivername="postgresql+psycopg") if is_plain else url


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # acknowledged means on disk
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.execute("PRAGMA wal_autocheckpoint=16000")  # pages, 64 MB: a burst writes hot pages once
    cursor.execute("PRAGMA cache_size=-32768")  # KiB
    cursor.close()
