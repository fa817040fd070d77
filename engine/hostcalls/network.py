"""The host call `fetch`, counted: a run has so many network requests and no more."""

from collections.abc import Awaitable
from typing import Any

import msgspec

from engine.hostcalls.fetch import Fetch
from engine.run import Run
from engine.runner import LimitReached
from runtimes.contract import LimitHit, Outcome


class Network:
    """Counts a run's requests and hands them to `Fetch`."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def fetch(self, run: Run, arguments: bytes, _call: int) -> Awaitable[dict[str, Any]]:
        """Send one request now: the one effect that does not wait for the run's success."""
        run.network_count += 1
        most = run.limits.network_requests
        if run.network_count > most:
            hit = LimitHit(name="network_requests", value=most, used=run.network_count)
            raise LimitReached(Outcome.HOST_CALLS_EXCEEDED, hit)
        return self._fetch.call(run, msgspec.json.decode(arguments), run.network_count)
