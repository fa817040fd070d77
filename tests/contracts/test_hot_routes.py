"""The routes that carry the load, as their callers meet them: invoke, /f, device writes, /v2.

Everything goes over a real socket to a real process. After each refusal the test looks whether
anything was stored: the rule is that a refused request leaves nothing.
"""

import concurrent.futures
import functools
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

PROBLEM = "application/problem+json"
# Callers without a key; nothing here is TLS, and loading its certificates is slow.
get = functools.partial(httpx.get, verify=False)
head_of = functools.partial(httpx.head, verify=False)
post = functools.partial(httpx.post, verify=False)
request = functools.partial(httpx.request, verify=False)
ECHO = "function main(params, callback) { callback(null, params) }"
FETCHER = """
export default {
  async fetch(request, env, ctx) {
    const url = new URL(request.url);
    const say = url.searchParams.get("say");
    if (say === "bytes") return new Response(await request.bytes());
    if (say === "status") return new Response(null, { status: Number(url.searchParams.get("is")) });
    if (say === "throw") throw new TypeError("no answer");
    if (say === "number") return 42;
    if (say === "headers") return new Response("x", { headers: { "X-Mine": "é",
      "Content-Length": "9", "Transfer-Encoding": "chunked", "X-Request-Id": "mine",
      "Execution-Id": "mine" } });
    if (say === "cookies") {
      const response = new Response("x");
      response.headers.append("Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT");
      response.headers.append("Set-Cookie", "b=2");
      return response;
    }
    return Response.json({ method: request.method, path: url.pathname, search: url.search,
      headers: [...request.headers], body: await request.text() });
  }
}
"""


class Timeline:
    """One device, and how much of it is stored."""

    def __init__(self, engine: Any, device: dict[str, Any]) -> None:
        self._engine = engine
        self.id = device["id"]
        self.token = device["token"]
        self.path = f"/v1/devices/{self.id}/values"
        self.thing = f"/v2/things/{self.token}"

    def stored(self) -> list[dict[str, Any]]:
        return self._engine.ok("GET", self.path, params={"limit": 200})["items"]

    def values(self) -> list[tuple[str, Any]]:
        return [(item["key"], item["value"]) for item in reversed(self.stored())]


@pytest.fixture(scope="module")
def shop(engine: Any) -> Callable[[], Timeline]:
    """Make devices of one product, each with a timeline of its own."""
    names = iter(range(10_000))

    def make() -> Timeline:
        return Timeline(engine, engine.device("hot-product", f"hot-{next(names)}"))

    return make


@pytest.fixture(scope="module")
def echo(engine: Any) -> str:
    engine.deploy("hot-echo", ECHO)
    return "hot-echo"


@pytest.fixture(scope="module")
def web(engine: Any) -> str:
    engine.deploy("hot-web", FETCHER)
    return "/f/default/hot-web"


@pytest.fixture(scope="module")
def stranger(engine: Any) -> Iterator[httpx.Client]:
    """Return a client with the key of another project."""
    key = engine.ok("POST", "/v1/projects", {"name": "hot-stranger"})["key"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=engine.url, headers=headers, timeout=30) as client:
        yield client


def invoke_path(name: str) -> str:
    return f"/v1/functions/{name}/invoke"


def runs_of(engine: Any, function: str) -> int:
    return len(engine.executions(function=function))


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem after checking what every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    body = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"].endswith(code)
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == urlsplit(str(response.request.url)).path
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def thing_error(response: httpx.Response, status: int) -> str:
    """Return the message after checking the envelope of the device API."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"status", "code", "message"}
    assert body["status"] == "error"
    assert body["code"] == status
    return body["message"]


def say(engine: Any, text: bytes) -> bytes:
    """Send bytes as they are, on a connection of its own, and return all that comes back."""
    address = urlsplit(engine.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(text)
        answer = b""
        while block := connection.recv(65_536):
            answer += block
        return answer


def head(engine: Any, path: str, *lines: str) -> bytes:
    key = engine.client.headers["authorization"]
    text = f"POST {path} HTTP/1.1\r\nHost: engine\r\nAuthorization: {key}\r\nConnection: close\r\n"
    return (text + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


# Invoke: what goes in and what comes out.


def test_invoke_answers_the_result_with_its_execution(engine: Any, echo: str) -> None:
    """200 and the result itself; the headers name the run and say where its time went."""
    answer = engine.invoke(echo, {"a": [1, "zwei", None]})

    timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    execution = engine.ok("GET", f"/v1/executions/{answer.headers['execution-id']}")
    assert (answer.status_code, answer.json()) == (200, {"a": [1, "zwei", None]})
    assert answer.headers["content-type"] == "application/json"
    assert set(timing) == {"queue", "run", "cpu"}
    assert all(float(ms) >= 0 for ms in timing.values())
    assert execution["cause"] == "invoke"
    assert execution["input"] == execution["result"] == {"a": [1, "zwei", None]}


@pytest.mark.parametrize(
    "text",
    [
        "null", "true", "0", "-1.5e-3", '""', "[]", "{}", " \r\n\t [1] ",
        '"\\u0000\\u2028\\u2029\\""', '"😀 Ω ñ \u202e"', '{"ключ":{"":1,"__proto__":2}}',
        '{"constructor":1,"toString":2,"length":3}', "[" * 200 + "]" * 200,
    ],
)  # fmt: skip
def test_any_json_goes_in_and_comes_out(engine: Any, echo: str, text: str) -> None:
    """Every JSON value crosses to the guest and back unchanged."""
    answer = engine.client.post(invoke_path(echo), content=text.encode())

    assert answer.status_code == 200, answer.text
    assert answer.json() == json.loads(text)


def test_an_empty_body_is_null(engine: Any, echo: str) -> None:
    """A function without parameters needs no body."""
    answer = engine.client.post(invoke_path(echo))

    assert (answer.status_code, answer.json()) == (200, None)


def test_the_last_of_double_keys_counts(engine: Any, echo: str) -> None:
    """JSON with a key twice means what JSON.parse makes of it."""
    answer = engine.client.post(invoke_path(echo), content=b'{"a":1,"a":2}')

    assert answer.json() == {"a": 2}


def test_the_largest_body_is_one_mebibyte(engine: Any, echo: str) -> None:
    """The limit itself is allowed; a byte more is refused, with the limit's name and size."""
    most = b'"' + b"x" * (1024 * 1024 - 2) + b'"'

    fits = engine.client.post(invoke_path(echo), content=most)
    before = runs_of(engine, echo)
    too_large = engine.client.post(invoke_path(echo), content=most + b" ")

    assert (fits.status_code, len(fits.content)) == (200, len(most))
    hit = problem(too_large, 413, "payload_too_large")["limit"]
    assert hit == {"name": "params_bytes", "value": len(most), "used": len(most) + 1}
    assert runs_of(engine, echo) == before


def test_a_chunked_body_has_the_same_limit(engine: Any, echo: str) -> None:
    """Without Content-Length the bytes are counted as they come."""
    before = runs_of(engine, echo)

    small = engine.client.post(invoke_path(echo), content=iter([b"[1", b",2", b"]"]))
    large = engine.client.post(invoke_path(echo), content=iter([b"x" * 100_000] * 20))

    assert small.json() == [1, 2]
    problem(large, 413, "payload_too_large")
    assert runs_of(engine, echo) == before + 1


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nul", b"NaN", b"Infinity", b"'a'", b"[1,]", b"{a:1}", b"1 2", b"\xff", b'"\xff"',
        b'"\xed\xa0\x80"', b'"\\ud800"', b'"a\nb"', b"1e999", b"\xef\xbb\xbf1", b"01",
        b"[" * 5_000 + b"]" * 5_000,
    ],
)  # fmt: skip
def test_what_is_not_json_never_runs(engine: Any, echo: str, body: bytes) -> None:
    """400 with a reason, and no execution."""
    before = runs_of(engine, echo)

    answer = engine.client.post(invoke_path(echo), content=body)

    problem(answer, 400, "malformed_json")
    assert runs_of(engine, echo) == before


@pytest.mark.parametrize(("levels", "status"), [(200, 200), (201, 422)])
def test_an_accepted_input_can_be_read_again(
    engine: Any, echo: str, levels: int, status: int
) -> None:
    """Whatever was run can be shown, however deep it is nested; what could not is refused."""
    answer = engine.client.post(invoke_path(echo), content=b"[" * levels + b"]" * levels)

    assert answer.status_code == status
    if status == 200:
        shown = engine.client.get(f"/v1/executions/{answer.headers['execution-id']}")
        assert shown.status_code == 200


def test_half_a_body_never_runs(engine: Any, echo: str) -> None:
    """A caller that goes away in the middle of its body has asked for nothing."""
    before = runs_of(engine, echo)
    address = urlsplit(engine.url)

    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head(engine, invoke_path(echo), "Content-Length: 10") + b"123")
        engine.invoke(echo, "by its answer the engine has read the half")
    engine.invoke(echo, "and now it has seen the caller go")

    assert runs_of(engine, echo) == before + 2


def test_a_body_longer_than_announced_is_cut_there(engine: Any, echo: str) -> None:
    """Content-Length rules: what follows is not part of the parameters."""
    answer = say(engine, head(engine, invoke_path(echo), "Content-Length: 2") + b"123456")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\n\r\n12" in answer


def test_two_lengths_are_refused(engine: Any, echo: str) -> None:
    """A request that can be read in two ways (request smuggling) is not read at all."""
    before = runs_of(engine, echo)
    lines = ("Content-Length: 1", "Transfer-Encoding: chunked")

    answer = say(engine, head(engine, invoke_path(echo), *lines) + b"1\r\n7\r\n0\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert runs_of(engine, echo) == before


def test_a_hundred_callers_get_their_own_answers(engine: Any, echo: str) -> None:
    """Concurrent invocations never mix their results."""
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda n: engine.invoke(echo, n), range(100)))

    assert [answer.json() for answer in answers] == list(range(100))
    assert len({answer.headers["execution-id"] for answer in answers}) == 100


# Invoke with Prefer: respond-async.


def test_respond_async_answers_before_the_run(engine: Any) -> None:
    """202 with a Location that shows the run until, and after, it has ended."""
    engine.deploy("hot-later", "function main(p, cb) { setTimeout(() => cb(null, p + 1), 100) }")

    answer = engine.client.post(
        invoke_path("hot-later"), json=41, headers={"Prefer": "wait=5, respond-async"}
    )

    location = answer.headers["location"]
    at_once = engine.ok("GET", location)
    ended = engine.until(
        lambda: (found := engine.ok("GET", location))["status"] == "succeeded" and found
    )
    assert answer.status_code == 202
    assert answer.json() == {"execution_id": location.rsplit("/", 1)[1], "status": "queued"}
    assert at_once["status"] in {"queued", "running"}
    assert (ended["input"], ended["result"]) == (41, 42)


def test_a_failed_asynchronous_run_can_be_read(engine: Any) -> None:
    """Nobody waits for it, so its error is in the execution."""
    engine.deploy("hot-later-fails", "function main(p, cb) { cb('broken') }")

    answer = engine.client.post(invoke_path("hot-later-fails"), headers={"Prefer": "respond-async"})
    engine.settled()

    found = engine.ok("GET", answer.headers["location"])
    assert found["status"] == "failed"
    assert found["error"]["message"] == "broken"


# Invoke: which function, which handler, whose key.


def test_handler_names_which_one_to_run(engine: Any) -> None:
    """?handler= picks any handler of the version, with the body as its input."""
    engine.deploy("hot-two", "export const job = (e) => ['job', e]; export default (e) => ['d', e]")

    job = engine.client.post(invoke_path("hot-two"), params={"handler": "job"}, json=1)
    default = engine.client.post(invoke_path("hot-two"), json=2)

    assert (job.json(), default.json()) == (["job", 1], ["d", 2])


def test_an_unknown_handler_is_named_with_those_there_are(engine: Any, echo: str) -> None:
    """422, and the remedy in the detail."""
    before = runs_of(engine, echo)

    answer = engine.client.post(invoke_path(echo), params={"handler": "nope"})

    found = problem(answer, 422, "validation_failed")
    assert found["errors"][0]["pointer"] == "?handler"
    assert "this version has main" in found["detail"]
    assert runs_of(engine, echo) == before


@pytest.mark.parametrize("name", ["nope", "a%2Fb", "%00", "..", "hot-echo%20", "é"])
def test_an_unknown_function_is_not_found(engine: Any, echo: str, name: str) -> None:
    """404, whatever stands in the path."""
    answer = engine.client.post(f"/v1/functions/{name}/invoke")

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_invoke_allows_post_only(engine: Any, echo: str, method: str) -> None:
    """Another method is 405 and says which one it should be."""
    answer = engine.client.request(method, invoke_path(echo))

    problem(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_a_function_is_found_by_its_id(engine: Any, echo: str) -> None:
    """Name or id, as everywhere."""
    function_id = engine.ok("GET", f"/v1/functions/{echo}")["id"]

    assert engine.invoke(function_id, 5).json() == 5


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer nope", "Basic eDp5", "cck_tests-admin-key"],
)
def test_no_valid_key_is_401(engine: Any, echo: str, authorization: str | None) -> None:
    """On every hot route of /v1, with the challenge that tells what to send."""
    headers = {} if authorization is None else {"Authorization": authorization}
    before = runs_of(engine, echo)

    for path in (invoke_path(echo), "/v1/writes", "/v1/devices/dev_x/values"):
        answer = post(engine.url + path, headers=headers, json=[])
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    assert runs_of(engine, echo) == before


def test_scopes_part_the_hot_routes(engine: Any, echo: str, shop: Callable[[], Timeline]) -> None:
    """develop invokes, ingest writes, operate does both; 403 names needed and held scopes."""
    device = shop()
    body = {"values": [{"key": "scope", "value": 1}]}
    codes = {}
    for scope in ("develop", "operate", "ingest"):
        key = engine.ok("POST", "/v1/api-keys", {"name": f"hot-{scope}", "scopes": [scope]})["key"]
        headers = {"Authorization": f"Bearer {key}"}
        invoked = post(engine.url + invoke_path(echo), headers=headers, json=1)
        written = post(engine.url + device.path, headers=headers, json=body)
        batch = [{"device": device.id, **body}]
        gateway = post(engine.url + "/v1/writes", headers=headers, json=batch)
        codes[scope] = (invoked.status_code, written.status_code, gateway.status_code)
        if scope == "ingest":
            found = problem(invoked, 403, "forbidden_scope")

    assert codes == {
        "develop": (200, 403, 403),
        "operate": (200, 201, 200),
        "ingest": (403, 201, 200),
    }
    assert "develop or operate" in found["detail"]
    assert "the key has ingest" in found["detail"]
    assert len(device.stored()) == 4


def test_a_deleted_key_opens_nothing(engine: Any, echo: str) -> None:
    """From the answer to DELETE on, not some seconds later."""
    made = engine.ok("POST", "/v1/api-keys", {"name": "hot-gone", "scopes": ["develop"]})
    headers = {"Authorization": f"Bearer {made['key']}"}

    first = post(engine.url + invoke_path(echo), headers=headers)
    engine.ok("DELETE", f"/v1/api-keys/{made['id']}")
    second = post(engine.url + invoke_path(echo), headers=headers)

    assert (first.status_code, second.status_code) == (200, 401)


def test_another_projects_function_does_not_exist(
    engine: Any, echo: str, stranger: httpx.Client
) -> None:
    """Neither by name nor by id; and only an admin may name another project."""
    function_id = engine.ok("GET", f"/v1/functions/{echo}")["id"]

    by_name = stranger.post(invoke_path(echo))
    by_id = stranger.post(invoke_path(function_id))
    by_project = stranger.post(invoke_path(echo), headers={"X-Project": "default"})
    by_admin = engine.client.post(invoke_path(echo), headers={"X-Project": "hot-stranger"})

    assert [by_name.status_code, by_id.status_code, by_admin.status_code] == [404, 404, 404]
    problem(by_project, 403, "forbidden_scope")


def test_the_callers_request_id_is_kept(engine: Any, echo: str) -> None:
    """A plain one; what could break a header or a log is replaced."""
    kept = engine.client.post(invoke_path(echo), headers={"X-Request-Id": "abc-123"})
    replaced = engine.client.post(invoke_path(echo), headers={"X-Request-Id": "x" * 500})

    assert kept.headers["x-request-id"] == "abc-123"
    assert replaced.headers["x-request-id"].startswith("req_")


# Invoke: every way a run may end.


CALLBACK = "function main(p, cb) {{ {} }}"
MODULE = "export default async function (id, env) {{ {} }}"
FILL_HEAP = CALLBACK.format("const a = []; for (;;) a.push({})")
MANY_TIMERS = MODULE.format("for (let i = 0; i < 1001; i++) setTimeout(() => 0)")
MANY_VALUES = MODULE.format(
    "const one = {key: 'over', value: 1}; await env.DEVICES.write(id, Array(257).fill(one))"
)


@pytest.mark.parametrize(
    ("source", "status", "code", "limit"),
    [
        (CALLBACK.format("cb('no')"), 502, "function_error", None),
        (CALLBACK.format(""), 504, "function_timeout", "wall_ms"),
        (CALLBACK.format("for (;;);"), 502, "cpu_exceeded", "cpu_ms"),
        (FILL_HEAP, 502, "memory_exceeded", None),
        (CALLBACK.format("cb(null, 'x'.repeat(2 ** 21))"), 502, "output_exceeded", "output_bytes"),
        (MANY_TIMERS, 502, "host_calls_exceeded", "host_calls"),
        (MANY_VALUES, 502, "effects_exceeded", "device_writes"),
    ],
    ids=["threw", "wall", "cpu", "memory", "output", "host calls", "effects"],
)
def test_every_end_is_a_problem(
    engine: Any,
    shop: Callable[[], Timeline],
    source: str,
    status: int,
    code: str,
    limit: str | None,
) -> None:
    """Status, code, the limit's name, size and use; the execution says the same."""
    device = shop()
    limits = {"wall_ms": 1_000, "cpu_ms": 100, "memory_mb": 16}
    if code == "memory_exceeded":
        limits = {"wall_ms": 4_000, "cpu_ms": 2_000, "memory_mb": 16}
    if code == "function_timeout":
        limits = {"wall_ms": 100, "cpu_ms": 100}
    name = f"hot-ends-{code.replace('_', '-')}"
    engine.deploy(name, source, limits=limits)

    found = problem(engine.invoke(name, device.id), status, code)

    execution = engine.ok("GET", f"/v1/executions/{found['execution_id']}")
    assert execution["limit"] == found.get("limit")
    if limit is not None:
        assert found["limit"]["name"] == limit
        assert found["limit"]["used"] >= found["limit"]["value"]
        assert limit in found["detail"]
    assert execution["result"] is None
    assert device.stored() == []


def test_an_error_names_the_authors_line(engine: Any) -> None:
    """File, line and column of the author's own source, in the answer and in the execution."""
    source = "function main(params, callback) {\n  const nothing = null;\n  nothing.field;\n}\n"
    engine.deploy("hot-line", source)

    found = problem(engine.invoke("hot-line"), 502, "function_error")

    error = found["error"]
    assert (error["name"], error["file"], error["line"], error["column"]) == (
        "TypeError", "main.js", 3, 11,
    )  # fmt: skip
    assert "cloudcode" not in error["stack"]
    assert engine.ok("GET", f"/v1/executions/{found['execution_id']}")["error"] == error


HALF = "'\\ud83d'"
CUT = "'x'.repeat(3999) + '😀'"  # messages of errors are cut at 4000 units


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("result", f"cb(null, {HALF})"),
        ("key", f"cb(null, {{[{HALF}]: 1}})"),
        ("log", f"console.log({HALF}); cb(null, 1)"),
        ("error", f"cb({HALF})"),
        ("thrown", f"throw new Error({HALF})"),
        ("cut", f"throw new Error({CUT})"),
    ],
)
def test_half_a_character_is_only_text(engine: Any, name: str, work: str) -> None:
    """`slice` cuts emoji in half every day: that must not look like a hostile guest."""
    engine.deploy(f"hot-half-{name}", CALLBACK.format(work))

    answer = engine.invoke(f"hot-half-{name}")

    assert answer.status_code == 200 or answer.json()["code"] == "function_error", answer.text


def test_a_deep_result_is_the_runs_own_trouble(engine: Any) -> None:
    """Too deep a result fails its run and says so; it does not take the cell down."""
    deep = (
        "function main(p, cb) { let a = []; for (let i = 0; i < 3000; i++) a = [a]; cb(null, a) }"
    )
    engine.deploy("hot-deep", deep)

    answer = engine.invoke("hot-deep")

    assert answer.status_code == 200 or answer.json()["code"] != "crashed", answer.text


# The fetch handler at /f.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_any_method_reaches_the_fetch_handler(engine: Any, web: str, method: str) -> None:
    """No key, any method; path, query and body come as they were sent."""
    body = b"" if method in {"GET", "OPTIONS"} else "Grüße".encode()

    answer = request(
        method, f"{engine.url}{web}/a/b%20c/é?q=1&r=%26&q=2", content=body, headers={"X-Mine": "m"}
    )

    seen = answer.json()
    assert (answer.status_code, seen["method"], seen["body"]) == (200, method, body.decode())
    assert seen["path"] == f"{web}/a/b%20c/%C3%A9"
    assert seen["search"] == "?q=1&r=%26&q=2"
    assert ["x-mine", "m"] in seen["headers"]
    assert answer.headers["execution-id"].startswith("exe_")


def test_an_escaped_slash_stays_escaped(engine: Any, web: str) -> None:
    """`a%2Fb` is one segment of a path and `a/b` are two: the handler must be able to tell."""
    answer = get(f"{engine.url}{web}/a%2Fb")

    assert answer.json()["path"] == f"{web}/a%2Fb"


def test_double_headers_reach_the_handler(engine: Any, web: str) -> None:
    """Joined with a comma, as the fetch standard has it."""
    answer = get(engine.url + web, headers=[("X-Two", "1"), ("X-Two", "2")])

    assert ["x-two", "1, 2"] in answer.json()["headers"]


def test_head_is_a_get_without_its_body(engine: Any, web: str) -> None:
    """Status and headers, the length included, and not a byte more."""
    answer = head_of(engine.url + web)

    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_bytes_go_through_unchanged(engine: Any, web: str) -> None:
    """Every byte value in, every byte value out."""
    every = bytes(range(256)) * 40

    answer = post(f"{engine.url}{web}?say=bytes", content=every)

    assert answer.content == every


@pytest.mark.parametrize("status", [200, 201, 204, 205, 301, 304, 400, 418, 500, 599])
def test_the_handlers_status_is_the_answers(engine: Any, web: str, status: int) -> None:
    """Also those that have no body, and the connection stays in step after them."""
    with httpx.Client(base_url=engine.url) as client:
        first = client.get(f"{web}?say=status&is={status}")
        second = client.get(f"{web}?say=bytes")

    assert first.status_code == status
    assert second.status_code == 200


@pytest.mark.parametrize(
    ("say_what", "expected"),
    [("throw", "no answer"), ("number", "Response"), ("status&is=700", "700")],
)
def test_a_handler_without_a_response_is_502(
    engine: Any, web: str, say_what: str, expected: str
) -> None:
    """The record says what the handler did; the public answer only where to look."""
    answer = get(f"{engine.url}{web}?say={say_what}")

    shown = problem(answer, 502, "function_error")
    execution = engine.ok("GET", f"/v1/executions/{shown['execution_id']}")
    assert expected in execution["error"]["message"]
    assert expected not in shown["detail"]


def test_headers_of_the_engine_stay_its_own(engine: Any, web: str) -> None:
    """A handler sets any header but those that frame the answer or name the run."""
    answer = get(f"{engine.url}{web}?say=headers")

    assert (answer.content, answer.headers["x-mine"]) == (b"x", "é")
    assert answer.headers["content-length"] == "1"
    assert answer.headers["execution-id"].startswith("exe_")
    assert answer.headers["x-request-id"].startswith("req_")


def test_each_cookie_is_a_header(engine: Any, web: str) -> None:
    """Set-Cookie cannot be joined: its dates have commas."""
    answer = get(f"{engine.url}{web}?say=cookies")

    assert answer.headers.get_list("set-cookie") == [
        "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
        "b=2",
    ]


@pytest.mark.parametrize(
    ("name", "forgery", "status"),
    [
        ("switch", "r.status = 101", 502),
        ("high", "r.status = 99999", 502),
        ("word", "r.status = 'x'", 502),
        ("bodyless", "r.status = 204", 204),
        ("split", "r.headers = [['x', 'a\\r\\nInjected: 1']]", 502),
        ("space", "r.headers = [['x y', '1']]", 502),
        ("empty", "r.headers = [['', '1']]", 502),
        ("length", "r.headers = [['Content-Length', '5']]", 200),
        ("no-list", "r.headers = 5", 502),
    ],
)
def test_a_forged_response_gets_a_clean_answer(
    engine: Any, name: str, forgery: str, status: int
) -> None:
    """A guest can put anything into its Response: the answer is well-formed all the same."""
    work = f"const r = new Response('body'); {forgery}; return r"
    limits = {"wall_ms": 500, "cpu_ms": 200}
    engine.deploy(f"hot-forged-{name}", f"export default {{ fetch() {{ {work} }} }}", limits=limits)

    with httpx.Client(base_url=engine.url) as client:
        answer = client.get(f"/f/default/hot-forged-{name}")
        after = client.get("/healthz")

    assert answer.status_code == status
    if status == 502:
        problem(answer, 502, "function_error")
    else:
        assert answer.content == (b"" if status == 204 else b"body")
    assert "injected" not in answer.headers
    assert after.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/f/default/nope", "/f/nope/hot-web", "/f/", "/f/default", "/f//", "/f/default/hot-echo"],
)
def test_where_nothing_listens_is_404(engine: Any, web: str, echo: str, path: str) -> None:
    """No such project, no such function, or one without a fetch handler."""
    answer = get(engine.url + path)

    problem(answer, 404, "not_found")


def test_a_project_is_found_by_its_id(engine: Any, web: str) -> None:
    """Id or name, as everywhere."""
    projects = engine.ok("GET", "/v1/projects", params={"limit": 200})["items"]
    default = next(item["id"] for item in projects if item["name"] == "default")

    answer = get(f"{engine.url}/f/{default}/hot-web/x")

    assert answer.status_code == 200


def test_a_body_for_fetch_has_a_limit(engine: Any, web: str) -> None:
    """1 MiB; a byte more is 413 and never runs."""
    fits = post(f"{engine.url}{web}?say=status&is=204", content=b"x" * 1024 * 1024)
    before = runs_of(engine, "hot-web")
    large = post(engine.url + web, content=b"x" * (1024 * 1024 + 1))

    assert fits.status_code == 204
    assert problem(large, 413, "payload_too_large")["limit"]["name"] == "request_bytes"
    assert runs_of(engine, "hot-web") == before


# One device's write.


def test_a_write_is_stored_before_it_is_answered(engine: Any, shop: Callable[[], Timeline]) -> None:
    """201 with the event; all values can be read at once, in every form a value may have."""
    device = shop()
    values = [1, -2.5, "text", True, False, [1, [2]], {"a": {"b": None}}, "😀", 0, "", [], {}]

    answer = engine.client.post(
        device.path, json={"values": [{"key": "v", "value": value} for value in values]}
    )

    body = answer.json()
    assert answer.status_code == 201
    assert body["event_id"].startswith("evt_")
    assert (body["values"], body["executions"]) == (len(values), [])
    assert device.values() == [("v", value) for value in values]


def test_a_write_names_the_runs_it_causes(engine: Any, shop: Callable[[], Timeline]) -> None:
    """One execution for the whole batch; it can be asked for at once."""
    device = Timeline(engine, engine.device("hot-triggered"))
    engine.deploy("hot-trigger", "function trigger(p, cb) { cb(null) }")
    engine.ok("POST", "/v1/triggers", {"function": "hot-trigger", "product": "hot-triggered"})

    answer = engine.ok(
        "POST", device.path, {"values": [{"key": "a", "value": n} for n in range(9)]}
    )

    (execution,) = answer["executions"]
    shown = engine.ok("GET", f"/v1/executions/{execution}")
    assert shown["event_id"] == answer["event_id"]
    assert shown["device_id"] == device.id
    assert len(shown["input"]["values"]) == 9


REFUSED_BODIES = [
    (b"", 400, None),
    (b"{", 400, None),
    (b'{"values":[{"key":"t","value":NaN}]}', 400, None),
    (b'{"values":[{"key":"t","value":"\\ud800"}]}', 400, None),
    (b'{"values":[{"key":"t","value":' + b"[" * 5_000 + b"]" * 5_000 + b"}]}", 400, None),
    (b"null", 422, ""),
    (b"[]", 422, ""),
    (b"{}", 422, ""),
    (b'{"values":{}}', 422, "/values"),
    (b'{"values":[]}', 422, "/values"),
    (b'{"values":[{"key":"t","value":1}],"values":[]}', 422, "/values"),
    (b'{"values":[7]}', 422, "/values/0"),
    (b'{"values":[{"key":"t","value":1},{"key":"t"}]}', 422, "/values/1"),
    (b'{"values":[{"value":1}]}', 422, "/values/0"),
    (b'{"values":[{"key":5,"value":1}]}', 422, "/values/0/key"),
    (b'{"values":[{"key":"","value":1}]}', 422, "/values/0/key"),
    (b'{"values":[{"key":"a b","value":1}]}', 422, "/values/0/key"),
    (b'{"values":[{"key":"a\\n","value":1}]}', 422, "/values/0/key"),
    ('{"values":[{"key":"é","value":1}]}'.encode(), 422, "/values/0/key"),
    (b'{"values":[{"key":"' + b"k" * 129 + b'","value":1}]}', 422, "/values/0/key"),
    (b'{"values":[{"key":"t","value":null}]}', 422, "/values/0/value"),
    (b'{"values":[{"key":"t","value": null }]}', 422, "/values/0/value"),
    (b'{"values":[{"key":"t","value":1,"datetime":"soon"}]}', 422, "/values/0/datetime"),
    (b'{"values":[{"key":"t","value":1,"datetime":"20240230000000"}]}', 422, "/values/0/datetime"),
    (b'{"values":[{"key":"t","value":1,"datetime":true}]}', 422, "/values/0/datetime"),
    (b'{"values":[{"key":"t","value":1,"datetime":-1}]}', 422, "/values/0/datetime"),
    (b'{"values":[{"key":"t","value":1,"geo":{"lat":1}}]}', 422, "/values/0/geo"),
    (b'{"values":[{"key":"t","value":1,"geo":[1,2]}]}', 422, "/values/0/geo"),
    (b'{"values":[{"key":"t","value":"' + b"x" * 300 * 1024 + b'"}]}', 413, None),
    (b'{"values":[{"key":"t","value":1}]' + b" " * 2 * 1024 * 1024 + b"}", 413, None),
    (b'{"values":[' + b",".join([b'{"key":"t","value":1}'] * 1001) + b"]}", 422, "/values"),
]


@pytest.mark.parametrize(("body", "status", "pointer"), REFUSED_BODIES)
def test_a_wrong_write_stores_nothing(
    engine: Any, shop: Callable[[], Timeline], body: bytes, status: int, pointer: str | None
) -> None:
    """The problem points at the field; of a batch with one wrong value nothing is kept."""
    device = shop()

    answer = engine.client.post(device.path, content=body)

    code = {400: "malformed_json", 413: "payload_too_large", 422: "validation_failed"}[status]
    found = problem(answer, status, code)
    if pointer is not None:
        assert found["errors"][0]["pointer"] == pointer
    assert device.stored() == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"values":[{"key":"t","value":"\xff"}]}'),
        pytest.param(b'{"values":[{"key":"t","value":1e999}]}'),
        pytest.param(b'{"values":[{"key":"t","value":' + b"[" * 500 + b"]" * 500 + b"}]}"),
        *[
            pytest.param(b'{"values":[{"key":"t","value":1,"datetime":"%b"}]}' % moment)
            for moment in (
                b"9999-12-31T23:59:59-10:00",
                b"9999-12-31T23:59:59.9999999Z",
                b"0001-01-01T00:00:00+10:00",
            )
        ],
    ],
    ids=["invalid UTF-8", "number too large", "deep", "year 10000", "rounds up", "year 0"],
)
def test_a_hostile_value_is_refused_or_readable(
    engine: Any, shop: Callable[[], Timeline], body: bytes
) -> None:
    """What is accepted can be read; what cannot be read is refused as the caller's mistake."""
    device = shop()

    answer = engine.client.post(device.path, content=body)

    shown = engine.client.get(device.path)
    assert answer.status_code in {201, 400, 422}, answer.text
    assert shown.status_code == 200
    assert len(shown.json()["items"]) == (answer.status_code == 201)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("20201231235958", "2020-12-31T23:59:58.000Z"),
        ("20201231T235958", "2020-12-31T23:59:58.000Z"),
        ("2015-10-28T12:18:56.799Z", "2015-10-28T12:18:56.799Z"),
        ("2015-10-28T12:18:56+02:00", "2015-10-28T10:18:56.000Z"),
        ("2015-10-28T12:18:56", "2015-10-28T12:18:56.000Z"),
        ("2015-10-28", "2015-10-28T00:00:00.000Z"),
        ("1969-07-20T20:17:40Z", "1969-07-20T20:17:40.000Z"),
        (1446034736799, "2015-10-28T12:18:56.799Z"),
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_every_form_of_time_is_understood(
    engine: Any, shop: Callable[[], Timeline], given: str | int, stored: str
) -> None:
    """Compact, ISO with or without an offset, milliseconds: all become RFC 3339 in UTC."""
    device = shop()

    engine.ok("POST", device.path, {"values": [{"key": "t", "value": 1, "datetime": given}]})

    assert [item["datetime"] for item in device.stored()] == [stored]


def test_another_projects_device_does_not_exist(
    engine: Any, shop: Callable[[], Timeline], stranger: httpx.Client
) -> None:
    """404 for a write with a foreign key, and nothing is stored."""
    device = shop()

    answer = stranger.post(device.path, json={"values": [{"key": "t", "value": 1}]})

    problem(answer, 404, "not_found")
    assert device.stored() == []


def test_concurrent_writes_are_all_stored(engine: Any, shop: Callable[[], Timeline]) -> None:
    """Group commits lose and double nothing."""
    device = shop()

    def write(n: int) -> int:
        body = {"values": [{"key": "n", "value": n}]}
        return engine.client.post(device.path, json=body).status_code

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        statuses = set(threads.map(write, range(150)))

    assert statuses == {201}
    assert sorted(value for _, value in device.values()) == list(range(150))


# A gateway: many devices in one request.


def test_bad_items_do_not_spoil_the_good(
    engine: Any, shop: Callable[[], Timeline], stranger: httpx.Client
) -> None:
    """A result per item, in order; the good ones are stored, the others say why not."""
    first, second = shop(), shop()
    stranger.post("/v1/products", json={"name": "hot-foreign"})
    device = {"product": "hot-foreign", "name": "f"}
    foreign = stranger.post("/v1/devices", json=device).json()
    good = [{"key": "g", "value": 1}]
    items: list[Any] = [
        ({"device": first.id, "values": good}, 201),
        ({"token": "no-such-token", "values": good}, 404),
        ({"device": foreign["id"], "values": good}, 404),
        ({"token": foreign["token"], "values": good}, 404),
        ({"values": good}, 422),
        ({"device": first.id, "token": first.token, "values": good}, 422),
        ({"device": first.id}, 422),
        ({"device": 7, "values": good}, 422),
        ({"device": first.id, "values": []}, 422),
        ({"device": first.id, "values": [*good, {"key": "!", "value": 1}]}, 422),
        ({"device": first.id, "values": [{"key": "g", "value": None}]}, 422),
        ({"device": first.id, "values": [{"key": "g", "value": "x" * 300_000}]}, 413),
        (5, 422),
        (None, 422),
        ([], 422),
        ({"token": second.token, "values": good}, 201),
        ({"device": first.id, "values": [{"key": "h", "value": 2}]}, 201),
    ]

    answer = engine.client.post("/v1/writes", json=[item for item, _ in items])

    body = answer.json()
    assert answer.status_code == 200
    assert [item["status"] for item in body["items"]] == [status for _, status in items]
    assert (body["accepted"], body["rejected"]) == (3, len(items) - 3)
    for item in body["items"]:
        if item["status"] == 201:
            assert item["event_id"].startswith("evt_")
        else:
            assert item["code"]
            assert item["detail"]
    assert (first.values(), second.values()) == ([("g", 1), ("h", 2)], [("g", 1)])
    assert stranger.get(f"/v1/devices/{foreign['id']}/values").json()["items"] == []


def test_an_item_that_is_no_text_does_not_spoil_the_good(
    engine: Any, shop: Callable[[], Timeline]
) -> None:
    """One device with a broken encoding must not cost the others their values."""
    device = shop()
    item = b'{"device":"%b","values":[{"key":"g","value":"%b"}]}'
    items = [item % (device.id.encode(), text) for text in (b"a", b"\xff", b"b")]

    answer = engine.client.post("/v1/writes", content=b"[" + b",".join(items) + b"]")

    # Or 400 for the whole body: then nothing may be stored.
    assert answer.status_code in {200, 400}, answer.text
    assert device.values() == ([("g", "a"), ("g", "b")] if answer.status_code == 200 else [])


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_1_to_1000_items(engine: Any, shop: Callable[[], Timeline], count: int) -> None:
    """Outside of that it is refused as a whole."""
    device = shop()
    item = {"device": device.id, "values": [{"key": "t", "value": 1}]}

    answer = engine.client.post("/v1/writes", json=[item] * count)

    assert str(count) in problem(answer, 422, "validation_failed")["detail"]
    assert device.stored() == []


def test_a_thousand_items_are_one_request(engine: Any, shop: Callable[[], Timeline]) -> None:
    """The most that is allowed is stored in full."""
    device = shop()
    items = [{"device": device.id, "values": [{"key": "t", "value": n}]} for n in range(1000)]

    answer = engine.client.post("/v1/writes", json=items)

    newest = engine.ok("GET", device.path, params={"limit": 1})["items"]
    assert answer.json()["accepted"] == 1000
    assert newest[0]["value"] == 999


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[", 400), (b"{}", 422), (b"null", 422), (b'"x"', 422), (b"NaN", 400)],
)
def test_a_wrong_batch_is_refused_as_a_whole(engine: Any, body: bytes, status: int) -> None:
    """It is not a list, or not JSON at all."""
    answer = engine.client.post("/v1/writes", content=body)

    problem(answer, status, "malformed_json" if status == 400 else "validation_failed")


def test_a_huge_batch_is_refused(engine: Any, shop: Callable[[], Timeline]) -> None:
    """More than 16 MiB is not read, and nothing of it is stored."""
    device = shop()
    item = {"device": device.id, "values": [{"key": "t", "value": "x" * 20_000}]}

    answer = engine.client.post("/v1/writes", json=[item] * 900)

    assert problem(answer, 413, "payload_too_large")["limit"]["name"] == "gateway_bytes"
    assert device.stored() == []


# The device API, as the vendor has it.


def test_a_thing_writes_with_its_token_alone(engine: Any, shop: Callable[[], Timeline]) -> None:
    """201 in the vendor's own words, without any key."""
    device = shop()
    body = {"values": [{"key": "t", "value": 1, "geo": {"lat": 1.5, "long": 2}}]}

    answer = post(f"{engine.url}{device.thing}?broadcast=true", json=body)

    (item,) = device.stored()
    assert answer.status_code == 201
    assert {**answer.json(), "event_id": ""} == {
        "status": "created", "message": "created", "event_id": "",
    }  # fmt: skip
    assert (item["value"], item["geo"]) == (1, {"lat": 1.5, "long": 2})


@pytest.fixture(scope="module")
def meter(engine: Any, shop: Callable[[], Timeline]) -> Timeline:
    """A device with one value a day, from the first to the fifth of January 2020."""
    device = shop()
    days = [
        {"key": "t", "value": day, "datetime": f"202001{day:02}000000"} for day in (3, 1, 5, 2, 4)
    ]
    engine.ok("POST", device.path, {"values": [*days, {"key": "$geo", "value": [2.1, 41.3]}]})
    return device


@pytest.mark.parametrize(
    ("query", "days"),
    [
        ("", [5]),
        ("limit=", [5]),
        ("limit=1", [5]),
        ("limit=3", [5, 4, 3]),
        ("limit=1000", [5, 4, 3, 2, 1]),
        ("limit=0", [5]),
        ("limit=-7", [5]),
        ("limit=9&startDate=20200104000000", [5, 4]),
        ("limit=9&startDate=20200104T000000", [5, 4]),
        ("limit=9&startDate=2020-01-04T00:00:00.000Z", [5, 4]),
        ("limit=9&startDate=2020-01-04", [5, 4]),
        ("limit=9&startDate=2020-01-04T00:00:01Z", [5]),
        ("limit=9&endDate=20200102000000", [2, 1]),
        ("limit=9&endDate=2020-01-02T02:00:00%2B02:00", [2, 1]),
        ("limit=9&startDate=20200102000000&endDate=20200104000000", [4, 3, 2]),
        ("limit=9&startDate=20200104000000&endDate=20200102000000", []),
        ("startDate=&endDate=", [5]),
        pytest.param("limit=9&endDate=2020-01-02T02:00:00+02:00", [2, 1]),
    ],
)
def test_a_timeline_is_read_newest_first(
    engine: Any, meter: Timeline, query: str, days: list[int]
) -> None:
    """A bare array; limit 1 to 100, clamped; dates in every format, both ends inclusive."""
    answer = get(f"{engine.url}{meter.thing}/resources/t?{query}")

    assert answer.status_code == 200, answer.text
    assert [item["value"] for item in answer.json()] == days
    assert all(item["key"] == "t" and item["datetime"].endswith("Z") for item in answer.json())


def test_paging_goes_on_at_the_last_date(engine: Any, meter: Timeline) -> None:
    """The vendor's way: the next endDate is the last item's datetime."""
    url = f"{engine.url}{meter.thing}/resources/t?limit=3"

    first = get(url).json()
    second = get(f"{url}&endDate={first[-1]['datetime']}").json()

    assert [item["value"] for item in first + second[1:]] == [5, 4, 3, 2, 1]


def test_at_most_100_values_are_read(engine: Any, shop: Callable[[], Timeline]) -> None:
    """A limit above is clamped, not refused."""
    device = shop()
    values = [{"key": "n", "value": n} for n in range(120)]
    engine.ok("POST", device.path, {"values": values})

    answer = get(f"{engine.url}{device.thing}/resources/n?limit=1000")

    assert [item["value"] for item in answer.json()] == list(range(119, 19, -1))


@pytest.mark.parametrize("query", ["startDate=soon", "endDate=20201301000000"])
def test_a_date_that_is_none_is_400(engine: Any, meter: Timeline, query: str) -> None:
    """The message says which formats there are."""
    answer = get(f"{engine.url}{meter.thing}/resources/t?{query}")

    assert "YYYYMMDDHHmmss" in thing_error(answer, 400)


def test_a_limit_that_is_no_number_is_explained(engine: Any, meter: Timeline) -> None:
    """In words of the API, or clamped; never in Python's."""
    answer = get(f"{engine.url}{meter.thing}/resources/t?limit=many")

    if answer.status_code != 200:
        assert "base 10" not in thing_error(answer, 400)


def test_resources_are_listed(engine: Any, meter: Timeline) -> None:
    """Every key once; a reserved one is reached escaped or not."""
    listed = get(f"{engine.url}{meter.thing}/resources").json()
    escaped = get(f"{engine.url}{meter.thing}/resources/%24geo").json()
    plain = get(f"{engine.url}{meter.thing}/resources/$geo").json()

    assert listed == [{"key": "$geo"}, {"key": "t"}]
    assert escaped == plain
    assert plain[0]["value"] == [2.1, 41.3]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/", 401, "Invalid session token"),
        ("GET", "/v2/things/nope/resources/t", 401, "Invalid thing token"),
        ("POST", "/v2/things/nope", 401, "Invalid thing token"),
        ("POST", "/v2/things/nope/code/functions/f", 401, "Invalid thing token"),
        ("GET", "/v2/nothing/here", 404, "route"),
        ("DELETE", "/v2/things/nope", 404, "route"),
        ("GET", "{thing}/resources/never-written", 404, "never-written"),
        ("POST", "{thing}/code/functions/nope", 404, "nope"),
    ],
)
def test_errors_come_in_the_vendors_envelope(
    engine: Any, meter: Timeline, method: str, path: str, status: int, words: str
) -> None:
    """{status, code, message}, never problem+json."""
    url = engine.url + path.format(thing=meter.thing)

    answer = request(method, url, json={"params": 1} if method == "POST" else None)

    assert words in thing_error(answer, status)


@pytest.mark.parametrize(("body", "status", "_pointer"), REFUSED_BODIES)
def test_a_wrong_write_of_a_thing_stores_nothing(
    engine: Any, shop: Callable[[], Timeline], body: bytes, status: int, _pointer: str | None
) -> None:
    """The same rules as on /v1, in the vendor's envelope."""
    device = shop()

    answer = post(engine.url + device.thing, content=body)

    assert thing_error(answer, 400 if status == 422 else status)
    assert device.stored() == []


@pytest.mark.parametrize("word", ["functions", "function"])
@pytest.mark.parametrize("params", [None, 5, "text", {"a": [1]}])
def test_a_thing_calls_a_function(
    engine: Any, meter: Timeline, echo: str, word: str, params: Any
) -> None:
    """Both spellings; the script sees what is inside `params`, the answer is its result."""
    url = f"{engine.url}{meter.thing}/code/{word}/{echo}"

    answer = post(url, json={"params": params, "other": 1})

    assert (answer.status_code, answer.json()) == (200, params)
    assert answer.headers["execution-id"].startswith("exe_")


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b"5", b'{"param":1}'])
def test_the_params_wrapper_is_required(
    engine: Any, meter: Timeline, echo: str, body: bytes
) -> None:
    """400, and nothing runs."""
    before = runs_of(engine, echo)

    answer = post(f"{engine.url}{meter.thing}/code/functions/{echo}", content=body)

    assert thing_error(answer, 400)
    assert runs_of(engine, echo) == before


def test_a_failed_function_is_a_things_error(engine: Any, meter: Timeline) -> None:
    """400 with the script's own message; 500 when it hit a limit."""
    engine.deploy("hot-thing-fails", "function main(p, cb) { cb('quota is empty') }")
    engine.deploy("hot-thing-hangs", "function main() {}", limits={"wall_ms": 100, "cpu_ms": 100})
    url = f"{engine.url}{meter.thing}/code/functions"

    failed = post(f"{url}/hot-thing-fails", json={"params": 1})
    hung = post(f"{url}/hot-thing-hangs", json={"params": 1})

    assert thing_error(failed, 400) == "quota is empty"
    assert "100 ms" in thing_error(hung, 500)


def test_a_deleted_thing_is_unknown(engine: Any, shop: Callable[[], Timeline]) -> None:
    """From the answer to DELETE on: its token opens nothing, its id is not found."""
    device = shop()
    body = {"values": [{"key": "t", "value": 1}]}
    engine.ok("POST", device.path, body)

    engine.ok("DELETE", f"/v1/devices/{device.id}")

    thing_error(post(engine.url + device.thing, json=body), 401)
    problem(engine.client.post(device.path, json=body), 404, "not_found")
