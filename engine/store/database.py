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
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url

P = ParamSpec("P")
T = TypeVar("T")

READERS: Final = 4  # threads: SQLite reads take tens of microseconds; more would queue on two cores
BUSY_MS: Final = 30_000


class Database:
    """One SQLAlchemy engine and the threads that read from it."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.engine: Engine = create_engine(
            url, pool_size=READERS + 2, max_overflow=0, hide_parameters=True
        )  # a failed statement is logged without the values, which may be megabytes, or a tenant's
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure_sqlite)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def migrate(self) -> None:
        """Bring the schema to this version's, whatever older version of ours it has.

        In one transaction: all of it or nothing.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.engine.begin() as connection:
            if self.is_sqlite:
                # The driver begins by itself before rows change, not before tables do: without
                # this, a kill in the middle would leave some tables and no version.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

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
        with self.engine.connect() as connection:
            return query(connection, *args, **(kwargs or {}))

    def close(self) -> None:
        self._readers.shutdown()
        self.engine.dispose()


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # acknowledged means on disk
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.execute("PRAGMA wal_autocheckpoint=16000")  # pages, 64 MB: a burst writes hot pages once
    cursor.execute("PRAGMA cache_size=-32768")  # KiB
    cursor.close()
