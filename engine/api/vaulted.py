"""`/v1/secrets` and `/v1/connections`: what goes in and never comes out."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Response
from pydantic import Field

from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Cursor, Limit, Listed, Shown, example
from engine.clock import iso
from engine.store.pages import PAGE_ITEMS
from engine.store.vaulted import list_connections, list_secrets
from engine.vaulted import drop_connection, drop_secret, keep_connection, keep_secret

router = APIRouter(tags=["secrets"])

Name = Annotated[str, Path(description="A capital letter, then up to 63 capitals, digits or _.")]


class SecretNew(Body):
    model_config = example({"value": "s3cr3t"})

    value: str


class SecretShown(Shown):
    name: str
    updated_at: str


class ConnectionNew(Body):
    model_config = example(
        {
            "kind": "slack",
            "credentials": {"webhook_url": "https://hooks.slack.com/services/T0/B0/x"},
        }
    )

    kind: str = Field(description="slack or webhook")
    credentials: dict[str, Any] = Field(
        description="slack: webhook_url; webhook: url, and secret (`whsec_` and base64) to sign."
    )
    settings: dict[str, Any] = Field({})


class ConnectionShown(Shown):
    name: str
    kind: str
    settings: dict[str, Any]
    updated_at: str


@router.put(
    "/v1/secrets/{name}",
    status_code=204,
    response_class=Response,
    responses=problems(422, body=True),
)
async def put_secret(
    platform: PlatformHere, access: Developer, name: Name, body: SecretNew
) -> None:
    """Make a secret or replace it. It cannot be read back."""
    await keep_secret(platform, access.project_id, name, body.value)


@router.get("/v1/secrets", responses=problems(422))
async def show_secrets(
    platform: PlatformHere, access: Reader, limit: Limit = PAGE_ITEMS, cursor: Cursor = None
) -> Listed[SecretShown]:
    """List the names of secrets, by name."""
    found = await platform.database.read(
        list_secrets, access.project_id, limit=limit + 1, after=cursor or ""
    )
    items = [SecretShown(name=one.name, updated_at=iso(one.updated_ms)) for one in found[:limit]]
    return Listed(items=items, next_cursor=items[-1].name if len(found) > limit else None)


@router.delete(
    "/v1/secrets/{name}", status_code=204, response_class=Response, responses=problems(404)
)
async def delete_secret(platform: PlatformHere, access: Developer, name: Name) -> None:
    """Delete a secret; functions that name it run on without it."""
    await drop_secret(platform, access.project_id, name)


@router.put("/v1/connections/{name}", responses=problems(422, body=True))
async def put_connection(
    platform: PlatformHere, access: Developer, name: Name, body: ConnectionNew
) -> ConnectionShown:
    """Make a connection to a provider or replace it. Its credentials cannot be read back."""
    now_ms = await keep_connection(
        platform,
        access.project_id,
        name,
        kind=body.kind,
        credentials=body.credentials,
        settings=body.settings,
    )
    return ConnectionShown(
        name=name, kind=body.kind, settings=body.settings, updated_at=iso(now_ms)
    )


@router.get("/v1/connections", responses=problems(422))
async def show_connections(
    platform: PlatformHere, access: Reader, limit: Limit = PAGE_ITEMS, cursor: Cursor = None
) -> Listed[ConnectionShown]:
    """List connections, by name, without their credentials."""
    found = await platform.database.read(
        list_connections, access.project_id, limit=limit + 1, after=cursor or ""
    )
    items = [
        ConnectionShown(
            name=one.name,
            kind=one.kind,
            settings=msgspec.json.decode(one.settings),
            updated_at=iso(one.updated_ms),
        )
        for one in found[:limit]
    ]
    return Listed(items=items, next_cursor=items[-1].name if len(found) > limit else None)


@router.delete(
    "/v1/connections/{name}", status_code=204, response_class=Response, responses=problems(404)
)
async def delete_connection(platform: PlatformHere, access: Developer, name: Name) -> None:
    """Delete a connection; deliveries that still wait for it fail and say so."""
    await drop_connection(platform, access.project_id, name)
