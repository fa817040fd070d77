"""`/v1/functions`: functions by name, with what is live of them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Response
from pydantic import Field

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
from engine.api.versions import (
    ShareShown,
    Uploaded,
    WasmShown,
    share_shown,
    uploaded_as,
    wasm_shown,
)
from engine.clock import iso
from engine.errors import NotFound
from engine.functions import create_function, remove_function
from engine.store.function_views import FunctionView, view_function, view_functions

router = APIRouter(tags=["functions"])

Name = Annotated[str, Path(description="The function's name or id.")]


class FunctionNew(UploadBody):
    model_config = example(
        {
            "name": "alarm",
            "source": "export default { async afterStore(event, env, ctx) { return 1 } }",
            "limits": {"cpu_ms": 500},
            "allowed_hosts": ["api.example.com"],
            "variables": {"THRESHOLD": "30"},
        }
    )

    name: str
    runtime: Literal["javascript", "wasm"] | None = Field(
        None, description="Left out: wasm when `wasm` is sent, else javascript."
    )


class FunctionMade(Shown):
    id: str
    name: str
    runtime: str
    version: int
    handlers: list[str]
    deployed: bool
    created_at: str
    warnings: list[WarningShown] = Field(description=WARNINGS)


class FunctionShown(Shown):
    id: str
    name: str
    runtime: str
    live: list[ShareShown]
    latest_version: int
    handlers: list[str] = Field(description="Of the latest version.")
    wasm: WasmShown | None = Field(description="Of the latest version; javascript: null.")
    created_at: str


class FunctionWhole(Uploaded, FunctionShown):
    """A function with everything of its latest version."""


@router.post(
    "/v1/functions",
    status_code=201,
    responses=problems(409, 422, body=True),
    openapi_extra=documented(FunctionNew),
)
async def add_function(
    platform: PlatformHere,
    access: Developer,
    body: Annotated[FunctionNew, Depends(uploaded(FunctionNew))],
) -> FunctionMade:
    """Make a function from its first version, which is live at once.

    Send `source`, or `files` and `main`, or for WebAssembly `wasm`. Nothing is stored when the
    code does not compile: the problem (code `compile_error`) then names `file`, `line` and
    `column`, or what is wrong with the module.
    """
    made = await create_function(
        platform, access.project_id, name=body.name, runtime=body.runtime, upload=body.upload()
    )
    function, version = made.function, made.version
    return FunctionMade(
        id=function.id,
        name=function.name,
        runtime=function.runtime,
        version=version.number,
        handlers=list(version.handlers),
        deployed=True,
        created_at=iso(function.created_ms),
        warnings=list(map(warning_shown, made.warnings)),
    )


@router.get("/v1/functions", responses=problems(422))
async def show_functions(
    platform: PlatformHere, access: Reader, page: PageAsked
) -> Listed[FunctionShown]:
    """List functions, newest first."""
    found = await platform.database.read(view_functions, access.project_id, page)
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.get("/v1/functions/{name}", responses=problems(404))
async def show_function(platform: PlatformHere, access: Reader, name: Name) -> FunctionWhole:
    """Show one function: what is live, and its latest version with the code."""
    view = await platform.database.read(view_function, access.project_id, name)
    if view is None:
        raise NotFound("function", name)
    return FunctionWhole(**_shown(view).model_dump(), **uploaded_as(view.latest))


@router.delete(
    "/v1/functions/{name}", status_code=204, response_class=Response, responses=problems(404)
)
async def drop_function(platform: PlatformHere, access: Developer, name: Name) -> None:
    """Delete a function with its versions, triggers and schedules.

    Its executions stay; runs that are waiting end as `cancelled`.
    """
    await remove_function(platform, access.project_id, name)


def _shown(view: FunctionView) -> FunctionShown:
    return FunctionShown(
        id=view.function.id,
        name=view.function.name,
        runtime=view.function.runtime,
        live=list(map(share_shown, view.live)),
        latest_version=view.latest.number,
        handlers=list(view.latest.handlers),
        wasm=wasm_shown(view.latest),
        created_at=iso(view.function.created_ms),
    )
