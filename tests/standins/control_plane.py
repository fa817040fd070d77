"""A whole engine in this process, spoken to through ASGI: what the API's contract is tested on."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.projects import create_api_key
from engine.settings import Settings
from engine.wiring import Platform, open_platform
from tests.conftest import OPEN_STATUSES

ECHO = "export default { async job(params) { return params; } }"
ON_WRITE = "function trigger(params, callback) { callback(null, 1); }"
SCOPES = ("admin", "develop", "operate", "ingest")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Caller:
    """A key's view of the API."""

    http: httpx.AsyncClient
    key: str

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        if body is not None:
            options["json"] = body
        return await self.http.request(method, path, headers=headers, **options)

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        response = await self.call(method, path, body, **options)
        assert response.is_success, (response.status_code, response.text)
        return response.json() if response.content else None

    async def refused(
        self, status: int, method: str, path: str, body: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Return the problem; it has all that every problem has."""
        response = await self.call(method, path, body, **options)
        assert response.status_code == status, (response.status_code, response.text)
        assert response.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = response.json()
        assert problem["status"] == status
        assert problem["request_id"] == response.headers["x-request-id"]
        assert problem["instance"] == path.partition("?")[0]
        assert {"type", "title", "detail", "code"} <= problem.keys()
        return problem

    async def items(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Return all items of a list, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self.ok("GET", path, params=query)
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]


@dataclass(frozen=True)
class Project:
    """A project of its own for one test, with a key for each scope."""

    id: str
    name: str
    platform: Platform
    admin: Caller
    develop: Caller
    operate: Caller
    ingest: Caller

    async def function(self, name: str = "alarm", source: str = ON_WRITE, **fields: Any) -> Any:
        body = {"name": name, "source": source, **fields}
        return await self.develop.ok("POST", "/v1/functions", body)

    async def device(self, product: str = "thermometer", name: str = "one") -> Any:
        await self.operate.call("POST", "/v1/products", {"name": product})
        return await self.operate.ok("POST", "/v1/devices", {"product": product, "name": name})

    async def settled(self) -> None:
        """Wait until no run is queued or running."""
        async with asyncio.timeout(20):
            while any([await self._runs(one) for one in OPEN_STATUSES]):
                await asyncio.sleep(0.02)

    async def _runs(self, status: str) -> list[dict[str, Any]]:
        return await self.operate.items("/v1/executions", status=status)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str]
) -> AsyncIterator[Platform]:
    """One for all tests of a module, on each kind of database."""
    data_dir = tmp_path_factory.mktemp("api") / "data"
    settings = Settings(data_dir=data_dir, warm_cells=2, **database_settings)
    async with open_platform(settings) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(platform.asgi(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def project(platform: Platform, http: httpx.AsyncClient) -> Project:
    """A project that one test has for itself."""
    return await new_project(platform, http, f"project {next(_numbers)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(platform: Platform, http: httpx.AsyncClient) -> Project:
    """A project for tests that change nothing; it has the function `echo` and a `thermometer`."""
    made = await new_project(platform, http, "shared")
    await made.function("echo", ECHO)
    await made.device()
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def neighbour(project: Project) -> Project:
    """Another project, for what must not be seen of it."""
    return await new_project(project.platform, project.admin.http, f"{project.name} neighbour")


async def new_project(platform: Platform, http: httpx.AsyncClient, name: str) -> Project:
    assert platform.new_admin_key is not None
    made = await Caller(http, platform.new_admin_key).ok("POST", "/v1/projects", {"name": name})
    keys = await asyncio.gather(
        *(
            create_api_key(platform, project=made["id"], name=scope, scopes=[scope])
            for scope in SCOPES
        )
    )
    callers = {scope: Caller(http, secret) for scope, (_, secret) in zip(SCOPES, keys, strict=True)}
    return Project(id=made["id"], name=name, platform=platform, **callers)
