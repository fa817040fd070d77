"""`/v1/secrets`: what goes in and never comes out."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from msgspec import UNSET
from pydantic import Field

from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Cursor, Limit, Listed, Shown, example
from engine.clock import iso
from engine.store.pages import PAGE_ITEMS
from engine.store.vaulted import list_secrets
from engine.vaulted import drop_secret, keep_secret

router = APIRouter(tags=["secrets"])

Name = Annotated[str, Path(description="A capital letter, then up to 63 capitals, digits or _.")]


class SecretNew(Body):
    model_config = example({"value": "s3cr3t", "functions": ["report"]})

    value: str
    functions: list[str] | None = Field(
        None,
        description="Names of the functions that may have it, also of some yet to be made; null: "
        "every function. Left out: as it was, and every function if it is new.",
    )


class SecretShown(Shown):
    name: str
    functions: list[str] | None = Field(description="Who may have it; null: every function.")
    updated_at: str


@router.put(
    "/v1/secrets/{name}",
    status_code=204,
    response_class=Response,
    responses=problems(409, 422, body=True),
)
async def put_secret(
    platform: PlatformHere,
    access: Developer,
    name: Name,
    body: SecretNew,
    force: Annotated[
        bool, Query(description="Also if a live function that names it may not have it any more.")
    ] = False,
) -> None:
    """Make a secret or replace it. It cannot be read back. No connection has the same name."""
    functions = body.functions if "functions" in body.model_fields_set else UNSET
    await keep_secret(
        platform, access.project_id, name, body.value, functions=functions, force=force
    )


@router.get("/v1/secrets", responses=problems(422))
async def show_secrets(
    platform: PlatformHere, access: Reader, limit: Limit = PAGE_ITEMS, cursor: Cursor = None
) -> Listed[SecretShown]:
    """List the names of secrets, by name."""
    found = await platform.database.read(
        list_secrets, access.project_id, limit=limit + 1, after=cursor or ""
    )
    items = [
        SecretShown(
            name=one.name,
            functions=None if one.functions is None else list(one.functions),
            updated_at=iso(one.updated_ms),
        )
        for one in found[:limit]
    ]
    return Listed(items=items, next_cursor=items[-1].name if len(found) > limit else None)


@router.delete(
    "/v1/secrets/{name}", status_code=204, response_class=Response, responses=problems(404, 409)
)
async def delete_secret(
    platform: PlatformHere,
    access: Developer,
    name: Name,
    force: Annotated[
        bool, Query(description="Also if a live function names it, which runs on without it.")
    ] = False,
) -> None:
    """Delete a secret that no live function names, or any with `force`."""
    await drop_secret(platform, access.project_id, name, force=force)
