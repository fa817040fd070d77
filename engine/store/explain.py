"""Reads all that is known of what one event has caused, and of what could have been.

Path:   engine.explain <- here, in one read
Never:  needs an index of executions by event, which each run would pay for: a run's id is made
        within milliseconds after its event's, so it is looked for there; retried ones have theirs.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, select

from engine.policies import Queued, read_queued
from engine.store.deployments import Deployment, Share
from engine.store.events import StoredEvent, first_id, made_ms
from engine.store.tables import (
    dead_letters,
    deployments,
    devices,
    executions,
    functions,
    products,
    run_queue,
    triggers,
    versions,
)

EARLIER_MS: Final = 1_000  # how far a clock may have been set back between event and run
SOON_MS, LATER_MS = 2_000, 60_000  # how far it may have gone on: the usual, and the most
RUNS_MAX: Final = 1_000  # of one event
FUNCTIONS_MAX: Final = 100  # of the project that are not bound to the product
DEPLOYMENTS_MAX: Final = 20  # of each function, the newest
WRITERS_LOOKED_AT: Final = 20_000
WRITER_MS: Final = 15 * 60_000  # the longest that a run can take


class _Effect(msgspec.Struct):
    event_id: str = ""
    stopped: str = ""


class _Report(msgspec.Struct):
    root_id: str = ""
    depth: int = 0
    effects: list[_Effect] = []
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A trigger of the device's product."""

    id: str
    function_id: str
    function: str
    keys: tuple[str, ...]  # empty: every key
    order: str | None
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One ended run for the event."""

    id: str
    function_id: str
    function: str
    version: int
    handler: str
    status: str
    attempt: int
    created_ms: int
    started_ms: int
    root_id: str
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One run for the event that has not ended."""

    id: str
    function_id: str
    handler: str
    attempt: int
    due_ms: int
    node_id: str | None
    takeovers: int
    created_ms: int
    root_id: str
    policy: Queued


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    id: str
    function_id: str
    execution_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A function of the project, and what has been live of it."""

    id: str
    name: str
    deployments: tuple[Deployment, ...]  # the newest first
    version_ids: dict[int, str]  # of the versions in these
    handlers: dict[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    event: StoredEvent
    device: str | None  # its name; None: it was deleted
    product: str | None
    triggers: tuple[Binding, ...]
    functions: dict[str, Code]
    attempts: tuple[Attempt, ...]  # by id
    waiting: tuple[Waiting, ...]
    letters: tuple[Letter, ...]
    writer: "Writer | None"  # of the function that wrote it, if known


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """The run that wrote an event. `stopped`: why what the event triggers was not all made."""

    execution_id: str
    depth: int
    stopped: str


def facts(connection: Connection, event: StoredEvent) -> Facts:
    """Return what is known about `event`."""
    device = connection.execute(
        select(devices.c.name, products.c.name.label("product"), products.c.id.label("product_id"))
        .join(products, products.c.id == devices.c.product_id)
        .where(devices.c.id == event.device_id)
    ).first()
    bound = () if device is None else _bindings(connection, device.product_id)
    # In this order a run that ends between the two statements is seen twice, and never missed.
    waiting = _waiting(connection, event)
    attempts = _attempts(connection, event)
    ended = {one.id for one in attempts}
    waiting = tuple(one for one in waiting if one.id not in ended)
    writer = None
    triggered = {one.function_id for one in attempts} | {one.function_id for one in waiting}
    if event.source == "function" and any(one.function_id not in triggered for one in bound):
        writer = _writer(connection, event)
    return Facts(
        event=event,
        device=None if device is None else device.name,
        product=None if device is None else device.product,
        triggers=bound,
        functions=_functions(connection, event.project_id, {one.function_id for one in bound}),
        attempts=attempts,
        waiting=waiting,
        letters=_letters(connection, event),
        writer=writer,
    )


def _bindings(connection: Connection, product_id: str) -> tuple[Binding, ...]:
    query = (
        select(triggers, functions.c.name.label("function"))
        .join(functions, functions.c.id == triggers.c.function_id)
        .where(triggers.c.product_id == product_id)
        .order_by(triggers.c.id)
    )
    return tuple(
        Binding(
            id=row["id"],
            function_id=row["function_id"],
            function=row["function"],
            keys=msgspec.json.decode(row["keys"], type=tuple[str, ...]),
            order=row["order"],
            created_ms=row["created_ms"],
        )
        for row in connection.execute(query).mappings()
    )


def _attempts(connection: Connection, event: StoredEvent) -> tuple[Attempt, ...]:
    of_event = select(executions).where(
        executions.c.project_id == event.project_id, executions.c.event_id == event.id
    )
    at_ms = made_ms(event.id)
    found: dict[str, Attempt] = {}
    for until_ms in (SOON_MS, LATER_MS):
        first = of_event.where(
            executions.c.id >= first_id("exe", at_ms - EARLIER_MS),
            executions.c.id < first_id("exe", at_ms + until_ms),
        )
        found |= _read_attempts(connection, first)
        if found:
            break
    found |= _read_attempts(connection, of_event.where(executions.c.attempt > 1))
    return tuple(found[run_id] for run_id in sorted(found))


def _read_attempts(connection: Connection, query: Any) -> dict[str, Attempt]:
    rows = connection.execute(query.order_by(executions.c.id).limit(RUNS_MAX)).mappings()
    return {row["id"]: _attempt(row) for row in rows}


def _attempt(row: RowMapping) -> Attempt:
    report = msgspec.json.decode(row["report"] or "{}", type=_Report)
    return Attempt(
        id=row["id"],
        function_id=row["function_id"],
        function=row["function"],
        version=row["version"],
        handler=row["handler"],
        status=row["status"],
        attempt=row["attempt"],
        created_ms=row["created_ms"],
        started_ms=row["created_ms"] + row["queue_us"] // 1000,
        root_id=report.root_id,
        error=report.error,
    )


def _waiting(connection: Connection, event: StoredEvent) -> tuple[Waiting, ...]:
    query = (
        select(run_queue)
        .where(
            run_queue.c.project_id == event.project_id,
            run_queue.c.event_id == event.id,
            run_queue.c.id >= first_id("exe", made_ms(event.id) - EARLIER_MS),
        )
        .order_by(run_queue.c.id)
        .limit(RUNS_MAX)
    )
    return tuple(
        Waiting(
            id=row["id"],
            function_id=row["function_id"],
            handler=row["handler"],
            attempt=row["attempt"],
            due_ms=row["due_ms"],
            node_id=row["node_id"],
            takeovers=row["takeovers"],
            created_ms=row["created_ms"],
            root_id=row["root_id"],
            policy=read_queued(row["policy"]),
        )
        for row in connection.execute(query).mappings()
    )


def _letters(connection: Connection, event: StoredEvent) -> tuple[Letter, ...]:
    query = (
        select(dead_letters.c.id, dead_letters.c.function_id, dead_letters.c.execution_id)
        .where(
            dead_letters.c.project_id == event.project_id,
            dead_letters.c.event_id == event.id,
            dead_letters.c.id >= first_id("dlq", made_ms(event.id) - EARLIER_MS),
        )
        .limit(RUNS_MAX)
    )
    return tuple(Letter(**row) for row in connection.execute(query).mappings())


def _functions(connection: Connection, project_id: str, bound: set[str]) -> dict[str, Code]:
    """Return the functions of the project: those that are bound, and some that are not."""
    query = (
        select(functions.c.id, functions.c.name)
        .where(functions.c.project_id == project_id)
        .order_by(functions.c.id.in_(bound).desc(), functions.c.id.desc())
        .limit(FUNCTIONS_MAX + len(bound))
    )
    return {
        row.id: _code(connection, row.id, row.name, DEPLOYMENTS_MAX if row.id in bound else 1)
        for row in connection.execute(query).all()
    }


def _code(connection: Connection, function_id: str, name: str, count: int) -> Code:
    query = (
        select(deployments)
        .where(deployments.c.function_id == function_id)
        .order_by(deployments.c.id.desc())
        .limit(count)
    )
    live = tuple(
        Deployment(**{**row, "versions": msgspec.json.decode(row["versions"], type=_SHARES)})
        for row in connection.execute(query).mappings()
    )
    numbers = {share.version for one in live for share in one.versions}
    rows = connection.execute(
        select(versions.c.id, versions.c.number, versions.c.handlers).where(
            versions.c.function_id == function_id, versions.c.number.in_(numbers)
        )
    ).all()
    return Code(
        id=function_id,
        name=name,
        deployments=live,
        version_ids={row.number: row.id for row in rows},
        handlers={
            row.number: msgspec.json.decode(row.handlers, type=tuple[str, ...]) for row in rows
        },
    )


def _writer(connection: Connection, event: StoredEvent) -> Writer | None:
    """Return the run that wrote the event: its record names it among the effects."""
    at_ms = made_ms(event.id)
    recent = (
        select(executions.c.id, executions.c.report)
        .where(
            executions.c.project_id == event.project_id,
            executions.c.id >= first_id("exe", at_ms - WRITER_MS),
            executions.c.id < first_id("exe", at_ms + EARLIER_MS),
        )
        .order_by(executions.c.id.desc())
        .limit(WRITERS_LOOKED_AT)
        .subquery()
    )
    query = select(recent).where(recent.c.report.contains(event.id, autoescape=True)).limit(1)
    row = connection.execute(query).first()
    if row is None:
        return None
    report = msgspec.json.decode(row.report, type=_Report)
    stopped = next((one.stopped for one in report.effects if one.event_id == event.id), "")
    return Writer(execution_id=row.id, depth=report.depth, stopped=stopped)


_SHARES: Final = tuple[Share, ...]
