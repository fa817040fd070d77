"""Lets runs into cells: at once, in their turn, or not at all; and counts what they use there.

Path:   dispatch.submit -> `refusal`, `admit`; dispatch.end -> `ended` -> `start`, in groups
Never:  refuses a queued run: it waits, for room or for the next period of its project's budget.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from engine.allowances import Effective
from engine.api.platform import Samples
from engine.errors import EngineError, QuotaExceeded
from engine.fair_share import FairShare
from engine.run import Run
from engine.usage import Usage

CONCURRENCY: Final = "concurrency"
RETRY_AFTER_S: Final = 1  # room comes with the end of any run


class Admission:
    """The door to this node's cells."""

    def __init__(
        self,
        usage: Usage,
        allowances: Callable[[str], Effective],
        *,
        start: Callable[[list[Run]], None],
        refused: Counter[str],
    ) -> None:
        """`start` takes runs whose turn has come; `refused` counts calls by limit."""
        self.usage = usage
        self.shares = FairShare(allowances, usage.exceeded)
        self.admit = self.shares.admit  # else `start` is called with the run in its turn
        self._allowances = allowances
        self._start = start
        self._refused = refused
        self._is_releasing = False
        self._loop = asyncio.get_running_loop()

    def refusal(self, run: Run) -> EngineError | None:
        """Return why a call, which somebody waits for, cannot even wait; None: it can."""
        project_id = run.version.project_id
        if project_id in self.usage.exceeded:
            try:
                self.usage.check(project_id)
            except QuotaExceeded as error:
                return error
        if self.shares.waiting_count and self.shares.calls_full(project_id):
            return self._no_room(project_id)
        return None

    def ended(self, run: Run) -> None:
        """Count the run out, if it was in; who waits for its room is started in a moment.

        Not here and now: what ends in one batch of an isolate makes room for one batch again.
        """
        self.shares.left(run)
        if run.started_ns:
            self.usage.add(run.version.project_id, run.spent_ns)
        if self.shares.waiting_count:
            self.release_soon()

    def overdue(self, now_ns: int) -> list[Run]:
        """Take out calls that have waited too long; each has its `refused`."""
        if not self.shares.waiting_count:
            return []
        self.release_soon()  # a net: whoever waits is looked at, even if no run's end says so
        late = self.shares.overdue(now_ns)
        for run in late:
            run.refused = self.refusal(run) or self._no_room(run.version.project_id)
        return late

    def lifted(self) -> None:
        """Projects that were held back may run again."""
        self.shares.recheck()
        self.release_soon()

    def release_soon(self) -> None:
        """Look who may go in: there is room, or an allowance has changed."""
        if not self._is_releasing:
            self._is_releasing = True
            self._loop.call_soon(self._release)

    def gauges(self) -> Mapping[str, Callable[[], Samples]]:
        """Return what is to be shown of it, by metric."""

        def refused() -> Samples:
            return {(limit,): float(count) for limit, count in self._refused.items()}

        def waiting() -> Samples:
            return {(): float(self.shares.waiting_count)}

        def spent() -> Samples:
            return {(): self.usage.spent_ns() / 1e9}

        return {
            "cloudcode_quota_refused_total": refused,
            "cloudcode_project_waiting": waiting,
            "cloudcode_project_cpu_seconds_total": spent,
        }

    def _release(self) -> None:
        self._is_releasing = False
        released = self.shares.release()
        if released:
            self._start(released)

    def _no_room(self, project_id: str) -> QuotaExceeded:
        self._refused[CONCURRENCY] += 1
        return QuotaExceeded(
            CONCURRENCY,
            self._allowances(project_id).concurrency,
            self.shares.inside(project_id),
            retry_after_s=RETRY_AFTER_S,
            why="the project has too much to do at once",
        )
