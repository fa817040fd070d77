"""WebAssembly functions through the API: upload, versions, download, deletion, restarts."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event, func, select, update
from wasmtime import wat2wasm

from engine import builder
from engine.quotas import UPLOAD_BYTES_MAX, WASM_BYTES_MAX
from engine.settings import Settings
from engine.store.tables import artifacts, versions, wasm_modules
from engine.wiring import Platform, open_platform
from runtimes.contract import Runtime
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    Caller,
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def binary(wat: str) -> bytes:
    return bytes(wat2wasm(wat))


def core(result: str, *, alloc: str = "alloc", handle: str = "handle") -> bytes:
    """Return a core module that answers with this JSON, whatever it is asked."""
    data = "".join(f"\\{byte:02x}" for byte in result.encode())
    packed = (4096 << 32) | len(result.encode())
    return binary(f"""(module
      (memory (export "memory") 1) (data (i32.const 4096) "{data}")
      (func (export "{alloc}") (param i32) (result i32) (i32.const 8192))
      (func (export "{handle}") (param i32 i32) (result i64) (i64.const {packed})))""")


ANSWERS = core('{"answer":42}')
COMMAND = binary('(module (memory (export "memory") 1) (func (export "_start")))')


def encoded(wasm: bytes) -> str:
    return base64.b64encode(wasm).decode()


async def upload(project: Project, wasm: bytes = ANSWERS, **fields: Any) -> Any:
    body = {"name": "answers", "wasm": encoded(wasm), **fields}
    return await project.develop.ok("POST", "/v1/functions", body)


async def refused(project: Project, wasm: bytes | str, **fields: Any) -> dict[str, Any]:
    text = wasm if isinstance(wasm, str) else encoded(wasm)
    body = {"name": "refused", "runtime": "wasm", "wasm": text, **fields}
    problem = await project.develop.refused(422, "POST", "/v1/functions", body)
    await project.develop.refused(404, "GET", "/v1/functions/refused")  # nothing was stored
    return problem


async def test_a_module_lives_from_upload_to_deletion(project: Project) -> None:
    """It runs at once, shows what is known of it, and comes back to the byte."""
    made = await upload(project, runtime="wasm", message="first", variables={"A": "ü"})
    path = "/v1/functions/answers"

    whole = await project.operate.ok("GET", path)
    listed = await project.develop.items("/v1/functions")
    version = await project.develop.ok("GET", f"{path}/versions/1")
    download = await project.operate.call("GET", f"{path}/versions/1/wasm")
    result = await project.develop.ok("POST", f"{path}/invoke", {"a": 1})

    facts = {
        "kind": "core",
        "bytes": len(ANSWERS),
        "sha256": hashlib.sha256(ANSWERS).hexdigest(),
    }
    assert made["runtime"] == "wasm"
    assert made["handlers"] == ["default", "afterStore", "job", "scheduled"]
    assert whole["wasm"] == listed[0]["wasm"] == version["wasm"] == facts
    for shown in (whole, version):
        assert (shown["files"], shown["main"], shown["args"], shown["io"]) == ({}, "", [], "json")
        assert shown["exports"] == {"alloc": "alloc", "handle": "handle"}
        assert shown["reuse"] is False
        assert shown["variables"] == {"A": "ü"}
    assert download.content == ANSWERS
    assert download.headers["content-type"] == "application/wasm"
    assert download.headers["content-disposition"] == 'attachment; filename="answers-1.wasm"'
    assert result == {"answer": 42}


async def test_what_is_deleted_leaves_no_bytes_behind(project: Project) -> None:
    """Module and artifact go with their version."""
    before = _rows(project.platform)
    await upload(project)
    await project.develop.ok("POST", "/v1/functions/answers/versions", {"wasm": encoded(ANSWERS)})
    between = _rows(project.platform)

    await project.develop.ok("DELETE", "/v1/functions/answers")

    assert between == (before[0] + 2, before[1] + 2)
    assert _rows(project.platform) == before
    await project.develop.refused(404, "GET", "/v1/functions/answers/versions/1/wasm")


def _rows(platform: Platform) -> tuple[int, int]:
    with platform.database.engine.connect() as connection:
        modules, compiled = (
            connection.execute(select(func.count()).select_from(table)).scalar()
            for table in (wasm_modules, artifacts)
        )
    return modules or 0, compiled or 0


async def test_javascript_has_none_of_it(project: Project) -> None:
    """The fields are there, and null; there is no module to be had."""
    await project.function("alarm", ECHO)

    whole = await project.develop.ok("GET", "/v1/functions/alarm")
    problem = await project.develop.refused(404, "GET", "/v1/functions/alarm/versions/1/wasm")

    assert whole["runtime"] == "javascript"
    assert {whole[name] for name in ("wasm", "args", "io", "reuse")} == {None}
    assert whole["exports"] is None
    assert "javascript" in problem["detail"]


async def test_a_version_takes_over_the_options_it_does_not_say(project: Project) -> None:
    """Each by itself; what it says counts from then on."""
    await upload(
        project, core("1", handle="redact"), handlers=["job", "fetch"], args=["-", "größe"],
        io="text", exports={"handle": "redact"}, reuse=True, limits={"fuel": 1_000_000},
    )  # fmt: skip
    path = "/v1/functions/answers/versions"
    second = {"wasm": encoded(core("2", handle="redact")), "args": []}
    third = {"wasm": encoded(core("3")), "exports": {}, "io": "json", "limits": {"cpu_ms": 100}}

    made = await project.develop.ok("POST", f"{path}?deploy=true", second)
    await project.develop.ok("POST", path, third)
    first, second, third = [
        await project.develop.ok("GET", f"{path}/{number}") for number in (1, 2, 3)
    ]

    assert made == {
        "version": 2, "handlers": ["job", "fetch"], "deployed": True, "warnings": [],
    }  # fmt: skip
    assert (first["args"], second["args"], third["args"]) == (["-", "größe"], [], [])
    assert (first["io"], second["io"], third["io"]) == ("text", "text", "json")
    assert (second["exports"]["handle"], third["exports"]["handle"]) == ("redact", "handle")
    assert first["reuse"] is second["reuse"] is third["reuse"] is True
    assert (second["limits"], third["limits"]) == ({"fuel": 1_000_000}, {"cpu_ms": 100})
    assert third["handlers"] == ["job", "fetch"]
    assert await project.develop.ok("POST", "/v1/functions/answers/invoke") == "2"


async def test_every_live_version_answers_with_its_own_module(project: Project) -> None:
    """A deployment decides, also between modules; a rollback brings the old one back."""
    await upload(project, core("1"))
    path = "/v1/functions/answers"
    await project.develop.ok("POST", f"{path}/versions?deploy=true", {"wasm": encoded(core("2"))})
    second = await project.develop.ok("POST", f"{path}/invoke")

    await project.develop.ok("POST", f"{path}/rollback")

    assert (second, await project.develop.ok("POST", f"{path}/invoke")) == (2, 1)


async def test_a_command_is_told_from_a_core_module(project: Project) -> None:
    """By what it exports; what only a core module understands is refused, or not inherited."""
    await upload(project, reuse=True, exports={"handle": "handle"})
    path = "/v1/functions/answers/versions"
    command = {"wasm": encoded(COMMAND)}

    await project.develop.ok("POST", path, command)
    version = await project.develop.ok("GET", f"{path}/2")
    reused = await refused(project, COMMAND, reuse=True)
    named = await refused(project, COMMAND, exports={"handle": "redact"})

    assert version["wasm"]["kind"] == "command"
    assert version["reuse"] is False
    assert reused["errors"][0]["pointer"] == "/reuse"
    assert named["errors"][0]["pointer"] == "/exports"
    assert "redact" in named["detail"]


async def test_a_function_keeps_its_runtime(project: Project) -> None:
    """The other kind is refused by name, with what to do; nothing is added."""
    await upload(project)
    await project.function("alarm", ECHO)

    source = await project.develop.refused(
        422, "POST", "/v1/functions/answers/versions", {"source": ECHO}
    )
    module = await project.develop.refused(
        422, "POST", "/v1/functions/alarm/versions", {"wasm": encoded(ANSWERS)}
    )
    option = await project.develop.refused(
        422, "POST", "/v1/functions/alarm/versions", {"source": ECHO, "args": ["-c"]}
    )
    nothing = await project.develop.refused(422, "POST", "/v1/functions/answers/versions", {})

    assert source["errors"][0]["pointer"] == "/source"
    assert "answers is wasm" in source["detail"]
    assert "another function" in source["detail"]
    assert module["errors"][0]["pointer"] == "/wasm"
    assert option["errors"][0]["pointer"] == "/args"
    assert nothing["errors"][0]["pointer"] == "/wasm"
    for name in ("answers", "alarm"):
        assert len(await project.develop.items(f"/v1/functions/{name}/versions")) == 1


WRONG = {
    "not base64": ("AGF", "validation_failed", "/wasm"),
    "line breaks": ("AGFz\nbQEAAAA=\n", "validation_failed", "/wasm"),
    "nothing": ("", "validation_failed", "/wasm"),
    "text": (b"(module)", "compile_error", "/wasm"),
    "a component": (b"\0asm\x0d\0\x01\0", "compile_error", "/wasm"),
    "cut": (ANSWERS[:-3], "compile_error", "/wasm"),
    "no ABI": (binary("(module)"), "compile_error", "/wasm"),
    "an unknown import": (binary('(module (import "env" "now" (func (result i64))) '
                                 '(memory (export "memory") 1) (func (export "_start")))'),
                          "compile_error", "/wasm"),
    "no end": (binary('(module (memory (export "memory") 1) (func (export "_start")) '
                      "(func $spin (loop (br 0))) (start $spin))"), "compile_error", "/wasm"),
    "a trap": (binary('(module (memory (export "memory") 1) (func (export "_start")) '
                      "(func $no unreachable) (start $no))"), "compile_error", "/wasm"),
    "much memory": (binary('(module (memory (export "memory") 9000) (func (export "_start")))'),
                    "compile_error", "/wasm"),
}  # fmt: skip


@pytest.mark.slow  # one of them spins until its limit
@pytest.mark.parametrize("case", WRONG)
async def test_a_module_that_is_not_taken_is_explained(shared: Project, case: str) -> None:
    """Nothing is stored; the pointer leads to the module."""
    wasm, code, pointer = WRONG[case]

    problem = await refused(shared, wasm)

    assert problem["code"] == code, problem
    assert problem["errors"][0]["pointer"] == pointer
    if code == "compile_error":
        assert (problem["file"], problem["line"]) == ("", 0)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"wasm": 1}, "/wasm"),
        ({"wasm": ["AGFz"]}, "/wasm"),
        ({"handlers": "job"}, "/handlers"),
        ({"handlers": ["job", 1]}, "/handlers/1"),
        ({"handlers": ["main"]}, "/handlers/0"),
        ({"args": "-c"}, "/args"),
        ({"args": ["a\0b"]}, "/args/0"),
        ({"io": "bytes"}, "/io"),
        ({"io": 1}, "/io"),
        ({"exports": ["handle"]}, "/exports"),
        ({"exports": {"handle": 1}}, "/exports/handle"),
        ({"exports": {"main": "main"}}, "/exports"),
        ({"reuse": "yes"}, "/reuse"),
        ({"reuse": 1}, "/reuse"),
        ({"limits": {"fuel": 0}}, "/limits/fuel"),
        ({"limits": {"fuel": 1.5}}, "/limits/fuel"),
        ({"limits": {"cpu_ms": 2_001}, "handlers": ["default"]}, "/limits/cpu_ms"),
        ({"limits": {"memory_mb": 513}}, "/limits/memory_mb"),
        ({"abi": "v2"}, "/abi"),
    ],
)
async def test_a_wrong_field_is_named(
    shared: Project, fields: dict[str, Any], pointer: str
) -> None:
    """Before anything is compiled."""
    body = {"name": "refused", "wasm": encoded(ANSWERS), **fields}

    problem = await shared.develop.refused(422, "POST", "/v1/functions", body)

    assert problem["code"] == "validation_failed"
    assert problem["errors"][0]["pointer"] == pointer


async def test_the_limits_of_its_handlers_are_the_modules(project: Project) -> None:
    """`handlers` decide what may be asked for."""
    await upload(project, handlers=["default", "job"], limits={"cpu_ms": 30_000})

    whole = await project.develop.ok("GET", "/v1/functions/answers")

    assert whole["limits"] == {"cpu_ms": 30_000}


async def test_fetch_is_served_only_when_it_was_asked_for(project: Project) -> None:
    """A module is not public by itself."""
    await upload(project)
    public = {"name": "public", "wasm": encoded(ANSWERS), "handlers": ["fetch"]}
    await project.develop.ok("POST", "/v1/functions", public)

    hidden = await project.admin.http.get(f"/f/{project.name}/answers")
    served = await project.admin.http.get(f"/f/{project.name}/public")

    assert hidden.status_code in {404, 422}
    assert served.status_code == 200


@pytest.mark.slow  # 10 MB are compiled, sealed and stored
async def test_a_module_as_large_as_the_limit_passes_the_door(project: Project) -> None:
    """One byte more is 413, by the limit of modules; much more is not even read."""
    fits = ANSWERS + _padding(WASM_BYTES_MAX - len(ANSWERS))
    assert len(fits) == WASM_BYTES_MAX
    made = await upload(project, fits)
    body = {"name": "over", "wasm": encoded(fits + b"\0")}
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * (UPLOAD_BYTES_MAX // 4)

    over = await project.develop.refused(413, "POST", "/v1/functions", body)
    versions = "/v1/functions/answers/versions"
    stream = await project.develop.refused(413, "POST", versions, content=chunks())
    download = await project.develop.call("GET", "/v1/functions/answers/versions/1/wasm")

    assert made["version"] == 1
    assert over["limit"]["name"] == "wasm_bytes"
    assert over["limit"]["used"] == WASM_BYTES_MAX + 1
    assert stream["limit"]["name"] == "upload_bytes"
    assert sent <= 6
    assert download.content == fits


def _padding(size: int) -> bytes:
    """Return a custom section of exactly so many bytes."""
    content = size - 6
    length = bytes([(content >> shift) & 0x7F | 0x80 for shift in (0, 7, 14, 21)])
    length += bytes([content >> 28])
    return b"\0" + length + b"\x01p" + bytes(content - 2)


async def test_a_body_is_not_read_before_the_key(project: Project) -> None:
    """A stranger cannot have 15 MB held for them."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 1000

    stranger = Caller(project.admin.http, "cck_nobody")
    await stranger.refused(401, "POST", "/v1/functions", content=chunks())
    await project.ingest.refused(403, "POST", "/v1/functions/x/versions", content=chunks())

    assert sent == 0


@pytest.mark.parametrize("path", ["/v1/functions", "/v1/functions/x/versions"])
async def test_a_wrong_body_of_an_upload_is_told_as_everywhere(shared: Project, path: str) -> None:
    """400 for what is not JSON, 422 for what is no object."""
    for body in (b"{", b'{"name": NaN}', b'{"name": "\\ud800"}', b"[" * 100_000, b"\xff"):
        problem = await shared.develop.refused(400, "POST", path, content=body)
        assert problem["code"] == "malformed_json"
    for body in (b"", b"[]", b"null", b'"a"'):
        problem = await shared.develop.refused(422, "POST", path, content=body)
        assert problem["errors"][0]["pointer"] == ""


@pytest.mark.slow  # the document takes a quarter of a second to make
async def test_the_document_shows_the_body_of_an_upload(shared: Project) -> None:
    """Although its route reads it by itself."""
    document = (await shared.admin.http.get("/openapi.json")).json()

    schemas = document["components"]["schemas"]
    for path, name in (
        ("/v1/functions", "FunctionNew"), ("/v1/functions/{name}/versions", "VersionNew"),
    ):  # fmt: skip
        body = document["paths"][path]["post"]["requestBody"]
        assert body["required"]
        schema = body["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{name}"}
        assert schemas[name]["properties"]["wasm"]["contentEncoding"] == "base64"
        assert "$defs" not in schemas[name]
    assert "fuel" in schemas["LimitsAsked"]["properties"]
    answer = document["paths"]["/v1/functions/{name}/versions/{version}/wasm"]["get"]["responses"]
    assert list(answer["200"]["content"]) == ["application/wasm"]


async def test_a_neighbour_cannot_have_the_module(project: Project, neighbour: Project) -> None:
    """Like everything else of another project it is not there."""
    made = await upload(neighbour)

    for name in ("answers", made["id"]):
        await project.develop.refused(404, "GET", f"/v1/functions/{name}/versions/1/wasm")


async def test_versions_uploaded_at_the_same_time_all_count(project: Project) -> None:
    """Each with its own module."""
    await upload(project, core("1"))
    path = "/v1/functions/answers/versions"

    made = await asyncio.gather(
        *(
            project.develop.ok("POST", path, {"wasm": encoded(core(str(n))), "message": str(n)})
            for n in range(2, 6)
        )
    )

    numbers = sorted(one["version"] for one in made)
    assert numbers == [2, 3, 4, 5]
    for number in numbers:
        version = await project.develop.ok("GET", f"{path}/{number}")
        download = await project.develop.call("GET", f"{path}/{number}/wasm")
        assert download.content == core(version["message"])


async def test_a_module_that_takes_too_long_to_compile_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time it had, and what makes it smaller."""
    monkeypatch.setitem(builder.BUILD_MS, Runtime.WASM, 1)
    large = binary(f'(module (memory (export "memory") 1) (func (export "_start")){_work(3000)})')

    problem = await refused(project, large)

    assert problem["code"] == "compile_error"
    assert "longer than 1 ms; make it smaller" in problem["detail"]


def _work(count: int) -> str:
    steps = "(i32.add (local.get 0) (i32.const 7)) (local.set 0)" * 20
    return f"(func (param i32) {steps})" * count


@asynccontextmanager
async def opened(data_dir: Path) -> AsyncIterator[tuple[Platform, Caller]]:
    key = "cck_of-this-test"
    settings = Settings(data_dir=data_dir, warm_cells=1, admin_key=key)
    async with open_platform(settings) as platform:
        transport = httpx.ASGITransport(platform.asgi(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            yield platform, Caller(client, key)


def _stored(platform: Platform) -> list[Any]:
    with platform.database.engine.connect() as connection:
        return list(connection.execute(select(artifacts)))


@pytest.mark.slow  # starts three engines
async def test_a_function_answers_after_restarts_whatever_happened_to_its_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed; altered: compiled anew; of another machine: compiled beside it."""
    invoke = ("POST", "/v1/functions/answers/invoke")
    async with opened(tmp_path) as (platform, caller):
        body = {"name": "answers", "wasm": encoded(ANSWERS)}
        await caller.ok("POST", "/v1/functions", body)
        (first,) = _stored(platform)
        sealed = bytearray(first.sealed)
        sealed[len(sealed) // 2] ^= 1
        with platform.database.engine.begin() as connection:
            connection.execute(update(artifacts).values(sealed=bytes(sealed)))

    async with opened(tmp_path) as (platform, caller):
        after_altering = await caller.ok(*invoke)
        (second,) = _stored(platform)

    monkeypatch.setattr("sandbox.supervisor.fingerprint", lambda **_: "another machine")
    async with opened(tmp_path) as (platform, caller):
        on_another = await caller.ok(*invoke)
        third = _stored(platform)

    assert ANSWERS not in bytes(first.sealed)
    assert b"answer" not in bytes(first.sealed)
    assert after_altering == on_another == {"answer": 42}
    assert second.sealed not in (first.sealed, bytes(sealed))
    assert {row.fingerprint for row in third} == {first.fingerprint, "another machine"}


async def test_an_artifact_that_a_cell_refuses_is_compiled_anew(project: Project) -> None:
    """Sealed as it should be, yet not for this machine: the caller notices nothing."""
    await upload(project)
    platform = project.platform
    with platform.database.engine.connect() as connection:
        version_id = connection.execute(select(func.max(artifacts.c.version_id))).scalar_one()
    unfit = b"compiled for something else"
    await platform.journal.run(platform.programs.insert, project.id, version_id, unfit)
    platform.programs.keep(version_id, unfit)

    result = await project.develop.ok("POST", "/v1/functions/answers/invoke")

    assert result == {"answer": 42}
    with platform.database.engine.connect() as connection:
        of_version = select(artifacts.c.sealed).where(artifacts.c.version_id == version_id)
        (sealed,) = connection.execute(of_version).scalars()
    assert len(sealed) > len(unfit) + 100


async def test_lists_do_not_read_modules(project: Project) -> None:
    """However large they are: no statement of a list names the column."""
    await upload(project)
    statements: list[str] = []
    engine = project.platform.database.engine

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    await project.develop.items("/v1/functions")
    await project.develop.items("/v1/functions/answers/versions")
    await project.develop.ok("GET", "/v1/functions/answers")
    event.remove(engine, "before_cursor_execute", note)

    assert any("wasm_modules" in statement for statement in statements)
    big = (f"{wasm_modules.name}.wasm,", f"{wasm_modules.name}.wasm ", artifacts.name)
    assert [one for one in statements if any(name in one for name in big)] == []
    assert any(f"{versions.name}.options" in statement for statement in statements)
