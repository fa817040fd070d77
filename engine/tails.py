"""Live logs: hands what runs say to whoever watches their function. Nothing waits for a watcher."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from engine.clock import iso
from engine.run import Run

WATCHER_LINES_MAX: Final = 1_000  # a slower watcher loses the newest and is told how many


class Tails:
    """Watchers by function."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Queue[dict[str, Any] | None]]] = {}

    async def subscribe(self, function_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield log lines and reports from now on; ends with `close`."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(WATCHER_LINES_MAX)
        watchers = self._watchers.setdefault(function_id, set())
        watchers.add(queue)
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            watchers.discard(queue)
            if not watchers:
                self._watchers.pop(function_id, None)

    def log(self, run: Run, lines: list[tuple[str, int, str]]) -> None:
        watchers = self._watchers.get(run.version.function_id)
        if watchers is None:
            return
        for level, at_ms, text in lines:
            item = {
                "execution_id": run.execution_id,
                "ts": iso(at_ms),
                "level": level,
                "msg": text,
            }
            _offer(watchers, item)

    def report(self, run: Run) -> None:
        watchers = self._watchers.get(run.version.function_id)
        if watchers is None:
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
        _offer(watchers, item)

    def close(self) -> None:
        for watchers in self._watchers.values():
            for queue in watchers:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(None)


def _offer(watchers: set[asyncio.Queue[dict[str, Any] | None]], item: dict[str, Any]) -> None:
    for queue in watchers:
        if not queue.full():
            queue.put_nowait(item)
