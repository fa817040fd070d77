"""The sender is killed while it sends, at the worst moment: the provider has just taken it.

A thousand messages go to a provider that fails three of ten attempts in every way it can. Ten times
the engine is killed with SIGKILL inside the provider's answer, when the message is taken and nobody
but the provider knows.
"""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from engine.outbox import INTERRUPTED
from tests.conftest import Engine
from tests.standins.provider import HTTP_FAULTS, Asked, Reply
from tests.standins.providers.twilio import StandIn

MESSAGES = 1_000
PER_RUN = 20  # the most that one run may send
KILLS = 10
FAILS = 0.3
# Of one connection: else its breaker opens now and then, as it should, and costs the test its time.
IN_A_ROW = 3
SLOTS = {"ONE": 1, "FOUR": 4}  # attempts at once, by connection
# Not those that ask for patience: each would stop its connection for that long, as it should.
FAULTS = [HTTP_FAULTS[f"answers {status}"] for status in (500, 502, 408)]
FAULTS += [Reply(fault="drop"), Reply(fault="cut", body=b'{"sid": "SM')]
OPEN_STATES = {"queued", "sending", "retrying", "held"}
SEND = """
export default {
  async job({ connection, first, count }, env) {
    for (let n = first; n < first + count; n++)
      await env[connection].send({ to: `+34600${String(n).padStart(6, "0")}`, body: `alarm ${n}` });
  },
};
"""


class Failing(StandIn):
    """Fails three of ten before it has looked, and calls `on_taken` before it answers `taken`."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng
        self.kill_at: list[int] = []
        self.kill: Callable[[], None] = lambda: None
        self.killed = threading.Event()
        self.taken: Counter[str] = Counter()
        self.in_a_row: Counter[str] = Counter()  # by connection
        self.failed = self.restarts = 0
        self.in_the_window: list[str] = []  # taken, and the answer cannot reach anybody

    def answer(self, asked: Asked) -> Reply:
        (body,) = parse_qs(asked.body.decode())["Body"]
        connection = connection_of(int(body.removeprefix("alarm ")))
        with self.lock:
            fails = self.rng.random() < FAILS and self.in_a_row[connection] < IN_A_ROW
            fault = self.rng.choice(FAULTS)
            self.failed += fails
            self.in_a_row[connection] = self.in_a_row[connection] + 1 if fails else 0
        if fails:
            return fault
        reply = super().answer(asked)
        if reply.status != 201:
            return reply
        with self.lock:
            self.taken[body] += 1
            now = bool(self.kill_at) and sum(self.taken.values()) >= self.kill_at[0]
            if now:
                self.kill_at.pop(0)
        if now:
            self.kill()
            self.in_the_window.append(body)
            self.killed.set()
        return reply


@pytest.mark.slow
def test_each_intent_is_delivered_whatever_fails(own_engine: Callable[..., Engine]) -> None:
    """Nothing is lost, and twice comes only what the provider took in the instant of a kill."""
    seed = time.time_ns()
    print(f"seed {seed}")
    with Failing(Random(seed)) as provider:
        engine = own_engine()
        provider.kill = engine.kill
        connect(engine, provider)
        engine.deploy("notify", SEND)
        step = MESSAGES // (KILLS + 1)
        provider.kill_at = [step * number for number in range(1, KILLS + 1)]
        for first in range(0, MESSAGES, PER_RUN):
            job = {"connection": connection_of(first), "first": first, "count": PER_RUN}
            until_taken(engine, provider, job, f"send-{first}")
        while provider.restarts < KILLS:
            start_after_kill(engine, provider)
        engine.until(lambda: ended_count(engine) >= MESSAGES, 120)

        items = everything(engine)
        doubled = {body: count for body, count in provider.taken.items() if count > 1}
        interrupted = {item["id"]: interruptions(engine, item["id"]) for item in items}
        by_body = {item["payload"]["body"]: item for item in map(whole(engine), items)}
        print(
            f"{KILLS} kills, {provider.failed} attempts failed by the provider,"
            f" {sum(interrupted.values())} interrupted, {len(doubled)} came twice"
        )

    assert provider.refused == []
    assert Counter(item["state"] for item in items) == {"delivered": MESSAGES}
    assert provider.taken.keys() == {f"alarm {n}" for n in range(MESSAGES)}
    assert provider.failed > MESSAGES * FAILS / 2
    assert len(provider.in_the_window) == KILLS
    for body, count in doubled.items():
        item = by_body[body]
        assert count <= 1 + interrupted[item["id"]], body
    for name, slots in SLOTS.items():
        mine = [body for body in doubled if by_body[body]["connection"] == name]
        assert sum(doubled[body] - 1 for body in mine) <= KILLS * slots
    assert sum(count - 1 for count in doubled.values()) <= KILLS * sum(SLOTS.values())


def connection_of(number: int) -> str:
    return list(SLOTS)[number // PER_RUN % len(SLOTS)]


def connect(engine: Engine, provider: Failing) -> None:
    for name, slots in SLOTS.items():
        body = provider.connection()
        body["settings"] |= {
            "from": "+15005550006",
            "concurrency": slots,
            "guard": None,
            "retries": {"waits_s": [0.2, 0.5, 1], "max_attempts": 20},
        }
        engine.ok("PUT", f"/v1/connections/{name}", body)


def until_taken(engine: Engine, provider: Failing, job: dict[str, Any], key: str) -> None:
    """Ask for a job until the engine has accepted it, however often it is killed meanwhile."""
    while True:
        try:
            engine.ok(
                "POST",
                "/v1/jobs",
                {"function": "notify", "payload": job},
                headers={"Idempotency-Key": key},
            )
        except httpx.TransportError:
            start_after_kill(engine, provider)
        else:
            return


def start_after_kill(engine: Engine, provider: Failing) -> None:
    assert provider.killed.wait(60), "nothing was sent for a minute"
    provider.killed.clear()
    provider.restarts += 1
    engine.start()


def everything(engine: Engine) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = engine.ok("GET", f"/v1/deliveries?limit=100{cursor}")
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = f"&cursor={page['next_cursor']}"


def ended_count(engine: Engine) -> int:
    return sum(item["state"] not in OPEN_STATES for item in everything(engine))


def whole(engine: Engine) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda item: engine.ok("GET", f"/v1/deliveries/{item['id']}")


def interruptions(engine: Engine, delivery_id: str) -> int:
    attempts = engine.ok("GET", f"/v1/deliveries/{delivery_id}")["attempts_log"]
    return sum(attempt["error"] == INTERRUPTED for attempt in attempts)
