"""Commits everything the process writes: what arrived during one commit goes into the next.

Path:   events, commit, outbox, control plane -> here -> database
Never:  answers before the transaction is on disk; drops a row without telling whoever gave it.

Rows are plain tuples in the order of the table's columns, inserted by multi-row statements: one
statement holds the interpreter lock once, however many rows it carries.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from itertools import chain
from queue import SimpleQueue
from typing import Any, Final, TypeVar

import msgspec
import structlog
from sqlalchemy import BigInteger, Connection, Integer, Table, select, update
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from engine.errors import EngineError
from engine.store.database import RECONNECT_PAUSE_S, RECONNECT_S, Database, StoreFailed, is_gone
from engine.store.tables import nodes, run_queue

__all__ = ["Commit", "Journal", "LeaseLost", "StoreFailed"]

T = TypeVar("T")
Row = tuple[Any, ...]
Told = Callable[[Any], None]
Change = Callable[[Connection], Any]
_Record = tuple[Table, Row, str | None]
Answer = tuple[Any, BaseException | None]
_Execute = Callable[[Connection, str, Row], Iterable[Row]]
_Copy = Callable[[Connection, Table, Sequence[Row]], None]

CHUNK_ROWS: Final = (512, 128, 32, 8, 1)  # fixed, so that the driver's statement cache holds them
COPY_ROWS_MIN: Final = 8  # for fewer, INSERT is as fast
LAZY_MS: Final = 5  # how long records that nobody waits for may gather before they are committed
CIRCLES_MAX: Final = 3  # times that a deadlock with another node is tried again
RETRY_S: Final = 1.0  # after the database refused records
_log = structlog.get_logger()


class LeaseLost(EngineError):
    """A run is not this node's any more: taken over, cancelled or deleted. Nothing was stored."""

    code = "lease_lost"

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"{run_id} is not this node's any more")


class Commit(msgspec.Struct, eq=False):
    """What must be committed together: rows by table, ids to delete by table, changes to run.

    `claims` are runs of `run_queue` that end with this commit. They must still be this node's:
    if one is not, nothing of the commit is stored, and its error is LeaseLost.
    """

    inserts: dict[Table, list[Row]] = msgspec.field(default_factory=dict)
    inserts_new: dict[Table, list[Row]] = msgspec.field(default_factory=dict)  # unless present
    deletes: dict[Table, list[str]] = msgspec.field(default_factory=dict)  # by the column `id`
    claims: list[str] = msgspec.field(default_factory=list)
    records: list[_Record] = msgspec.field(default_factory=list)  # each for itself, see `record`
    # By table and columns: id -> values. Of two for one row the last one counts.
    updates: dict[tuple[Table, tuple[str, ...]], dict[str, Row]] = msgspec.field(
        default_factory=dict
    )
    alone: bool = False  # it shares its transaction with no other commit
    gathered: dict[str, list[Any]] = msgspec.field(default_factory=dict)  # see Journal.gather
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

    def update(self, table: Table, columns: tuple[str, ...], row_id: str, values: Row) -> None:
        """Give the row with this `id`, if there is one, these values in these columns."""
        self.updates.setdefault((table, columns), {})[row_id] = values

    def gather(self, name: str, item: Any) -> None:
        """Hand `item` to the change of this name, which runs once for the whole group."""
        self.gathered.setdefault(name, []).append(item)

    def put(self, table: Table, row: Row) -> None:
        """Insert the row, or replace the one with its primary key, which its first columns are."""
        key = row[: len(table.primary_key.columns)]
        self.last_words.setdefault(table, {})[key] = row

    def remove(self, table: Table, key: Row) -> None:
        """Delete the row with this primary key, if there is one."""
        self.last_words.setdefault(table, {})[key] = None


# What the request that commits wants to have in the same transaction: see engine.idempotency.
ADDITION: Final[ContextVar[Callable[[Commit], None] | None]] = ContextVar("addition", default=None)


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
        self._sql: dict[tuple[Any, ...], str] = {}
        self._execute: _Execute = _execute
        self._copy: _Copy | None = None
        self._numbered: Callable[[str], str] = str
        if not database.is_sqlite:
            from engine.store import direct  # late: see there

            self._execute, self._copy, self._numbered = direct.execute, direct.copy, direct.numbered
        self._changes: dict[str, tuple[Callable[[Connection, list[Any]], Any], Told]] = {}
        self._hurry = threading.Event()  # set: the process stops, and nothing is waited for
        self._down = False  # the last attempt to reach the database failed
        self._seq = 0  # of the transaction that is being written
        self._answers: list[Answer] | None = None  # ... that was sent to be committed
        self._told: list[tuple[Told, Any]] = []
        self.node_id: str | None = None  # in whose name runs are ended; see engine.nodes
        self.on_noted: Callable[[], None] = lambda: None  # after a change that other nodes must see
        self.trouble: str | None = None  # why the database took nothing of late: engine.readiness
        self.commits_count = 0
        self.leases_lost_count = 0
        self._thread = threading.Thread(target=self._write_forever, name="journal", daemon=True)
        self._thread.start()

    def gather(self, name: str, change: Callable[[Connection, list[Any]], Any], told: Told) -> None:
        """Run `change(connection, items)` once in each group whose commits gathered items.

        `told(result)` is called on the loop when the group is on disk.
        """
        self._changes[name] = (change, told)

    def submit(self, commit: Commit) -> None:
        """Take `commit`; its `done(result, error)` is called on the loop once it is on disk.

        All of it is committed in one transaction, or none of it.
        """
        self._waiting.append(commit)
        self._idle.clear()
        if not self._writing:
            self._hand_over()

    def record(self, table: Table, row: Row, claim: str | None = None) -> None:
        """Take a row that nobody waits for: it is on disk within some milliseconds.

        Args:
            table: where the row goes, unless it is there already.
            row: as for `Commit.insert`.
            claim: a run that ends with it; if that is not this node's any more, the row is dropped.
        """
        self._records.append((table, row, claim))
        self._idle.clear()
        if not self._writing and self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(LAZY_MS / 1000, self._hand_over)

    async def commit(self, commit: Commit) -> Any:
        """Submit and wait until it is on disk.

        Raises:
            StoreFailed: nothing of it was stored.
        """
        if (add := ADDITION.get()) is not None:
            add(commit)
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

    async def run_alone(self, change: Callable[..., T], *args: Any) -> T:
        """Do as `run`, in a transaction of its own: for what holds locks that others wait for."""

        def bound(connection: Connection) -> T:
            return change(connection, *args)

        result: T = await self.commit(Commit(change=bound, alone=True))
        return result

    async def barrier(self) -> None:
        """Wait until everything submitted before this call is on disk, lazy records too."""
        await self.commit(Commit())

    async def drain(self) -> None:
        """Wait until nothing is left to write, or the database is away."""
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
        group, self._waiting = _first_group(self._waiting)
        if self._records and not (group and group[0].alone):
            records, self._records = self._records, []
            group.append(self._commit_of(records))
        self._work.put(group)

    def _commit_of(self, records: list[_Record]) -> Commit:
        commit = Commit(records=records)

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
        self, group: list[Commit], answers: list[Answer], told: list[tuple[Told, Any]]
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
        for tell, result in told:
            self._loop.call_soon(tell, result)
        if not (self._waiting or self._writing or self._records):
            self._idle.set()

    def _write_forever(self) -> None:
        with self._database.engine.connect() as connection:
            while (group := self._work.get()) is not None:
                told: list[tuple[Told, Any]] = []
                answers = self._write(connection, group, told)
                self._loop.call_soon_threadsafe(self._written, group, answers, told)

    def _write(
        self,
        connection: Connection,
        group: list[Commit],
        told: list[tuple[Told, Any]],
        tries_left: int = CIRCLES_MAX,
    ) -> list[Answer]:
        try:
            return self._write_group(connection, group, told)
        except Exception as error:  # noqa: BLE001 - the writer's loop: it must outlive any bad row
            if is_gone(error):
                return self._write_after_loss(connection, group, told)
            _roll_back(connection)
            if len(group) == 1:
                if _is_circle(error) and tries_left:
                    return self._write(connection, group, told, tries_left - 1)
                if isinstance(error, LeaseLost):
                    self.leases_lost_count += 1
                    return [(None, error)]
                if group[0].change is not None and not isinstance(error, DBAPIError):
                    return [(None, error)]  # the change's own: its caller knows what it means
                _log.error("commit_failed", error=str(error))
                # Not the statement: a full disk; a server that has become a read-only replica.
                if isinstance(error, OperationalError | InternalError):
                    self.trouble = str(error.orig)
                failed = StoreFailed(f"the commit failed: {error}")
                failed.__cause__ = error
                return [(None, failed)]
        # One of them is bad: each alone, so that only that one fails.
        return [answer for commit in group for answer in self._write(connection, [commit], told)]

    def _write_after_loss(
        self, connection: Connection, group: list[Commit], told: list[tuple[Told, Any]]
    ) -> list[Answer]:
        """Wait for the database to come back, and write the group unless it was written before."""
        seq, answers, later = self._seq, self._answers, self._told
        hurries = self._down or self._hurry.is_set()
        deadline = time.monotonic() + (0 if hurries else RECONNECT_S)
        while True:
            _roll_back(connection)
            try:
                if self._was_written(connection, seq) and answers is not None:
                    told += later  # the answer to COMMIT was lost, not the commit
                    return answers
            except DBAPIError as error:
                if time.monotonic() > deadline:
                    self._down, self.trouble = True, "the database does not answer"
                    _log.error("database_gone", error=str(error))
                    said = "nothing was stored" if answers is None else "it may have been stored"
                    gone = StoreFailed(f"the database does not answer; {said}")
                    gone.__cause__ = error
                    return [(None, gone)] * len(group)
                self._hurry.wait(RECONNECT_PAUSE_S)
            else:
                self._down = False
                return self._write(connection, group, told)

    def _was_written(self, connection: Connection, seq: int) -> bool:
        query = select(nodes.c.journal_seq).where(nodes.c.id == self.node_id)
        written = connection.execute(query).scalar_one_or_none() == seq
        connection.rollback()
        return written

    def _write_group(
        self, connection: Connection, group: list[Commit], told: list[tuple[Told, Any]]
    ) -> list[Answer]:
        self._answers = None
        if self._database.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.begin()
        connection.info["node_id"] = self.node_id
        connection.info["noted"] = False
        held = self._end_runs(connection, group)
        answers = self._answer(connection, group, held)
        good = [commit for commit, (_, error) in zip(group, answers, strict=True) if error is None]
        self._store(connection, good, held)
        later = []
        for name, items in _gather_items(good).items():
            change, tell = self._changes[name]
            later.append((tell, change(connection, items)))
        if connection.info["noted"]:
            later.append((lambda _none: self.on_noted(), None))
        self._mark(connection)
        self._answers, self._told = answers, later
        connection.commit()
        self._down, self.trouble = False, None
        told += later
        return answers

    def _answer(self, connection: Connection, group: list[Commit], held: set[str]) -> list[Answer]:
        """Run the changes of the group, and say which commits are void."""
        answers: list[Answer] = []
        for commit in group:
            lost = next((run_id for run_id in commit.claims if run_id not in held), None)
            if lost is not None:
                if held.intersection(commit.claims):
                    raise LeaseLost(lost)  # others of its runs must not end either
                answers.append((None, LeaseLost(lost)))
                self.leases_lost_count += 1
            elif commit.change is None:
                answers.append((None, None))
            else:
                answers.append(_changed(connection, commit))
        return answers

    def _store(self, connection: Connection, good: list[Commit], held: set[str]) -> None:
        news = _gather(commit.inserts_new for commit in good)
        for commit in good:
            for table, row, run_id in commit.records:
                if run_id is None or run_id in held:
                    news.setdefault(table, []).append(row)
                else:
                    self.leases_lost_count += 1
        # Tables by name, rows by key: two nodes that lock the same never wait in a circle.
        for table, rows in sorted(news.items(), key=_table_name):
            self._insert(connection, table, self._in_order(table, rows), "inserts_new")
        for table, rows in _gather(commit.inserts for commit in good).items():
            self._insert(connection, table, rows, "inserts")
        for table, ids in _gather(commit.deletes for commit in good).items():
            self._delete(connection, table, ids)
        for table, words in sorted(_last_words(good).items(), key=_table_name):
            # Each key stands in one statement, once: PostgreSQL upserts no row twice in one.
            puts = [row for row in words.values() if row is not None]
            self._insert(connection, table, self._in_order(table, puts), "puts")
            gone = [key for key, row in words.items() if row is None]
            self._remove(connection, table, self._in_order(table, gone))
        for (table, columns), updates in _last_updates(good).items():
            self._update(connection, table, columns, updates)

    def _in_order(self, table: Table, rows: list[Row]) -> list[Row]:
        """Return the rows by primary key."""
        if self._database.is_sqlite:
            return rows
        width = len(table.primary_key.columns)
        return sorted(rows, key=lambda row: row[:width])

    def _mark(self, connection: Connection) -> None:
        """Number the transaction: after a lost connection it can be seen whether it was stored."""
        self._seq += 1
        if self.node_id is not None and not self._database.is_sqlite:
            connection.execute(
                update(nodes).where(nodes.c.id == self.node_id).values(journal_seq=self._seq)
            )

    def _end_runs(self, connection: Connection, group: list[Commit]) -> set[str]:
        """Delete the runs that end in this group, and return those that were this node's."""
        ids = [run_id for commit in group for run_id in commit.claims]
        ids += [claim for commit in group for _, _, claim in commit.records if claim is not None]
        held: set[str] = set()
        for chunk in _chunks(sorted(ids)):
            sql = self._statement("ends", run_queue, len(chunk))
            rows = self._execute(connection, sql, (*chunk, self.node_id))
            held.update(row[0] for row in rows)
        return held

    def _insert(self, connection: Connection, table: Table, rows: Sequence[Row], kind: str) -> None:
        if self._copy is not None and kind == "inserts" and len(rows) >= COPY_ROWS_MIN:
            self._copy(connection, table, rows)
            return
        for chunk in _chunks(rows):
            sql = self._statement(kind, table, len(chunk))
            self._execute(connection, sql, tuple(chain.from_iterable(chunk)))

    def _delete(self, connection: Connection, table: Table, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            self._execute(connection, self._statement("deletes", table, len(chunk)), tuple(chunk))

    def _remove(self, connection: Connection, table: Table, keys: Sequence[Row]) -> None:
        for chunk in _chunks(keys):
            sql = self._statement("removes", table, len(chunk))
            self._execute(connection, sql, tuple(chain.from_iterable(chunk)))

    def _update(
        self, connection: Connection, table: Table, columns: tuple[str, ...], rows: dict[str, Row]
    ) -> None:
        for chunk in _chunks([(row_id, *rows[row_id]) for row_id in sorted(rows)]):
            sql = self._sql.get((table, columns, len(chunk)))
            if sql is None:
                sql = _update_sql(table, columns, len(chunk), sqlite=self._database.is_sqlite)
                sql = self._numbered(sql)
                self._sql[table, columns, len(chunk)] = sql
            self._execute(connection, sql, tuple(chain.from_iterable(chunk)))

    def _statement(self, kind: str, table: Table, count: int) -> str:
        known = self._sql.get((kind, table, count))
        if known is None:
            known = _sql(kind, table, count, "?" if self._database.is_sqlite else "%s")
            known = self._numbered(known)
            self._sql[kind, table, count] = known
        return known


def _execute(connection: Connection, sql: str, values: Row) -> Iterable[Row]:
    found = connection.exec_driver_sql(sql, values)
    return [tuple(row) for row in found] if found.returns_rows else []


def _sql(kind: str, table: Table, count: int, mark: str) -> str:
    # S608 below: every name is of our own tables, and values are marks.
    if kind == "deletes":
        return f'DELETE FROM "{table.name}" WHERE id IN ({",".join([mark] * count)})'  # noqa: S608
    if kind == "ends":
        marks = ",".join([mark] * count)
        return f'DELETE FROM "{table.name}" WHERE id IN ({marks}) AND node_id = {mark} RETURNING id'  # noqa: S608
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


def _update_sql(table: Table, columns: tuple[str, ...], count: int, *, sqlite: bool) -> str:
    # S608 below: as above.
    if sqlite:
        row = "(" + ",".join("?" * (len(columns) + 1)) + ")"
        changes = ",".join(f'"{name}"=v.column{at}' for at, name in enumerate(columns, start=2))
        named, key = "AS v", "v.column1"
    else:
        types = ["text", *(_type(table, name) for name in columns)]
        row = "(" + ",".join(f"%s::{kind}" for kind in types) + ")"
        changes = ",".join(f'"{name}"=v."{name}"' for name in columns)
        named = "AS v(id," + ",".join(f'"{name}"' for name in columns) + ")"
        key = "v.id"
    rows = ",".join([row] * count)
    return (
        f'UPDATE "{table.name}" SET {changes} FROM (VALUES {rows}) {named} '  # noqa: S608
        f'WHERE "{table.name}".id = {key}'
    )


def _type(table: Table, name: str) -> str:
    kind = table.columns[name].type
    return "bigint" if isinstance(kind, BigInteger | Integer) else "text"


def _first_group(waiting: list[Commit]) -> tuple[list[Commit], list[Commit]]:
    """Return what is written next, and what has to wait for it."""
    if waiting and waiting[0].alone:
        return waiting[:1], waiting[1:]
    size = next((at for at, commit in enumerate(waiting) if commit.alone), len(waiting))
    return waiting[:size], waiting[size:]


def _table_name(item: tuple[Table, Any]) -> str:
    return item[0].name


def _is_circle(error: Exception) -> bool:
    """Say whether the database has ended this transaction for another one's sake."""
    state = getattr(error.orig, "sqlstate", "") if isinstance(error, DBAPIError) else ""
    return state in {"40P01", "40001"}  # deadlock, serialization failure


def _changed(connection: Connection, commit: Commit) -> Answer:
    assert commit.change is not None
    try:
        with connection.begin_nested():
            return commit.change(connection), None
    except EngineError as error:
        if commit.claims:
            raise  # then its runs have not ended either: the group again, each alone
        return None, error


def _roll_back(connection: Connection) -> None:
    try:
        connection.rollback()
    except DBAPIError:  # there is no connection any more, and so nothing to undo
        connection.invalidate()


def _last_updates(
    commits: Iterable[Commit],
) -> dict[tuple[Table, tuple[str, ...]], dict[str, Row]]:
    found: dict[tuple[Table, tuple[str, ...]], dict[str, Row]] = {}
    for commit in commits:
        for key, rows in commit.updates.items():
            found.setdefault(key, {}).update(rows)
    return found


def _gather_items(commits: Iterable[Commit]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for commit in commits:
        for name, items in commit.gathered.items():
            found.setdefault(name, []).extend(items)
    return found


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
