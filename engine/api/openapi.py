"""The OpenAPI document: what FastAPI knows, the raw routes (`hot_openapi`), and every error.

Path:   routers -> `problems`; app -> `document`, which is also asked which methods a path has
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from fastapi import FastAPI

from engine.api.hot_openapi import HOT_PATHS, HOT_SCHEMAS
from engine.api.problems import KINDS, PROBLEM_JSON, problem_body

_ALWAYS: Final = (500,)
_WITH_KEY: Final = (401, 403, 404, 429, 503)  # 404: an admin key may name a project, wrongly
_WITH_BODY: Final = (400, 408, 413, 422)
_METHODS: Final = ("get", "head", "post", "put", "patch", "delete")
_DETAILS: Final = {
    "malformed_json": "Expecting ',' delimiter at line 1, column 9 (character 8)",
    "unauthorized": "this API key does not exist, or was deleted",
    "forbidden_scope": "this needs the scope develop or admin; the key has ingest",
    "not_found": "no function 'alarm' in this project",
    "conflict": "a product named 'thermometer' exists already",
    "payload_too_large": "the body is 3145728 bytes; the limit request_bytes is 2097152",
    "validation_failed": "must be 1 to 100",
}


def problems(
    *statuses: int, body: bool = False, public: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a route's errors.

    Args:
        statuses: those of the route itself; the ones every route has are added.
        body: it takes a body.
        public: it needs no key.
    """
    every = {*statuses, *_ALWAYS}
    every.update(() if public else _WITH_KEY, _WITH_BODY if body else ())
    return {status: problem_documented(status) for status in sorted(every)}


def problem_documented(status: int) -> dict[str, Any]:
    """Return the response object of one status, with all codes that it may carry."""
    codes = [code for code, kind in KINDS.items() if kind.status == status]
    code = codes[-1] if status == 422 else codes[0]  # noqa: PLR2004
    code = "validation_failed" if "validation_failed" in codes else code
    shown = problem_body(
        code,
        _DETAILS.get(code, KINDS[code].title),
        instance="/v1/functions",
        request_id="req_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
    )
    return {
        "description": f"{KINDS[codes[0]].title}. `code`: {', '.join(codes)}",
        "content": {
            PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": shown}
        },
    }


def document(app: FastAPI) -> dict[str, Any]:
    """Return the whole document."""
    found = FastAPI.openapi(app)
    schemas: dict[str, Any] = found["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors
        schemas.pop(name, None)
    schemas.update({"Problem": _PROBLEM}, **HOT_SCHEMAS)
    found["components"]["parameters"] = {"Project": _PROJECT, "IdempotencyKey": _KEY}
    for path, operations in hot_paths().items():
        found["paths"].setdefault(path, {}).update(operations)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(operation)
            keyed = path.startswith(("/v1/", "/v2/")) and not path.startswith("/v1/callbacks/")
            if method == "post" and keyed:
                _repeatable(operation)
            _name_body(operation, schemas)
    found["paths"] = dict(sorted(found["paths"].items()))
    return found


def hot_paths() -> dict[str, dict[str, Any]]:
    """Return the raw routes with their errors written out."""
    paths: dict[str, dict[str, Any]] = {}
    for path, operations in HOT_PATHS.items():
        for method, operation in operations.items():
            written = dict(operation)
            statuses = written.pop("x-problems", ())
            errors = {str(status): problem_documented(status) for status in statuses}
            written["responses"] = {**written["responses"], **errors}
            paths.setdefault(path, {})[method] = written
    return paths


def methods_by_path(app: FastAPI) -> Callable[[str], Sequence[str]]:
    """Return a function that tells the methods of a path, by the document; none if unknown."""
    known: list[tuple[re.Pattern[str], tuple[str, ...]]] = []

    def methods(path: str) -> Sequence[str]:
        if not known:
            known.extend(map(_route, app.openapi()["paths"].items()))
        return next((found for pattern, found in known if pattern.fullmatch(path)), ())

    return methods


def _route(entry: tuple[str, dict[str, Any]]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    template, operations = entry
    # The rest of the path, slashes too: of a function's URL, and keys of the key-value store.
    rest = r"\\\{path\\\}$|(?<=/\\\{namespace\\\}/)\\\{key\\\}$"
    pattern = re.sub(rest, ".*", re.escape(template))
    pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", pattern)
    methods = {method.upper() for method in operations if method in _METHODS}
    methods |= {"OPTIONS", *({"HEAD"} if "GET" in methods else ())}
    return re.compile(pattern), tuple(sorted(methods))


def _complete(operation: dict[str, Any]) -> None:
    refused = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
    if refused.get("schema", {}).get("$ref", "").endswith("HTTPValidationError"):
        del operation["responses"]["422"]  # FastAPI adds it to each route that has a parameter
    if operation.get("security"):
        parameters = operation.setdefault("parameters", [])
        parameters.append({"$ref": "#/components/parameters/Project"})


def _repeatable(operation: dict[str, Any]) -> None:
    """Say that it may be sent again under an Idempotency-Key."""
    operation.setdefault("parameters", []).append(
        {"$ref": "#/components/parameters/IdempotencyKey"}
    )
    if operation.get("security"):
        for status in (409, 422):
            operation["responses"].setdefault(str(status), problem_documented(status))


def _name_body(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Move the form of a body that its route reads by itself to the others, as FastAPI does."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    if "$defs" not in schema:
        return
    schemas.update(schema["$defs"])
    schemas[schema["title"]] = {name: part for name, part in schema.items() if name != "$defs"}
    content["schema"] = {"$ref": f"#/components/schemas/{schema['title']}"}


_PROJECT: Final[dict[str, Any]] = {
    "name": "X-Project",
    "in": "header",
    "required": False,
    "description": "Another project than the key's own, by id or name. Admin keys only.",
    "schema": {"type": "string"},
}
_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "For 24 hours the same request with the same key is answered as the first time, "
    "with the header `Idempotent-Replayed: true`, and not carried out again. Keys are the "
    "project's, of /v2 the device's.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457. Some codes add members: `compile_error` file, line and column.",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "A stable name of the code."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was asked and found, and the remedy."},
        "instance": {"type": "string", "description": "The path."},
        "code": {"type": "string", "enum": list(KINDS)},
        "request_id": {"type": "string", "description": "As in the header X-Request-Id."},
        "errors": {
            "type": "array",
            "description": "Wrong fields. `pointer`: a JSON pointer into the body, `?name` of the "
            "query, or `{name}` of the path.",
            "items": {
                "type": "object",
                "required": ["pointer", "message"],
                "properties": {"pointer": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "limit": {
            "type": "object",
            "description": "The limit that was hit.",
            "required": ["name", "value", "used"],
            "properties": {
                "name": {"type": "string"},
                "value": {"type": "integer"},
                "used": {"type": "integer"},
            },
        },
    },
}
