"""What the API is handed by `engine.wiring`: ports only, each a field of one frozen object."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

import msgspec
from fastapi import Depends
from starlette.requests import HTTPConnection

from engine import connections, functions, replays, reruns
from engine.allowances import Effective
from engine.connectors.contract import ERROR_CHARS_MAX
from engine.idempotency import Idempotency
from engine.rate_limits import RateLimits
from engine.redaction import Redaction
from engine.rotation import Rotation
from engine.settings import Settings
from engine.usage import Usage


@dataclass(frozen=True, slots=True)
class Degraded:
    """Something is not as it should be; requests are taken all the same."""

    note: str


Check = Callable[[], Awaitable[str | Degraded | None]]
"""One thing that must work before requests are taken: returns what is wrong, or None. Never raises
except on a bug; has its own deadline, and is cut off after READY_MS anyway."""


class Key(Protocol):
    """What an API key may do."""

    @property
    def id(self) -> str: ...

    @property
    def project_id(self) -> str: ...

    @property
    def scopes(self) -> frozenset[str]: ...

    @property
    def requests_per_minute(self) -> int | None:
        """None: what the project allows each of its keys; 0: without a limit."""
        ...


class Catalogue(reruns.Catalogue, functions.Isolating, Protocol):
    """Port: adds what a request asks of memory before anything else."""

    def fresh(self) -> Awaitable[bool]:
        """Learn what other nodes have changed; return whether there was anything."""
        ...

    def key(self, key_hash: str) -> Key | None:
        """Return the rights of the key with this SHA-256, or None: it opens nothing."""
        ...

    def project(self, name_or_id: str) -> str | None:
        """Return the project's id."""
        ...

    def allowances(self, project_id: str) -> Effective:
        """Return what the project may use."""
        ...

    def redaction(self, project_id: str) -> Redaction | None:
        """Return how to hide the secrets of the project's live versions; None: there are none."""
        ...


class Tails(Protocol):
    """Port: live logs."""

    def subscribe(self, function_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield what happens from now on: log lines (they have `msg`), and each run's report.

        A slow reader loses lines, never holds a run up. Ends when the function is deleted or the
        process stops; closing the iterator ends the subscription.
        """
        ...


class Breakers(Protocol):
    """Port: what is held back for what it did. Adapter: `engine.breakers`."""

    async def close_by_hand(self, project_id: str, breaker_id: str) -> bool:
        """Close a breaker of the project; False: there was none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Observations in cumulative buckets, as Prometheus wants them."""

    buckets: tuple[tuple[float, float], ...]  # (upper bound, observations up to it), ascending
    sum: float


Samples = Mapping[tuple[str, ...], float | Histogram]


class Metrics(Protocol):
    """Port: plain counters, read now and then. Adapter: `engine.metrics`."""

    async def refresh(self) -> None:
        """Bring up to date what is read from the database; takes a second at most, never raises."""
        ...

    def snapshot(self) -> Mapping[str, Samples]:
        """Return values by metric name, then by label values in the order of `api.metrics`."""
        ...


class Platform(functions.Workshop, replays.Bulk, connections.Providers, Protocol):
    """Everything the API needs. Adapter: `engine.wiring.Platform`."""

    @property
    def settings(self) -> Settings: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def idempotency(self) -> Idempotency: ...

    @property
    def rate_limits(self) -> RateLimits: ...

    @property
    def rotation(self) -> Rotation: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def tails(self) -> Tails: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def checks(self) -> Mapping[str, Check]:
        """Readiness by name: `database`, `sandbox`, ..."""
        ...

    @property
    def breakers(self) -> Breakers: ...

    def held_back(self) -> Mapping[str, int]:
        """Return the versions (ids) whose breaker is open: until when, ms."""
        ...

    def quarantined(self) -> Mapping[str, int]:
        """Return the versions (ids) that have killed a cell here: until when, ms."""
        ...

    def running(self) -> Collection[str]:
        """Return the ids of queued runs that a cell has right now."""
        ...


def platform_of(connection: HTTPConnection) -> Platform:
    return cast("Platform", connection.app.state.platform)


def shown_json(platform: Platform, project_id: str, text: str) -> Any:
    """Return what a run was given, or wants sent, as people may see it: without secrets.

    What is stored stays as it is: a replay has to get the same.
    """
    redaction = platform.catalogue.redaction(project_id)
    data = text.encode()
    return msgspec.json.decode(data if redaction is None else redaction.json(data))


def shown_text(platform: Platform, project_id: str, text: str | None) -> str | None:
    """Return what a provider or a run said, as people may see it: without secrets."""
    redaction = platform.catalogue.redaction(project_id)
    if text is None or redaction is None:
        return text
    was_cut = len(text) >= ERROR_CHARS_MAX  # perhaps within a value
    return redaction.cut_text(text) if was_cut else redaction.text(text)


async def _platform(connection: HTTPConnection) -> Platform:
    return platform_of(connection)


PlatformHere = Annotated[Platform, Depends(_platform)]
