"""Host calls on the project's key-value store: reads at once, puts and deletes with the run's end.

Path:   broker -> here -> store.kv (reads), Run.effects (puts, deletes)
Never:  reaches another project's keys; changes anything itself.
"""

from collections.abc import Coroutine
from typing import Any

import msgspec

from engine.clock import Clock, iso
from engine.errors import Invalid
from engine.kv import DEFAULT_NAMESPACE, check_key, check_namespace, check_value, expires_ms
from engine.quotas import KV_LIST_KEYS, KV_LIST_KEYS_MAX
from engine.run import KeyValueEffect, Run
from engine.runner import LimitReached, spend_bytes
from engine.store.database import Database
from engine.store.kv import read_keys, read_value
from runtimes.contract import LimitHit, Outcome


class _Key(msgspec.Struct):
    key: str
    namespace: str = DEFAULT_NAMESPACE


class _Put(msgspec.Struct):
    key: str
    value: msgspec.Raw
    namespace: str = DEFAULT_NAMESPACE
    ttl_seconds: int | None = None


class _List(msgspec.Struct):
    prefix: str = ""
    limit: int = KV_LIST_KEYS
    cursor: str | None = None
    namespace: str = DEFAULT_NAMESPACE


class KeyValues:
    """What a run may ask of its project's store.

    What the run itself has put or deleted is looked up when it asks, not when the database has
    answered: so operations that it did not wait for keep their order too.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def get(self, run: Run, arguments: bytes, _call: int) -> bytes | Coroutine[Any, Any, bytes]:
        """Return the value of a key, or null."""
        asked = msgspec.json.decode(arguments, type=_Key)
        check_namespace(asked.namespace)
        check_key(asked.key)
        _spend_operation(run)
        own = _own(run, asked.namespace).get(asked.key)
        if own is None:
            return self._get(run.project_id, asked)
        return (_value_of(own, self._clock()) or "null").encode()

    def put(self, run: Run, arguments: bytes, _call: int) -> None:
        """Buffer a value; it is stored with the run's record, or never."""
        asked = msgspec.json.decode(arguments, type=_Put)
        check_namespace(asked.namespace)
        check_key(asked.key)
        value = check_value(bytes(asked.value))
        until_ms = expires_ms(asked.ttl_seconds, run.guest_ms)
        _spend_operation(run)
        spend_bytes(run, len(arguments))
        effect = KeyValueEffect(
            namespace=asked.namespace, key=asked.key, value=value, expires_ms=until_ms
        )
        run.effects.append(effect)

    def delete(self, run: Run, arguments: bytes, _call: int) -> None:
        """Buffer that a key goes; none need be there."""
        asked = msgspec.json.decode(arguments, type=_Key)
        check_namespace(asked.namespace)
        check_key(asked.key)
        _spend_operation(run)
        spend_bytes(run, len(arguments))
        run.effects.append(KeyValueEffect(namespace=asked.namespace, key=asked.key, value=None))

    def list(self, run: Run, arguments: bytes, _call: int) -> Coroutine[Any, Any, dict[str, Any]]:
        """Return keys in the order of their bytes, with what this run has put and deleted."""
        asked = msgspec.json.decode(arguments, type=_List)
        check_namespace(asked.namespace)
        if not 1 <= asked.limit <= KV_LIST_KEYS_MAX:
            raise Invalid(f"limit must be 1 to {KV_LIST_KEYS_MAX}, not {asked.limit}", "?limit")
        _spend_operation(run)
        return self._list(run.project_id, asked, _own(run, asked.namespace))

    async def _get(self, project_id: str, asked: _Key) -> bytes:
        found = await self._database.read(
            read_value, project_id, asked.namespace, asked.key, self._clock()
        )
        return (found or "null").encode()

    async def _list(
        self, project_id: str, asked: _List, own: dict[str, KeyValueEffect]
    ) -> dict[str, Any]:
        now_ms = self._clock()
        after = asked.cursor or ""
        stored = await self._database.read(
            read_keys,
            project_id,
            asked.namespace,
            now_ms,
            prefix=asked.prefix,
            after=after,
            limit=asked.limit + 1 + len(own),  # so many of them may have been deleted
        )
        times = {one.key: one.expires_ms for one in stored if one.key not in own}
        for key, effect in own.items():
            if key.startswith(asked.prefix) and key > after and _value_of(effect, now_ms):
                times[key] = effect.expires_ms
        keys = sorted(times)  # by code points, which is the order of their bytes
        shown = keys[: asked.limit]
        return {
            "keys": [_shown(key, times[key]) for key in shown],
            "next_cursor": shown[-1] if len(keys) > asked.limit else None,
        }


def _spend_operation(run: Run) -> None:
    run.kv_count += 1
    most = run.limits.kv_operations
    if run.kv_count > most:
        hit = LimitHit(name="kv_operations", value=most, used=run.kv_count)
        raise LimitReached(Outcome.HOST_CALLS_EXCEEDED, hit)


def _own(run: Run, namespace: str) -> dict[str, KeyValueEffect]:
    """Return the run's last word on each key."""
    return {
        effect.key: effect
        for effect in run.effects
        if isinstance(effect, KeyValueEffect) and effect.namespace == namespace
    }


def _value_of(effect: KeyValueEffect, now_ms: int) -> str | None:
    over = effect.expires_ms is not None and effect.expires_ms <= now_ms
    return None if over else effect.value


def _shown(key: str, until_ms: int | None) -> dict[str, str]:
    return {"key": key} if until_ms is None else {"key": key, "expires_at": iso(until_ms)}
