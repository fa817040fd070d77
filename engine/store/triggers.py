"""Triggers as stored, with the names of their function and product."""

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, Select, delete, insert, select

from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import functions, products, triggers


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    id: str
    project_id: str
    function_id: str
    function: str  # its name
    product_id: str
    product: str  # its name
    on: str
    phase: str
    keys: tuple[str, ...]  # empty: every key
    order: str | None  # device
    lateness_ms: int | None
    created_ms: int


def insert_trigger(connection: Connection, trigger: Trigger) -> None:
    row = {
        "id": trigger.id,
        "project_id": trigger.project_id,
        "function_id": trigger.function_id,
        "product_id": trigger.product_id,
        "on": trigger.on,
        "phase": trigger.phase,
        "keys": msgspec.json.encode(trigger.keys).decode(),
        "order": trigger.order,
        "lateness_ms": trigger.lateness_ms,
        "created_ms": trigger.created_ms,
    }
    connection.execute(insert(triggers).values(row))
    note_change(connection, "triggers", trigger.product_id)


def find_trigger(connection: Connection, project_id: str, trigger_id: str) -> Trigger | None:
    query = _select().where(triggers.c.project_id == project_id, triggers.c.id == trigger_id)
    row = connection.execute(query).mappings().first()
    return _trigger(row) if row else None


def list_triggers(
    connection: Connection,
    project_id: str,
    page: Page,
    *,
    function_id: str | None = None,
    product_id: str | None = None,
) -> Paged[Trigger]:
    query = _select().where(triggers.c.project_id == project_id)
    if function_id is not None:
        query = query.where(triggers.c.function_id == function_id)
    if product_id is not None:
        query = query.where(triggers.c.product_id == product_id)
    rows = connection.execute(page_of(query, triggers.c.id, page)).mappings()
    return paged([_trigger(row) for row in rows], page, lambda trigger: trigger.id)


def triggers_of_function(connection: Connection, function_id: str) -> list[Trigger]:
    query = _select().where(triggers.c.function_id == function_id).order_by(triggers.c.id)
    return [_trigger(row) for row in connection.execute(query).mappings()]


def delete_trigger(connection: Connection, project_id: str, trigger_id: str) -> None:
    query = (
        delete(triggers)
        .where(triggers.c.project_id == project_id, triggers.c.id == trigger_id)
        .returning(triggers.c.product_id)
    )
    for product_id in connection.execute(query).scalars().all():
        note_change(connection, "triggers", product_id)


def _select() -> Select[Any]:
    return (
        select(triggers, functions.c.name.label("function"), products.c.name.label("product"))
        .join(functions, functions.c.id == triggers.c.function_id)
        .join(products, products.c.id == triggers.c.product_id)
    )


def _trigger(row: RowMapping) -> Trigger:
    return Trigger(**{**row, "keys": msgspec.json.decode(row["keys"], type=tuple[str, ...])})
