"""Catches what FastAPI and the routes raise, and answers with a problem.

Path:   a route, or FastAPI's own checks -> here -> problems -> the caller
"""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from engine.api.problems import headers_of, problem_body, problem_of, problem_response
from engine.errors import EngineError, FieldProblem

CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed"}
FIELDS_SHOWN_MAX: Final = 20
_MESSAGES: Final = {
    "extra_forbidden": "is not a known field",
    "missing": "is required",
    "json_invalid": "is not JSON",
}


def install(app: FastAPI) -> None:
    """Make `app` answer every error with problem+json."""
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(RequestValidationError, _fields_wrong)
    app.add_exception_handler(HTTPException, _no_route)


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    problem = problem_of(error, instance=request.url.path, request_id=request.state.request_id)
    return problem_response(problem, headers_of(error))


async def _fields_wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_field(found) for found in error.errors()[:FIELDS_SHOWN_MAX]]
    detail = "; ".join(f"{one.pointer or 'the body'} {one.message}" for one in problems[:3])
    return _problem(request, "validation_failed", detail, problems)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    methods: Sequence[str] = request.app.state.allowed(request.url.path)
    if error.status_code == 405:  # noqa: PLR2004
        allow = ", ".join(methods)
        detail = f"{request.method} is not allowed here; allowed: {allow}"
        return _problem(request, "method_not_allowed", detail, headers={"allow": allow})
    code = CODE_OF_STATUS.get(error.status_code, "malformed_json")  # 400: FastAPI cannot read it
    detail = f"there is nothing at {request.url.path}" if code == "not_found" else error.detail
    return _problem(request, code, detail)


def _problem(
    request: Request,
    code: str,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    body = problem_body(
        code,
        detail,
        instance=request.url.path,
        request_id=request.state.request_id,
        errors=errors,
    )
    return problem_response(body, headers)


def _field(found: Any) -> FieldProblem:
    where, *path = found["loc"]
    if where == "body":
        pointer = "".join(f"/{_escaped(str(part))}" for part in path)
    else:
        pointer = f"?{path[0]}" if where == "query" else f"{{{path[0]}}}"
    message = _MESSAGES.get(found["type"], found["msg"])
    return FieldProblem(pointer, message[0].lower() + message[1:])


def _escaped(part: str) -> str:
    return part[:80].replace("~", "~0").replace("/", "~1")
