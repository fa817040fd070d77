"""Dead letters as stored: runs that failed at every attempt they had, kept until somebody decides.

Path:   commit inserts them; engine.dead_letters -> here -> journal
Never:  lets one letter make two runs: whoever deletes its row makes the run, in one transaction.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from engine.jobs import Status, before
from engine.policies import Queued, read_queued, write_queued
from engine.store.locks import lock_in_order
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.run_queue import DEFAULT, insert_rows, queue_row
from engine.store.tables import dead_letters, events, executions, jobs

ATTEMPTS_SHOWN: Final = 200
FIRST_WITHIN_MS: Final = 60_000  # an event's first runs get their ids that soon after its own
Woken = list[tuple[str, int, int]]
"""(project, priority, due) of rows, for `Backlog.wake`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterSummary:
    """One line of a list of dead letters."""

    id: str
    function_id: str
    function: str
    handler: str
    cause: str
    queue: str
    status: str
    error: dict[str, Any] | None
    attempts: int
    execution_id: str
    job_id: str | None
    event_id: str | None
    device_id: str | None
    schedule_id: str | None
    breaker_id: str | None
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter(LetterSummary):
    """Everything known about one dead letter."""

    payload: str | None  # JSON of the input; None: the event has it, below
    event: str | None  # its payload
    source: str | None  # of the event
    received_ms: int | None
    policy: Queued


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    id: str
    attempt: int
    status: str
    created_ms: int
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which dead letters are meant; None: whatever it is."""

    function_id: str | None = None
    function: str | None = None  # a name that no function has now, but one may have had
    queue: str | None = None
    cause: str | None = None
    breaker_id: str | None = None
    since_ms: int | None = None
    before_id: str | None = None  # not this one, nor those with later ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Revival:
    """The run that a letter is turned into."""

    execution_id: str
    policy: Queued
    lane: str | None


def list_letters(
    connection: Connection, project_id: str, wanted: LetterFilter, page: Page
) -> Paged[LetterSummary]:
    """Return dead letters, newest first."""
    query = page_of(select(*_SUMMARY).where(*_matching(project_id, wanted)), _letters.id, page)
    rows = connection.execute(query).mappings()
    return paged([LetterSummary(**_fields(row)) for row in rows], page, lambda one: one.id)


def find_letters(connection: Connection, project_id: str, ids: Collection[str]) -> list[Letter]:
    """Return those of these letters that are there, with what their runs got."""
    query = (
        select(dead_letters, events.c.payload.label("event"), events.c.source, events.c.received_ms)
        .outerjoin(events, and_(_letters.payload.is_(None), events.c.id == _letters.event_id))
        .where(_letters.project_id == project_id, _letters.id.in_(ids))
        .order_by(_letters.id)
    )
    return [_letter(row) for row in connection.execute(query).mappings()]


def count_letters(connection: Connection, project_id: str, wanted: LetterFilter) -> int:
    query = select(func.count()).select_from(dead_letters).where(*_matching(project_id, wanted))
    return connection.execute(query).scalar_one()


def letter_ids(
    connection: Connection, project_id: str, wanted: LetterFilter, after: str, limit: int
) -> list[str]:
    """Return the ids of the next letters that match, oldest first."""
    query = (
        select(_letters.id)
        .where(*_matching(project_id, wanted), _letters.id > after)
        .order_by(_letters.id)
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def attempts_of(connection: Connection, project_id: str, letter: LetterSummary) -> list[Attempt]:
    """Return the attempts that are still on record, first to last."""
    query = (
        select(executions.c.id, executions.c.attempt, executions.c.status,
               executions.c.created_ms, executions.c.report)
        .where(executions.c.project_id == project_id, _is_attempt(letter))
        .order_by(executions.c.id.desc())
        .limit(ATTEMPTS_SHOWN)
    )  # fmt: skip
    return [
        Attempt(
            id=row.id,
            attempt=row.attempt,
            status=row.status,
            created_ms=row.created_ms,
            error=msgspec.json.decode(row.report or "{}").get("error"),
        )
        for row in reversed(connection.execute(query).all())
    ]


def edit_payload(connection: Connection, project_id: str, letter_id: str, payload: str) -> bool:
    """Give a letter's next run another input; False: there is no such letter."""
    changed = update(dead_letters).where(
        _letters.project_id == project_id, _letters.id == letter_id
    )
    return connection.execute(changed.values(payload=payload)).rowcount == 1


def delete_letters(connection: Connection, project_id: str, ids: Collection[str]) -> int:
    """Delete these letters; return how many were there."""
    gone = delete(dead_letters).where(_letters.project_id == project_id, _letters.id.in_(ids))
    return connection.execute(gone).rowcount


def revive(
    connection: Connection, project_id: str, revivals: Mapping[str, Revival], now_ms: int
) -> tuple[list[str], Woken]:
    """Turn these letters, by their ids, into runs; return the ids of those that still were there.

    A job is queued again, as if it had never been tried.
    """
    here = (_letters.project_id == project_id, _letters.id.in_(revivals))
    lock_in_order(connection, _letters.id, *here)
    gone = connection.execute(delete(dead_letters).where(*here).returning(dead_letters)).mappings()
    letters = sorted(gone, key=lambda row: str(row["id"]))
    known = _priorities(connection, [row["job_id"] for row in letters if row["job_id"]])
    rows = [
        _row(letter, revivals[letter["id"]], known.get(letter["job_id"], DEFAULT), now_ms)
        for letter in letters
    ]
    woken = insert_rows(connection, rows)
    for letter in letters:
        if letter["job_id"] is not None:
            _queue_again(connection, letter, revivals[letter["id"]])
    return [letter["id"] for letter in letters], woken


def _priorities(connection: Connection, job_ids: list[str]) -> dict[str, int]:
    if not job_ids:
        return {}
    query = select(jobs.c.id, jobs.c.priority).where(jobs.c.id.in_(job_ids))
    return {row.id: row.priority for row in connection.execute(query)}


def _row(letter: RowMapping, revival: Revival, priority: int, now_ms: int) -> tuple[Any, ...]:
    edited = letter["payload"] is not None  # then it is the input, and not what the event has
    return queue_row(
        run_id=revival.execution_id,
        project_id=letter["project_id"],
        function_id=letter["function_id"],
        cause=letter["cause"],
        handler=letter["handler"],
        root_id=revival.execution_id,
        created_ms=now_ms,
        event_id=None if edited else letter["event_id"],
        device_id=letter["device_id"],
        given=letter["payload"],
        priority=priority,
        job_id=letter["job_id"],
        schedule_id=letter["schedule_id"],
        lane=revival.lane,
        policy=write_queued(revival.policy),
        origin=letter["origin"],
    )


def _queue_again(connection: Connection, letter: RowMapping, revival: Revival) -> None:
    values = {
        "status": Status.QUEUED.value,
        "attempts": 0,
        "execution_id": revival.execution_id,
        "ended_ms": None,
        "result": None,
        "error": None,
        "progress": None,
        "policy": write_queued(revival.policy) or "{}",
    }
    if letter["handler"] != "fetch":  # there the input is a request around the payload
        values["payload"] = letter["payload"]
    connection.execute(
        update(jobs)
        .where(jobs.c.id == letter["job_id"], jobs.c.status.in_(before(Status.QUEUED)))
        .values(**values)
    )


_letters: Final = dead_letters.c
_SUMMARY: Final = tuple(dead_letters.columns[name] for name in LetterSummary.__dataclass_fields__)


def _matching(project_id: str, wanted: LetterFilter) -> list[ColumnElement[bool]]:
    found = [_letters.project_id == project_id]
    for column, asked in (
        (_letters.function_id, wanted.function_id),
        (_letters.function, wanted.function),
        (_letters.queue, wanted.queue),
        (_letters.cause, wanted.cause),
        (_letters.breaker_id, wanted.breaker_id),
    ):
        if asked is not None:
            found.append(column == asked)
    if wanted.since_ms is not None:
        found.append(_letters.created_ms >= wanted.since_ms)
    if wanted.before_id is not None:
        found.append(_letters.id < wanted.before_id)
    return found


def _is_attempt(letter: LetterSummary) -> ColumnElement[bool]:
    """Find a letter's attempts by what there is an index for."""
    last = executions.c.id == letter.execution_id
    if letter.job_id is not None:
        return executions.c.job_id == letter.job_id
    if letter.event_id is not None:
        at_ms = int(letter.event_id.partition("_")[2][:12], 16)  # a UUIDv7 begins with its time
        first = and_(
            executions.c.function_id == letter.function_id,
            executions.c.id.between(f"exe_{at_ms:012x}", f"exe_{at_ms + FIRST_WITHIN_MS:012x}"),
            executions.c.event_id == letter.event_id,
        )
        later = and_(
            executions.c.event_id == letter.event_id,
            executions.c.attempt > 1,
            executions.c.function_id == letter.function_id,
        )
        return or_(last, first, later)
    return last


def _fields(row: RowMapping) -> dict[str, Any]:
    known = {name: row[name] for name in LetterSummary.__dataclass_fields__}
    return known | {"error": None if row["error"] is None else msgspec.json.decode(row["error"])}


def _letter(row: RowMapping) -> Letter:
    return Letter(
        **_fields(row),
        payload=row["payload"],
        event=row["event"],
        source=row["source"],
        received_ms=row["received_ms"],
        policy=read_queued(row["policy"]),
    )
