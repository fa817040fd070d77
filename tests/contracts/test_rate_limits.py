"""Rate limits of keys and devices over HTTP: who is counted, what is told, what a 429 leaves."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import NO_TLS, Engine
from tests.standins.command_line import run
from tests.standins.project import Project

ECHO = "function main(params, callback) { callback(null, params); }"
QUOTA = 5  # one comes back every 12 s: no test takes so long between two requests that count


class Tenant(Project):
    """A project with a key that may do everything but administer, a function and devices."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine, name)
        self.ok("POST", "/v1/products", {"name": "meters"})
        self.echo = self.deploy(ECHO)
        made = self.ok(
            "POST",
            "/v1/api-keys",
            {"name": "app", "scopes": ["develop", "operate", "ingest"], "project": self.name},
        )
        self.key_id, self.secret = made["id"], made["key"]
        self.key = self.client(made["key"])

    def client(self, secret: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.engine.url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=30,
            verify=NO_TLS,
        )

    def device(self, name: str) -> dict[str, Any]:
        return self.ok("POST", "/v1/devices", {"product": "meters", "name": name})

    def allow(self, **allowances: int | None) -> None:
        self.ok("PATCH", f"/v1/projects/{self.name}", {"allowances": allowances})

    def limit_key(self, per_minute: int | None) -> None:
        self.ok("PATCH", f"/v1/api-keys/{self.key_id}", {"requests_per_minute": per_minute})

    def write(self, device: dict[str, Any], **options: Any) -> httpx.Response:
        body = {"values": [{"key": "temp", "value": 1}]}
        return self.engine.client.post(f"/v2/things/{device['token']}", json=body, **options)

    def stored(self, device: dict[str, Any]) -> int:
        path = f"/v1/devices/{device['id']}/values"
        return len(self.ok("GET", path, params={"key": "temp", "limit": 100})["items"])


@pytest.fixture
def tenant(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Tenant]:
    made = Tenant(engine, re.sub("[^a-z]+", "-", request.node.name.lower())[:40].strip("-"))
    with made.key:
        yield made


def figures(answer: httpx.Response) -> tuple[str, str, int, int]:
    headers = answer.headers
    left, full_s = headers["ratelimit-remaining"], headers["ratelimit-reset"]
    return headers["ratelimit-policy"], headers["ratelimit"], int(left), int(full_s)


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


@pytest.mark.parametrize(
    "ask",
    [
        lambda tenant: tenant.key.get("/v1/functions"),
        lambda tenant: tenant.key.post(f"/v1/functions/{tenant.echo}/invoke", json=1),
        lambda tenant: tenant.key.post(
            f"/v1/functions/{tenant.echo}/invoke", json=1, headers={"X-Request-Id": "the-long-way"}
        ),
        lambda tenant: tenant.key.post("/v1/jobs", json={"function": tenant.echo}),
        lambda tenant: tenant.key.get("/v1/functions/there-is-none"),
    ],
    ids=["control plane", "invoke, short way", "invoke, long way", "jobs", "an error"],
)
def test_every_answer_of_a_limited_key_says_where_it_stands(tenant: Tenant, ask: Any) -> None:
    """Then comes 429, with the time to wait, in both generations of headers."""
    tenant.limit_key(QUOTA)

    answers = [ask(tenant) for _ in range(QUOTA + 1)]

    *passed, refused = answers
    assert [figures(answer)[2] for answer in passed] == [4, 3, 2, 1, 0]
    policy, now, left, full_s = figures(passed[-1])
    assert (policy, left) == (f'"key";q={QUOTA};w=60', 0)
    assert now == f'"key";r=0;t={full_s}'
    assert 50 <= full_s <= 60
    assert passed[0].headers["ratelimit-limit"] == str(QUOTA)
    assert all(answer.status_code != 429 for answer in passed)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 12
    assert figures(refused)[2] == 0
    problem = refused.json()
    assert problem["code"] == "rate_limited"
    assert problem["limit"] == {"name": "key_requests_per_minute", "value": QUOTA, "used": QUOTA}
    assert problem["request_id"] == refused.headers["x-request-id"]


def test_keys_of_one_project_are_counted_apart(tenant: Tenant) -> None:
    """What the project allows, it allows each of its keys; the admin's is not limited by it."""
    other = tenant.ok(
        "POST", "/v1/api-keys", {"name": "b", "scopes": ["develop"], "project": tenant.name}
    )
    tenant.allow(key_requests_per_minute=2)

    first = [tenant.key.get("/v1/functions") for _ in range(3)]
    with tenant.client(other["key"]) as client:
        second = [client.get("/v1/functions") for _ in range(3)]
    admin = [tenant.request("GET", "/v1/functions") for _ in range(10)]

    assert statuses(first) == statuses(second) == {200: 2, 429: 1}
    assert statuses(admin) == {200: 10}
    assert "ratelimit" not in admin[0].headers


def test_a_change_holds_with_the_next_request(tenant: Tenant) -> None:
    """The key's own rate goes before the project's; 0 is no limit, null the project's again."""
    tenant.allow(key_requests_per_minute=1)
    tenant.key.get("/v1/functions")
    over = tenant.key.get("/v1/functions")

    tenant.limit_key(0)
    free = [tenant.key.get("/v1/functions") for _ in range(5)]
    tenant.limit_key(None)
    as_the_project = tenant.key.get("/v1/functions")
    tenant.allow(key_requests_per_minute=None)
    default = tenant.key.get("/v1/functions")

    assert over.status_code == as_the_project.status_code == 429
    assert statuses(free) == {200: 5}
    assert default.status_code == 200
    assert not any("ratelimit" in answer.headers for answer in (free[0], default))


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": ""}], ids=["short way", "long way"])
def test_a_device_is_limited_by_itself(tenant: Tenant, headers: dict[str, str]) -> None:
    """Another one of its product is not; the refusal has the device API's own shape."""
    one, two = tenant.device("one"), tenant.device("two")
    tenant.allow(device_requests_per_minute=3)

    def write(device: dict[str, Any], number: int) -> httpx.Response:
        keys = dict.fromkeys(headers, f"{device['id']}-{number}")
        return tenant.write(device, headers=keys)

    answers = [write(one, number) for number in range(5)]
    other = write(two, 0)

    assert statuses(answers) == {201: 3, 429: 2}
    assert figures(answers[0])[:3] == ('"device";q=3;w=60', '"device";r=2;t=20', 2) or (
        figures(answers[0])[1] == '"device";r=2;t=19'
    )
    assert other.status_code == 201
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/json"
    assert refused.json()["status"] == "error"
    assert refused.json()["code"] == 429
    assert "3 requests a minute" in refused.json()["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert (tenant.stored(one), tenant.stored(two)) == (3, 1)


def test_reads_and_calls_of_a_device_count_too(tenant: Tenant) -> None:
    """Whatever a device asks, it has one quota."""
    device = tenant.device("one")
    tenant.allow(device_requests_per_minute=3)
    path = f"/v2/things/{device['token']}"
    http = tenant.engine.client

    answers = [
        tenant.write(device),
        http.get(f"{path}/resources"),
        http.post(f"{path}/code/functions/{tenant.echo}", json={"params": 1}),
        http.get(f"{path}/resources/temp"),
    ]

    assert [answer.status_code for answer in answers] == [201, 200, 200, 429]


def test_a_device_has_six_thousand_a_minute_unless_somebody_says_else(tenant: Tenant) -> None:
    """The default is told with the first answer."""
    answer = tenant.write(tenant.device("one"))

    assert figures(answer) == ('"device";q=6000;w=60', '"device";r=5999;t=1', 5999, 1)


def test_a_gateways_write_counts_for_its_key_once_and_for_each_device(tenant: Tenant) -> None:
    """A device that has used its minute up is refused alone, and nothing of it is stored."""
    one, two = tenant.device("one"), tenant.device("two")
    tenant.allow(device_requests_per_minute=2)
    tenant.limit_key(100)
    values = [{"key": "temp", "value": 1}]
    items = [{"device": one["id"], "values": values}] * 3 + [
        {"token": two["token"], "values": values}
    ]

    answer = tenant.key.post("/v1/writes", json=items)

    told = answer.json()
    assert answer.status_code == 200
    assert [item["status"] for item in told["items"]] == [201, 201, 429, 201]
    assert (told["accepted"], told["rejected"]) == (3, 1)
    assert told["items"][2]["code"] == "rate_limited"
    assert 1 <= told["items"][2]["retry_after"] <= 30
    assert answer.headers["ratelimit-remaining"] == "99"
    assert (tenant.stored(one), tenant.stored(two)) == (2, 1)


def test_a_write_by_key_tells_of_both_limits(tenant: Tenant) -> None:
    """The key's and the device's; each may refuse it."""
    device = tenant.device("one")
    tenant.allow(device_requests_per_minute=2, key_requests_per_minute=3)
    path, body = f"/v1/devices/{device['id']}/values", {"values": [{"key": "temp", "value": 1}]}

    answers = [tenant.key.post(path, json=body) for _ in range(4)]

    assert statuses(answers) == {201: 2, 429: 2}
    assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=60, "device";q=2;w=60'
    assert answers[0].headers["ratelimit-limit"] == "2"  # the tighter one
    names = [answer.json()["limit"]["name"] for answer in answers[2:]]
    assert names == ["device_requests_per_minute", "key_requests_per_minute"]
    assert tenant.stored(device) == 2


def test_made_up_keys_and_tokens_are_not_counted(tenant: Tenant) -> None:
    """They are refused as ever, however many come, and no answer speaks of limits."""
    http = tenant.engine.client

    keys = [
        http.get("/v1/functions", headers={"Authorization": f"Bearer made-up-{number}"})
        for number in range(20)
    ]
    tokens = [http.post(f"/v2/things/made-up-{n}", json={"values": []}) for n in range(20)]

    assert statuses(keys) == statuses(tokens) == {401: 20}
    assert not any("ratelimit" in answer.headers for answer in keys + tokens)


@pytest.mark.parametrize("way", ["key", "device"])
def test_exactly_the_quota_passes_under_parallel_clients(tenant: Tenant, way: str) -> None:
    """Eight at a time send three times as much as may pass."""
    quota = 30  # comes back every 2 s
    device = tenant.device("one")
    tenant.allow(device_requests_per_minute=quota)
    tenant.limit_key(quota)

    def ask(_number: int) -> httpx.Response:
        if way == "device":
            return tenant.write(device)
        return tenant.key.post(f"/v1/functions/{tenant.echo}/invoke", json=1)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(3 * quota)))

    good = 201 if way == "device" else 200
    counted = statuses(answers)
    began, ended = answers[0], answers[-1]
    assert counted[good] + counted[429] == 3 * quota, (began.text, ended.text)
    took_s = 60 - max(figures(answer)[3] for answer in answers)
    assert quota <= counted[good] <= quota + 1 + took_s // 2
    if way == "device":
        assert tenant.stored(device) == counted[good]


def test_a_refusal_leaves_the_idempotency_key_free(tenant: Tenant) -> None:
    """Once the key has room, the same request with the same Idempotency-Key is carried out."""
    tenant.limit_key(1)
    tenant.key.get("/v1/functions")
    body, headers = {"function": tenant.echo}, {"Idempotency-Key": f"once-{tenant.key_id}"}
    product = {"name": "more"}

    refused = tenant.key.post("/v1/jobs", json=body, headers=headers)
    refused_too = tenant.key.post(
        "/v1/products",
        json=product,
        headers=headers | {"Idempotency-Key": f"product-{tenant.key_id}"},
    )
    tenant.limit_key(0)
    taken = tenant.key.post("/v1/jobs", json=body, headers=headers)
    again = tenant.key.post("/v1/jobs", json=body, headers=headers)
    made = tenant.key.post(
        "/v1/products",
        json=product,
        headers=headers | {"Idempotency-Key": f"product-{tenant.key_id}"},
    )

    assert refused.status_code == refused_too.status_code == 429
    assert taken.status_code == again.status_code
    assert taken.is_success
    assert "idempotent-replayed" not in taken.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert made.status_code == 201
    assert len(tenant.ok("GET", "/v1/jobs")["items"]) == 1


def test_an_answer_that_is_given_again_tells_of_now(tenant: Tenant) -> None:
    """Where the key stands is not stored with the answer."""
    tenant.limit_key(QUOTA)
    headers = {"Idempotency-Key": f"now-{tenant.key_id}"}

    answers = [
        tenant.key.post("/v1/products", json={"name": "more"}, headers=headers) for _ in range(2)
    ]

    assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["4", "3"]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]


def test_refusals_are_counted_once_by_scope(tenant: Tenant) -> None:
    """`/metrics` has them, and names neither key nor device."""
    device = tenant.device("one")
    tenant.allow(device_requests_per_minute=1, key_requests_per_minute=1)

    def counted(scope: str) -> float:
        text = tenant.engine.client.get("/metrics").text
        line = rf'^cloudcode_rate_limited_total{{scope="{scope}"}} (.+)$'
        found = re.search(line, text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = counted("key"), counted("device")
    for _ in range(4):
        tenant.write(device)
        tenant.key.post(f"/v1/functions/{tenant.echo}/invoke", json=1)

    assert (counted("key") - before[0], counted("device") - before[1]) == (3, 3)


def test_the_command_line_says_how_long_to_wait_and_what_to_do(tenant: Tenant) -> None:
    """It exits with 1, and names the limit and who may raise it."""
    tenant.limit_key(1)
    tenant.key.get("/v1/functions")
    environment = {"CLOUDCODE_URL": tenant.engine.url, "CLOUDCODE_KEY": tenant.secret}

    ran = run(["functions", "list"], environment)

    told = " ".join((ran.out + ran.err).split())
    assert ran.code == 1
    assert re.search(r"try again in \d+ s", told)
    assert "limit key_requests_per_minute is 1, used 1" in told
    assert "requests_per_minute" in told
    assert "cloudcode keys set KEY" in told
