"""Reads the body that brings a version: up to 15 MB, of which nothing is kept but what it says.

Path:   edge (leaves the body alone) -> the key is checked -> here -> api.functions, api.versions
Never:  reads before the key is known; holds the text of a module while it is compiled.

FastAPI would keep the bytes and the parsed JSON of a body until its route has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, PlainValidator, ValidationError, WithJsonSchema

from engine.api.declarations import FlowSaid, QueueSaid, RetriesSaid, said
from engine.api.edge import MalformedJson, check_json, read_body
from engine.api.shapes import Body, Shown
from engine.bundles import IO, WASM_HANDLERS, decode_wasm
from engine.errors import Invalid
from engine.functions import Upload
from engine.quotas import UPLOAD_BYTES_MAX, WASM_ARGS_MAX
from runtimes.contract import SourceWarning

Model = TypeVar("Model", bound=BaseModel)

UPLOAD_WAIT_S: Final = 120  # 15 MB at 1 Mbit/s; the caller has a key


def _wasm(given: object) -> bytes | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise Invalid("must be text: the module's binary as base64", "/wasm")
    return decode_wasm(given)


Wasm = Annotated[
    bytes | None,
    PlainValidator(_wasm),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "default": None}),
]


WARNINGS: Final = "What runs, but is better written in another way, e.g. a key in the source."


class WarningShown(Shown):
    """One place of a source, and what to do about it; line and column from 1."""

    file: str
    line: int
    column: int
    message: str


def warning_shown(warning: SourceWarning) -> WarningShown:
    return WarningShown(**msgspec.structs.asdict(warning))


class LimitsAsked(Body):
    """Hard stops of a run, within what `/v1/limits` says of its handler."""

    cpu_ms: int | None = None
    wall_ms: int | None = None
    memory_mb: int | None = None
    fuel: int | None = Field(None, description="wasm: instructions, about; not metered if absent.")


class UploadBody(Body):
    """The parts of a version."""

    source: str | None = Field(None, description="One file; its name is `main`, else main.js.")
    files: dict[str, str] | None = Field(None, description="Several files: name -> text.")
    main: str | None = Field(None, description="The file to start with, e.g. main.ts.")
    wasm: Wasm = Field(None, description="wasm: the module's binary as base64.")
    handlers: list[str] | None = Field(
        None,
        description="wasm: what it is run for; default: default, afterStore, job, scheduled. "
        f"`fetch` makes it public. There are: {', '.join(WASM_HANDLERS)}.",
    )
    args: list[str] | None = Field(
        None, description=f"wasm: a command's arguments, at most {WASM_ARGS_MAX}."
    )
    io: str | None = Field(
        None, description=f"wasm: {' or '.join(IO)}; text: strings are handed over bare."
    )
    exports: dict[str, str] | None = Field(
        None, description='wasm: other names of the functions "alloc" and "handle".'
    )
    reuse: bool | None = Field(
        None, description="wasm: one instance serves many runs, and keeps its memory."
    )
    limits: LimitsAsked | None = None
    allowed_hosts: list[str] | None = Field(
        None, description="host, *.host, host:port or *; none: no network."
    )
    variables: dict[str, str] | None = None
    secrets: list[str] | None = Field(None, description="Names of secrets that the code may read.")
    retries: RetriesSaid | None = None
    flow: FlowSaid | None = None
    queue: QueueSaid | None = None
    message: str = Field("", description="What this version is about.")

    def upload(self) -> Upload:
        limits = None if self.limits is None else self.limits.model_dump(exclude_none=True)
        fields = {name: getattr(self, name) for name in UploadBody.model_fields}
        rules = {name: said(fields[name]) for name in ("retries", "flow", "queue")}
        return Upload(**fields | {"limits": limits} | rules)


def uploaded(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return the dependency that reads a body of this form; put it behind the key's."""

    async def read(request: Request) -> Model:
        body = await read_body(
            request.headers,
            request.receive,
            UPLOAD_BYTES_MAX,
            limit_name="upload_bytes",
            wait_s=UPLOAD_WAIT_S,
        )
        if body is None:
            raise MalformedJson("the connection ended before the body did")
        # In a thread: some 100 ms for the largest, in pieces of at most 15.
        return await asyncio.to_thread(_parse, model, body)

    return read


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """Return `openapi_extra` of a route that takes such a body; see `openapi.document`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _parse(model: type[Model], body: bytes) -> Model:
    if not body:
        raise RequestValidationError([{"loc": ("body",), "type": "missing", "msg": "required"}])
    check_json(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
        ) from None
