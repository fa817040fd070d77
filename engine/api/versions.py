"""`/v1/functions/{name}/versions`: what was uploaded. A version is never changed."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field

from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.clock import iso
from engine.functions import Upload, create_version, get_function, get_version
from engine.store.deployments import Share, live_deployment
from engine.store.functions import VersionSummary, list_versions

router = APIRouter(tags=["functions"])

VERSION_MAX = 2**31 - 1  # the column's
Name = Annotated[str, Path(description="The function's name or id.")]


class LimitsAsked(Body):
    """Hard stops of a run, within what `/v1/limits` says of its handler."""

    cpu_ms: int | None = None
    wall_ms: int | None = None
    memory_mb: int | None = None


class UploadBody(Body):
    """The parts of a version."""

    source: str | None = Field(None, description="One file; its name is `main`, else main.js.")
    files: dict[str, str] | None = Field(None, description="Several files: name -> text.")
    main: str | None = Field(None, description="The file to start with, e.g. main.ts.")
    limits: LimitsAsked | None = None
    allowed_hosts: list[str] | None = Field(
        None, description="host, *.host, host:port or *; none: no network."
    )
    variables: dict[str, str] | None = None
    secrets: list[str] | None = Field(None, description="Names of secrets that the code may read.")
    message: str = Field("", description="What this version is about.")

    def upload(self) -> Upload:
        limits = None if self.limits is None else self.limits.model_dump(exclude_none=True)
        fields = {name: getattr(self, name) for name in UploadBody.model_fields}
        return Upload(**fields | {"limits": limits})


class VersionNew(UploadBody):
    model_config = example(
        {
            "source": "export default { async afterStore(event, env, ctx) { return 2 } }",
            "message": "a better answer",
        }
    )


class VersionMade(Shown):
    version: int
    handlers: list[str]
    deployed: bool


class VersionShown(Shown):
    version: int
    message: str
    handlers: list[str]
    created_at: str
    live_percent: int


class VersionWhole(VersionShown):
    """A version with everything that was uploaded."""

    limits: dict[str, int]
    allowed_hosts: list[str]
    variables: dict[str, str]
    secrets: list[str]
    files: dict[str, str]
    main: str


class ShareShown(Shown):
    version: int
    percent: int


@router.post(
    "/v1/functions/{name}/versions", status_code=201, responses=problems(404, 422, body=True)
)
async def add_version(
    platform: PlatformHere,
    access: Developer,
    name: Name,
    body: VersionNew,
    deploy: Annotated[bool, Query(description="Make it live at once.")] = False,
) -> VersionMade:
    """Upload a version.

    `limits`, `allowed_hosts`, `variables` and `secrets` that are left out are taken over from the
    latest version.
    """
    version = await create_version(platform, access.project_id, name, body.upload(), deploy=deploy)
    return VersionMade(version=version.number, handlers=list(version.handlers), deployed=deploy)


@router.get("/v1/functions/{name}/versions", responses=problems(404, 422))
async def show_versions(
    platform: PlatformHere, access: Reader, name: Name, page: PageAsked
) -> Listed[VersionShown]:
    """List a function's versions, newest first."""
    function = await get_function(platform, access.project_id, name)
    found = await platform.database.read(list_versions, function.id, page)
    percents = await _percents(platform, function.id)
    items = [_shown(version, percents) for version in found.items]
    return Listed(items=items, next_cursor=found.next_cursor)


@router.get("/v1/functions/{name}/versions/{version}", responses=problems(404, 422))
async def show_version(
    platform: PlatformHere,
    access: Reader,
    name: Name,
    version: Annotated[int, Path(ge=1, le=VERSION_MAX)],
) -> VersionWhole:
    """Show one version with its files."""
    function = await get_function(platform, access.project_id, name)
    found = await get_version(platform, function, version)
    percents = await _percents(platform, function.id)
    return VersionWhole(
        **_shown(found, percents).model_dump(),
        limits=found.limits,
        allowed_hosts=list(found.allowed_hosts),
        variables=found.variables,
        secrets=list(found.secrets),
        files=found.files,
        main=found.main,
    )


def share_shown(share: Share) -> ShareShown:
    return ShareShown(version=share.version, percent=share.percent)


async def _percents(platform: PlatformHere, function_id: str) -> dict[int, int]:
    live = await platform.database.read(live_deployment, function_id)
    return {share.version: share.percent for share in live.versions} if live else {}


def _shown(version: VersionSummary, percents: dict[int, int]) -> VersionShown:
    return VersionShown(
        version=version.number,
        message=version.message,
        handlers=list(version.handlers),
        created_at=iso(version.created_ms),
        live_percent=percents.get(version.number, 0),
    )
