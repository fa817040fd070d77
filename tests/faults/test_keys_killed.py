"""The engine is killed while requests with an Idempotency-Key are on their way; they come again."""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import contextlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import pytest

from tests.conftest import Engine
from tests.faults.audit import DATABASE

KEY = "Idempotency-Key"
KILLS = 5
CLIENTS = 6
INSIST_S = 60
# Some seconds of work for SQLite, in the middle of a transaction.
SLOW = (
    "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
    "WHERE i < 30000000) SELECT i FROM n)"
)


@contextlib.contextmanager
def database(engine: Engine) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(engine.data_dir / DATABASE, timeout=30)) as opened:
        yield opened
        opened.commit()


def state_of(engine: Engine, key: str) -> str | None:
    with database(engine) as opened:
        row = opened.execute("SELECT state FROM idempotency_keys WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def post(engine: Engine, path: str, body: Any, key: str) -> httpx.Response:
    return engine.client.post(path, json=body, headers={KEY: key})


def killed_when(engine: Engine, state: str, path: str, body: Any) -> None:
    """Send a request with the key `k`; kill the engine when the key is in this state."""

    def send() -> None:
        with contextlib.suppress(httpx.HTTPError):  # nobody answers it
            post(engine, path, body, "k")

    sending = threading.Thread(target=send)
    sending.start()
    engine.until(lambda: state_of(engine, "k") == state)
    engine.kill()
    sending.join()
    with database(engine) as opened:
        opened.execute("DROP TRIGGER slow")
    engine.start()


@pytest.mark.slow
def test_killed_after_the_commit_and_before_the_answer(own_engine: Callable[..., Engine]) -> None:
    """It was carried out, and is not again: the caller is told that the answer was lost."""
    engine = own_engine()
    with database(engine) as opened:
        opened.execute(
            "CREATE TRIGGER slow BEFORE UPDATE ON idempotency_keys WHEN NEW.state = 'answered' "
            f"BEGIN {SLOW}; END"
        )

    killed_when(engine, "applied", "/v1/products", {"name": "one"})
    answers = [post(engine, "/v1/products", {"name": "one"}, "k") for _ in range(2)]
    other = post(engine, "/v1/products", {"name": "two"}, "k")

    assert [one.status_code for one in answers] == [409, 409]
    assert {one.json()["code"] for one in answers} == {"idempotency_answer_lost"}
    assert other.json()["code"] == "idempotency_mismatch"
    assert [one["name"] for one in engine.ok("GET", "/v1/products")["items"]] == ["one"]


@pytest.mark.slow
def test_killed_before_the_commit(own_engine: Callable[..., Engine]) -> None:
    """It was not carried out: the next one with the key is, at once."""
    engine = own_engine()
    with database(engine) as opened:
        opened.execute(f"CREATE TRIGGER slow BEFORE INSERT ON products BEGIN {SLOW}; END")

    killed_when(engine, "running", "/v1/products", {"name": "one"})
    again = post(engine, "/v1/products", {"name": "one"}, "k")

    assert again.status_code == 201
    assert "idempotent-replayed" not in again.headers
    assert len(engine.ok("GET", "/v1/products")["items"]) == 1


@pytest.mark.slow
def test_killed_before_the_commit_of_a_write(own_engine: Callable[..., Engine]) -> None:
    """A write is stored with its answer: between the two there is nothing."""
    engine = own_engine()
    device = engine.device("thermometer")
    path = f"/v1/devices/{device['id']}/values"
    body = {"values": [{"key": "a", "value": 1}]}
    with database(engine) as opened:
        opened.execute(f"CREATE TRIGGER slow BEFORE INSERT ON events BEGIN {SLOW}; END")

    killed_when(engine, "running", path, body)
    answers = [post(engine, path, body, "k") for _ in range(2)]

    assert [one.status_code for one in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert len(engine.ok("GET", path)["items"]) == 1


@pytest.mark.slow
def test_clients_that_try_again_until_they_are_answered(own_engine: Callable[..., Engine]) -> None:
    """Whenever the engine is killed: each key has made one device, and stored one value."""
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = Random(seed)
    engine = own_engine()
    gauge = engine.device("gauges", "gauge")
    writes = f"/v1/devices/{gauge['id']}/values"
    stop = threading.Event()
    counts: Counter[str] = Counter()

    def client(number: int) -> int:
        made = 0
        with httpx.Client(headers=engine.headers, timeout=10, verify=False) as http:
            while not stop.is_set():
                name = f"{number}-{made}"
                made += 1
                body = {"product": "gauges", "name": name}
                _insist(engine, http, counts, "/v1/devices", body, name)
                value = {"values": [{"key": "n", "value": name}]}
                _insist(engine, http, counts, writes, value, f"write-{name}")
        return made

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.3, 1.0))  # a kill comes whenever it comes
                engine.kill()
                engine.start()
            time.sleep(0.3)  # for the last start, too, clients come back
        finally:
            stop.set()
        numbers = [one.result(timeout=60) for one in clients]

    names = [f"{number}-{n}" for number, made in enumerate(numbers) for n in range(made)]
    print(f"{KILLS} kills, {len(names)} keys of each kind: {dict(counts)}")
    with database(engine) as opened:
        devices = Counter(row[0] for row in opened.execute("SELECT name FROM devices"))
        values = Counter(row[0] for row in opened.execute('SELECT value FROM "values"'))
        states = dict(opened.execute("SELECT state, count(*) FROM idempotency_keys GROUP BY state"))
    assert devices == Counter([*names, "gauge"])
    assert values == Counter(f'"{name}"' for name in names)
    assert states.get("running", 0) == 0
    assert counts["201"] > len(names)
    assert counts["no answer"] > 0


def _insist(
    engine: Engine, http: httpx.Client, counts: Counter[str], path: str, body: Any, key: str
) -> None:
    """Send the request until it is answered for good."""
    deadline = time.monotonic() + INSIST_S
    while True:
        assert time.monotonic() < deadline, f"{path} was not answered for good within {INSIST_S} s"
        try:
            answer = http.post(engine.url + path, json=body, headers={KEY: key})
        except httpx.HTTPError:
            counts["no answer"] += 1
            time.sleep(0.05)  # it is being started again
            continue
        if answer.status_code == 409 and answer.json()["code"] == "idempotency_answer_lost":
            counts["answer lost"] += 1
            return
        counts[str(answer.status_code)] += 1
        counts["replayed"] += "idempotent-replayed" in answer.headers
        if answer.status_code == 201:
            return
        assert answer.status_code in {409, 503}, answer.text
        time.sleep(0.05)  # as its Retry-After would have it, only sooner
