"""`make demo`: a year of temperatures through a real engine, held against the CSV they come from.

Path:   CSV -> device writes -> triggers -> stored statistics and Slack alarms -> HTTP function
Never:  reads the engine's database: it is an ordinary client of the API, with an ordinary key.

Exit code 0 only if every count and every stored value agrees with what `expected.py` computed.
"""

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from demo_report import ON_WRITE, Found, Outcome, compare, quantiles, show
from demo_services import DemoFailed, Slack, degrees_service, engine, slack
from expected import KEY, Reading, expect, read_csv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FOLDER = Path(__file__).parent
PRODUCT = "weather station"
SINGLES = 1_000  # readings sent one by one, as a device does
BATCH = 100  # then as a device that was offline does
GATEWAY = 1_000  # the last ones, several batches a request, as a gateway does
GATEWAY_ITEMS, GATEWAY_BATCH = 5, 50
# This year of Seattle stays between 37.5 and 75.9 degrees Fahrenheit, so that alarms.ts at its
# defaults (80 and 32) would be silent.
HEAT_AT, FROST_AT = 75, 38
ANSWER_S = 60.0
IDLE_S = 240.0  # the real Slack takes one message a second
POLL_S = 0.1


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    as_json: bool = parser.parse_args().json
    progress = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engine is ended too
    try:
        outcome = run(progress)
    except DemoFailed as failure:
        progress.print(f"demo failed: {failure}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    if as_json:
        print(json.dumps(outcome.document(), indent=2))
    else:
        show(outcome, Console(highlight=False))
    if outcome.engine_stderr:
        progress.print(outcome.engine_stderr, markup=False)
    return 1 if outcome.differences else 0


def run(console: Console) -> Outcome:
    """Start everything, send the year, wait, read it all back and compare."""
    readings = read_csv(FOLDER / "seattle-temps.csv")
    expected = expect(readings, product=PRODUCT, heat_at=HEAT_AT, frost_at=FROST_AT)
    admin_key = f"cck_{secrets.token_urlsafe(32)}"
    started = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudcode-demo-")))
        alerts = stack.enter_context(slack())
        degrees_url = stack.enter_context(degrees_service())
        server = stack.enter_context(engine(folder, admin_key=admin_key))
        console.print(f"engine at {server.url}, data in {folder}")

        admin = stack.enter_context(Api(server.url, admin_key))
        project = admin.post("/v1/projects", {"name": "demo"})
        api = stack.enter_context(Api(server.url, project["key"]))
        anyone = stack.enter_context(Api(server.url))
        device = set_up(api, alerts, degrees_url)
        parts = plan(readings)
        sent = send(api, anyone, device, parts, console)
        wait_until_idle(api, console)
        drained = time.perf_counter() - sent.began
        forecast = anyone.get(f"/f/{project['name']}/forecast", device=device["id"])
        found = collect(api, device, alerts, sent)
        outcome = compare(expected, found, forecast, events=parts.events)
        if outcome.differences:
            outcome.engine_stderr = server.last_words()
    outcome.latencies["device write, at the client"] = quantiles(sent.took_ms)
    outcome.seconds = {
        "sending": sent.seconds,
        "until all runs and deliveries had ended": drained,
        "everything": time.perf_counter() - started,
    }
    return outcome


class Api:
    """One key's view of the engine; anything but success ends the demo."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No proxy from the environment can reach this machine's loopback.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=ANSWER_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Any) -> Any:
        return self._call("POST", path, json=body)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, json=body)

    def items(self, path: str, **query: str | int) -> Iterator[Any]:
        """Give every item of a list, page after page."""
        page = self.get(path, limit=200, **query)
        yield from page["items"]
        while page["next_cursor"]:
            page = self.get(path, limit=200, cursor=page["next_cursor"], **query)
            yield from page["items"]

    def _call(self, method: str, path: str, **given: Any) -> Any:
        try:
            answer = self._http.request(method, path, **given)
        except httpx.HTTPError as error:
            raise DemoFailed(f"{method} {path}: {error or type(error).__name__}") from error
        if not answer.is_success:
            raise DemoFailed(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer.json() if answer.content else None


def set_up(api: Api, alerts: Slack, degrees_url: str) -> dict[str, Any]:
    """Make product, device, connection, the three functions and two triggers; give the device."""
    api.post("/v1/products", {"name": PRODUCT})
    device: dict[str, Any] = api.post("/v1/devices", {"product": PRODUCT, "name": "Seattle"})
    credentials = {"webhook_url": alerts.webhook_url}
    api.put("/v1/connections/ALERTS", {"kind": "slack", "credentials": credentials})
    deploy(api, "daily_stats.js")
    deploy(api, "alarms.ts", variables={"HEAT_AT": str(HEAT_AT), "FROST_AT": str(FROST_AT)})
    host = degrees_url.removeprefix("http://")
    deploy(api, "forecast.js", variables={"DEGREES_URL": degrees_url}, allowed_hosts=[host])
    for function in ON_WRITE:
        api.post("/v1/triggers", {"function": function, "product": PRODUCT, "keys": [KEY]})
    return device


def deploy(api: Api, file: str, **settings: Any) -> None:
    path = FOLDER / file
    files = {file: path.read_text(encoding="utf-8")}
    api.post("/v1/functions", {"name": path.stem, "files": files, "main": file, **settings})


Batch = tuple[Reading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The year, cut into writes: each batch is one event."""

    singles: list[Batch]
    batches: list[Batch]
    gateway: list[list[Batch]]  # each list is one request

    @property
    def events(self) -> int:
        return len(self.singles) + len(self.batches) + sum(map(len, self.gateway))


def plan(readings: Batch) -> Plan:
    last = len(readings) - GATEWAY
    return Plan(
        singles=cut(readings[:SINGLES], 1),
        batches=cut(readings[SINGLES:last], BATCH),
        gateway=[
            cut(part, GATEWAY_BATCH) for part in cut(readings[last:], GATEWAY_ITEMS * GATEWAY_BATCH)
        ],
    )


def cut(readings: Batch, size: int) -> list[Batch]:
    return [readings[start : start + size] for start in range(0, len(readings), size)]


@dataclass(kw_only=True)
class Sent:
    """What the client saw: the ids of accepted events, and how long each single write took."""

    began: float
    seconds: float = 0.0
    events: list[str] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    rejected: int = 0


def send(api: Api, anyone: Api, device: dict[str, Any], parts: Plan, console: Console) -> Sent:
    """Send the year, each request after the answer to the one before, as one device would.

    A device needs no key, its token in the path is enough; a gateway writes with a key.
    """
    sent = Sent(began=time.perf_counter())
    things = f"/v2/things/{device['token']}"
    with bar(console) as progress:
        task = progress.add_task("writes accepted", total=parts.events)
        for batch in parts.singles:
            before = time.perf_counter()
            sent.events.append(anyone.post(things, {"values": values(batch)})["event_id"])
            sent.took_ms.append((time.perf_counter() - before) * 1000)
            progress.advance(task)
        for batch in parts.batches:
            sent.events.append(anyone.post(things, {"values": values(batch)})["event_id"])
            progress.advance(task)
        for batches in parts.gateway:
            items = [{"device": device["id"], "values": values(batch)} for batch in batches]
            answer = api.post("/v1/writes", items)
            sent.rejected += answer["rejected"]
            sent.events += [item["event_id"] for item in answer["items"] if "event_id" in item]
            progress.advance(task, answer["accepted"])
    sent.seconds = time.perf_counter() - sent.began
    return sent


def values(readings: Iterable[Reading]) -> list[dict[str, str | float]]:
    return [reading.as_value() for reading in readings]


def wait_until_idle(api: Api, console: Console) -> None:
    """Wait until no execution is queued or running and no delivery is on its way."""
    deadline = time.monotonic() + IDLE_S
    with bar(console) as progress:
        task = progress.add_task("runs and deliveries still open", total=None)
        while open_count := still_open(api):
            if time.monotonic() > deadline:
                raise DemoFailed(f"{open_count} runs or deliveries still open after {IDLE_S:g} s")
            progress.update(task, description=f"runs and deliveries still open: {open_count}")
            time.sleep(POLL_S)
        progress.update(task, description="every run and delivery has ended", total=1, completed=1)


def still_open(api: Api) -> int:
    """Return how many runs and deliveries have not ended; of each list one page is enough."""
    runs = [
        run
        for status in ("queued", "running")
        for run in api.get("/v1/executions", status=status, limit=200)["items"]
    ]
    return len(runs) or sum(not item["ended_at"] for item in api.items("/v1/deliveries"))


def collect(api: Api, device: dict[str, Any], alerts: Slack, sent: Sent) -> Found:
    """Read everything back."""
    return Found(
        readings=timeline(api, device, KEY),
        events=sent.events,
        rejected=sent.rejected,
        executions=list(api.items("/v1/executions")),
        daily={
            key: {at[:10]: value for at, value in timeline(api, device, key).items()}
            for key in (f"{KEY}_daily_min", f"{KEY}_daily_mean", f"{KEY}_daily_max")
        },
        deliveries=Counter(item["state"] for item in api.items("/v1/deliveries")),
        received=None if alerts.received is None else alerts.received(),
    )


def timeline(api: Api, device: dict[str, Any], key: str) -> dict[str, float]:
    stored = list(api.items(f"/v1/devices/{device['id']}/values", key=key))
    found = {item["datetime"]: item["value"] for item in stored}
    if len(found) != len(stored):
        raise DemoFailed(f"{key}: {len(stored)} values at {len(found)} times: some stored twice")
    return found


def bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    )


if __name__ == "__main__":
    sys.exit(main())
