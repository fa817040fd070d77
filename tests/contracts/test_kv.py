"""The key-value store: by hand over HTTP, and from functions. Names begin with `kv-`.

What holds for every kind of function stands in test_runtimes.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from engine.clock import wall_clock
from engine.kv import Sweeper
from engine.settings import Settings
from engine.store.kv import FORGET_ROWS
from engine.wiring import Platform, open_platform
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
_numbers = itertools.count(1)


class AheadClock:
    """The machine's time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead_ms


@pytest.fixture(scope="module")
def clock() -> AheadClock:
    return AheadClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str], clock: AheadClock
) -> AsyncIterator[Platform]:
    """One for all tests of a module, on each kind of database."""
    data_dir = tmp_path_factory.mktemp("kv") / "data"
    settings = Settings(data_dir=data_dir, warm_cells=2, **database_settings)
    async with open_platform(settings, clock=clock) as opened:
        yield opened


async def deploy(project: Project, body: str, **fields: Any) -> str:
    """Deploy `async (p, {KV}, ctx) => { body }` and return its name."""
    name = f"kv-{next(_numbers)}"
    source = f"export default async function (p, {{ KV, ...env }}, ctx) {{ {body} }}"
    await project.function(name, source, **{"limits": CALM} | fields)
    return name


async def ask(project: Project, name: str, params: Any = None) -> Any:
    return await project.develop.ok("POST", f"/v1/functions/{name}/invoke", params)


async def fail(project: Project, name: str) -> dict[str, Any]:
    """Run the function, which does not succeed, and return the execution."""
    found = await project.develop.call("POST", f"/v1/functions/{name}/invoke")
    assert found.status_code in {502, 504}, found.text
    path = f"/v1/executions/{found.json()['execution_id']}"
    return dict(await project.develop.ok("GET", path))


async def run(project: Project, name: str) -> dict[str, Any]:
    found = await project.develop.call("POST", f"/v1/functions/{name}/invoke")
    assert found.is_success, found.text
    return dict(await project.develop.ok("GET", f"/v1/executions/{found.headers['execution-id']}"))


def path_of(key: str, namespace: str = "default") -> str:
    return f"/v1/kv/{namespace}/{quote(key, safe='')}"


async def put(project: Project, key: str, value: Any, namespace: str = "default") -> None:
    await project.operate.ok("PUT", path_of(key, namespace), content=json.dumps(value).encode())


async def get(project: Project, key: str, namespace: str = "default") -> Any:
    return await project.operate.ok("GET", path_of(key, namespace))


async def keys(project: Project, namespace: str = "default", **query: Any) -> list[str]:
    found = await project.operate.items(f"/v1/kv/{namespace}", **query)
    return [one["key"] for one in found]


# By hand.

TEXTS = [
    b"null", b"true", b"0", b"12345678901234567890.10", b'""', b'"\\u0000"', b"[]", b' {"b" : 1}',
    '"ü😀"'.encode(), b"[" * 200 + b"]" * 200,
]  # fmt: skip


async def test_a_value_comes_back_as_it_was_put(project: Project) -> None:
    """To the byte, whatever JSON it is; a second one takes its place."""
    for text in TEXTS:
        await project.operate.ok("PUT", path_of("one"), content=text)
        found = await project.operate.call("GET", path_of("one"))

        assert found.content == text
        assert found.headers["content-type"] == "application/json"
    assert await keys(project) == ["one"]


async def test_a_key_that_was_deleted_is_gone(project: Project) -> None:
    """404 then, as for one that never was; deleting it again too."""
    await put(project, "one", 1)

    await project.operate.ok("DELETE", path_of("one"))

    for method in ("GET", "DELETE"):
        problem = await project.operate.refused(404, method, path_of("one"))
        assert problem["code"] == "not_found"
        assert "'one'" in problem["detail"]
    assert await keys(project) == []


KEYS = [
    " ", "\"'`", "../..", "a/b/c", "a b", "a%2Fb", "a?b#c", "x" * 512, "é" * 256, "日本語", "😀",
    "\u2028", "\U0010ffff",
]  # fmt: skip


async def test_keys_may_be_of_any_script(project: Project) -> None:
    """Up to 512 bytes, slashes and spaces too; they are listed in the order of their bytes."""
    for key in KEYS:
        await put(project, key, key)

    assert [await get(project, key) for key in KEYS] == KEYS
    assert await keys(project) == sorted(KEYS, key=str.encode)
    listed = [await keys(project, prefix=key) for key in KEYS]
    assert all(key in found for key, found in zip(KEYS, listed, strict=True))


REFUSED = {
    "key too long": ("PUT", path_of("é" * 256 + "x"), b"1", 422, "{key}"),
    "no key": ("PUT", "/v1/kv/default/", b"1", 422, "{key}"),
    "a tab in a key": ("PUT", path_of("a\tb"), b"1", 422, "{key}"),
    "nul in a key": ("GET", path_of("\0"), None, 422, "{key}"),
    "a C1 control in a key": ("DELETE", path_of("\x85"), None, 422, "{key}"),
    "namespace too long": ("PUT", path_of("k", "n" * 65), b"1", 422, "{namespace}"),
    "namespace of another script": ("GET", path_of("k", "tür"), None, 422, "{namespace}"),
    "namespace with a dot": ("GET", "/v1/kv/a.b", None, 422, "{namespace}"),
    "no value": ("PUT", path_of("k"), b"", 422, ""),
    "deep value": ("PUT", path_of("k"), b"[" * 201 + b"]" * 201, 422, ""),
    "short life": ("PUT", path_of("k") + "?ttl_seconds=59", b"1", 422, "?ttl_seconds"),
    "long life": ("PUT", path_of("k") + "?ttl_seconds=31536001", b"1", 422, "?ttl_seconds"),
    "life of text": ("PUT", path_of("k") + "?ttl_seconds=x", b"1", 422, "?ttl_seconds"),
    "no page": ("GET", "/v1/kv/default?limit=0", None, 422, "?limit"),
    "large page": ("GET", "/v1/kv/default?limit=201", None, 422, "?limit"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_wrong_is_told(shared: Project, case: str) -> None:
    """By a pointer; nothing is stored."""
    method, path, content, status, pointer = REFUSED[case]

    found = await shared.operate.call(method, path, content=content)

    problem = found.json()
    assert (found.status_code, problem["code"]) == (status, "validation_failed"), problem
    assert problem["errors"][0]["pointer"] == pointer
    assert await keys(shared) == []


async def test_what_is_no_json_is_refused(shared: Project) -> None:
    """400, as everywhere."""
    for content in (b"{", b"NaN", b"open", b'"\\ud800"'):
        problem = await shared.operate.refused(400, "PUT", path_of("k"), content=content)

        assert problem["code"] == "malformed_json"


async def test_a_value_may_have_64_kib(project: Project) -> None:
    """As JSON; one byte more is refused with the limit's name."""
    largest = b'"' + b"x" * (64 * KIB - 2) + b'"'
    await project.operate.ok("PUT", path_of("k"), content=largest)

    problem = await project.operate.refused(413, "PUT", path_of("k"), content=largest + b" ")

    used = 64 * KIB + 1
    assert problem["limit"] == {"name": "kv_value_bytes", "value": 64 * KIB, "used": used}
    assert len(await get(project, "k")) == 64 * KIB - 2


async def test_another_method_is_refused_with_those_there_are(shared: Project) -> None:
    """Also where the key has slashes."""
    for path in (path_of("a"), path_of("a/b")):
        found = await shared.operate.call("POST", path, 1)

        assert found.status_code == 405
        assert {"GET", "PUT", "DELETE"} <= set(found.headers["allow"].split(", "))


async def test_a_list_has_pages_and_prefixes(project: Project) -> None:
    """Each key once, in order; a namespace knows nothing of another one."""
    names = [f"{letter}{n}" for letter in "abc" for n in range(5)]
    for name in reversed(names):
        await put(project, name, 1)
    await put(project, "b9", 1, "other")

    for limit in (1, 2, 4, 5, 6, 15, 200):
        assert await keys(project, limit=limit) == names
        assert await keys(project, limit=limit, prefix="b") == [f"b{n}" for n in range(5)]
    assert await keys(project, prefix="d") == []
    assert await keys(project, "other") == ["b9"]
    (one,) = await project.operate.items("/v1/kv/other")
    assert one["expires_at"] is None
    assert one["updated_at"].endswith("Z")


async def test_limits_are_published(shared: Project) -> None:
    """By their numbers."""
    limits = (await shared.admin.http.get("/v1/limits")).json()

    assert limits["run"]["kv_operations"] == 100
    assert limits["kv"] == {
        "key_bytes": 512,
        "value_bytes": 65_536,
        "ttl_seconds": {"min": 60, "max": 31_536_000},
        "list_keys": {"default": 100, "max": 1_000},
    }


# From functions.


async def test_functions_and_callers_share_it(project: Project) -> None:
    """What is put by hand is got by a function, and the other way round; the record shows it."""
    await put(project, "by hand", {"a": [1, None]})
    body = (
        "const found = await KV.get('by hand'); await KV.put('by run', [found, 'ü']);"
        " await KV.delete('by hand'); await KV.put('n', 1, {namespace: 'other'}); return found"
    )
    name = await deploy(project, body)

    execution = await run(project, name)

    assert execution["result"] == {"a": [1, None]}
    assert await get(project, "by run") == [{"a": [1, None]}, "ü"]
    assert await keys(project) == ["by run"]
    assert await keys(project, "other") == ["n"]
    assert execution["effects"] == [
        {"kind": "kv", "namespace": "default", "key": "by run", "operation": "put"},
        {"kind": "kv", "namespace": "default", "key": "by hand", "operation": "delete"},
        {"kind": "kv", "namespace": "other", "key": "n", "operation": "put"},
    ]


async def test_operations_that_were_not_waited_for_keep_their_order(project: Project) -> None:
    """A read sees what stood before it, and nothing of what follows."""
    await put(project, "k", "old")
    body = (
        "return Promise.all([KV.get('k'), KV.put('k', 1), KV.get('k'), KV.delete('k'), KV.get('k'),"
        " KV.list(), KV.put('k', 2), KV.list(), KV.get('k')])"
    )

    seen = await ask(project, await deploy(project, body))

    none, one = ({"keys": names, "next_cursor": None} for names in ([], [{"key": "k"}]))
    assert seen == ["old", None, 1, None, None, none, None, one, 2]
    assert await get(project, "k") == 2


async def test_a_list_counts_own_puts_and_deletes(project: Project) -> None:
    """On every page: what the run deleted takes nobody's place, what it put stands in order."""
    for n in range(0, 20, 2):
        await put(project, f"k{n:02}", 1)
    body = (
        "await KV.put('a', 1); await KV.put('z', 1); await KV.put('k04', 2);"
        " await KV.put('k05', 1); await KV.put('k99', 1); await KV.delete('k99');"
        " await KV.put('k98', 1, {namespace: 'o'});"
        " for (const n of ['k00', 'k02', 'k18', 'k77']) await KV.delete(n);"
        " const pages = []; let cursor = null; do {"
        "   const page = await KV.list({prefix: 'k', limit: p, cursor});"
        "   pages.push(page.keys.map(one => one.key)); cursor = page.next_cursor;"
        " } while (cursor !== null); return pages"
    )
    name = await deploy(project, body)
    expected = ["k04", "k05", "k06", "k08", "k10", "k12", "k14", "k16"]

    for limit in (1, 3, 8, 9, 1_000):
        pages = await ask(project, name, limit)
        await asyncio.gather(*(put(project, f"k{n:02}", 1) for n in (0, 2, 18)))  # as before
        await project.operate.ok("DELETE", path_of("k05"))

        assert [key for page in pages for key in page] == expected
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert await keys(project, prefix="k1") == [f"k{n}" for n in range(10, 20, 2)]


WRONG_CALLS = {
    "KV.get()": "invalid_arguments",
    "KV.get(1)": "invalid_arguments",
    "KV.get('')": "validation_failed",
    "KV.get('a\\nb')": "validation_failed",
    "KV.get('é'.repeat(257))": "validation_failed",
    "KV.get('k', {namespace: ''})": "validation_failed",
    "KV.get('k', {namespace: 'a b'})": "validation_failed",
    "KV.get('k', {namespace: 1})": "invalid_arguments",
    "KV.put('k')": "invalid_arguments",
    "KV.put('k', undefined)": "invalid_arguments",
    "KV.put('k', 'x'.repeat(65535))": "payload_too_large",
    "KV.put('k', 1, {ttlSeconds: 59})": "validation_failed",
    "KV.put('k', 1, {ttlSeconds: 31536001})": "validation_failed",
    "KV.put('k', 1, {ttlSeconds: 'soon'})": "invalid_arguments",
    "KV.put('k', 1, {ttlSeconds: true})": "invalid_arguments",
    "KV.put({}, 1)": "invalid_arguments",
    "KV.delete('')": "validation_failed",
    "KV.delete()": "invalid_arguments",
    "KV.list({limit: 0})": "validation_failed",
    "KV.list({limit: 1001})": "validation_failed",
    "KV.list({limit: 'all'})": "invalid_arguments",
    "KV.list({prefix: 1})": "invalid_arguments",
    "KV.list({namespace: 'ü'})": "validation_failed",
}


async def test_a_wrong_call_is_an_error_that_can_be_caught(project: Project) -> None:
    """With a code; the run goes on, and nothing of the call is kept."""
    calls = ", ".join(f"() => {call}" for call in WRONG_CALLS)
    body = (
        f"const codes = []; for (const call of [{calls}])"
        " try { await call(); codes.push(null) } catch (error) { codes.push(error.code) }"
        " await KV.put('after', 1); return codes"
    )

    codes = await ask(project, await deploy(project, body))

    assert dict(zip(WRONG_CALLS, codes, strict=True)) == WRONG_CALLS
    assert await keys(project) == ["after"]


OPERATIONS = {
    "put": "KV.put('k' + n, n)",
    "delete": "KV.delete('k' + n)",
    "get": "KV.get('k')",
    "list": "KV.list()",
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_run_has_a_hundred_operations(project: Project, operation: str) -> None:
    """Reads among them. One more ends it by the limit's name; nothing of it is stored."""
    body = f"await KV.put('first', 1); for (let n = 1; n < %d; n++) await {OPERATIONS[operation]}"
    over, full = [await deploy(project, body % count) for count in (101, 100)]

    failed = await fail(project, over)
    left = await keys(project)
    ran = await run(project, full)

    hit = {"name": "kv_operations", "value": 100, "used": 101}
    assert (failed["status"], failed["limit"]) == ("host_calls_exceeded", hit)
    assert (failed["effects"], left) == ([], [])
    assert ran["status"] == "succeeded"
    assert len(await keys(project)) == (100 if operation == "put" else 1)


async def test_bytes_of_values_are_effect_bytes(project: Project) -> None:
    """With their keys, together with all else that the run wants to change."""
    body = "for (let n = 0; n < p; n++) await KV.put('k' + n, 'x'.repeat(65534))"
    name = await deploy(project, body.replace("< p", "< (p ?? 70)"))

    failed = await fail(project, name)
    left = await keys(project)
    await ask(project, name, 60)

    assert (failed["status"], failed["limit"]["name"]) == ("effects_exceeded", "effect_bytes")
    assert left == []
    assert len(await keys(project)) == 60


ENDS = {
    "throws": "throw new Error('x')",
    "times out": "await new Promise(() => {})",
    "has too large a result": "return 'x'.repeat(2 ** 21)",
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_run_that_does_not_succeed_changes_nothing(project: Project, end: str) -> None:
    """Neither puts nor deletes."""
    await put(project, "old", "there")
    body = f"await KV.put('new', 1); await KV.delete('old'); await KV.put('old', 2); {ENDS[end]}"
    name = await deploy(project, body, limits={"wall_ms": 300})

    failed = await fail(project, name)

    assert failed["effects"] == []
    assert await keys(project) == ["old"]
    assert await get(project, "old") == "there"


async def test_of_a_runs_puts_the_last_one_counts(project: Project) -> None:
    """A put takes a delete back, and a delete a put; a life ends with the value that had it."""
    body = (
        "await KV.put('a', 1); await KV.put('a', 2, {ttlSeconds: 60}); await KV.put('a', 3);"
        " await KV.put('b', 1); await KV.delete('b'); await KV.delete('c'); await KV.put('c', 1)"
    )

    await ask(project, await deploy(project, body))

    found = await project.operate.items("/v1/kv/default")
    assert [(one["key"], one["expires_at"]) for one in found] == [("a", None), ("c", None)]
    assert await get(project, "a") == 3


@pytest.mark.slow
async def test_many_runs_at_once_each_have_their_own(project: Project) -> None:
    """64 of them: each own key is there; the shared one has the value of one of them, whole."""
    body = (
        "await KV.put('own ' + p, p); const before = await KV.get('own ' + ((p + 1) % 64));"
        " await KV.put('shared', {p, text: String(p).repeat(1000)}); return KV.get('shared')"
    )
    name = await deploy(project, body)

    results = await asyncio.gather(*(ask(project, name, n) for n in range(64)))

    shared = await get(project, "shared")
    assert [result["p"] for result in results] == list(range(64))
    assert shared["text"] == str(shared["p"]) * 1000
    assert len(await keys(project, prefix="own ")) == 64


async def test_puts_by_hand_at_once_are_all_there(project: Project) -> None:
    """Each is answered once it is on disk; of one key the one that was committed last counts."""
    await asyncio.gather(*(put(project, f"k{n}", n) for n in range(100)))
    await asyncio.gather(*(put(project, "one", n) for n in range(50)))
    await put(project, "one", "last")

    assert len(await keys(project, prefix="k")) == 100
    assert await get(project, "one") == "last"


async def test_a_project_has_a_store_of_its_own(project: Project, neighbour: Project) -> None:
    """Neither by hand nor from a function is another one's seen, changed or deleted."""
    await put(neighbour, "k", "theirs")
    body = (
        "const all = await KV.list(), one = await KV.get('k'); await KV.delete('k');"
        " return [all.keys, one]"
    )
    name = await deploy(project, body)

    seen = await ask(project, name)
    await project.operate.refused(404, "GET", path_of("k"))
    await project.operate.refused(404, "DELETE", path_of("k"))
    await put(project, "k", "ours")

    assert seen == [[], None]
    assert await get(neighbour, "k") == "theirs"
    assert await get(project, "k") == "ours"


async def test_a_binding_of_that_name_wins(project: Project) -> None:
    """As with env.DEVICES: who calls a variable KV has no store by that name."""
    name = await deploy(project, "return KV", variables={"KV": "mine"})

    assert await ask(project, name) == "mine"


# Expiry.


async def test_an_entry_expires(project: Project, clock: AheadClock) -> None:
    """Until its time it is there and says when that is; from then on nobody sees it."""
    await project.operate.ok("PUT", path_of("hand") + "?ttl_seconds=60", content=b"1")
    body = "await KV.put('run', 1, {ttlSeconds: 60}); await KV.put('stays', 1); return KV.list()"
    look = await deploy(
        project, "return [await KV.get('hand'), await KV.get('run'), await KV.list()]"
    )
    own = await ask(project, await deploy(project, body))
    before = await ask(project, look)

    clock.ahead_ms += 61_000
    after = await ask(project, look)

    assert [sorted(one) for one in own["keys"]] == [["expires_at", "key"]] * 2 + [["key"]]
    assert before[:2] == [1, 1]
    assert before[2] == own
    assert after == [None, None, {"keys": [{"key": "stays"}], "next_cursor": None}]
    assert await keys(project) == ["stays"]
    await project.operate.refused(404, "GET", path_of("hand"))
    await project.operate.refused(404, "DELETE", path_of("run"))


async def test_what_has_expired_is_swept_in_small_steps(
    project: Project, platform: Platform, clock: AheadClock
) -> None:
    """However many there are; what has a new value meanwhile, or time left, stays."""
    count = 2 * FORGET_ROWS + 10
    path = "/v1/kv/swept/{}?ttl_seconds=60"
    for n in range(count):
        await project.operate.ok("PUT", path.format(n), content=b"1")
    await project.operate.ok("PUT", "/v1/kv/swept/long?ttl_seconds=3600", content=b"1")
    clock.ahead_ms += 61_000
    await put(project, "0", "anew", "swept")
    commits = platform.journal.commits_count

    await Sweeper(platform.journal, clock).sweep()

    steps = platform.journal.commits_count - commits
    with platform.database.engine.connect() as connection:
        query = "SELECT key FROM kv WHERE namespace = 'swept' ORDER BY key"
        left = [row[0] for row in connection.exec_driver_sql(query)]
    assert left == ["0", "long"]
    assert steps >= 3
