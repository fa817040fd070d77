"""Live logs: hands what runs say to whoever watches their function. Nothing waits for a watcher.

Path:   dispatch (log lines), commit (reports) -> here -> api.tail; over the bus for watchers of
        other nodes, which say again and again which functions they watch
Never:  sends what nobody watches.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from engine.clock import iso
from engine.run import Run
from jobs.bus import Bus, NullBus

WATCHER_LINES_MAX: Final = 1_000  # a slower watcher loses the newest and is told how many


WATCHED: Final = "watched"  # topics of the bus: ids of functions; and what these said
SAID: Final = "said"
SAY_AGAIN_S: Final = 5.0
FORGET_S: Final = 15.0  # after the last word of a watcher elsewhere
_encode: Final = msgspec.json.encode


class Tails:
    """Watchers by function."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Queue[dict[str, Any] | None]]] = {}
        self._elsewhere: dict[str, float] = {}  # functions watched on other nodes, until when
        self._bus: Bus = NullBus()
        self._telling: asyncio.Task[None] | None = None

    def share(self, bus: Bus) -> None:
        """Serve watchers of other nodes, too, and be served by those."""
        self._bus = bus
        bus.subscribe(WATCHED, self._watched)
        bus.subscribe(SAID, self._said)
        self._telling = asyncio.create_task(self._tell_forever(), name="tails")

    async def subscribe(self, function_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield log lines and reports from now on; ends with `close`."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(WATCHER_LINES_MAX)
        watchers = self._watchers.setdefault(function_id, set())
        watchers.add(queue)
        self._bus.publish(WATCHED, function_id.encode())
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            watchers.discard(queue)
            if not watchers:
                self._watchers.pop(function_id, None)

    def log(self, run: Run, lines: list[tuple[str, int, str]]) -> None:
        if not self._is_watched(run.version.function_id):
            return
        for level, at_ms, text in lines:
            item = {
                "execution_id": run.execution_id,
                "ts": iso(at_ms),
                "level": level,
                "msg": text,
            }
            self._hand_out(run.version.function_id, item)

    def tell(self, function_id: str, at_ms: int, text: str) -> None:
        """Say something about a function that no run of it says."""
        if self._is_watched(function_id):
            item = {"execution_id": None, "ts": iso(at_ms), "level": "warn", "msg": text}
            self._hand_out(function_id, item)

    def report(self, run: Run) -> None:
        if not self._is_watched(run.version.function_id):
            return
        assert run.outcome is not None
        item: dict[str, Any] = {
            "id": run.execution_id,
            "function": run.version.function,
            "version": run.version.number,
            "cause": run.cause,
            "handler": run.handler,
            "event_id": run.event_id,
            "device_id": None if run.device is None else run.device.id,
            "status": run.outcome.value,
            "created_at": iso(run.created_ms),
            "queue_ms": run.queue_ns / 1_000_000,
            "wall_ms": run.wall_ns / 1_000_000,
            "cpu_ms": run.cpu_ns / 1_000_000,
            "attempt": run.attempt,
        }
        if run.error is not None:
            item["error"] = {"name": run.error.name, "message": run.error.message}
        self._hand_out(run.version.function_id, item)

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        for watchers in self._watchers.values():
            for queue in watchers:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)

    def _is_watched(self, function_id: str) -> bool:
        if function_id in self._watchers:
            return True
        return bool(self._elsewhere) and self._is_watched_elsewhere(function_id)

    def _is_watched_elsewhere(self, function_id: str) -> bool:
        until_s = self._elsewhere.get(function_id, 0.0)
        if until_s > time.monotonic():
            return True
        self._elsewhere.pop(function_id, None)
        return False

    def _hand_out(self, function_id: str, item: dict[str, Any]) -> None:
        watchers = self._watchers.get(function_id)
        if watchers is not None:
            _offer(watchers, item)
        if self._elsewhere and self._is_watched_elsewhere(function_id):
            self._bus.publish(SAID, _encode([function_id, item]))

    def _watched(self, data: bytes) -> None:
        until_s = time.monotonic() + FORGET_S
        for function_id in data.decode().split():
            self._elsewhere[function_id] = until_s

    def _said(self, data: bytes) -> None:
        function_id, item = msgspec.json.decode(data)
        watchers = self._watchers.get(function_id)
        if watchers is not None:
            _offer(watchers, item)

    async def _tell_forever(self) -> None:
        while True:
            await asyncio.sleep(SAY_AGAIN_S)
            if self._watchers:
                self._bus.publish(WATCHED, " ".join(self._watchers).encode())


def _offer(watchers: set[asyncio.Queue[dict[str, Any] | None]], item: dict[str, Any]) -> None:
    for queue in watchers:
        if not queue.full():
            queue.put_nowait(item)
