"""Clients that put load on an engine and remember what it promised them.

Path:   a test -> `Load.start` -> threads -> the engine, across its kills and restarts
Never:  sends the same item twice, so whatever is stored twice was doubled by the engine.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count
from threading import Event, Lock, Thread
from typing import Any

from tests.conftest import ADMIN_KEY, Engine

PRODUCT = "gate"
REQUEST_S = 30.0
BACK_S = 30.0  # how long a client waits for a killed engine to come back
JOIN_S = 40.0
GATEWAY_ITEMS = 6

TRIGGER = """
export async function afterStore(event, env) {
  const item = event.data.values[0].value;
  await env.DEVICES.write(event.deviceId, [{ key: "seen", value: item }]);
  await env.SLACK.send({ text: item });
}
"""
NOTE = """
export async function job(params, env) {
  await env.DEVICES.write(params.device, [{ key: "noted", value: params.item }]);
  await env.SLACK.send({ text: params.item });
}
"""
ECHO = """
export default async function (params) {
  if (params.ms) await new Promise((resolve) => setTimeout(resolve, params.ms));
  return { item: params.item };
}
"""


@dataclass
class Promises:
    """What the engine answered; an item is the text that goes through everything."""

    writes: set[str] = field(default_factory=set)  # answered with 201
    runs: set[str] = field(default_factory=set)  # answered with 202
    maybe_writes: set[str] = field(default_factory=set)  # sent, and the connection broke
    maybe_runs: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)  # "kind status" -> requests
    bodies: list[Any] = field(default_factory=list)  # of refusals


@dataclass
class Site:
    """An engine with the functions, the connection and the devices of these tests."""

    engine: Engine
    devices: list[dict[str, Any]]


def furnish(engine: Engine, webhook_url: str, devices_count: int = 4) -> Site:
    credentials = {"webhook_url": webhook_url}
    engine.ok("PUT", "/v1/connections/SLACK", {"kind": "slack", "credentials": credentials})
    engine.deploy("seen", TRIGGER)
    engine.deploy("note", NOTE)
    engine.deploy("echo", ECHO)
    devices = [engine.device(PRODUCT, f"device-{at}") for at in range(devices_count)]
    trigger = {"function": "seen", "product": PRODUCT, "on": "write", "phase": "after"}
    engine.ok("POST", "/v1/triggers", trigger | {"keys": ["item"]})
    return Site(engine, devices)


class Load:
    """Threads, one connection each; `pace_s` is how long one rests between two requests."""

    def __init__(self, site: Site, pace_s: float = 0.01) -> None:
        self.promises = Promises()
        self.up = Event()  # cleared while the engine is down
        self.up.set()
        self._site = site
        self._pace_s = pace_s
        self._stopping = Event()
        self._lock = Lock()
        self._numbers = count()
        self._threads: list[Thread] = []

    @contextmanager
    def running(self, **clients: int) -> Iterator["Load"]:
        """Run so many clients of each kind (write, thing, gateway, job, call) meanwhile."""
        kinds = {
            "write": self._write,
            "thing": self._thing,
            "gateway": self._gateway,
            "job": self._job,
            "call": self._call,
        }
        for kind, wanted in clients.items():
            for _ in range(wanted):
                thread = Thread(target=self._repeat, args=(kinds[kind],), daemon=True, name=kind)
                self._threads.append(thread)
                thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self.up.set()
        for thread in self._threads:
            thread.join(JOIN_S)
            assert not thread.is_alive(), f"a client of kind {thread.name} hangs"

    def rest(self, seconds: float) -> None:
        """Let the load go on for so long."""
        self._stopping.wait(seconds)

    def _repeat(self, request: Callable[["_Connection"], None]) -> None:
        connection = _Connection(self._site.engine)
        while not self._stopping.is_set():
            try:
                request(connection)
            except (OSError, HTTPException) as error:
                self._count(f"{request.__name__[1:]} {type(error).__name__}")
                connection.close()
                self.up.wait(BACK_S)
            self._stopping.wait(self._pace_s)
        connection.close()

    def _item(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def _device(self, item: str) -> dict[str, Any]:
        return self._site.devices[hash(item) % len(self._site.devices)]

    def _count(self, key: str, body: Any = None) -> None:
        with self._lock:
            self.promises.statuses[key] += 1
            if body is not None:
                self.promises.bodies.append(body)

    def _write(self, connection: "_Connection") -> None:
        item = self._item("write")
        path = f"/v1/devices/{self._device(item)['id']}/values"
        self._one_write(connection, "write", path, item)

    def _thing(self, connection: "_Connection") -> None:
        item = self._item("thing")
        self._one_write(connection, "thing", f"/v2/things/{self._device(item)['token']}", item)

    def _one_write(self, connection: "_Connection", kind: str, path: str, item: str) -> None:
        promises = self.promises
        promises.maybe_writes.add(item)
        status, body = connection.post(path, {"values": _values(item)})
        promises.maybe_writes.discard(item)
        self._count(f"{kind} {status}", None if status == 201 else body)
        if status == 201:
            promises.writes.add(item)

    def _gateway(self, connection: "_Connection") -> None:
        promises = self.promises
        items = [self._item("gateway") for _ in range(GATEWAY_ITEMS)]
        writes = [{"device": self._device(item)["id"], "values": _values(item)} for item in items]
        promises.maybe_writes.update(items)
        status, body = connection.post("/v1/writes", writes)
        promises.maybe_writes.difference_update(items)
        complete = status == 200 and body["accepted"] == len(items)
        self._count(f"gateway {status}", None if complete else body)
        if complete:
            promises.writes.update(items)

    def _job(self, connection: "_Connection") -> None:
        promises = self.promises
        item = self._item("job")
        params = {"device": self._device(item)["id"], "item": item}
        promises.maybe_runs.add(item)
        path = "/v1/functions/note/invoke"
        status, body = connection.post(path, params, {"Prefer": "respond-async"})
        promises.maybe_runs.discard(item)
        self._count(f"job {status}", None if status == 202 else body)
        if status == 202:
            promises.runs.add(item)

    def _call(self, connection: "_Connection") -> None:
        item = self._item("call")
        status, body = connection.post("/v1/functions/echo/invoke", {"item": item})
        good = status == 200 and body == {"item": item}
        self._count(f"call {status}", None if good else body)


class _Connection:
    """One connection, made again after a failure: the engine may have moved to another port."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: HTTPConnection | None = None

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        if self._open is None:
            address = self._engine.url.removeprefix("http://")
            self._open = HTTPConnection(address, timeout=REQUEST_S)
        sent = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
        self._open.request("POST", path, json.dumps(body), sent | (headers or {}))
        response = self._open.getresponse()
        answer = json.loads(response.read())
        if response.will_close:
            self.close()
        return response.status, answer

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _values(item: str) -> list[dict[str, str]]:
    return [{"key": "item", "value": item}, {"key": "twin", "value": item}]
