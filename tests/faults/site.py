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
CHAINS: Final = "line"  # the product whose events run in order
CHAINS_COUNT: Final = 6  # devices of it
CHAIN_SHARE: Final = 0.05  # of all events
GATEWAY_ITEMS: Final = 20
BATCH_JOBS: Final = 10
WALL_MS: Final = 30_000  # a run must not end for the time that its node was paused
DOOMED_ATTEMPTS: Final = 2
LIMITS: Final = {"wall_ms": WALL_MS}
# What a function asks while PostgreSQL is away for long fails; then the run is to be tried again.
RETRIES: Final = {"max_attempts": 20, "backoff": {"kind": "fixed", "base_seconds": 0.5}}
SOON: Final = {"max_attempts": 20, "waits_s": [0.5]}  # of a delivery; else the second takes minutes

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
# Reads what it changes: right only if a device's runs come one by one, in order, each once.
CHAIN: Final = """
export async function afterStore(event, env, ctx) {
  const item = event.data.values[0].value;
  const chain = (await env.KV.get("chain/" + event.deviceId)) ?? [];
  await env.KV.put("chain/" + event.deviceId, [...chain, item]);
  if (item.endsWith("7") && ctx.attempt === 1) throw new Error("the first attempt fails");
}
"""
PILE: Final = """
export default {
  async queue(batch, env) {
    for (const message of batch.messages) {
      const { item, device, fails } = message.body;
      if (message.attempts <= (fails ?? 0)) message.retry();
      else await env.DEVICES.write(device, [{ key: "piled", value: item }]);
    }
  },
};
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The devices that were made."""

    devices: list[dict[str, Any]]
    chained: list[dict[str, Any]]  # of CHAINS


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, and how it must end."""

    item: str
    body: dict[str, Any]
    doomed: bool

    @property
    def piled(self) -> bool:
        return bool(self.body["function"] == "pile")


def furnish(cluster: Cluster, hook_url: str) -> Site:
    hook = {"kind": "webhook", "credentials": {"url": hook_url}, "settings": {"retries": SOON}}
    cluster.ok("PUT", "/v1/connections/HOOK", hook)
    functions: list[tuple[str, str, dict[str, Any]]] = [
        ("seen", SEEN, {"retries": RETRIES}),
        ("note", NOTE, {"retries": RETRIES}),
        ("chain", CHAIN, {"retries": RETRIES}),
        ("work", WORK, {}),
        ("narrow", WORK, {"flow": {"concurrency": {"limit": 2}}}),
        ("pile", PILE, {"queue": {"max_batch_size": 10, "max_batch_timeout": "200ms"}}),
    ]
    for name, source, more in functions:
        function = {"name": name, "source": source, "limits": LIMITS}
        cluster.ok("POST", "/v1/functions", function | more)
    devices = _devices(cluster, PRODUCT, DEVICES_COUNT)
    chained = _devices(cluster, CHAINS, CHAINS_COUNT)
    trigger = {"function": "seen", "product": PRODUCT, "keys": ["item"]}
    cluster.ok("POST", "/v1/triggers", trigger)
    trigger = {"function": "chain", "product": CHAINS, "keys": ["item"], "order": "device"}
    cluster.ok("POST", "/v1/triggers", trigger)
    return Site(devices=devices, chained=chained)


def _devices(cluster: Cluster, product: str, number: int) -> list[dict[str, Any]]:
    cluster.ok("POST", "/v1/products", {"name": product})
    return [
        cluster.ok("POST", "/v1/devices", {"product": product, "name": f"{product} {at}"})
        for at in range(number)
    ]


def make_jobs(site: Site, jobs_count: int, rng: Random) -> list[Job]:
    """Return jobs of which most succeed at once, some sleep, some fail first, some always."""
    made = []
    for number in range(jobs_count):
        item = f"job-{number}"
        payload: dict[str, Any] = {"item": item, "device": rng.choice(site.devices)["id"]}
        body: dict[str, Any] = {
            "function": rng.choices(("work", "narrow", "pile"), (7, 1, 2))[0],
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
    return [*lanes, *_chains(site, events_count, seconds)]


def chain_items(number: int, events_count: int) -> list[str]:
    """Return what the chained device of this number sends, in its order."""
    length = int(events_count * CHAIN_SHARE / CHAINS_COUNT)
    return [f"chain-{number}-{at}" for at in range(length)]


def _chains(site: Site, events_count: int, seconds: float) -> Iterator[deque[Sending]]:
    for number, device in enumerate(site.chained):
        items = chain_items(number, events_count)
        yield deque(
            Sending(
                path=f"/v1/devices/{device['id']}/values",
                body=as_body({"values": [_value(item)]}),
                items=(item,),
                at_s=seconds * at / len(items),
            )
            for at, item in enumerate(items)
        )


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
