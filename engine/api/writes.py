"""The raw routes that write values: `/v1/devices/{id}/values`, and a gateway's `/v1/writes`.

Path:   hot -> here -> events -> journal -> the answer -> backlog
        things, and the short way in hot, write with the same functions
Never:  answers a write before it is on disk; lets one bad item of a batch spoil the others;
        stores a value again that its sender had given an id.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from engine.api.access import Access
from engine.api.edge import check_json
from engine.api.keyed import claim_key
from engine.api.ports import Ports
from engine.api.problems import problem_of
from engine.api.raw import Request
from engine.catalogue import Catalogue, Device
from engine.causality import Share, share_below
from engine.errors import EngineError, Invalid, NotFound, explained
from engine.events import Events, RawWrite, SentValue, check_values, has_ids
from engine.quotas import BATCH_ITEMS_MAX, EVENT_BYTES_MAX, GATEWAY_BYTES_MAX
from engine.rate_limits import RateLimited, Scope
from engine.run import Run, Value
from engine.store.journal import Commit
from engine.store.value_ids import NO_TIME, Mark, SeenBefore, take_ids

WRITE: Final = ("ingest", "operate")
WRITE_BODY: Final = msgspec.json.Decoder(RawWrite)
_encode: Final = msgspec.json.encode


class _Item(msgspec.Struct):
    """One device's write in a gateway's request."""

    values: list[SentValue]
    device: str | None = None
    token: str | None = None


class _Write(msgspec.Struct, frozen=True, kw_only=True):
    """One device's values, checked."""

    device: Device
    values: tuple[Value, ...]
    marks: tuple[Mark | None, ...]  # what names each; empty: none of them has an id


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one device's values."""

    event_id: str | None  # None: all of them were sent before
    runs: list[Run]
    count: int
    duplicates: int | None  # None: no value had an id, so nobody knows

    def shown_duplicates(self) -> dict[str, int]:
        return {} if self.duplicates is None else {"duplicates": self.duplicates}


class _Refused(msgspec.Struct, frozen=True):
    """One item of a gateway that is wrong."""

    shown: dict[str, Any]


class _Unseen:
    """Tells of each value whether it is new: to the database, and within the request."""

    def __init__(self, seen: frozenset[Mark]) -> None:
        self._seen = set(seen)

    def is_first(self, mark: Mark) -> bool:
        is_new = mark not in self._seen
        self._seen.add(mark)
        return is_new


_ITEMS: Final = msgspec.json.Decoder(list[_Item])
_RAW_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM: Final = msgspec.json.Decoder(_Item)


async def write_device_values(ports: Ports, request: Request, device_id: str) -> None:
    """Serve `/v1/devices/{id}/values`."""
    access = request.access(ports)
    access.require(*WRITE)
    body = await request.body(2 * EVENT_BYTES_MAX, "event_bytes")
    device = await ports.catalogue.device_by_id(access.project_id, device_id)
    count_device(ports, request, device)
    if request.key is not None:
        await claim_key(ports, request, body, project_id=access.project_id, scopes=access.scopes)
    raw = decode_write(body)
    await store_values(ports, request, device, raw.values, _written)


async def write_gateway(ports: Ports, request: Request) -> None:
    """Serve `/v1/writes`: each item has its own result, and all that are good one commit."""
    access = request.access(ports)
    access.require(*WRITE)
    body = await request.body(GATEWAY_BYTES_MAX, "gateway_bytes")
    if request.key is not None:
        await claim_key(ports, request, body, project_id=access.project_id, scopes=access.scopes)
    items = _decode_items(body)
    if not 1 <= len(items) <= BATCH_ITEMS_MAX:
        raise Invalid(f"has {len(items)} items; 1 to {BATCH_ITEMS_MAX} are allowed", "")
    now_ms = ports.clock()
    checked = [await _checked(ports, access, item, now_ms) for item in items]

    def put(commit: Commit, unseen: _Unseen) -> tuple[int, bytes, list[Run]]:
        good = [item for item in checked if not isinstance(item, _Refused)]
        share = _share(ports.events, request, good)
        results: list[dict[str, Any]] = []
        runs: list[Run] = []
        for item in checked:
            if isinstance(item, _Refused):
                results.append(item.shown)
                continue
            stored = _put(ports.events, commit, item, unseen, "gateway", share)
            runs += stored.runs
            result = {
                "status": 201 if stored.event_id else 200,
                "event_id": stored.event_id,
                "executions": [run.execution_id for run in stored.runs],
            }
            results.append(result | stored.shown_duplicates())
        rejected_count = sum(isinstance(item, _Refused) for item in checked)
        accepted_count = len(checked) - rejected_count
        answer = {"items": results, "accepted": accepted_count, "rejected": rejected_count}
        return 200, _encode(answer), runs

    marks = [mark for item in checked if not isinstance(item, _Refused) for mark in item.marks]
    await _commit_and_answer(ports, request, marks, put)


async def store_values(
    ports: Ports,
    request: Request,
    device: Device,
    raw: list[SentValue],
    shown: Callable[[Stored], tuple[int, bytes]],
) -> None:
    """Check one device's values and commit them; answer with `shown` once they are on disk."""
    write = _write_of(device, raw, ports.clock())

    def put(commit: Commit, unseen: _Unseen) -> tuple[int, bytes, list[Run]]:
        share = _share(ports.events, request, [write])
        stored = _put(ports.events, commit, write, unseen, "http", share)
        return *shown(stored), stored.runs

    await _commit_and_answer(ports, request, write.marks, put)


async def _commit_and_answer(
    ports: Ports,
    request: Request,
    marks: Sequence[Mark | None],
    put: Callable[[Commit, _Unseen], tuple[int, bytes, list[Run]]],
) -> None:
    """Commit what `put` puts there, and answer what it says.

    Only the database knows what was sent before: when it refuses a commit for that, a commit of
    the rest is made. Each refusal names values that no later one has, so it comes to an end.
    """
    seen: frozenset[Mark] = frozenset()
    wanted = frozenset(mark for mark in marks if mark is not None)
    while True:
        commit = Commit()
        status, body, runs = put(commit, _Unseen(seen))
        if not commit.inserts:
            break
        if runs:
            await ports.queue_room.need(runs[0].project_id, len(runs))
        if fresh := wanted - seen:
            commit.change = partial(take_ids, marks=tuple(fresh), now_ms=ports.clock())
        request.answer_with(commit, status, body)
        try:
            await ports.journal.commit(commit)
        except SeenBefore as error:
            seen |= error.marks
            continue
        ports.backlog.submit(runs)
        break
    await request.answer(status, body)


def _share(events: Events, request: Request, writes: Sequence[_Write]) -> Share | None:
    """Return what the runs get that these writes trigger; None: no function is behind them.

    Raises:
        LoopDetected: there would be too many, or too deep. Nothing is stored: the function knows.
    """
    if request.above is None:
        return None
    triggered = sum(len(events.matching(write.device, write.values)) for write in writes)
    return share_below(request.above, triggered) if triggered else None


def _put(
    events: Events,
    commit: Commit,
    write: _Write,
    unseen: _Unseen,
    source: str,
    share: Share | None,
) -> Stored:
    """Put the values that were not sent before into the commit."""
    values = write.values
    if write.marks:
        pairs = zip(write.values, write.marks, strict=True)
        values = tuple(value for value, mark in pairs if mark is None or unseen.is_first(mark))
    duplicates = len(write.values) - len(values) if write.marks else None
    if not values:
        return Stored(event_id=None, runs=[], count=0, duplicates=duplicates)
    accepted = events.accept(commit, write.device, values, source=source, share=share)
    return Stored(
        event_id=accepted.event_id, runs=accepted.runs, count=len(values), duplicates=duplicates
    )


def _write_of(device: Device, raw: list[SentValue], now_ms: int) -> _Write:
    """Check the values, and name those that have an id.

    Raises:
        Invalid, PayloadTooLarge: as `check_values`.
    """
    values = check_values(raw, now_ms)
    marks: tuple[Mark | None, ...] = ()
    if has_ids(raw):
        marks = tuple(
            None
            if sent.id is None
            else (device.id, sent.key, NO_TIME if sent.datetime is None else value.at_ms, sent.id)
            for sent, value in zip(raw, values, strict=True)
        )
    return _Write(device=device, values=values, marks=marks)


def _written(stored: Stored) -> tuple[int, bytes]:
    body = {
        "event_id": stored.event_id,
        "values": stored.count,
        "executions": [run.execution_id for run in stored.runs],
    }
    return 201 if stored.event_id else 200, _encode(body | stored.shown_duplicates())


def count_device(ports: Ports, request: Request, device: Device) -> None:
    """Count a request for its device.

    Raises:
        RateLimited: the device has used its minute up.
    """
    per_minute = ports.catalogue.allowances(device.project_id).device_requests_per_minute
    request.count(ports.rate_limits, Scope.DEVICE, device.id, per_minute)


async def _checked(
    ports: Ports, access: Access, item: _Item | Invalid, now_ms: int
) -> _Write | _Refused:
    try:
        if isinstance(item, Invalid):
            raise item
        device = await _item_device(ports.catalogue, access, item)
        write = _write_of(device, item.values, now_ms)
        per_minute = ports.catalogue.allowances(device.project_id).device_requests_per_minute
        if per_minute:
            ports.rate_limits.take(Scope.DEVICE, device.id, per_minute)
    except RateLimited as error:
        return _Refused(_shown(error) | {"retry_after": error.retry_after_s})
    except EngineError as error:
        return _Refused(_shown(error))
    return write


def _shown(error: EngineError) -> dict[str, Any]:
    problem = problem_of(error, instance="", request_id="")
    return {"status": problem["status"], "code": error.code, "detail": str(error)}


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
        raise Invalid(*explained(error)) from None
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
            items.append(Invalid(*explained(error)))
    return items
