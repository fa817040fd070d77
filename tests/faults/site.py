"""What runs on the cluster during a chaos run: functions, devices, and all that is sent to them.

Path:   chaos -> `furnish` -> the API; chaos -> `sendings` -> clients
Never:  sends one item twice, so whatever is there twice was doubled by the engine.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import Any, Final

from tests.faults.clients import Sending, as_body
from tests.faults.cluster import Cluster

PRODUCT: Final = "gate"
DEVICES_COUNT: Final = 40
GATEWAY_ITEMS: Final = 20
BATCH_JOBS: Final = 10
WALL_MS: Final = 30_000  # a run must not end for the time that its node was paused
DOOMED_ATTEMPTS: Final = 2
LIMITS: Final = {"wall_ms": WALL_MS}

# Four effects of one run: what is there of one of them must be there of all.
SEEN: Final = """
export async function afterStore(event, env) {
  const item = event.data.values[0].value;
  await env.DEVICES.write(event.deviceId, [{ key: "seen", value: item }]);
  await env.KV.put("seen/" + item, item);
  await env.FN.call("note", { item, device: event.deviceId });
  await env.HOOK.send({ item });
}
"""
NOTE: Final = """
export async function job({ item, device }, env) {
  await env.DEVICES.write(device, [{ key: "noted", value: item }]);
}
"""
WORK: Final = """
export async function job({ item, device, sleep_ms, fails }, env, ctx) {
  await env.DEVICES.write(device, [{ key: "done", value: item }]);
  if (sleep_ms) await new Promise((resolve) => setTimeout(resolve, sleep_ms));
  if (ctx.attempt <= fails) throw new Error(`attempt ${ctx.attempt} fails`);
  return { item };
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What was made, and how many of its items there are to be."""

    devices: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, and how it must end."""

    item: str
    body: dict[str, Any]
    doomed: bool


def furnish(cluster: Cluster, hook_url: str) -> Site:
    cluster.ok("PUT", "/v1/connections/HOOK", {"kind": "webhook", "credentials": {"url": hook_url}})
    for name, source in (("seen", SEEN), ("note", NOTE), ("work", WORK)):
        cluster.ok("POST", "/v1/functions", {"name": name, "source": source, "limits": LIMITS})
    cluster.ok("POST", "/v1/products", {"name": PRODUCT})
    devices = [
        cluster.ok("POST", "/v1/devices", {"product": PRODUCT, "name": f"device {number}"})
        for number in range(DEVICES_COUNT)
    ]
    trigger = {"function": "seen", "product": PRODUCT, "on": "write", "phase": "after"}
    cluster.ok("POST", "/v1/triggers", trigger | {"keys": ["item"]})
    return Site(devices=devices)


def make_jobs(site: Site, jobs_count: int, rng: Random) -> list[Job]:
    """Return jobs of which most succeed at once, some sleep, some fail first, some always."""
    made = []
    for number in range(jobs_count):
        item = f"job-{number}"
        payload: dict[str, Any] = {"item": item, "device": rng.choice(site.devices)["id"]}
        body: dict[str, Any] = {
            "function": "work",
            "payload": payload,
            "idempotency_key": item,
            "max_attempts": 20,
            "backoff": {"kind": "exponential", "base_seconds": 0.2, "cap_seconds": 1},
            "priority": rng.choice(("high", "default", "low")),
        }
        doomed = rng.random() < 0.05
        if doomed:
            payload["fails"] = body["max_attempts"] = DOOMED_ATTEMPTS
        elif rng.random() < 0.2:
            payload["fails"] = rng.randint(1, 3)
        if rng.random() < 0.2:
            payload["sleep_ms"] = rng.randint(50, 2_000)
        if rng.random() < 0.1:
            body["delay_seconds"] = round(rng.uniform(0.5, 5), 1)
        made.append(Job(item=item, body=body, doomed=doomed))
    return made


def sendings(
    site: Site, events_count: int, jobs: list[Job], *, clients: int, seconds: float, rng: Random
) -> list[deque[Sending]]:
    """Return what each client sends, spread evenly over the time."""
    requests = [*_events(site, events_count, rng), *_batches(jobs, rng)]
    rng.shuffle(requests)
    lanes: list[deque[Sending]] = [deque() for _ in range(clients)]
    for number, (path, body, items, headers) in enumerate(requests):
        sending = Sending(
            path=path,
            body=as_body(body),
            items=items,
            headers=headers,
            at_s=seconds * number / len(requests),
        )
        lanes[number % clients].append(sending)
    return lanes


_Request = tuple[str, Any, tuple[str, ...], dict[str, str]]


def _events(site: Site, events_count: int, rng: Random) -> Iterator[_Request]:
    items = islice((f"event-{number}" for number in count()), events_count)
    for item in items:
        device = rng.choice(site.devices)
        way = rng.random()
        if way < 0.05:  # one request in twenty is a gateway's, half of the events
            mine = (item, *islice(items, GATEWAY_ITEMS - 1))
            writes = [
                {"token": rng.choice(site.devices)["token"], "values": [_value(one)]}
                for one in mine
            ]
            yield "/v1/writes", writes, mine, {}
        elif way < 0.5:
            path = f"/v1/devices/{device['id']}/values"
            yield path, {"values": [_value(item)]}, (item,), {}
        else:
            plain = {"values": [{"key": "item", "value": item}]}
            yield f"/v2/things/{device['token']}", plain, (item,), {"idempotency-key": item}


def _value(item: str) -> dict[str, str]:
    return {"key": "item", "value": item, "id": item}


def _batches(jobs: list[Job], rng: Random) -> Iterator[_Request]:
    left = iter(jobs)
    for job in left:
        if rng.random() < 0.5:
            yield "/v1/jobs", job.body, (job.item,), {}
        else:
            batch = [job, *islice(left, BATCH_JOBS - 1)]
            yield "/v1/jobs", [one.body for one in batch], tuple(one.item for one in batch), {}
