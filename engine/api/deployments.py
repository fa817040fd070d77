"""`/v1/functions/{name}/deployments`: which versions are live, in what shares."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from engine.api.access import Developer, Reader
from engine.api.openapi import problems
from engine.api.platform import PlatformHere
from engine.api.shapes import Body, Listed, PageAsked, Shown, example
from engine.api.versions import VERSION_MAX, Name, ShareShown, share_shown
from engine.clock import iso
from engine.deployments import deploy, roll_back
from engine.functions import get_function
from engine.store.deployments import Deployment, Share, list_deployments

router = APIRouter(tags=["functions"])


class ShareAsked(Body):
    version: Annotated[int, Field(ge=1, le=VERSION_MAX)]
    percent: int


class DeploymentNew(Body):
    model_config = example(
        {
            "versions": [{"version": 2, "percent": 90}, {"version": 3, "percent": 10}],
            "message": "try 3 on a tenth",
        }
    )

    versions: list[ShareAsked] = Field(description="1 or 2; the percents sum to 100.")
    message: str = ""


class DeploymentShown(Shown):
    id: str
    versions: list[ShareShown]
    message: str
    created_at: str


@router.post(
    "/v1/functions/{name}/deployments", status_code=201, responses=problems(404, 422, body=True)
)
async def add_deployment(
    platform: PlatformHere, access: Developer, name: Name, body: DeploymentNew
) -> DeploymentShown:
    """Make one version live, or two with a share of the runs each."""
    shares = [Share(version=one.version, percent=one.percent) for one in body.versions]
    return _shown(await deploy(platform, access.project_id, name, shares, body.message))


@router.get("/v1/functions/{name}/deployments", responses=problems(404, 422))
async def show_deployments(
    platform: PlatformHere, access: Reader, name: Name, page: PageAsked
) -> Listed[DeploymentShown]:
    """List a function's deployments, newest first; the first is live."""
    function = await get_function(platform, access.project_id, name)
    found = await platform.database.read(list_deployments, function.id, page)
    return Listed(items=list(map(_shown, found.items)), next_cursor=found.next_cursor)


@router.post("/v1/functions/{name}/rollback", status_code=201, responses=problems(404, 409, 422))
async def add_rollback(platform: PlatformHere, access: Developer, name: Name) -> DeploymentShown:
    """Deploy again what was live before what is live now."""
    return _shown(await roll_back(platform, access.project_id, name))


def _shown(deployment: Deployment) -> DeploymentShown:
    return DeploymentShown(
        id=deployment.id,
        versions=list(map(share_shown, deployment.versions)),
        message=deployment.message,
        created_at=iso(deployment.created_ms),
    )
