"""Puts the control plane together: routers, errors, the edge, the document.

Path:   wiring -> `create_app` -> the server; raw routes are asked before it, they never come here
"""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from engine.api import (
    admin,
    api_keys,
    breakers,
    callbacks,
    connections,
    dead_letters,
    deliveries,
    deployments,
    device_values,
    devices,
    events,
    executions,
    functions,
    health,
    jobs,
    kv,
    limits,
    master_key,
    metrics,
    products,
    projects,
    retention,
    schedules,
    tail,
    triggers,
    usage,
    vaulted,
    versions,
)
from engine.api.edge import Edge
from engine.api.keyed import Keyed
from engine.api.limited import Limited
from engine.api.openapi import document, methods_by_path
from engine.api.platform import Platform
from engine.api.refusals import install

ROUTERS: Final = (
    functions.router,
    versions.router,
    deployments.router,
    triggers.router,
    schedules.router,
    executions.router,
    jobs.router,
    dead_letters.router,
    breakers.router,
    events.router,
    tail.router,
    products.router,
    devices.router,
    device_values.router,
    kv.router,
    vaulted.router,
    connections.router,
    callbacks.router,
    deliveries.router,
    projects.router,
    retention.router,
    usage.router,
    api_keys.router,
    limits.router,
    admin.router,
    master_key.router,
    health.router,
    metrics.router,
)
TAGS: Final = {
    "functions": "Code: functions, their versions, and which of them are live.",
    "running": "Running functions by hand, by HTTP.",
    "triggers": "What makes functions run.",
    "schedules": "Functions that run by the clock.",
    "executions": "What ran, and why it ended as it did.",
    "jobs": "Runs for later: tried again when they fail, and what became of those that always do.",
    "devices": "Products, devices and their values.",
    "device API": "For devices themselves: the token is in the path.",
    "key-value store": "What functions keep between runs, and you with them.",
    "secrets": "Secrets.",
    "connections": "Providers, and what is stored to reach them.",
    "deliveries": "Messages to providers.",
    "projects": "Tenants and API keys.",
    "operations": "For whoever runs the engine.",
}


def create_app(platform: Platform) -> FastAPI:
    """Return the control plane as an ASGI application."""
    app = FastAPI(
        title="cloudcode-engine",
        version="1",
        description="Cloud code for devices: see the README. Errors are problem+json (RFC 9457).",
        openapi_url="/openapi.json",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.platform = platform
    app.state.allowed = methods_by_path(app)
    for router in ROUTERS:
        app.include_router(router)
    install(app)
    app.add_middleware(Keyed, keys=platform.idempotency, catalogue=platform.catalogue)
    app.add_middleware(Limited, limits=platform.rate_limits, catalogue=platform.catalogue)
    app.add_middleware(Edge, allowed=app.state.allowed)
    app.openapi = _once(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class Operations:
    """What a worker answers, as an ASGI application: does it live, can it work, its metrics."""

    def __init__(self, platform: Platform) -> None:
        app = FastAPI(title="cloudcode worker", openapi_url=None, docs_url=None, redoc_url=None)
        app.state.platform = platform
        for router in (health.router, metrics.router):
            app.include_router(router)
        install(app)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _once(app: FastAPI) -> Callable[[], dict[str, Any]]:
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            made.append(document(app))
        return made[0]

    return openapi
