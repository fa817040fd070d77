"""`/v1/kv`: the key-value store of a project, which its functions know as `env.KV`."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from engine.api.access import Operator, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Cursor, Limit, Listed, Shown
from engine.clock import iso
from engine.kv import check_namespace, delete_value, get_value, put_value
from engine.quotas import KV_TTL_S_MAX, KV_TTL_S_MIN
from engine.store.kv import read_keys
from engine.store.pages import PAGE_ITEMS

router = APIRouter(tags=["key-value store"])

Namespace = Annotated[
    str,
    Path(description="1 to 64 letters, digits, _ or -. Functions that name none use `default`."),
]
Key = Annotated[str, Path(description="1 to 512 bytes as UTF-8, without control characters.")]
_ANY_JSON: Final[dict[str, Any]] = {"application/json": {"schema": {}, "example": {"hot": 75}}}


class KeyShown(Shown):
    key: str
    expires_at: str | None
    updated_at: str


@router.get("/v1/kv/{namespace}", responses=problems(422))
async def show_keys(
    platform: PlatformHere,
    access: Reader,
    namespace: Namespace,
    prefix: Annotated[str, Query(description="Only keys that begin so.", max_length=512)] = "",
    limit: Limit = PAGE_ITEMS,
    cursor: Cursor = None,
) -> Listed[KeyShown]:
    """List keys, in the order of their bytes; their values are read one by one."""
    check_namespace(namespace)
    found = await platform.database.read(
        read_keys,
        access.project_id,
        namespace,
        platform.clock(),
        prefix=prefix,
        after=cursor or "",
        limit=limit + 1,
    )
    items = [
        KeyShown(
            key=one.key,
            expires_at=None if one.expires_ms is None else iso(one.expires_ms),
            updated_at=iso(one.updated_ms),
        )
        for one in found[:limit]
    ]
    return Listed(items=items, next_cursor=items[-1].key if len(found) > limit else None)


@router.get(
    "/v1/kv/{namespace}/{key:path}",
    response_class=Response,
    responses=problems(404, 422) | {200: {"description": "The value.", "content": _ANY_JSON}},
)
async def show_value(
    platform: PlatformHere, access: Reader, namespace: Namespace, key: Key
) -> Response:
    """Show the value of a key: the JSON as it was put."""
    text = await get_value(platform, access.project_id, namespace, key)
    return Response(text, media_type="application/json")


@router.put(
    "/v1/kv/{namespace}/{key:path}",
    status_code=204,
    response_class=Response,
    responses=problems(422, body=True),
    openapi_extra={"requestBody": {"required": True, "content": _ANY_JSON}},
)
async def replace_value(
    platform: PlatformHere,
    access: Operator,
    request: Request,
    namespace: Namespace,
    key: Key,
    ttl_seconds: Annotated[
        int | None,
        Query(ge=KV_TTL_S_MIN, le=KV_TTL_S_MAX, description="It is forgotten then; else never."),
    ] = None,
) -> None:
    """Give a key a value, whether or not it had one: any JSON of at most 64 KiB."""
    value = await request.body()
    await put_value(
        platform, access.project_id, namespace, key, value=value, ttl_seconds=ttl_seconds
    )


@router.delete(
    "/v1/kv/{namespace}/{key:path}",
    status_code=204,
    response_class=Response,
    responses=problems(404, 422),
)
async def remove_value(
    platform: PlatformHere, access: Operator, namespace: Namespace, key: Key
) -> None:
    """Delete a key."""
    await delete_value(platform, access.project_id, namespace, key)
