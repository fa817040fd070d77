"""Host calls on devices: read a timeline, write values (buffered until the run succeeds), list.

Path:   broker -> here -> store (reads), Run.effects (writes)
Never:  reaches a device of another project; writes anything itself.
"""

from typing import Any, Final

import msgspec

from engine.catalogue import Catalogue, Device
from engine.clock import Clock, iso
from engine.errors import HostCallRefused, NotFound
from engine.events import RawValue, check_values, read_time
from engine.run import Run, Value, WriteEffect
from engine.runner import LimitReached, spend_bytes
from engine.store import live
from engine.store.database import Database
from engine.store.device_values import StoredValue, Window, read_timeline
from runtimes.contract import LimitHit, Outcome

VALUES_MAX: Final = 1_000  # of one read
_LIST_MAX: Final = 1_000


class _Read(msgspec.Struct):
    device: str
    key: str
    start: str | int | None = None
    end: str | int | None = None
    limit: int = 1


class _Write(msgspec.Struct):
    device: str
    values: list[RawValue]


class Devices:
    """What a run may ask about the devices of its project."""

    def __init__(self, catalogue: Catalogue, database: Database, clock: Clock) -> None:
        self._catalogue = catalogue
        self._database = database
        self._clock = clock

    async def values(self, run: Run, arguments: bytes, _call: int) -> list[dict[str, Any]]:
        """Return values of one resource, newest first, with what this run has written so far."""
        asked = msgspec.json.decode(arguments, type=_Read)
        device = await self._device(run, asked.device)
        start_ms = _time(asked.start, "start")
        end_ms = _time(asked.end, "end")
        limit = max(1, min(VALUES_MAX, asked.limit))
        window = Window(start_ms=start_ms, end_ms=end_ms, limit=limit)
        stored = await self._database.read(read_timeline, device.id, asked.key, window)
        own = [
            value
            for effect in run.effects
            if isinstance(effect, WriteEffect) and effect.device.id == device.id
            for value in effect.values
            if value.key == asked.key
            and (start_ms is None or value.at_ms >= start_ms)
            and (end_ms is None or value.at_ms <= end_ms)
        ]
        if not own:
            return [_stored(value) for value in stored]
        # Own writes come later than all that is stored, so among equal times they are newer.
        merged = [(value.at_ms, 0, n, _stored(value)) for n, value in enumerate(reversed(stored))]
        merged += [(value.at_ms, 1, n, _written(value)) for n, value in enumerate(own)]
        merged.sort(key=lambda item: item[:3], reverse=True)
        return [item[3] for item in merged[:limit]]

    def write(self, run: Run, arguments: bytes, _call: int) -> Any:
        """Buffer values for a device; they are stored with the run's record, or never."""
        asked = msgspec.json.decode(arguments, type=_Write)
        checked = check_values(asked.values, run.guest_ms)
        run.writes_count += len(checked)
        spend_bytes(run, len(arguments))
        most = run.limits.device_writes
        if run.writes_count > most:
            hit = LimitHit(name="device_writes", value=most, used=run.writes_count)
            raise LimitReached(Outcome.EFFECTS_EXCEEDED, hit)
        known = run.device
        if known is not None and asked.device in {known.token, known.id}:
            return _buffer(run, known, checked)
        run.open_effects += 1
        return self._write_later(run, asked.device, checked)

    async def list(self, run: Run, arguments: bytes, _call: int) -> list[dict[str, Any]]:
        """Return the devices of the product that started the run."""
        if run.device is None:
            raise HostCallRefused("this run was not started by a device, so it has no product")
        found = await self._database.read(live.devices_of_product, run.device.product_id, _LIST_MAX)
        return [
            {
                "id": device.id,
                "token": device.token,
                "name": device.name,
                "tags": device.tags,
                "timezone": device.timezone,
                "created_at": iso(device.created_ms),
                "last_seen": None,
            }
            for device in found
        ]

    async def _write_later(self, run: Run, asked: str, checked: tuple[Value, ...]) -> Any:
        losses = run.losses
        try:
            device = await self._device(run, asked)
        finally:
            if run.losses == losses:  # else the run began again meanwhile, with a count of its own
                run.open_effects -= 1
        if run.losses != losses:
            return None  # nobody listens, and the effect would be the next attempt's
        return _buffer(run, device, checked)

    async def _device(self, run: Run, asked: str) -> Device:
        known = run.device
        if known is not None and asked in {known.token, known.id}:
            return known
        device = await self._catalogue.device_by_token(asked)
        if device is None:
            return await self._catalogue.device_by_id(run.version.project_id, asked)
        if device.project_id != run.version.project_id:
            raise NotFound("device", asked)
        return device


def _buffer(run: Run, device: Device, checked: tuple[Value, ...]) -> dict[str, int]:
    run.effects.append(WriteEffect(device=device, values=checked))
    return {"values": len(checked)}


def _time(text: str | int | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        return read_time(text)
    except ValueError as error:
        raise HostCallRefused(f"{name}: {error}") from None


def _stored(value: StoredValue) -> dict[str, Any]:
    return _shown(value.key, value.value_json, value.at_ms, value.geo_json)


def _written(value: Value) -> dict[str, Any]:
    return _shown(value.key, value.json, value.at_ms, value.geo)


def _shown(key: str, value: str, at_ms: int, geo: str | None) -> dict[str, Any]:
    shown = {"key": key, "value": msgspec.Raw(value.encode()), "datetime": iso(at_ms)}
    if geo is not None:
        shown["geo"] = msgspec.Raw(geo.encode())
    return shown
