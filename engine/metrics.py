"""Plain counters of this process; `api.metrics` puts them into Prometheus' words.

A run costs a few additions here: histograms are counted in buckets of one list per function.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from engine.api.platform import Histogram, Samples
from engine.run import Run

SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 900.0)
NAMES_MAX: Final = 1_000  # of functions, 6 KB of text each; more are counted together
OTHER: Final = "other"
BYTES: Final = tuple(float(mib * 1024 * 1024) for mib in (16, 32, 64, 128, 256, 512, 1024))

# What is counted in `Metrics.counts`, by metric; and `retries`, of attempts that failed.
COUNTED: Final[Mapping[str, str]] = {
    "cloudcode_dead_letters_total": "dead_letters",
    "cloudcode_lease_takeovers_total": "lease_takeovers",
    "cloudcode_lease_lost_total": "lease_lost",
    "cloudcode_tickets_issued_total": "tickets_issued",
    "cloudcode_tickets_taken_total": "tickets_taken",
    "cloudcode_schedule_missed_total": "schedule_missed",
    "cloudcode_loops_stopped_total": "loops_stopped",
}


class Stored(Protocol):
    """Port: numbers that are in the database. Adapter: `engine.queue_gauges`."""

    async def refresh(self) -> None:
        """Bring the numbers up to date, unless they are; takes a second at most, never raises."""
        ...

    def samples(self) -> Mapping[str, Samples]:
        """Return samples by the name of their metric."""
        ...


class _Buckets:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def shown(self) -> Histogram:
        seen = 0
        rows = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            rows.append((bound, float(seen)))
        return Histogram(buckets=tuple(rows), sum=self.total)


class _PerFunction:
    __slots__ = ("cpu", "memory", "queue", "statuses", "wall")

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.wall = _Buckets(SECONDS)
        self.cpu = _Buckets(SECONDS)
        self.queue = _Buckets(SECONDS)
        self.memory = _Buckets(BYTES)


class Metrics:
    """What happened since the start."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], _PerFunction] = {}
        self._names: set[str] = set()  # of `_functions`
        self.known: Callable[[], Collection[str]] | None = None  # names of functions that exist
        self._cold: dict[tuple[str], int] = {}
        self._lost_count = 0  # runs that began again because their cell was lost
        self.counts: Counter[str] = Counter()  # see COUNTED
        self.refused: Counter[str] = Counter()  # requests, by the allowance that was used up
        self.gauges: dict[str, Callable[[], Samples]] = {}
        self.stored: Stored | None = None

    def run_ended(self, run: Run) -> None:
        assert run.outcome is not None
        name = self._name(run.version.function)
        key = (name, run.cause)
        counted = self._functions.get(key)
        if counted is None:
            counted = self._functions[key] = _PerFunction()
        status = run.outcome.value
        counted.statuses[status] = counted.statuses.get(status, 0) + 1
        counted.wall.add((run.ended_ns - run.started_ns) / 1e9 if run.started_ns else 0.0)
        counted.cpu.add(run.cpu_ns / 1e9)
        counted.queue.add(run.queue_ns / 1e9)
        counted.memory.add(run.peak_bytes)
        if run.cold:
            self._cold[name,] = self._cold.get((name,), 0) + 1
        self._lost_count += run.losses

    def _name(self, function: str) -> str:
        """Return the name under which a function is counted."""
        if function not in self._names:
            if len(self._names) >= NAMES_MAX:
                return OTHER
            self._names.add(function)
        return function

    def _forget_deleted(self) -> None:
        if self.known is None:
            return
        gone = self._names.difference(self.known())
        if gone:
            self._names -= gone
            self._functions = {k: c for k, c in self._functions.items() if k[0] not in gone}
            self._cold = {k: c for k, c in self._cold.items() if k[0] not in gone}

    async def refresh(self) -> None:
        """Bring up to date what is read from the database; see `api.platform.Metrics`."""
        if self.stored is not None:
            await self.stored.refresh()

    def snapshot(self) -> Mapping[str, Samples]:
        """Return all samples; see `api.platform.Metrics`."""
        self._forget_deleted()
        items = self._functions.items()
        found: dict[str, Any] = {
            "cloudcode_executions_total": {
                (*key, status): count
                for key, counted in items
                for status, count in counted.statuses.items()
            },
            "cloudcode_execution_duration_seconds": {k: c.wall.shown() for k, c in items},
            "cloudcode_execution_cpu_seconds": {k: c.cpu.shown() for k, c in items},
            "cloudcode_queue_wait_seconds": {k: c.queue.shown() for k, c in items},
            "cloudcode_execution_memory_bytes": {k: c.memory.shown() for k, c in items},
            "cloudcode_coldstarts_total": dict(self._cold),
            "cloudcode_retries_total": {
                ("lost",): self._lost_count,
                ("failed",): self.counts["retries"],
            },
        }
        for name, counted in COUNTED.items():
            found[name] = {(): self.counts[counted]}
        if self.stored is not None:
            found |= self.stored.samples()
        for name, read in self.gauges.items():
            found[name] = read()
        return found
