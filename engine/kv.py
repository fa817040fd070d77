"""The key-value store of a project: what keys and values may be, changes by hand, and expiry.

Path:   api.kv -> here -> journal; hostcalls.kv -> the checks here -> Run.effects -> commit
Never:  lets one project name another one's keys: the project is the key's, or the version's.
"""

import asyncio
import re
from typing import Final

import structlog

from engine.clock import Clock
from engine.control import Control
from engine.errors import Invalid, NotFound, PayloadTooLarge
from engine.events import check_text
from engine.quotas import KV_KEY_BYTES_MAX, KV_TTL_S_MAX, KV_TTL_S_MIN, KV_VALUE_BYTES_MAX
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.kv import forget_expired, put_row, read_value
from engine.store.tables import kv

DEFAULT_NAMESPACE: Final = "default"
SWEEP_S: Final = 60.0  # between two looks for expired entries, which nobody sees meanwhile
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_log = structlog.get_logger()


def check_namespace(namespace: str) -> None:
    if not _NAMESPACE.fullmatch(namespace):
        raise Invalid(
            f"namespace {namespace[:80]!r} must be 1 to 64 letters, digits, _ or -", "{namespace}"
        )


def check_key(key: str) -> None:
    used = len(key.encode())
    if not 1 <= used <= KV_KEY_BYTES_MAX:
        raise Invalid(f"a key must have 1 to {KV_KEY_BYTES_MAX} bytes, not {used}", "{key}")
    if _CONTROL.search(key):
        raise Invalid(f"key {key[:80]!r} must have no control characters", "{key}")


def check_value(text: bytes) -> str:
    """Return the JSON as it is stored.

    Raises:
        Invalid: it is nothing, or JSON that cannot be stored.
        PayloadTooLarge: names the limit.
    """
    if not text:
        raise Invalid("the value is missing: send JSON", "")
    if len(text) > KV_VALUE_BYTES_MAX:
        raise PayloadTooLarge("the value", "kv_value_bytes", KV_VALUE_BYTES_MAX, len(text))
    check_text(text, "")
    return text.decode()


def expires_ms(ttl_seconds: int | None, now_ms: int) -> int | None:
    """Return when an entry's time is over; None: never."""
    if ttl_seconds is None:
        return None
    if not KV_TTL_S_MIN <= ttl_seconds <= KV_TTL_S_MAX:
        raise Invalid(
            f"ttl_seconds must be {KV_TTL_S_MIN} to {KV_TTL_S_MAX}, not {ttl_seconds}",
            "?ttl_seconds",
        )
    return now_ms + ttl_seconds * 1000


async def get_value(control: Control, project_id: str, namespace: str, key: str) -> str:
    """Return the JSON of a key.

    Raises:
        NotFound: there is none, or its time is over.
    """
    check_namespace(namespace)
    check_key(key)
    found = await control.database.read(read_value, project_id, namespace, key, control.clock())
    if found is None:
        raise NotFound("key", key)
    return found


async def put_value(
    control: Control,
    project_id: str,
    namespace: str,
    key: str,
    *,
    value: bytes,
    ttl_seconds: int | None,
) -> None:
    """Give a key its value, whether or not it had one."""
    check_namespace(namespace)
    check_key(key)
    text = check_value(value)
    now_ms = control.clock()
    until_ms = expires_ms(ttl_seconds, now_ms)
    commit = Commit()
    commit.put(kv, put_row(project_id, namespace, key, text, until_ms, now_ms))
    await control.journal.commit(commit)


async def delete_value(control: Control, project_id: str, namespace: str, key: str) -> None:
    """Delete a key.

    Raises:
        NotFound: there is none, or its time is over.
    """
    await get_value(control, project_id, namespace, key)
    commit = Commit()  # not a change: that would run before the puts of its group
    commit.remove(kv, (project_id, namespace, key))
    await control.journal.commit(commit)


class Sweeper:
    """Deletes expired entries now and then, in small steps, so that no commit waits for many."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._sweep_forever())

    async def sweep(self) -> None:
        """Delete all that has expired by now."""
        while await self._journal.run(forget_expired, self._clock()):
            pass

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except StoreFailed as error:  # the disk may have room again by the next time
                _log.warning("kv_sweep_failed", error=str(error))
