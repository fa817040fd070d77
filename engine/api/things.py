"""The device API of thethings.iO, `/v2`: what devices in the field have been speaking for years.

Path:   hot -> here -> as writes and invocations do -> the answer, or an error in its own envelope
Never:  answers with a problem+json, or with 422: those devices know neither.
"""

from typing import Final
from urllib.parse import unquote

import msgspec

from engine.api.edge import check_json
from engine.api.invocations import (
    RunEnded,
    find_function,
    new_run,
    run_for,
    server_timing,
)
from engine.api.keyed import claim_key
from engine.api.ports import Ports
from engine.api.problems import headers_of
from engine.api.raw import Request, Route
from engine.api.writes import Stored, count_device, decode_write, store_values
from engine.catalogue import Device
from engine.clock import iso
from engine.errors import EngineError
from engine.events import check_text, read_time
from engine.handlers import first_handler
from engine.ids import new_id
from engine.quotas import EVENT_BYTES_MAX, PARAMS_BYTES_MAX
from engine.store.device_values import Window, list_resources, read_timeline
from runtimes.contract import Outcome

THING_READ_MAX: Final = 100
UNPROCESSABLE: Final = 422
_PARAMS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode: Final = msgspec.json.encode


class ThingError(EngineError):
    """An error of the device API: its own envelope, not a problem+json."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def thing_route(method: str, path: str) -> Route:
    """Return what serves this request to a path under /v2/."""
    parts = path[4:].strip("/").split("/")
    match (method, *parts):
        case ("POST", "things", token):
            return _write, (token,)
        case ("GET", "things", token, "resources"):
            return _resources, (token,)
        case ("GET", "things", token, "resources", key):
            return _read, (token, key)
        case ("POST", "things", token, "code", "functions" | "function", name):
            return _call, (token, name)
        case _:
            return _no_route, ()


async def refuse_thing(request: Request, error: Exception) -> None:
    """Answer with the error in the device API's own envelope."""
    if isinstance(error, ThingError):
        status, message = error.status, str(error)
    else:
        problem = request.problem(error)
        status, message = problem["status"], problem["detail"]
        if status == UNPROCESSABLE:
            status = 400  # the device API of old knows no 422
    body = {"status": "error", "code": status, "message": message}
    headers = headers_of(error) if isinstance(error, EngineError) else {}
    sent = [(name.encode(), text.encode()) for name, text in headers.items()]
    await request.answer(status, _encode(body), sent)


async def _write(ports: Ports, request: Request, token: str) -> None:
    device = await _thing(ports, request, token)
    body = await request.body(2 * EVENT_BYTES_MAX, "event_bytes")
    if request.key is not None:
        await claim_key(ports, request, body, project_id=device.project_id, of=device.id)
    await store_values(ports, request, device, decode_write(body).values, _written)


def _written(stored: Stored) -> tuple[int, bytes]:
    if stored.event_id is None:
        answer = {"status": "duplicate", "message": "every value was sent before"}
        return 200, _encode(answer | {"event_id": None, "duplicates": stored.duplicates})
    answer = {"status": "created", "message": "created", "event_id": stored.event_id}
    return 201, _encode(answer | stored.shown_duplicates())


async def _resources(ports: Ports, request: Request, token: str) -> None:
    device = await _thing(ports, request, token)
    keys = await ports.database.read(list_resources, device.id)
    await request.answer(200, _encode([{"key": key} for key in keys]))


async def _read(ports: Ports, request: Request, token: str, key: str) -> None:
    device = await _thing(ports, request, token)
    key, query = unquote(key), request.query
    try:
        limit = int(query.get("limit", "1"))
    except ValueError:
        raise ThingError(400, "limit must be a whole number from 1 to 100") from None
    window = Window(
        start_ms=_time(query.get("startDate")),
        end_ms=_time(query.get("endDate")),
        limit=min(THING_READ_MAX, max(1, limit)),
    )
    found = await ports.database.read(read_timeline, device.id, key, window)
    if not found and key not in await ports.database.read(list_resources, device.id):
        raise ThingError(404, f"the thing has no resource {key!r}")
    items = []
    for value in found:
        item = {
            "key": value.key,
            "value": msgspec.Raw(value.value_json.encode()),
            "datetime": iso(value.at_ms),
        }
        if value.geo_json is not None:
            item["geo"] = msgspec.Raw(value.geo_json.encode())
        items.append(item)
    await request.answer(200, _encode(items))


async def _call(ports: Ports, request: Request, token: str, name: str) -> None:
    device = await _thing(ports, request, token)
    body = await request.body(PARAMS_BYTES_MAX, "params_bytes")
    check_json(body or b"null")
    check_text(body or b"null", "")
    if request.key is not None:
        await claim_key(ports, request, body, project_id=device.project_id, of=device.id)
    try:
        params = bytes(_PARAMS.decode(body)["params"])
    except (msgspec.MsgspecError, KeyError):
        raise ThingError(400, 'the body must be {"params": <any JSON>}') from None
    function = find_function(ports.catalogue, device.project_id, name)
    execution_id = new_id("exe")
    version = function.choose(execution_id)
    handler = first_handler(version.handlers)
    above = request.above_call()
    run = new_run(execution_id, version, handler, "invoke", params, ports.clock(), device, above)
    request.execution_id = execution_id
    await run_for(request, ports.dispatcher, run)
    if run.outcome is not Outcome.SUCCEEDED:
        message = run.error.message if run.error is not None else str(RunEnded(run))
        raise ThingError(400 if run.outcome is Outcome.FAILED else 500, message)
    await request.answer(200, run.result, server_timing(run))


async def _no_route(_ports: Ports, request: Request) -> None:
    if request.scope["path"].rstrip("/") == "/v2":
        raise ThingError(401, "Invalid session token")
    raise ThingError(404, "there is no such route")


async def _thing(ports: Ports, request: Request, token: str) -> Device:
    device = ports.catalogue.known_device(token)
    if device is None:
        device = await ports.catalogue.device_by_token(token)
    if device is None:
        raise ThingError(401, "Invalid thing token")
    count_device(ports, request, device)
    return device


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return read_time(text.replace(" ", "+"))  # a + in a query is a space
    except ValueError as error:
        raise ThingError(400, str(error)) from None
