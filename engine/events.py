"""Takes device writes: checks the values, matches triggers, and puts all of it into one commit.

Path:   api.writes, api.hot, hostcalls.devices -> check_values -> accept -> journal -> dispatch
Never:  answers for itself: the caller answers once the commit is on disk.
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Annotated, Final

import msgspec

from engine.catalogue import Catalogue, Device, Trigger, Version
from engine.causality import Share, first_share
from engine.clock import Clock, iso
from engine.enqueue import Owner, as_declared, enqueue, in_turn
from engine.errors import Invalid, PayloadTooLarge
from engine.ids import new_id
from engine.intents import origin_through
from engine.quotas import (
    EVENT_BYTES_MAX,
    JSON_DEPTH_MAX,
    WRITE_VALUES_MAX,
)
from engine.run import Run, Value
from engine.store.journal import Commit
from engine.store.tables import events, resources, values

KEY: Final = re.compile(r"\$?[A-Za-z0-9._-]{1,128}")
TIME_CHARS_MAX: Final = 64  # the cache below must not keep what a stranger chooses
VALUE_ID_CHARS_MAX: Final = 128
RESOURCES_KNOWN_MAX: Final = 500_000
_COMPACT: Final = re.compile(r"(\d{4})(\d\d)(\d\d)T?(\d\d)(\d\d)(\d\d)")
_YEAR_MS_MIN: Final = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
_YEAR_MS_MAX: Final = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
_encode: Final = msgspec.json.encode


class _Geo(msgspec.Struct):
    lat: float
    long: float


# No NUL: PostgreSQL has no text with one.
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=VALUE_ID_CHARS_MAX, pattern=r"^[^\0]*$")]


class RawValue(msgspec.Struct):
    """One value as a device sends it; what it does not know is passed over, as the old API did."""

    key: str
    value: msgspec.Raw
    datetime: str | int | None = None
    geo: _Geo | None = None


class SentValue(RawValue):
    """One as it comes by HTTP: with an id of its sender's it is known when it comes again."""

    id: _Id | None = None


class RawWrite(msgspec.Struct):
    """The body of a device write."""

    values: list[SentValue]


class Accepted(msgspec.Struct):
    """What one write put into a commit."""

    event_id: str
    runs: list[Run]
    stopped: str = ""  # why a trigger did not make a run: see engine.causality
    stopped_count: int = 0  # ... and how many


class Match(msgspec.Struct, frozen=True):
    """A trigger that a write fires, and the run that it is to make."""

    trigger: Trigger
    execution_id: str
    version: Version
    handler: str


def has_ids(raw: Sequence[SentValue]) -> bool:
    """Say whether some of these values could have been sent before."""
    for value in raw:  # noqa: SIM110 - every write comes by here: `any` would cost three times that
        if value.id is not None:
            return True
    return False


def check_values(raw: Sequence[RawValue], now_ms: int) -> tuple[Value, ...]:
    """Return the values, ready for the store.

    Raises:
        Invalid: names the value and the field.
        PayloadTooLarge: together they are larger than an event may be.
    """
    if not 1 <= len(raw) <= WRITE_VALUES_MAX:
        raise Invalid(
            f"values has {len(raw)} items; 1 to {WRITE_VALUES_MAX} are allowed", "/values"
        )
    checked = []
    used = 0
    for at, value in enumerate(raw):
        text = bytes(value.value)
        used += len(text) + len(value.key)
        check_text(text, f"/values/{at}/value")
        if not KEY.fullmatch(value.key):
            raise Invalid(
                f"key {value.key[:80]!r} must be 1 to 128 letters, digits, '.', '-' or '_'",
                f"/values/{at}/key",
            )
        if text == b"null":
            raise Invalid("value must not be null", f"/values/{at}/value")
        try:
            at_ms = now_ms if value.datetime is None else read_time(value.datetime)
        except ValueError as error:
            raise Invalid(str(error), f"/values/{at}/datetime") from None
        geo = None if value.geo is None else _encode(value.geo).decode()
        checked.append(Value(key=value.key, json=text.decode(), at_ms=at_ms, geo=geo))
    if used > EVENT_BYTES_MAX:
        raise PayloadTooLarge("the write", "event_bytes", EVENT_BYTES_MAX, used)
    return tuple(checked)


def check_text(text: bytes, pointer: str) -> None:
    """Refuse JSON that some later reader could not take: it is stored as the text it came as.

    Raises:
        Invalid: it is not UTF-8, has a number without end, or is nested too deeply.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"is not JSON that can be stored: {error}", pointer) from None
    if text.count(b"[") + text.count(b"{") > JSON_DEPTH_MAX and _depth(value) > JSON_DEPTH_MAX:
        raise Invalid(f"is nested deeper than {JSON_DEPTH_MAX} levels", pointer)


def _depth(value: object) -> int:
    depth = 0
    level = [value] if isinstance(value, list | dict) else []
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer if isinstance(outer, list) else outer.values())
            if isinstance(inner, list | dict)
        ]
    return depth


def read_time(text: str | int) -> int:
    """Return what `parse_time` does, of a text from outside: it may be of any length.

    Raises:
        ValueError: as `parse_time`, or it is longer than any time is.
    """
    if isinstance(text, str) and len(text) > TIME_CHARS_MAX:
        raise ValueError(f"{text[:20]!r}... is not a time; it has {len(text)} characters")
    return parse_time(text)


@lru_cache(maxsize=4096)
def parse_time(text: str | int) -> int:
    """Return milliseconds since the epoch of `YYYYMMDDHHmmss`, `YYYYMMDDTHHmmss`, ISO 8601 or ms.

    Raises:
        ValueError: it is none of these, or outside of the years 1 to 9999.
    """
    if isinstance(text, int):
        if not 0 <= text <= _YEAR_MS_MAX:
            raise ValueError(f"{text} is not a time in milliseconds since 1970")
        return text
    try:
        if match := _COMPACT.fullmatch(text):
            year, month, day, hour, minute, second = (int(part) for part in match.groups())
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
        at_ms = round(moment.timestamp() * 1000)
        # An offset or a fraction can lead out of the years that can be written down again.
        if not _YEAR_MS_MIN <= at_ms <= _YEAR_MS_MAX:
            raise OverflowError  # noqa: TRY301 - one message for all that is no time
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:80]!r} is not a time; use 2010-10-28T12:18:56.799Z or YYYYMMDDHHmmss"
        ) from None
    return at_ms


class Events:
    """Puts device writes into commits."""

    def __init__(self, catalogue: Catalogue, clock: Clock, owner: Owner) -> None:
        self._owner = owner
        self._catalogue = catalogue
        self._clock = clock
        self._known: dict[tuple[str, str], None] = {}  # resources that have a row already
        self._last_seq = 0

    def accept(
        self,
        commit: Commit,
        device: Device,
        checked: tuple[Value, ...],
        *,
        source: str,
        matched: list[Match] | None = None,
        share: Share | None = None,
        root_id: str = "",
        origin: str = "",
    ) -> Accepted:
        """Add to `commit` the event, its values and the runs they cause.

        Args:
            commit: everything goes in there; nothing is stored or run before it is on disk.
            device: whose timeline.
            checked: from `check_values`.
            source: `http`, `gateway` or `function`.
            matched: from `matching`, if that is known already.
            share: what the runs get that it triggers, when a function is behind it.
            root_id: when a function's run writes: its root.
            origin: then that of the write, see `intents.origin_below`.
        """
        now_ms = self._clock()
        event_id = new_id("evt")
        texts = [_value_json(value) for value in checked]
        joined = ",".join(texts)
        payload = f'{{"values":[{joined}]}}'
        commit.insert(events, (event_id, device.project_id, device.id, now_ms, source, payload))
        self._store(commit, device, checked, now_ms)
        matched = self.matching(device, checked) if matched is None else matched
        accepted = Accepted(event_id, [])
        if not matched:
            return accepted
        if share is None:
            share = first_share(len(matched))
        position_ms = max(value.at_ms for value in checked)
        created_ns = time.monotonic_ns()
        for match in matched:
            if not share.take():
                accepted.stopped = share.stopped
                accepted.stopped_count += 1
                continue
            run = Run(
                execution_id=match.execution_id,
                version=match.version,
                handler=match.handler,
                cause="write",
                limits=match.version.limits(match.handler),
                input=write_input(match.handler, device, event_id, joined, now_ms, source),
                created_ms=now_ms,
                created_ns=created_ns,
                root_id=root_id or match.execution_id,
                depth=share.depth,
                path=share.path,
                budget=share.each,
                event_id=event_id,
                device=device,
                origin=origin_through(origin, match.trigger.id) if origin else "",
            )
            as_declared(run)
            if match.trigger.in_order:
                in_turn(run, match.trigger, position_ms)
            enqueue(commit, run, self._owner)
            accepted.runs.append(run)
        return accepted

    def matching(self, device: Device, checked: tuple[Value, ...]) -> list[Match]:
        """Return which triggers these values fire, and what each of them runs."""
        found = []
        for trigger in self._catalogue.triggers(device.product_id):
            if trigger.keys and not any(value.key in trigger.keys for value in checked):
                continue
            function = self._catalogue.function_by_id(trigger.function_id)
            if function is None:
                continue
            execution_id = new_id("exe")
            version = function.choose(execution_id)
            handler = write_handler(version.handlers)
            if handler is not None:
                found.append(Match(trigger, execution_id, version, handler))
        return found

    def _store(
        self, commit: Commit, device: Device, checked: tuple[Value, ...], now_ms: int
    ) -> None:
        # Strictly rising within the process, and over restarts unless the clock is set back far.
        seq = max(self._last_seq + 1, time.time_ns() // 1000)
        self._last_seq = seq + len(checked) - 1
        device_id = device.id
        rows = commit.inserts.setdefault(values, [])
        for value in checked:
            rows.append((device_id, value.key, value.at_ms, seq, value.json, value.geo))
            seq += 1
            if (device_id, value.key) not in self._known:
                commit.insert_new(resources, (device_id, value.key, now_ms))
                commit.stored.append(partial(self._learn, device_id, value.key))

    def _learn(self, device_id: str, key: str) -> None:
        if len(self._known) >= RESOURCES_KNOWN_MAX:
            self._known.clear()
        self._known[device_id, key] = None


def write_handler(handlers: tuple[str, ...]) -> str | None:
    """Return which handler of a version takes device writes."""
    if "trigger" in handlers:
        return "trigger"
    return "afterStore" if "afterStore" in handlers else None


def write_input(
    handler: str, device: Device, event_id: str, joined: str, at_ms: int, source: str
) -> bytes:
    """Return what the handler gets, as JSON; `joined` is the values' JSON, comma-separated."""
    if handler == "trigger":
        return f'{{"action":"write","thingToken":"{device.token}","values":[{joined}]}}'.encode()
    moment = iso(at_ms)
    return (
        f'{{"id":"{event_id}","type":"device.write","source":"{source}","time":"{moment}",'
        f'"receivedAt":"{moment}","deviceId":"{device.id}",'
        f'"deviceType":{_encode(device.product).decode()},'
        f'"data":{{"values":[{joined}]}},"metadata":{{}}}}'
    ).encode()


def _value_json(value: Value) -> str:
    geo = "" if value.geo is None else f',"geo":{value.geo}'
    return f'{{"key":"{value.key}","value":{value.json},"datetime":"{iso(value.at_ms)}"{geo}}}'


def joined_values(payload: str) -> str:
    """Return the values' JSON, comma-separated, of a stored event's payload."""
    return payload.removeprefix('{"values":[').removesuffix("]}")
