"""`/v1/api-keys`: who may do what. Admin keys only, in every project."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from engine.api.access import Admin
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.errors import NotFound
from engine.projects import change_api_key, create_api_key, revoke_api_key
from engine.store.api_keys import ApiKey, list_api_keys

router = APIRouter(tags=["projects"])
RATE = "On each node; 0: no limit; null: `key_requests_per_minute` of its project."


class ApiKeyNew(Body):
    model_config = example({"name": "gateway 7", "scopes": ["ingest"]})

    name: str
    scopes: list[str] = Field(description="1 to 4 of admin, develop, operate, ingest")
    project: str | None = Field(None, description="Id or name; else the key's own project.")
    requests_per_minute: int | None = Field(None, description=RATE)


class ApiKeyChange(Body):
    model_config = example({"requests_per_minute": 600})

    requests_per_minute: int | None = Field(description=RATE)


class ApiKeyShown(Shown):
    id: str
    name: str
    scopes: list[str]
    project: str = Field(description="The project's id.")
    created_at: str
    requests_per_minute: int | None = Field(description=RATE)


class ApiKeyMade(ApiKeyShown):
    key: str


@router.post("/v1/api-keys", status_code=201, responses=problems(404, 422, body=True))
async def add_api_key(platform: PlatformHere, access: Admin, body: ApiKeyNew) -> ApiKeyMade:
    """Make an API key. The `key` itself is shown once and stored nowhere."""
    key, secret = await create_api_key(
        platform,
        project=body.project or access.project_id,
        name=body.name,
        scopes=body.scopes,
        requests_per_minute=body.requests_per_minute,
    )
    return ApiKeyMade(**_shown(key).model_dump(), key=secret)


@router.get("/v1/api-keys", responses=problems(404, 422))
async def show_api_keys(
    platform: PlatformHere,
    _: Admin,
    page: PageAsked,
    project: Annotated[str | None, Query(description="Id or name; else of all projects.")] = None,
) -> Listed[ApiKeyShown]:
    """List API keys, newest first, without the keys themselves."""
    project_id = None
    if project is not None and (project_id := platform.catalogue.project(project)) is None:
        raise NotFound("project", project)
    found = await platform.database.read(list_api_keys, page, project_id=project_id)
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.patch("/v1/api-keys/{key_id}", responses=problems(404, 422, body=True))
async def patch_api_key(
    platform: PlatformHere, _: Admin, key_id: str, body: ApiKeyChange
) -> ApiKeyShown:
    """Change how many requests a key may make."""
    return _shown(
        await change_api_key(platform, key_id, requests_per_minute=body.requests_per_minute)
    )


@router.delete(
    "/v1/api-keys/{key_id}",
    status_code=204,
    response_class=Response,
    responses=problems(404, 409),
)
async def drop_api_key(platform: PlatformHere, _: Admin, key_id: str) -> None:
    """Delete an API key; it opens nothing from then on. The last admin key cannot be deleted."""
    await revoke_api_key(platform, key_id)


def _shown(key: ApiKey) -> ApiKeyShown:
    return ApiKeyShown(
        id=key.id,
        name=key.name,
        scopes=list(key.scopes),
        project=key.project_id,
        created_at=iso(key.created_ms),
        requests_per_minute=key.requests_per_minute,
    )
