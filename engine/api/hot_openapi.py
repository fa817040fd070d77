"""The OpenAPI of the raw ASGI routes, by hand: FastAPI never sees them.

Implemented in `invocations`, `writes`, `submissions` and `things`.
`x-problems` names the statuses of their errors; `openapi` writes them out.
"""

from typing import Any, Final

_ID: Final = "0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"
_KEY: Final[list[dict[str, list[str]]]] = [{"apiKey": []}]
_SENT: Final = (400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 508)
_RUN: Final = (502, 504)
_VALUES_EXAMPLE: Final[dict[str, Any]] = {
    "values": [{"key": "temperature", "value": 21.5, "datetime": "2010-10-29T00:00:00Z"}]
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    shown = {} if example is None else {"example": example}
    return {"content": {"application/json": {"schema": schema, **shown}}}


def _answer(description: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    return {"description": description, **_json(schema, example)}


def _text(name: str, where: str, description: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": {"type": "string"},
    }


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_STRING: Final = {"type": "string"}
_INTEGER: Final = {"type": "integer"}
_EXECUTIONS: Final = {"type": "array", "items": _STRING, "description": "Ids of runs it caused."}
_EVENT: Final = {
    "type": ["string", "null"], "description": "null: every value was sent before."
}  # fmt: skip
_DUPLICATES: Final = {
    "type": "integer",
    "description": "Values that were sent before, if any has an id: they are not stored again.",
}
HOT_SCHEMAS: Final[dict[str, Any]] = {
    "Value": _object(
        ["key", "value"],
        key=_STRING,
        value={"description": "Any JSON."},
        datetime={"type": "string", "description": "RFC 3339 or YYYYMMDDHHmmss; else now."},
        geo=_object(["lat", "long"], lat={"type": "number"}, long={"type": "number"}),
        id={"type": "string", "minLength": 1, "maxLength": 128, "description": "The sender's own: "
            "of values with the same key, time and id of a device one is stored."},
    ),
    "Values": _object(
        ["values"],
        values={"type": "array", "minItems": 1, "maxItems": 1000, "items": _ref("Value")},
    ),
    "DeviceWrite": {
        "description": "Values of one device, which `device` (id) or `token` names.",
        "allOf": [_ref("Values"), _object([], device=_STRING, token=_STRING)],
    },
    "Written": _object(
        ["event_id", "values", "executions"],
        event_id=_EVENT,
        duplicates=_DUPLICATES,
        values={"type": "integer", "description": "How many were stored."},
        executions=_EXECUTIONS,
    ),
    "WriteResult": _object(
        ["status"],
        status={"type": "integer", "description": "201 or 200, or the status of its error."},
        event_id=_EVENT,
        duplicates=_DUPLICATES,
        executions=_EXECUTIONS,
        code=_STRING,
        detail=_STRING,
        retry_after={"type": "integer", "description": "Seconds, where the device is limited."},
    ),
    "Writes": _object(
        ["items", "accepted", "rejected"],
        items={"type": "array", "items": _ref("WriteResult")},
        accepted=_INTEGER,
        rejected=_INTEGER,
    ),
    "ThingWritten": _object(
        ["status", "message", "event_id"],
        status=_STRING,
        message=_STRING,
        event_id=_EVENT,
        duplicates=_DUPLICATES,
    ),
    "Job": _object(
        ["function"],
        function={"type": "string", "description": "Name or id."},
        payload={"description": "Any JSON."},
        handler={"type": "string", "description": "Else job, queue, main, or what a call means."},
        run_at={"type": "string", "description": "RFC 3339: not before; else now."},
        delay_seconds={"type": "number", "description": "Instead of run_at."},
        queue={"type": "string", "default": "default", "description": "A label."},
        priority={"type": "string", "enum": ["high", "default", "low"], "default": "default"},
        idempotency_key={"type": "string", "description": "Makes one job a day."},
        max_attempts={"type": "integer", "minimum": 1, "maximum": 100, "default": 3},
        backoff=_object(
            [],
            kind={"type": "string", "enum": ["exponential", "fixed"], "default": "exponential"},
            base_seconds={"type": "number", "default": 1},
            cap_seconds={"type": "number", "default": 3600},
        ),
        ttl_seconds={"type": "number", "description": "It is skipped if it starts later."},
    ),
    "JobMade": _object(
        ["id", "status", "execution_id", "run_at"],
        id=_STRING,
        status=_STRING,
        execution_id=_STRING,
        run_at=_STRING,
    ),
    "JobResult": _object(
        ["status"],
        status={"type": "integer", "description": "201, or the status of its error."},
        id=_STRING,
        execution_id=_STRING,
        run_at=_STRING,
        replayed={"type": "boolean", "description": "Made before, with the same key."},
        code=_STRING,
        detail=_STRING,
        errors={"type": "array", "items": {"type": "object"}},
    ),
    "JobsMade": _object(
        ["batch", "accepted", "rejected", "items"],
        batch=_STRING,
        accepted=_INTEGER,
        rejected=_INTEGER,
        items={"type": "array", "items": _ref("JobResult")},
    ),
    "Queued": _object(["execution_id", "status"], execution_id=_STRING, status=_STRING),
    "DeviceError": _object(["status", "code", "message"], status=_STRING, code=_INTEGER,
                           message=_STRING),
}  # fmt: skip

_RAN: Final = {
    "Execution-Id": {"schema": _STRING},
    "Server-Timing": {"schema": _STRING, "description": "queue;dur=, run;dur=, cpu;dur= (ms)"},
}
_DEVICE_ERROR: Final = _answer(
    "An error, in the form that devices know.",
    _ref("DeviceError"),
    {"status": "error", "code": 401, "message": "Invalid thing token."},
)
_DEVICE_ERRORS: Final = {
    str(code): _DEVICE_ERROR for code in (400, 401, 404, 409, 413, 429, 500, 503)
}
_DEVICE_LOOP: Final = {"508": _DEVICE_ERROR}  # where a function may be behind the device
_TOKEN: Final = _text("token", "path", "The device's token: its only credential.")


def _fetch(method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"fetch_{method}",
        "tags": ["running"],
        "summary": "Call a function's fetch handler",
        "description": "Status, headers and body are the handler's own. Needs no key: the function "
        "itself decides whom it answers.",
        "parameters": [
            _text("project", "path", "Id or name."),
            _text("function", "path"),
            _text("path", "path", "Anything; the handler sees it in request.url."),
        ],
        "responses": {"200": {"description": "What the handler answers.", "headers": _RAN}},
        "x-problems": (404, 413, 429, 500, 503, 508, *_RUN),
    }
    if method in {"post", "put", "patch"}:
        operation["requestBody"] = {
            "content": {"*/*": {"schema": {}, "example": "anything, up to 1 MB"}}
        }
    return operation


def _call(operation_id: str) -> dict[str, Any]:
    return {
        "operationId": operation_id,
        "tags": ["device API"],
        "summary": "Call a function from a device",
        "parameters": [_TOKEN, _text("name", "path")],
        "requestBody": _json(_object([], params={}), {"params": {"a": 1}}),
        "responses": {
            "200": _answer("What the function returned.", {}),
            **_DEVICE_ERRORS,
            **_DEVICE_LOOP,
        },
    }


HOT_PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/writes": {
        "post": {
            "operationId": "write_devices",
            "tags": ["devices"],
            "summary": "Write to many devices",
            "description": "A bad item does not spoil the others. Scope: ingest or operate.",
            "security": _KEY,
            "requestBody": {
                "required": True,
                **_json(
                    {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1000,
                        "items": _ref("DeviceWrite"),
                    },
                    [{"device": f"dev_{_ID}", **_VALUES_EXAMPLE}],
                ),
            },
            "responses": {"200": _answer("A result per item, in their order.", _ref("Writes"))},
            "x-problems": _SENT,
        }
    },
    "/v1/jobs": {
        "post": {
            "operationId": "create_jobs",
            "tags": ["jobs"],
            "summary": "Run a function later, until it succeeds",
            "description": "One job, or up to 1,000 in a list or as {jobs: [...]}: each has its "
            "own answer then, and a bad one does not spoil the others. Scope: develop or operate.",
            "security": _KEY,
            "requestBody": {
                "required": True,
                **_json(
                    {
                        "oneOf": [
                            _ref("Job"),
                            {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 1000,
                                "items": _ref("Job"),
                            },
                        ]
                    },
                    {"function": "report", "payload": {"day": "2010-10-29"}, "delay_seconds": 300},
                ),
            },
            "responses": {
                "200": _answer("A result per job, in their order.", _ref("JobsMade")),
                "201": {
                    **_answer("Queued; ask at Location.", _ref("JobMade")),
                    "headers": {"Location": {"schema": _STRING}},
                },
            },
            "x-problems": _SENT,
        }
    },
    "/v1/devices/{device_id}/values": {
        "post": {
            "operationId": "write_device",
            "tags": ["devices"],
            "summary": "Write to one device",
            "description": "Answered when it is on disk, with the runs it causes. "
            "Scope: ingest or operate.",
            "security": _KEY,
            "parameters": [_text("device_id", "path")],
            "requestBody": {"required": True, **_json(_ref("Values"), _VALUES_EXAMPLE)},
            "responses": {
                "200": _answer("Every value was sent before.", _ref("Written")),
                "201": _answer("Stored.", _ref("Written")),
            },
            "x-problems": _SENT,
        }
    },
    "/v1/functions/{name}/invoke": {
        "post": {
            "operationId": "invoke_function",
            "tags": ["running"],
            "summary": "Run a function",
            "description": "The body is the handler's params, any JSON; none: null. Errors of the "
            "function add `execution_id`, and `error` or `limit`.",
            "security": _KEY,
            "parameters": [
                _text("name", "path"),
                _text("handler", "query", "main or job; else the one it has."),
                _text("Prefer", "header", "respond-async: answer 202 as soon as it is queued."),
            ],
            "requestBody": _json({}, {"threshold": 30}),
            "responses": {
                "200": {**_answer("What the function returned.", {}), "headers": _RAN},
                "202": {
                    **_answer("Queued; ask at Location.", _ref("Queued")),
                    "headers": {"Location": {"schema": _STRING}},
                },
            },
            "x-problems": (*_SENT, *_RUN),
        }
    },
    "/f/{project}/{function}/{path}": {
        method: _fetch(method) for method in ("get", "post", "put", "patch", "delete")
    },
    "/v2/things/{token}": {
        "post": {
            "operationId": "thing_write",
            "tags": ["device API"],
            "summary": "Write values from a device",
            "parameters": [_TOKEN],
            "requestBody": {"required": True, **_json(_ref("Values"), _VALUES_EXAMPLE)},
            "responses": {
                "200": _answer("Every value was sent before.", _ref("ThingWritten")),
                "201": _answer(
                    "Stored.",
                    _ref("ThingWritten"),
                    {"status": "created", "message": "created", "event_id": f"evt_{_ID}"},
                ),
                **_DEVICE_ERRORS,
                **_DEVICE_LOOP,
            },
        }
    },
    "/v2/things/{token}/resources": {
        "get": {
            "operationId": "thing_resources",
            "tags": ["device API"],
            "summary": "List a device's resources",
            "parameters": [_TOKEN],
            "responses": {
                "200": _answer(
                    "Their keys.", {"type": "array", "items": _object(["key"], key=_STRING)}
                ),
                **_DEVICE_ERRORS,
            },
        }
    },
    "/v2/things/{token}/resources/{key}": {
        "get": {
            "operationId": "thing_read",
            "tags": ["device API"],
            "summary": "Read a resource of a device",
            "parameters": [
                _TOKEN,
                _text("key", "path"),
                _text("limit", "query", "1 to 100; else 1"),
                _text("startDate", "query", "YYYYMMDDHHmmss or RFC 3339"),
                _text("endDate", "query", "YYYYMMDDHHmmss or RFC 3339"),
            ],
            "responses": {
                "200": _answer("Newest first.", {"type": "array", "items": _ref("Value")}),
                **_DEVICE_ERRORS,
            },
        }
    },
    "/v2/things/{token}/code/functions/{name}": {"post": _call("thing_call")},
    "/v2/things/{token}/code/function/{name}": {"post": _call("thing_call_old")},
}
