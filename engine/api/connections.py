"""`/v1/connectors` and `/v1/connections`: providers, and what is known of each; credentials go in.

Path:   here -> engine.connections -> vaulted, connectors
Never:  shows a credential
"""

from typing import Annotated, Any, Final

import fastapi
import msgspec
from fastapi import APIRouter, Path, Response
from msgspec import UNSET
from pydantic import Field

from engine import connections
from engine.api.access import Developer, Invoker, Reader
from engine.api.openapi import problems
from engine.api.platform import Platform, PlatformHere, shown_text
from engine.api.shapes import Body, Cursor, Limit, Listed, Shown, example
from engine.clock import iso
from engine.connectors import CONNECTORS
from engine.connectors.contract import SEND, Connector, Sent, TellsLater
from engine.errors import NotFound
from engine.gates import Gate
from engine.store.gates import read as read_gates
from engine.store.pages import PAGE_ITEMS
from engine.store.vaulted import Allowed, StoredConnection, get_connection, list_connections
from engine.vaulted import drop_connection

router = APIRouter(tags=["connections"])

Name = Annotated[str, Path(description="A capital letter, then up to 63 capitals, digits or _.")]
EXAMPLE: Final = {"message": {"text": "It works."}}
KINDS: Final = ", ".join(CONNECTORS)


class ConnectorShown(Shown):
    """A kind of provider, and what a connection to it takes."""

    kind: str
    title: str
    actions: list[str] = Field(description="Each is a method of the binding in `env`.")
    credentials: dict[str, Any] = Field(description="JSON Schema.")
    settings: dict[str, Any] = Field(description="JSON Schema.")
    habits: dict[str, Any] = Field(description="What holds unless the settings say otherwise.")
    callbacks: bool = Field(description="It tells later what became of a message.")


class ConnectionNew(Body):
    model_config = example(
        {
            "kind": "slack",
            "credentials": {"webhook_url": "https://hooks.slack.com/services/T0/B0/x"},
            "settings": {"guard": {"per_day": 1000}},
            "functions": ["alarm"],
        }
    )

    kind: str = Field(description=KINDS)
    credentials: dict[str, Any] | None = Field(
        None, description="See /v1/connectors. Left out: as they were, if it is of the same kind."
    )
    settings: dict[str, Any] | None = Field(
        None, description="See /v1/connectors. Left out: as they were, and none if it is new."
    )
    functions: list[str] | None = Field(
        None,
        description="Names of the functions that may use it, also of some yet to be made; null: "
        "all of the project. Left out: as it was, and all if it is new.",
    )


class GateShown(Shown):
    """How a connection does."""

    breaker: str = Field(description="closed: all pass; open: none; half_open: one, as a trial.")
    until: str | None = Field(description="Nothing passes before; or the trial ends by then.")
    failures: int = Field(description="In a row.")
    failing_since: str | None
    last_error: str | None
    disabled: str | None = Field(description="Why nothing is sent before it is enabled.")


class ConnectionShown(Shown):
    name: str
    kind: str
    settings: dict[str, Any]
    functions: list[str] | None = Field(description="That may use it; null: every function.")
    gate: GateShown
    updated_at: str


class TestAsked(Body):
    model_config = example(EXAMPLE)

    message: dict[str, Any] | None = Field(
        None, description="Sent for real, at once; left out: the provider is only asked."
    )
    action: str = Field(SEND, description="Of the connector, for the message.")


class TestDone(Shown):
    """What the provider said."""

    ok: bool
    detail: str = Field(description="As whom it knows us, its id of the message, or its error.")
    status: int | None = Field(description="The provider's status.")
    took_ms: int
    delivery_id: str | None = Field(description="Of a message; there is no delivery of that id.")


class Enabled(Shown):
    name: str
    released: int = Field(description="Deliveries that were held for it.")


@router.get("/v1/connectors", responses=problems())
async def show_connectors(access: Reader) -> Listed[ConnectorShown]:
    """List all kinds of provider, on one page."""
    del access  # whoever may read may
    return Listed(items=list(map(_connector_shown, CONNECTORS.values())))


@router.get("/v1/connectors/{kind}", responses=problems(404))
async def show_connector(access: Reader, kind: str) -> ConnectorShown:
    """Show one kind of provider."""
    del access  # whoever may read may
    if kind not in CONNECTORS:
        raise NotFound("connector", kind[:80])
    return _connector_shown(CONNECTORS[kind])


@router.put("/v1/connections/{name}", responses=problems(409, 422, body=True))
async def put_connection(
    platform: PlatformHere, access: Developer, name: Name, body: ConnectionNew
) -> ConnectionShown:
    """Make a connection to a provider or change it. Its credentials cannot be read back.

    What is left out stays as it was, if it is of the same kind. New credentials also enable it:
    what was held because it failed is released.
    """
    functions: Allowed = UNSET
    if "functions" in body.model_fields_set:
        functions = None if body.functions is None else tuple(body.functions)
    await connections.put(
        platform,
        access.project_id,
        name,
        kind=body.kind,
        credentials=body.credentials,
        settings=body.settings,
        functions=functions,
    )
    return await show_connection(platform, access, name)


@router.get("/v1/connections", responses=problems(422))
async def show_connections(
    platform: PlatformHere, access: Reader, limit: Limit = PAGE_ITEMS, cursor: Cursor = None
) -> Listed[ConnectionShown]:
    """List connections, by name, without their credentials."""
    found = await platform.database.read(
        list_connections, access.project_id, limit=limit + 1, after=cursor or ""
    )
    some = found[:limit]
    keys = [(access.project_id, one.name) for one in some]
    gates = await platform.database.read(read_gates, keys)
    items = [
        _connection_shown(platform, access.project_id, one, gates[key])
        for key, one in zip(keys, some, strict=True)
    ]
    return Listed(items=items, next_cursor=items[-1].name if len(found) > limit else None)


@router.get("/v1/connections/{name}", responses=problems(404))
async def show_connection(platform: PlatformHere, access: Reader, name: Name) -> ConnectionShown:
    """Show one connection and how it does, without its credentials."""
    found = await platform.database.read(get_connection, access.project_id, name)
    key = (access.project_id, name)
    gates = await platform.database.read(read_gates, [key])
    return _connection_shown(platform, access.project_id, found, gates[key])


@router.post("/v1/connections/{name}/test", responses=problems(404, 409, 422, body=True))
async def try_connection(
    platform: PlatformHere,
    access: Invoker,
    name: Name,
    body: Annotated[TestAsked | None, fastapi.Body(examples=[EXAMPLE])] = None,
) -> TestDone:
    """Ask the provider whether the connection works; with `message`, send that at once.

    A message of a test is no delivery: it is not tried again. It counts for the cost guard.
    """
    message, action = (None, SEND) if body is None else (body.message, body.action)
    trial = await connections.try_out(
        platform, access.project_id, name, message=message, action=action
    )
    return TestDone(
        ok=isinstance(trial.answer, Sent),
        detail=shown_text(platform, access.project_id, trial.detail) or "",
        status=trial.answer.status,
        took_ms=trial.took_ms,
        delivery_id=trial.delivery_id,
    )


@router.post("/v1/connections/{name}/enable", responses=problems(404))
async def enable_connection(platform: PlatformHere, access: Invoker, name: Name) -> Enabled:
    """Send through it again, at once: what was held because it failed is released."""
    return Enabled(name=name, released=await connections.enable(platform, access.project_id, name))


@router.delete(
    "/v1/connections/{name}", status_code=204, response_class=Response, responses=problems(404)
)
async def delete_connection(platform: PlatformHere, access: Developer, name: Name) -> None:
    """Delete a connection; deliveries that still wait for it will fail, and say so.

    `GET /v1/deliveries?connection=...&state=queued` tells how many wait.
    """
    await drop_connection(platform, access.project_id, name)


def _connector_shown(connector: Connector) -> ConnectorShown:
    credentials, settings = (msgspec.json.schema(shape) for shape in connector.shapes)
    return ConnectorShown(
        kind=connector.kind,
        title=connector.title,
        actions=list(connector.actions),
        credentials=credentials,
        settings=settings,
        habits=msgspec.to_builtins(connector.habits),
        callbacks=isinstance(connector, TellsLater),
    )


def _connection_shown(
    platform: Platform, project_id: str, stored: StoredConnection, gate: Gate
) -> ConnectionShown:
    return ConnectionShown(
        name=stored.name,
        kind=stored.kind,
        settings=msgspec.json.decode(stored.settings),
        functions=None if stored.functions is None else list(stored.functions),
        gate=GateShown(
            breaker=gate.breaker.value,
            until=iso(gate.until_ms) if gate.until_ms else None,
            failures=gate.failures,
            failing_since=None if gate.since_ms is None else iso(gate.since_ms),
            last_error=shown_text(platform, project_id, gate.last_error),
            disabled=shown_text(platform, project_id, gate.disabled),
        ),
        updated_at=iso(stored.updated_ms),
    )
