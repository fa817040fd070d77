"""Placeholder until the real file lands."""

from collections.abc import Callable

from engine.run import Run


class Batches:
    def __init__(self, dispatch: Callable[[Run], None]) -> None:
        self._dispatch = dispatch

    def add(self, run: Run) -> None:
        self._dispatch(run)

    def discard(self, run_id: str) -> bool:
        return False


class RetryAsked:
    delay_ms: int | None = None


def verdicts(run: Run) -> dict[str, RetryAsked | None]:
    return {}
