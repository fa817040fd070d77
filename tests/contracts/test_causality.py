"""Functions that cause each other: every loop comes to an end, and says by which way it went."""

from typing import Any

import httpx
import pytest

from engine.causality import HEADER
from engine.quotas import CALL_DEPTH_MAX, CAUSAL_BUDGET, TRIGGER_DEPTH_MAX
from tests.conftest import Engine
from tests.standins.http_server import Received, answer, http_server

CALLS = """
export default async function (p, env) {
  const told = [];
  for (let n = 0; n < p.calls; n++) {
    try { await env.FN.call(p.function, p.next ?? null); told.push("called"); }
    catch (error) { told.push([error.code, error.message]); }
  }
  for (const device of p.devices ?? []) await env.DEVICES.write(device, [{key: "in", value: 1}]);
  return told;
}
"""
BOMB = """
export default async function (p, env) {
  await env.FN.call("cz-bomb");
  await env.FN.call("cz-bomb");
}
"""
PING = "export async function afterStore(e, env) { await env.DEVICES.write(e.deviceId, [KEY]) }"
# Answers what came of asking the engine itself, or says what the one below it was told.
ASKS = """
export default {
  async fetch(request, env) {
    const { searchParams } = new URL(request.url);
    const path = searchParams.get("path") ?? new URL(request.url).pathname;
    const init = { headers: { "Cloudcode-Via": "exe_1;depth=0;budget=10000;path=\\"mine\\"" } };
    const answer = await fetch(env.ENGINE + path, init);
    return new Response(await answer.text(), { status: answer.status });
  },
};
"""
POSTS = """
export default async function (p, env) {
  const init = { method: "POST", body: JSON.stringify(p.body), headers: p.headers ?? {} };
  const answer = await fetch(p.url, init);
  return { status: answer.status, body: await answer.json() };
}
"""


@pytest.fixture(scope="module", autouse=True)
def shared(engine: Engine) -> None:
    engine.deploy("cz-calls", CALLS)
    engine.deploy("cz-posts", POSTS, allowed_hosts=["127.0.0.1"])
    engine.deploy("cz-below", "export function job(p, env, ctx) { return ctx.depth }")
    source = "export function afterStore(e, env, ctx) { return ctx.depth }"
    bound(engine, "cz-stored", source, "cz-ways")


def bound(engine: Engine, name: str, source: str, product: str, **trigger: Any) -> None:
    """Deploy a function that the writes of a product's devices trigger."""
    if engine.client.get(f"/v1/products/{product}").status_code == 404:
        engine.ok("POST", "/v1/products", {"name": product})
    engine.deploy(name, source)
    engine.ok("POST", "/v1/triggers", {"function": name, "product": product, **trigger})


def stopped(engine: Engine) -> float:
    lines = engine.client.get("/metrics").text.splitlines()
    return float(
        next(one.split()[1] for one in lines if one.startswith("cloudcode_loops_stopped_total"))
    )


def report(engine: Engine, execution: str) -> dict[str, Any]:
    return engine.ok("GET", f"/v1/executions/{execution}")


def ended(engine: Engine, execution: str) -> dict[str, Any]:
    return engine.until(
        lambda: (run := report(engine, execution))["status"] not in {"queued", "running"} and run
    )


def of_root(engine: Engine, function: str, root: str) -> list[dict[str, Any]]:
    runs = (report(engine, run["id"]) for run in engine.executions(function=function))
    return [run for run in runs if run["root_id"] == root]


def beneath(engine: Engine, function: str, params: Any, **via: Any) -> httpx.Response:
    """Invoke as if a function had sent the request."""
    said = {"depth": 0, "budget": CAUSAL_BUDGET, "path": "above"} | via
    text = f'exe_1;depth={said["depth"]};budget={said["budget"]};path="{said["path"]}"'
    return engine.client.post(
        f"/v1/functions/{function}/invoke", json=params, headers={HEADER: text}
    )


def test_a_fork_bomb_is_as_large_as_it_is_deep(engine: Engine) -> None:
    """Each run calls two: 511 runs, no more, and the last ones say which way they came."""
    engine.deploy("cz-bomb", BOMB)

    root = engine.invoke("cz-bomb").headers["execution-id"]
    engine.until(lambda: len(engine.executions(function="cz-bomb")) == 2**9 - 1)
    engine.settled()

    runs = engine.executions(function="cz-bomb")
    assert len(runs) == 2 ** (CALL_DEPTH_MAX + 1) - 1
    failed = [run for run in runs if run["status"] == "failed"]
    assert len(failed) == 2**CALL_DEPTH_MAX
    last = report(engine, failed[0]["id"])
    assert (last["root_id"], last["depth"]) == (root, CALL_DEPTH_MAX)
    assert "8 calls deep already; the most is 8" in last["error"]["message"]
    assert last["error"]["message"].endswith(" > ".join(["cz-bomb"] * 9))


def test_a_call_beyond_the_budget_is_refused(engine: Engine) -> None:
    """With the way; what was called before is kept, and shares what was left."""
    before = stopped(engine)
    params = {"calls": 4, "function": "cz-calls", "next": {"calls": 2, "function": "cz-calls"}}

    response = beneath(engine, "cz-calls", params, budget=8)  # it counts: seven are left

    assert response.json() == ["called"] * 4
    root = response.headers["execution-id"]
    engine.until(lambda: len(of_root(engine, "cz-calls", root)) == 5)
    engine.settled()
    below = [run for run in of_root(engine, "cz-calls", root) if run["depth"] == 2]
    way = "above > cz-calls > cz-calls"
    for run in below:
        code, message = run["result"][0]
        assert code == "causal_budget_exceeded"
        assert f"may cause {CAUSAL_BUDGET} runs, and this run's share of them is 0" in message
        assert message.endswith(way)
    assert stopped(engine) == before + 8


def test_a_write_beyond_the_budget_is_stored_and_triggers_nothing(engine: Engine) -> None:
    """The values are there; the log, the event and a counter say what did not run, and why."""
    device = engine.device("cz-spent")["id"]
    bound(engine, "cz-quiet", "export function afterStore() {}", "cz-spent")
    before = stopped(engine)
    params = {"calls": 1, "function": "cz-quiet", "devices": [device, device]}

    response = beneath(engine, "cz-calls", params, budget=3)  # two: the call, and one write

    assert response.status_code == 200
    run = report(engine, response.headers["execution-id"])
    first, second = [effect for effect in run["effects"] if effect["kind"] == "write"]
    assert "stopped" not in first
    assert second["stopped"].endswith(": above > cz-calls")
    log = engine.ok("GET", f"/v1/executions/{run['id']}/logs")["items"]
    assert [line["msg"] for line in log if line["level"] == "warn"] == [second["stopped"]]
    assert engine.ok("GET", f"/v1/devices/{device}/values", params={"key": "in", "limit": 9})
    told = engine.ok("GET", f"/v1/events/{second['event_id']}/explain")
    item = next(one for one in told["items"] if one["function"] == "cz-quiet")
    assert item["outcome"] == "over_budget"
    assert "above > cz-calls" in item["detail"]
    assert stopped(engine) == before + 1


def test_two_functions_that_answer_each_other(engine: Engine) -> None:
    """Over a device: five deep, then the value is stored and the reason names both of them."""
    device = engine.device("cz-echo")["id"]
    for name, listens, writes in (("cz-ping", "a", "b"), ("cz-pong", "b", "a")):
        source = PING.replace("KEY", f'{{key: "{writes}", value: 1}}')
        bound(engine, name, source, "cz-echo", keys=[listens])

    body = {"values": [{"key": "a", "value": 0}]}
    written = engine.ok("POST", f"/v1/devices/{device}/values", body)

    engine.until(lambda: len(engine.executions(function="cz-pong")) == 3)
    engine.settled()
    runs = [report(engine, run["id"]) for run in engine.executions(function="cz-ping")]
    runs += [report(engine, run["id"]) for run in engine.executions(function="cz-pong")]
    assert len(runs) == TRIGGER_DEPTH_MAX + 1
    assert {run["root_id"] for run in runs} == set(written["executions"])
    last = max(runs, key=lambda run: run["depth"])
    (effect,) = last["effects"]
    way = " > ".join(["cz-ping", "cz-pong"] * 3)
    assert effect["stopped"] == f"triggers nothing: 6 functions deep, at most 5 are: {way}"
    item = engine.ok("GET", f"/v1/events/{effect['event_id']}/explain")["items"][0]
    assert item["outcome"] == "too_deep"
    assert way in item["detail"]


def test_messages_of_the_queue_handler_keep_the_way(engine: Engine) -> None:
    """A function whose messages come back to itself, by way of the queue, ends as well."""
    source = 'export async function queue(b, env) { await env.FN.call("cz-queue", 1) }'
    engine.deploy("cz-queue", source, queue={"max_batch_timeout": 0})

    engine.ok("POST", "/v1/jobs", {"function": "cz-queue", "max_attempts": 1})

    failed = engine.until(lambda: engine.executions(function="cz-queue", status="failed"))
    runs = engine.executions(function="cz-queue")
    assert len(runs) == CALL_DEPTH_MAX + 1
    message = report(engine, failed[0]["id"])["error"]["message"]
    assert message.endswith(" > ".join(["cz-queue"] * 9))


def test_a_loop_through_the_outside_ends(engine: Engine) -> None:
    """A function that asks for its own address: 508 in the end, with the way, whatever it sends."""
    settings = {"allowed_hosts": ["127.0.0.1"], "variables": {"ENGINE": engine.url}}
    engine.deploy("cz-asks", ASKS, **settings)

    answer = httpx.get(f"{engine.url}/f/default/cz-asks", timeout=30)

    assert answer.status_code == 508
    assert answer.json()["code"] == "loop_detected"
    assert " > ".join(["cz-asks"] * 9) in answer.json()["detail"]
    assert len(engine.executions(function="cz-asks")) == CALL_DEPTH_MAX + 1


@pytest.mark.parametrize("way", ["invoke", "write", "gateway", "thing", "thing call", "job"])
def test_every_way_in_counts_what_is_above(engine: Engine, way: str) -> None:
    """By the API, as a device, or as a job: what a function asks for stands below its run."""
    made = engine.device("cz-ways", way)
    values = {"values": [{"key": "in", "value": 1}]}
    thing = f"/v2/things/{made['token']}"
    path, body = {
        "invoke": ("/v1/functions/cz-below/invoke", None),
        "write": (f"/v1/devices/{made['id']}/values", values),
        "gateway": ("/v1/writes", [{"device": made["id"], **values}]),
        "thing": (thing, values),
        "thing call": (f"{thing}/code/functions/cz-below", {"params": None}),
        "job": ("/v1/jobs", {"function": "cz-below"}),
    }[way]
    params = {"url": engine.url + path, "body": body, "headers": engine.headers}
    known = {run["id"] for run in engine.executions()}

    above = beneath(engine, "cz-posts", params, depth=TRIGGER_DEPTH_MAX - 2)
    engine.settled()
    new = [run for run in engine.executions() if run["id"] not in known]
    run = next(run for run in new if run["function"] in ("cz-below", "cz-stored"))
    refused = beneath(engine, "cz-posts", params, depth=CALL_DEPTH_MAX - 1)

    assert above.json()["status"] < 300, above.text
    below = ended(engine, run["id"])
    assert below["depth"] == below["result"] == TRIGGER_DEPTH_MAX
    assert below["root_id"] == below["id"]  # a stranger's word makes no run part of another's chain
    assert refused.json()["status"] == 508
    assert "above > cz-posts" in str(refused.json()["body"])


def test_a_value_that_triggers_nothing_is_stored_however_deep(engine: Engine) -> None:
    """There is no loop without a run, so a function may write by HTTP as deep as it is."""
    device = engine.device("cz-plain")["id"]
    url = f"{engine.url}/v1/devices/{device}/values"
    body = {"values": [{"key": "in", "value": 1}]}
    params = {"url": url, "body": body, "headers": engine.headers}

    answer = beneath(engine, "cz-posts", params, depth=CALL_DEPTH_MAX - 1)

    assert answer.json()["status"] == 201


def test_a_job_that_asks_for_itself_later_is_no_loop(engine: Engine) -> None:
    """Whoever polls does that; one that asks for itself at once comes to an end."""
    engine.deploy("cz-later", "export function job() {}")
    body = {"function": "cz-later", "delay_seconds": 1}
    params = {"url": f"{engine.url}/v1/jobs", "body": body, "headers": engine.headers}

    later = beneath(engine, "cz-posts", params, depth=CALL_DEPTH_MAX - 1).json()
    params["body"] = body | {"delay_seconds": 0.5}
    soon = beneath(engine, "cz-posts", params, depth=CALL_DEPTH_MAX - 1).json()

    assert later["status"] == 201
    assert soon["status"] == 508
    assert ended(engine, later["body"]["execution_id"])["depth"] == 0


async def test_what_goes_out_says_where_it_comes_from(engine: Engine) -> None:
    """On every hop, with another share each time; a function can neither set nor hide it."""

    async def respond(received: Received) -> bytes:
        return answer(302, b"", Location="/end") if received.target == "/" else answer(200, b"{}")

    forged = {HEADER: "forged", HEADER.lower(): "forged", "CDN-Loop": "forged"}
    async with http_server(respond) as server, httpx.AsyncClient(timeout=30) as client:
        ran = await client.post(
            f"{engine.url}/v1/functions/cz-posts/invoke",
            json={"url": f"{server.url}/", "body": 1, "headers": forged},
            headers=engine.headers,
        )

    assert ran.json()["status"] == 200, ran.text
    root = ran.headers["execution-id"]
    told = [(one.headers["cloudcode-via"], one.headers["cdn-loop"]) for one in server.received]
    assert told == [
        (f'{root};depth=0;budget=5000;path="cz-posts"', "cloudcode"),
        (f'{root};depth=0;budget=125;path="cz-posts"', "cloudcode"),
    ]


def test_a_loop_by_webhooks_ends(engine: Engine) -> None:
    """Each run sends one to the function's own address: it comes to an end, long after the runs."""
    source = "export default { async fetch(r, env) { await env.HOOK.send({}); return r } }"
    source = source.replace("return r", "return new Response('')")
    hook = {"kind": "webhook", "credentials": {"url": f"{engine.url}/f/default/cz-hooks"}}
    engine.ok("PUT", "/v1/connections/HOOK", hook)
    engine.deploy("cz-hooks", source)

    httpx.get(f"{engine.url}/f/default/cz-hooks", timeout=30).raise_for_status()

    def last() -> dict[str, Any] | None:
        wanted = {"connection": "HOOK", "state": "failed"}
        return next(iter(engine.ok("GET", "/v1/deliveries", params=wanted)["items"]), None)

    refused = engine.until(last)
    assert refused["attempts"] == 1
    assert "HTTP 508" in refused["last_error"]
    assert len(engine.executions(function="cz-hooks")) == CALL_DEPTH_MAX + 1


def test_a_stranger_who_forges_the_header_harms_nobody_else(engine: Engine) -> None:
    """The same root, again and again: each request is a chain of its own, with its own budget."""
    text = f'exe_1;depth=2;budget=999999;path="{"a > " * 8}a"'
    roots = set()
    for _ in range(2):
        response = engine.client.post(
            "/v1/functions/cz-calls/invoke", json={"calls": 0}, headers={HEADER: text}
        )
        run = report(engine, response.headers["execution-id"])
        assert (run["root_id"], run["depth"]) == (run["id"], 3)
        roots.add(run["root_id"])

    assert len(roots) == 2
