"""`/v1/functions/{name}/versions`: what was uploaded. A version is never changed."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import Field

from engine import declarations
from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Listed, PageAsked, Shown, example
from engine.api.uploads import (
    WARNINGS,
    UploadBody,
    WarningShown,
    documented,
    uploaded,
    warning_shown,
)
from engine.clock import iso
from engine.functions import create_version, get_function, get_version, get_wasm
from engine.store.deployments import Share, live_deployment
from engine.store.functions import Version, VersionSummary, list_versions

router = APIRouter(tags=["functions"])

VERSION_MAX = 2**31 - 1  # the column's
WASM: Final = "application/wasm"
Name = Annotated[str, Path(description="The function's name or id.")]
Number = Annotated[int, Path(ge=1, le=VERSION_MAX)]


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
    warnings: list[WarningShown] = Field(description=WARNINGS)


class WasmShown(Shown):
    kind: str = Field(description="command (WASI: stdin, stdout) or core (alloc, handle).")
    bytes: int
    sha256: str


class VersionShown(Shown):
    version: int
    message: str
    handlers: list[str]
    wasm: WasmShown | None = Field(description="Of a wasm version; javascript: null.")
    created_at: str
    live_percent: int


class Uploaded(Shown):
    """Everything that was uploaded as a version, but for a module's bytes."""

    limits: dict[str, int]
    allowed_hosts: list[str]
    variables: dict[str, str]
    secrets: list[str]
    files: dict[str, str]
    main: str
    args: list[str] | None = Field(description="These four are of wasm; javascript: null.")
    io: str | None
    exports: dict[str, str] | None
    reuse: bool | None
    retries: dict[str, Any] | None = Field(description="These three: null when not declared.")
    flow: dict[str, Any] | None
    queue: dict[str, Any] | None


class VersionWhole(Uploaded, VersionShown):
    """A version with everything that was uploaded."""


class ShareShown(Shown):
    version: int
    percent: int


@router.post(
    "/v1/functions/{name}/versions",
    status_code=201,
    responses=problems(404, 422, body=True),
    openapi_extra=documented(VersionNew),
)
async def add_version(
    platform: PlatformHere,
    access: Developer,
    name: Name,
    body: Annotated[VersionNew, Depends(uploaded(VersionNew))],
    deploy: Annotated[bool, Query(description="Make it live at once.")] = False,
) -> VersionMade:
    """Upload a version, of the runtime that the function has.

    `limits`, `allowed_hosts`, `variables` and `secrets` that are left out are taken over from the
    latest version; so are `retries`, `flow` and `queue` (`{}` takes them away), and `handlers`,
    `args`, `io`, `exports` and `reuse` of a WebAssembly one.
    """
    made = await create_version(platform, access.project_id, name, body.upload(), deploy=deploy)
    return VersionMade(
        version=made.version.number,
        handlers=list(made.version.handlers),
        deployed=deploy,
        warnings=list(map(warning_shown, made.warnings)),
    )


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
    version: Number,
) -> VersionWhole:
    """Show one version with its files; of a module only what is known of it."""
    function = await get_function(platform, access.project_id, name)
    found = await get_version(platform, function, version)
    percents = await _percents(platform, function.id)
    return VersionWhole(**_shown(found, percents).model_dump(), **uploaded_as(found))


@router.get(
    "/v1/functions/{name}/versions/{version}/wasm",
    response_class=Response,
    responses={
        **problems(404, 422),
        200: {"content": {WASM: {"schema": {"type": "string", "format": "binary"}}}},
    },
)
async def show_wasm(
    platform: PlatformHere, access: Reader, name: Name, version: Number
) -> Response:
    """Return the module as it was uploaded, to the byte."""
    function = await get_function(platform, access.project_id, name)
    wasm = await get_wasm(platform, function, version)
    file = f'attachment; filename="{function.name}-{version}.wasm"'
    return Response(wasm, media_type=WASM, headers={"content-disposition": file})


def share_shown(share: Share) -> ShareShown:
    return ShareShown(version=share.version, percent=share.percent)


def wasm_shown(version: VersionSummary) -> WasmShown | None:
    facts = version.wasm
    if facts is None:
        return None
    return WasmShown(kind=facts.kind, bytes=facts.bytes, sha256=facts.sha256)


def uploaded_as(version: Version) -> dict[str, Any]:
    """Return the fields of `Uploaded`."""
    options = ("args", "io", "exports", "reuse")
    return {
        "limits": version.limits,
        "allowed_hosts": list(version.allowed_hosts),
        "variables": version.variables,
        "secrets": list(version.secrets),
        "files": version.files,
        "main": version.main,
        **declarations.shown(version.policy),
    } | {name: version.options.get(name) for name in options}


async def _percents(platform: PlatformHere, function_id: str) -> dict[int, int]:
    live = await platform.database.read(live_deployment, function_id)
    return {share.version: share.percent for share in live.versions} if live else {}


def _shown(version: VersionSummary, percents: dict[int, int]) -> VersionShown:
    return VersionShown(
        version=version.number,
        message=version.message,
        handlers=list(version.handlers),
        wasm=wasm_shown(version),
        created_at=iso(version.created_ms),
        live_percent=percents.get(version.number, 0),
    )
