"""The raw routes that write values: `/v1/devices/{id}/values`, and a gateway's `/v1/writes`.

Path:   hot -> here -> events -> journal -> the answer -> backlog
        things, and the short way in hot, write with the same functions
Never:  answers a write before it is on disk; lets one bad item of a batch spoil the others.
"""

from typing import Any, Final

import msgspec

from engine.api.access import Access
from engine.api.edge import check_json
from engine.api.ports import Ports
from engine.api.problems import problem_of
from engine.api.raw import Request
from engine.catalogue import Catalogue, Device
from engine.errors import EngineError, Invalid, NotFound
from engine.events import Accepted, RawValue, RawWrite, check_values
from engine.quotas import BATCH_ITEMS_MAX, EVENT_BYTES_MAX, GATEWAY_BYTES_MAX
from engine.run import Run
from engine.store.journal import Commit

WRITE: Final = ("ingest", "operate")
WRITE_BODY: Final = msgspec.json.Decoder(RawWrite)
_encode: Final = msgspec.json.encode


class _Item(msgspec.Struct):
    """One device's write in a gateway's request."""

    values: list[RawValue]
    device: str | None = None
    token: str | None = None


_ITEMS: Final = msgspec.json.Decoder(list[_Item])
_RAW_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM: Final = msgspec.json.Decoder(_Item)


async def write_device_values(ports: Ports, request: Request, device_id: str) -> None:
    """Serve `/v1/devices/{id}/values`."""
    access = request.access(ports.catalogue)
    access.require(*WRITE)
    raw = decode_write(await request.body(2 * EVENT_BYTES_MAX, "event_bytes"))
    device = await ports.catalogue.device_by_id(access.project_id, device_id)
    accepted = await accept_values(ports, device, raw.values)
    body = {
        "event_id": accepted.event_id,
        "values": len(raw.values),
        "executions": [run.execution_id for run in accepted.runs],
    }
    await request.answer(201, _encode(body))


async def write_gateway(ports: Ports, request: Request) -> None:
    """Serve `/v1/writes`: each item has its own result, and all that are good one commit."""
    access = request.access(ports.catalogue)
    access.require(*WRITE)
    body = await request.body(GATEWAY_BYTES_MAX, "gateway_bytes")
    items = _decode_items(body)
    if not 1 <= len(items) <= BATCH_ITEMS_MAX:
        raise Invalid(f"has {len(items)} items; 1 to {BATCH_ITEMS_MAX} are allowed", "")
    commit = Commit()
    results: list[dict[str, Any]] = []
    runs: list[Run] = []
    accepted_count = 0
    now_ms = ports.clock()
    for item in items:
        try:
            if isinstance(item, Invalid):
                raise item
            device = await _item_device(ports.catalogue, access, item)
            checked = check_values(item.values, now_ms)
        except EngineError as error:
            problem = problem_of(error, instance="", request_id="")
            results.append({"status": problem["status"], "code": error.code, "detail": str(error)})
            continue
        accepted = ports.events.accept(commit, device, checked, source="gateway")
        runs += accepted.runs
        accepted_count += 1
        results.append(
            {
                "status": 201,
                "event_id": accepted.event_id,
                "executions": [run.execution_id for run in accepted.runs],
            }
        )
    if commit.inserts:
        await ports.journal.commit(commit)
    ports.backlog.submit(runs)
    rejected_count = len(results) - accepted_count
    answer = {"items": results, "accepted": accepted_count, "rejected": rejected_count}
    await request.answer(200, _encode(answer))


async def accept_values(ports: Ports, device: Device, raw: list[RawValue]) -> Accepted:
    """Check one device's values and commit them; return once they are on disk."""
    checked = check_values(raw, ports.clock())
    commit = Commit()
    accepted = ports.events.accept(commit, device, checked, source="http")
    await ports.journal.commit(commit)
    ports.backlog.submit(accepted.runs)
    return accepted


async def _item_device(catalogue: Catalogue, access: Access, item: _Item) -> Device:
    if (item.token is None) == (item.device is None):
        raise Invalid("give either device or token", "/device")
    if item.token is None:
        assert item.device is not None
        return await catalogue.device_by_id(access.project_id, item.device)
    device = catalogue.known_device(item.token)
    if device is None:
        device = await catalogue.device_by_token(item.token)
    if device is None or device.project_id != access.project_id:
        raise NotFound("device with the token", item.token[:6] + "...")
    return device


def decode_write(body: bytes) -> RawWrite:
    """Return the values of one device's write.

    Raises:
        Invalid: it is not a write; names the field.
        MalformedJson: it is not JSON.
    """
    try:
        return WRITE_BODY.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(*_explained(error)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        check_json(body)
        raise Invalid('the body must be {"values": [{"key", "value"}, ...]}', "") from None


def _decode_items(body: bytes) -> list[_Item | Invalid]:
    """Return the items; one that is not well-formed as its error."""
    try:
        return list(_ITEMS.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        check_json(body)
    try:
        raw = _RAW_ITEMS.decode(body)
    except msgspec.MsgspecError:
        raise Invalid("the body must be a list of {device or token, values}", "") from None
    items: list[_Item | Invalid] = []
    for item in raw:
        try:
            items.append(_ITEM.decode(item))
        except msgspec.ValidationError as error:
            items.append(Invalid(*_explained(error)))
    return items


def _explained(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return message and JSON pointer of what msgspec says: `... - at `$.values[0].key``."""
    message, _, place = str(error).partition(" - at `")
    pointer = place.rstrip("`").removeprefix("$").replace("[", ".").replace("]", "")
    return message, pointer.replace(".", "/")
