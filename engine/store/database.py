"""Opens the database and runs reads on it. Writes go through `journal` alone.

Path:   wiring -> here; rule files -> `Database.read`
Never:  holds a transaction open across an await.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError

from engine.errors import EngineError
from engine.store.schema import current_revision, refuse_newer

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 4  # threads: SQLite reads take tens of microseconds; more would queue on two cores
BUSY_MS: Final = 30_000
RECONNECT_S: Final = 10.0  # how long a read, or a group of the journal, waits for a server
RECONNECT_PAUSE_S: Final = 0.2
_TOO_LARGE: Final = "54"  # PostgreSQL's class of errors: program limit exceeded
MIGRATIONS_LOCK: Final = 0x636C6F7564636F64  # any number that nobody else takes: "cloudcod"


class StoreFailed(EngineError):
    """The database refused or lost a commit, or a read; nothing of the request was stored."""

    code = "store_failed"


class UnknownRevision(LookupError):
    """There is no such state of the tables to go back to."""

    def __init__(self, asked: str, known: Sequence[str]) -> None:
        self.known = known
        super().__init__(f"there is no revision {asked!r} before this one")


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
        self._away = False  # a read has waited for it, and it did not come
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def migrate(self) -> None:
        """Bring the schema to this version's, whatever older version of ours it has.

        In one transaction: all of it or nothing. Of nodes that start together one does it, and the
        others find it done.

        Raises:
            SchemaTooNew: a newer release has been here; says what to do.
        """
        self._migrate(command.upgrade, "head")

    def downgrade(self, revision: str) -> None:
        """Take the schema back to an older revision, `0001` or later, in one transaction.

        What the older release has no room for is lost; each migration's `downgrade` says what.

        Raises:
            UnknownRevision: not one of those below the one that is there now.
        """
        here = self.read_here(current_revision)
        scripts = ScriptDirectory.from_config(_config())
        below = [one.revision for one in scripts.iterate_revisions(here, None)][1:] if here else []
        if revision not in below:
            raise UnknownRevision(revision, below)
        self._migrate(command.downgrade, revision)

    def _migrate(self, go: Callable[[Config, str], None], revision: str) -> None:
        config = _config()
        with self.engine.begin() as connection:
            if self.is_sqlite:
                # The driver begins by itself before rows change, not before tables do: without
                # this, a kill in the middle would leave some tables and no version.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATIONS_LOCK})")
            refuse_newer(connection)
            config.attributes["connection"] = connection
            go(config, revision)

    async def read(self, query: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `query(connection, *args, **kwargs)` in a reader thread and return its answer.

        A server that is away is waited for, as the journal does.

        Raises:
            StoreFailed: it did not come back in time, or refuses.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + (0 if self._away else RECONNECT_S)
        while True:
            try:
                answer = await loop.run_in_executor(
                    self._readers, self.read_here, query, args, kwargs
                )
            except DBAPIError as error:
                self._away = is_gone(error) and loop.time() > deadline_s
                if self._away or not is_gone(error):
                    kind = type(error.orig).__name__
                    raise StoreFailed(f"the database cannot be read: {kind}") from error
            else:
                self._away = False
                return answer
            await asyncio.sleep(RECONNECT_PAUSE_S)

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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def ping(connection: Connection) -> None:
    """Ask the database for nothing, to see whether it answers."""
    connection.execute(text("SELECT 1"))


def is_gone(error: Exception) -> bool:
    """Say whether the database, and not the statement, is the trouble."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", "")  # SQLite's errors have none
    return error.connection_invalidated or (
        isinstance(error, OperationalError) and (state is None or state.startswith("57P"))
    )


def is_unfit(error: BaseException | None) -> bool:
    """Say whether the database can never take it: for what is in it, not for how things are now."""
    if isinstance(error, OperationalError):  # psycopg's class for limits of PostgreSQL, too
        return (getattr(error.orig, "sqlstate", None) or "").startswith(_TOO_LARGE)
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError)
    return isinstance(error, ValueError | OverflowError)  # the driver's, of what it cannot write


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
