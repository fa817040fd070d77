"""What is sent twice to a real server, most of whose invokes and writes take a short way."""

import concurrent.futures
from typing import Any

import httpx

from tests.conftest import Engine

ECHO = "export default { async job(params) { return params; } }"
KEY = "Idempotency-Key"


def test_the_short_way_leaves_keys_to_the_others(engine: Engine) -> None:
    """A real server takes most invokes and writes by a short way: those with a key it does not."""
    device = engine.device("keyed-product")
    engine.deploy("keyed-echo", ECHO)
    thing, invoke = f"/v2/things/{device['token']}", "/v1/functions/keyed-echo/invoke"
    values = {"values": [{"key": "a", "value": 1}]}

    def post(path: str, body: Any) -> httpx.Response:
        return engine.client.post(path, json=body, headers={KEY: "k" + path[-5:]})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        writes = list(pool.map(post, [thing] * 20, [values] * 20))
        runs = list(pool.map(post, [invoke] * 20, [1] * 20))

    assert {one.status_code for one in writes} <= {201, 409}
    assert {one.status_code for one in runs} <= {200, 409}
    stored = engine.ok("GET", f"/v1/devices/{device['id']}/values")["items"]
    assert len(stored) == 1
    assert len(engine.executions(function="keyed-echo")) == 1


def test_the_short_way_leaves_ids_to_the_others(engine: Engine) -> None:
    """A real server takes most writes by a short way: not those that have an id."""
    device = engine.device("numbered-product")
    thing = f"/v2/things/{device['token']}"
    plain = {"values": [{"key": "a", "value": 1}]}
    # The letters of a field's name may be written as escapes: it is the same field.
    escaped = b'{"values":[{"key":"a","value":1,"datetime":"2010-10-29T00:00:00Z","\\u0069d":"1"}]}'

    for _ in range(2):
        assert engine.client.post(thing, json=plain).status_code == 201
    statuses = [engine.client.post(thing, content=escaped).status_code for _ in range(2)]

    assert statuses == [201, 200]
    assert len(engine.ok("GET", f"/v1/devices/{device['id']}/values")["items"]) == 3
