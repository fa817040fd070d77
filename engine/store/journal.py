"""Commits everything the process writes: what arrived during one commit goes into the next.

Path:   events, commit, outbox, control plane -> here -> database
Never:  answers before the transaction is on disk; drops a row without telling whoever gave it.

Rows are plain tuples in the order of the table's columns, inserted by multi-row statements: one
statement holds the interpreter lock once, however many rows it carries.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import msgspec
import structlog
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, OperationalError

from engine.errors import EngineError
from engine.store.database import Database

T = TypeVar("T")
Row = tuple[Any, ...]
Change = Callable[[Connection], Any]
_Record = tuple[Table, Row, tuple[Table, str] | None]

CHUNK_ROWS: Final = (512, 128, 32, 8, 1)  # fixed, so that the driver's statement cache holds them
LAZY_MS: Final = 5  # how long records that nobody waits for may gather before they are committed
RETRY_S: Final = 1.0  # after the database refused records
_log = structlog.get_logger()


class StoreFailed(EngineError):
    """The database refused or lost a commit; nothing of the request was stored."""

    code = "store_failed"


class Commit(msgspec.Struct, eq=False):
    """What must be committed together: rows by table, ids to delete by table, changes to run."""

    inserts: dict[Table, list[Row]] = msgspec.field(default_factory=dict)
    inserts_new: dict[Table, list[Row]] = msgspec.field(default_factory=dict)  # unless present
    deletes: dict[Table, list[str]] = msgspec.field(default_factory=dict)  # by the column `id`
    # By primary key: the row that it shall have from now on, or None: it goes. The last one counts.
    last_words: dict[Table, dict[Row, Row | None]] = msgspec.field(default_factory=dict)
    change: Change | None = None
    stored: list[Callable[[], None]] = msgspec.field(default_factory=list)  # told: on disk
    done: Callable[[Any, BaseException | None], None] | None = None

    def insert(self, table: Table, row: Row) -> None:
        self.inserts.setdefault(table, []).append(row)

    def insert_new(self, table: Table, row: Row) -> None:
        self.inserts_new.setdefault(table, []).append(row)

    def delete(self, table: Table, row_id: str) -> None:
        self.deletes.setdefault(table, []).append(row_id)

    def put(self, table: Table, row: Row) -> None:
        """Insert the row, or replace the one with its primary key, which its first columns are."""
        key = row[: len(table.primary_key.columns)]
        self.last_words.setdefault(table, {})[key] = row

    def remove(self, table: Table, key: Row) -> None:
        """Delete the row with this primary key, if there is one."""
        self.last_words.setdefault(table, {})[key] = None


class Journal:
    """Group commit: one writer thread, one transaction at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Commit] = []
        self._writing = False
        self._closing = False
        self._records: list[_Record] = []  # nobody waits for them; they go with the next group
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._work: SimpleQueue[list[Commit] | None] = SimpleQueue()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sql: dict[tuple[str, Table, int], str] = {}
        self.commits_count = 0
        self._thread = threading.Thread(target=self._write_forever, name="journal", daemon=True)
        self._thread.start()

    def submit(self, commit: Commit) -> None:
        """Take `commit`; its `done(result, error)` is called on the loop once it is on disk.

        All of it is committed in one transaction, or none of it.
        """
        self._waiting.append(commit)
        self._idle.clear()
        if not self._writing:
            self._hand_over()

    def record(self, table: Table, row: Row, ended: tuple[Table, str] | None = None) -> None:
        """Take a row that nobody waits for: it is on disk within some milliseconds.

        Args:
            table: where the row goes, unless it is there already.
            row: as for `Commit.insert`.
            ended: (table, id) of a row that goes in the same transaction.
        """
        self._records.append((table, row, ended))
        self._idle.clear()
        if not self._writing and self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(LAZY_MS / 1000, self._hand_over)

    async def commit(self, commit: Commit) -> Any:
        """Submit and wait until it is on disk.

        Raises:
            StoreFailed: nothing of it was stored.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        commit.done = done
        self.submit(commit)
        return await future

    async def run(self, change: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `change(connection, ...)` in the writer's transaction; an error undoes it alone."""

        def bound(connection: Connection) -> T:
            return change(connection, *args, **kwargs)

        result: T = await self.commit(Commit(change=bound))
        return result

    async def barrier(self) -> None:
        """Wait until everything submitted before this call is on disk, lazy records too."""
        await self.commit(Commit())

    async def drain(self) -> None:
        """Wait until nothing is left to write."""
        if self._lazy_timer is not None:
            self._hand_over()
        await self._idle.wait()

    async def close(self) -> None:
        await self.drain()
        self._closing = True
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)

    def _hand_over(self) -> None:
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        if self._writing or not (self._waiting or self._records):
            return
        self._writing = True
        group, self._waiting = self._waiting, []
        if self._records:
            records, self._records = self._records, []
            group.append(self._commit_of(records))
        self._work.put(group)

    def _commit_of(self, records: list[_Record]) -> Commit:
        commit = Commit()
        for table, row, ended in records:
            commit.insert_new(table, row)
            if ended is not None:
                commit.delete(*ended)

        def done(_result: Any, error: BaseException | None) -> None:
            if error is None or self._closing:
                return
            # They are all that is known of runs that have been answered.
            if len(records) == 1 or isinstance(error.__cause__, OperationalError):
                self._loop.call_later(RETRY_S, self.submit, commit)  # a full disk may pass
            else:  # one of them is bad, and must not take the others along
                half = len(records) // 2
                self.submit(self._commit_of(records[:half]))
                self.submit(self._commit_of(records[half:]))

        commit.done = done
        return commit

    def _written(
        self, group: list[Commit], answers: list[tuple[Any, BaseException | None]]
    ) -> None:
        self._writing = False
        self.commits_count += 1
        if self._waiting:
            self._hand_over()
        elif self._records and self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(LAZY_MS / 1000, self._hand_over)
        for commit, (result, error) in zip(group, answers, strict=True):
            if error is None:
                for stored in commit.stored:
                    stored()
            if commit.done is not None:
                # In a turn of its own: what one caller does wrong is no other caller's trouble.
                self._loop.call_soon(commit.done, result, error)
        if not (self._waiting or self._writing or self._records):
            self._idle.set()

    def _write_forever(self) -> None:
        with self._database.engine.connect() as connection:
            while (group := self._work.get()) is not None:
                answers = self._write(connection, group)
                self._loop.call_soon_threadsafe(self._written, group, answers)

    def _write(
        self, connection: Connection, group: list[Commit]
    ) -> list[tuple[Any, BaseException | None]]:
        try:
            return self._write_group(connection, group)
        except Exception as error:  # noqa: BLE001 - the writer's loop: it must outlive any bad row
            connection.rollback()
            if len(group) == 1:
                if group[0].change is not None and not isinstance(error, DBAPIError):
                    return [(None, error)]  # the change's own: its caller knows what it means
                _log.error("commit_failed", error=str(error))
                failed = StoreFailed(f"the commit failed: {error}")
                failed.__cause__ = error
                return [(None, failed)]
        # One of them is bad: each alone, so that only that one fails.
        return [answer for commit in group for answer in self._write(connection, [commit])]

    def _write_group(
        self, connection: Connection, group: list[Commit]
    ) -> list[tuple[Any, BaseException | None]]:
        answers: list[tuple[Any, BaseException | None]] = []
        connection.exec_driver_sql("BEGIN IMMEDIATE") if self._database.is_sqlite else None
        for commit in group:
            if commit.change is None:
                answers.append((None, None))
                continue
            try:
                with connection.begin_nested():
                    answers.append((commit.change(connection), None))
            except EngineError as error:
                answers.append((None, error))
        good = [commit for commit, (_, error) in zip(group, answers, strict=True) if error is None]
        for kind in ("inserts_new", "inserts"):
            for table, rows in _gather(getattr(commit, kind) for commit in good).items():
                self._insert(connection, table, rows, kind)
        for table, ids in _gather(commit.deletes for commit in good).items():
            self._delete(connection, table, ids)
        for table, words in _last_words(good).items():
            # Each key stands in one statement, once: PostgreSQL upserts no row twice in one.
            puts = [row for row in words.values() if row is not None]
            self._insert(connection, table, puts, "puts")
            self._remove(connection, table, [key for key, row in words.items() if row is None])
        connection.commit()
        return answers

    def _insert(self, connection: Connection, table: Table, rows: Sequence[Row], kind: str) -> None:
        for chunk in _chunks(rows):
            sql = self._statement(kind, table, len(chunk))
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(chunk)))

    def _delete(self, connection: Connection, table: Table, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            connection.exec_driver_sql(self._statement("deletes", table, len(chunk)), tuple(chunk))

    def _remove(self, connection: Connection, table: Table, keys: Sequence[Row]) -> None:
        for chunk in _chunks(keys):
            sql = self._statement("removes", table, len(chunk))
            connection.exec_driver_sql(sql, tuple(chain.from_iterable(chunk)))

    def _statement(self, kind: str, table: Table, count: int) -> str:
        known = self._sql.get((kind, table, count))
        if known is None:
            known = _sql(kind, table, count, "?" if self._database.is_sqlite else "%s")
            self._sql[kind, table, count] = known
        return known


def _sql(kind: str, table: Table, count: int, mark: str) -> str:
    # S608 below: every name is of our own tables, and values are marks.
    if kind == "deletes":
        return f'DELETE FROM "{table.name}" WHERE id IN ({",".join([mark] * count)})'  # noqa: S608
    key = ",".join(f'"{column.name}"' for column in table.primary_key.columns)
    if kind == "removes":
        row = "(" + ",".join([mark] * len(table.primary_key.columns)) + ")"
        rows = ",".join([row] * count)
        # Not straight `IN (VALUES ...)`: SQLite would read the whole table for it.
        named = f"SELECT * FROM (VALUES {rows}) AS named"  # noqa: S608
        return f'DELETE FROM "{table.name}" WHERE ({key}) IN ({named})'  # noqa: S608
    row = "(" + ",".join([mark] * len(table.columns)) + ")"
    columns = ",".join(f'"{column.name}"' for column in table.columns)
    tail = " ON CONFLICT DO NOTHING" if kind == "inserts_new" else ""
    if kind == "puts":
        others = [column.name for column in table.columns if not column.primary_key]
        changes = ",".join(f'"{name}"=excluded."{name}"' for name in others)
        tail = f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
    return f'INSERT INTO "{table.name}" ({columns}) VALUES {",".join([row] * count)}{tail}'  # noqa: S608


def _gather(parts: Any) -> dict[Table, list[Any]]:
    gathered: dict[Table, list[Any]] = {}
    for part in parts:
        for table, rows in part.items():
            known = gathered.get(table)
            if known is None:
                gathered[table] = list(rows)
            else:
                known.extend(rows)
    return gathered


def _last_words(commits: Iterable[Commit]) -> dict[Table, dict[Row, Row | None]]:
    words: dict[Table, dict[Row, Row | None]] = {}
    for commit in commits:  # in their order: the later one wins
        for table, said in commit.last_words.items():
            words.setdefault(table, {}).update(said)
    return words


def _chunks(rows: Sequence[Any]) -> list[Sequence[Any]]:
    chunks: list[Sequence[Any]] = []
    at = 0
    for size in CHUNK_ROWS:
        while len(rows) - at >= size:
            chunks.append(rows[at : at + size])
            at += size
    return chunks
