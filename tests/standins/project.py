"""A project of its own on a running engine: what a test stores in it, no other test's code sees."""

import itertools
from typing import Any

import httpx

from tests.conftest import Engine
from tests.standins.provider import Provider

_numbers = itertools.count(1)


class Project:
    """Like `Engine`, for one new project."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = f"{name}-{next(_numbers)}"
        engine.ok("POST", "/v1/projects", {"name": self.name})
        self._functions = itertools.count(1)

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        headers = {"X-Project": self.name} | options.pop("headers", {})
        return self.engine.client.request(method, path, json=body, headers=headers, **options)

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        response = self.request(method, path, body, **options)
        assert response.is_success, (response.status_code, response.text)
        return response.json() if response.content else None

    def connect(self, name: str, provider: Provider, **fields: Any) -> None:
        self.ok("PUT", f"/v1/connections/{name}", provider.connection() | fields)

    def deploy(self, source: str, **fields: Any) -> str:
        """Make a function and return its name."""
        name = f"f-{next(self._functions)}"
        self.ok("POST", "/v1/functions", {"name": name, "source": source, **fields})
        return name

    def module(self, body: str, **fields: Any) -> str:
        return self.deploy(f"export default async function (p, env, ctx) {{ {body} }}", **fields)

    def classic(self, body: str, **fields: Any) -> str:
        return self.deploy(f"function main(p, callback) {{ {body} }}", **fields)

    def run(self, function: str, params: Any = None) -> dict[str, Any]:
        """Invoke and return the execution, however it ended."""
        found = self.request("POST", f"/v1/functions/{function}/invoke", params)
        return self.shown(found.headers.get("execution-id") or found.json()["execution_id"])

    def ask(self, function: str, params: Any = None) -> Any:
        """Invoke and return the result."""
        return self.ok("POST", f"/v1/functions/{function}/invoke", params)

    def shown(self, execution: str) -> dict[str, Any]:
        return self.ok("GET", f"/v1/executions/{execution}")

    def log(self, execution: dict[str, Any]) -> list[tuple[str, str]]:
        lines = self.ok("GET", f"/v1/executions/{execution['id']}/logs")["items"]
        return [(line["level"], line["msg"]) for line in lines]

    def deliveries(self) -> list[dict[str, Any]]:
        """Return all of them, oldest first."""
        items = self.ok("GET", "/v1/deliveries", params={"limit": 200})["items"]
        return items[::-1]

    def delivered(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many are, and return all."""
        self.engine.until(
            lambda: sum(one["state"] == "delivered" for one in self.deliveries()) >= count
        )
        return self.deliveries()
