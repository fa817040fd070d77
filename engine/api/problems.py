"""Turns every error into RFC 9457 problem+json. The only place where HTTP statuses stand.

Path:   routes and the edge -> here -> the caller
Never:  shows the inside of a fault of ours; the request id leads to it in the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
from starlette.responses import Response

from engine.errors import EngineError, FieldProblem

PROBLEM_JSON: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:cloudcode:problem:"  # a name for ever; a URL would have to be kept alive


@dataclass(frozen=True, slots=True)
class Kind:
    """What the caller is told about a code. `ours`: its detail is for the log alone."""

    status: int
    title: str
    ours: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "malformed_json": Kind(400, "The body is not JSON"),
    "unauthorized": Kind(401, "No valid API key"),
    "forbidden_scope": Kind(403, "The API key may not do this"),
    "callback_refused": Kind(403, "The callback is not the provider's"),
    "suspended": Kind(403, "The project is suspended"),
    "not_found": Kind(404, "There is no such thing"),
    "method_not_allowed": Kind(405, "The method is not allowed here"),
    "request_timeout": Kind(408, "The body took too long to arrive"),
    "conflict": Kind(409, "It conflicts with what is there"),
    "idempotency_busy": Kind(409, "The request is still being carried out"),
    "idempotency_answer_lost": Kind(409, "The request was carried out, its answer was lost"),
    "payload_too_large": Kind(413, "Too large"),
    "validation_failed": Kind(422, "A field is wrong"),
    "idempotency_mismatch": Kind(422, "The Idempotency-Key was used for another request"),
    "compile_error": Kind(422, "The code does not compile or load"),
    "host_call_refused": Kind(422, "The operation was refused"),
    "rate_limited": Kind(429, "Too many requests"),
    "quota_exceeded": Kind(429, "A quota is used up"),
    "function_error": Kind(502, "The function failed"),
    "cpu_exceeded": Kind(502, "The function used up its CPU time"),
    "memory_exceeded": Kind(502, "The function used up its memory"),
    "output_exceeded": Kind(502, "The function's result is too large"),
    "host_calls_exceeded": Kind(502, "The function made too many host calls"),
    "effects_exceeded": Kind(502, "The function wanted to change too much"),
    "rejected": Kind(502, "The function rejected the event"),
    "cancelled": Kind(502, "The run was cancelled"),
    "skipped": Kind(502, "The run was skipped"),
    "crashed": Kind(502, "The function took its sandbox down"),
    "function_timeout": Kind(504, "The function took too long"),
    "loop_detected": Kind(508, "A function's requests have come back too often"),
    "breaker_open": Kind(503, "The function is held back for what it did"),
    "draining": Kind(503, "The engine is stopping"),
    "overloaded": Kind(503, "The engine has too much to do"),
    "store_failed": Kind(503, "The database did not take it", ours=True),
    "internal": Kind(500, "A fault of the engine", ours=True),
}
OUR_FAULT: Final = "nothing of the request was done; the log has the cause under this request_id"
UNEXPECTED: Final = "the log has the cause under this request_id"


def problem_body(
    code: str,
    detail: str,
    *,
    instance: str,
    request_id: str,
    errors: Sequence[FieldProblem] = (),
    limit: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the members of a problem; its `status` is the response's.

    Args:
        code: a key of KINDS; any other is a fault of ours.
        detail: what was asked, what was found, and the remedy.
        instance: the request's path.
        request_id: as in the header X-Request-Id.
        errors: wrong fields. A pointer is a JSON pointer into the body, or `?name` of the query.
        limit: {name, value, used} of the limit that was hit.
        extra: more members.
    """
    kind = KINDS.get(code)
    if kind is None:
        code, kind = "internal", KINDS["internal"]
    if kind.ours:
        detail, errors, extra = OUR_FAULT if code == "store_failed" else UNEXPECTED, (), None
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + code,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "request_id": request_id,
    }
    if errors:
        body["errors"] = [asdict(error) for error in errors]
    if limit is not None:
        body["limit"] = dict(limit)
    return body | dict(extra or {})


def problem_of(error: EngineError, *, instance: str, request_id: str) -> dict[str, Any]:
    """Return the problem that tells the caller about `error`."""
    return problem_body(
        error.code,
        str(error),
        instance=instance,
        request_id=request_id,
        errors=getattr(error, "problems", ()),
        limit=getattr(error, "limit", None),
        extra=_extra(getattr(error, "extra", None)),
    )


def problem_headers(status: int) -> dict[str, str]:
    """Return the headers that this status needs."""
    headers = {"content-type": PROBLEM_JSON, "cache-control": "no-store"}
    if status == 401:  # noqa: PLR2004
        headers["www-authenticate"] = 'Bearer realm="cloudcode"'
    if status == 503:  # noqa: PLR2004
        headers["retry-after"] = "1"
    return headers


def headers_of(error: EngineError) -> dict[str, str]:
    """Return the headers that this error needs besides those of its status."""
    wait_s = getattr(error, "retry_after_s", None)
    return {} if wait_s is None else {"retry-after": str(wait_s)}


def problem_response(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    status = body["status"]
    return Response(
        msgspec.json.encode(body), status, headers=problem_headers(status) | dict(headers or {})
    )


def _extra(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keep what an error adds from replacing what every problem has."""
    own = {"type", "title", "status", "detail", "instance", "code", "request_id", "errors"}
    return {name: value for name, value in (extra or {}).items() if name not in own}
