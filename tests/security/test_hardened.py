"""Hardened projects: code that is only interpreted gives the same results, within the same limits.

What native code can do in their cells: `test_hardened_memory.py`.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import base64
import csv
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import select
from wasmtime import wat2wasm

from engine.dispatch import House
from engine.projects import change_project
from engine.settings import Settings
from engine.store.tables import artifacts
from engine.wiring import Platform, open_platform
from examples.slack_stand_in import SlackStandIn
from runtimes.contract import CellKind, Runtime
from sandbox.lockdown.executable_unsafe import Mapping, read_mappings
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Caller,
    Project,
    http,
    neighbour,
    project,
)
from tests.standins.http_server import Received, answer, http_server
from tests.standins.servers import Postgres

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
HARDENED = {"isolation": "hardened"}
STANDARD = {"isolation": "standard"}
CURRENT = "/v1/projects/current"
# What a run's own cell is, as the guest sees it, and when it began.
WHERE = "export default { job() { return [typeof WebAssembly, Date.now()]; } }"
KINDS_SEEN = {"hardened": "undefined", "standard": "object"}  # as `typeof WebAssembly`
PAGE = 4096


def wasm(text: str) -> str:
    return base64.b64encode(bytes(wat2wasm(text))).decode()


# Does what the first digit of its input says: 1 gives it back, 2 traps, 3 runs for ever, 4 grows
# its memory until it cannot, 5 asks the engine to wait a millisecond.
MODULE = wasm(r"""
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 2)
  (data (i32.const 16) "{\"operation\":\"timer\",\"arguments\":{\"ms\":1}}")
  (global $top (mut i32) (i32.const 4096))
  (func (export "alloc") (param $size i32) (result i32)
    (global.set $top (i32.add (global.get $top) (local.get $size)))
    (i32.sub (global.get $top) (local.get $size)))
  (func (export "handle") (param $at i32) (param $size i32) (result i64)
    (local $what i32)
    (local.set $what (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
    (if (i32.eq (local.get $what) (i32.const 2)) (then unreachable))
    (if (i32.eq (local.get $what) (i32.const 3)) (then (loop $spin (br $spin))))
    (if (i32.eq (local.get $what) (i32.const 4))
      (then (loop $more
        (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
        unreachable)))
    (if (i32.eq (local.get $what) (i32.const 5))
      (then (drop (call $call (i32.const 16) (i32.const 42)))))
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size)))))
""")


NAN, SIGNALLING = "7ff8000000000000", "7ff4000000000001"
# What processors and interpreters could disagree on: instruction, its result's type, its operands'
# type, and the operands, big-endian hex: NaNs, signed zeros, edges, vectors, relaxed SIMD.
ARITHMETIC: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("f64.sqrt", "f64", "f64", ("bff0000000000000",)),
    ("f64.div", "f64", "f64", ("00" * 8, "00" * 8)),
    ("f64.add", "f64", "f64", (SIGNALLING, "3ff0000000000000")),
    ("f64.sub", "f64", "f64", ("fff8123456789abc", SIGNALLING)),
    ("f64.min", "f64", "f64", ("8000000000000000", "00" * 8)),
    ("f64.max", "f64", "f64", ("8000000000000000", NAN)),
    ("f64.nearest", "f64", "f64", ("4004000000000000",)),
    ("f32.demote_f64", "f32", "f64", ("3fb999999999999a",)),
    ("f32.demote_f64", "f32", "f64", (SIGNALLING,)),
    ("f32.mul", "f32", "f32", ("0da24260", "2b8cbccc")),
    ("i64.trunc_sat_f64_s", "i64", "f64", ("7e37e43c8800759c",)),
    ("i64.trunc_sat_f64_u", "i64", "f64", (NAN,)),
    ("i64.rem_s", "i64", "i64", ("8000000000000000", "ff" * 8)),
    ("i64.rotl", "i64", "i64", ("fffffffffffffff9", "0000000000000043")),
    ("i64.shr_s", "i64", "i64", ("fffffffffffffff9", "0000000000000043")),
    ("i32.ctz", "i32", "i32", ("00000000",)),
    ("f32x4.div", "v128", "v128", ("3f80000000000000bf8000007fa00001", "00" * 16)),
    ("f32x4.min", "v128", "v128", ("80000000000000007fc000013f800000", "00" * 16)),
    ("f64x2.pmin", "v128", "v128", (NAN + "8" + "0" * 15, "3ff0000000000000" + "00" * 8)),
    ("i8x16.swizzle", "v128", "v128", ("0123456789abcdef" * 2, "00010203101180ff" * 2)),
    ("i16x8.q15mulr_sat_s", "v128", "v128", ("8000" * 8, "80000001" * 4)),
    ("i32x4.trunc_sat_f32x4_u", "v128", "v128", ("7fc000007149f2caf149f2ca40e00000",)),
    ("i8x16.relaxed_swizzle", "v128", "v128", ("0123456789abcdef" * 2, "00c80203101180ff" * 2)),
    ("i32x4.relaxed_trunc_f32x4_s", "v128", "v128", ("7fc000007149f2caf149f2ca40e00000",)),
    (
        "f32x4.relaxed_madd", "v128", "v128",
        ("3dcccccd404000007149f2ca80000000", "412000003eaa7efa7149f2ca3f800000", "bf800000" * 4),
    ),
    ("f64x2.relaxed_min", "v128", "v128", (NAN + "8" + "0" * 15, "3ff0000000000000" + "00" * 8)),
)  # fmt: skip


def arithmetic() -> str:
    """Return a module that does all of it and gives the results' bytes as hex.

    Operands are loaded from memory: what is constant would be computed by the compiler.
    """
    data, rows = b"", []
    for number, (instruction, stored, loaded, operands) in enumerate(ARITHMETIC):
        loads = []
        for operand in operands:
            loads.append(f"({loaded}.load (i32.const {1024 + len(data)}))")
            data += bytes.fromhex(operand)[::-1]
        out = f"(i32.const {16384 + 16 * number})"
        rows.append(f"({stored}.store {out} ({instruction} {' '.join(loads)}))")
    size = 16 * len(ARITHMETIC)
    escaped = "".join(f"\\{byte:02x}" for byte in data)
    return wasm(rf"""
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "0123456789abcdef")
  (data (i32.const 1024) "{escaped}")
  (func (export "alloc") (param i32) (result i32) (i32.const 8192))
  (func (export "handle") (param i32 i32) (result i64)
    (local $i i32) (local $byte i32)
    {" ".join(rows)}
    (i32.store8 (i32.const 32768) (i32.const 34))
    (loop $next
      (local.set $byte (i32.load8_u offset=16384 (local.get $i)))
      (i32.store8 offset=32769 (i32.shl (local.get $i) (i32.const 1))
        (i32.load8_u (i32.shr_u (local.get $byte) (i32.const 4))))
      (i32.store8 offset=32770 (i32.shl (local.get $i) (i32.const 1))
        (i32.load8_u (i32.and (local.get $byte) (i32.const 15))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const {size}))))
    (i32.store8 offset=32769 (i32.shl (local.get $i) (i32.const 1)) (i32.const 34))
    (i64.const {32768 << 32 | 2 * size + 2})))
""")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """One engine for all tests here, whose guests may reach servers of this machine."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("hardened") / "data",
        warm_cells=1,
        egress_allow="127.0.0.0/8",  # type: ignore[arg-type]  # as the environment has it
    )
    async with open_platform(settings) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def hardened(neighbour: Project) -> Project:
    await neighbour.admin.ok("PATCH", CURRENT, HARDENED)
    return neighbour


async def module(project: Project, name: str = "module", **fields: Any) -> Any:
    body = {"name": name, "wasm": MODULE, "handlers": ["job"], **fields}
    return await project.develop.ok("POST", "/v1/functions", body)


async def invoke(project: Project, name: str, params: Any = None) -> httpx.Response:
    path = f"/v1/functions/{name}/invoke"
    response: httpx.Response = await project.develop.call("POST", path, params)
    return response


async def ended(project: Project, name: str, params: Any = None) -> dict[str, Any]:
    """Run the function, which does not succeed, and return its execution."""
    told = await invoke(project, name, params)
    assert told.status_code == 502, told.text
    found: dict[str, Any] = await project.develop.ok(
        "GET", f"/v1/executions/{told.json()['execution_id']}"
    )
    return found


def houses(project: Project) -> list[House]:
    """Return the cells of the project: the dispatcher tells nobody which process has whose code."""
    every = project.platform.dispatcher._houses.values()
    return [house for house in every if house.project_id == project.id]


def mappings_of(house: House) -> list[Mapping]:
    """Return how the memory of a live cell is mapped, as the kernel tells others."""
    assert house.cell is not None
    try:
        return read_mappings(Path(f"/proc/{house.cell.pid}/maps").read_text())
    except PermissionError:
        pytest.skip("only root may look at the memory map of a cell")


# --- seen from outside -----------------------------------------------------------------------


async def test_what_is_executable_is_a_librarys_text(hardened: Project) -> None:
    """In a cell that has run guests: no page is writable and executable, and none is of ours.

    But for the page in which ctypes keeps the machine code of its callbacks: read-only by then.
    """
    await hardened.function("where", WHERE)
    await module(hardened)
    await invoke(hardened, "where")
    await invoke(hardened, "module", 5)

    found = {house.kind: mappings_of(house) for house in houses(hardened)}

    assert set(found) == {CellKind(runtime, hardened=True) for runtime in Runtime}
    for mappings in found.values():
        executable = [one for one in mappings if "x" in one.rights]
        assert [one for one in executable if "w" in one.rights] == []
        nameless = [one for one in executable if not one.name.startswith(("/", "[v"))]
        assert sum(one.end - one.start for one in nameless) <= 2 * PAGE, nameless
        assert all(Path(one.name).is_file() for one in executable if one.name.startswith("/"))


# --- the same results ------------------------------------------------------------------------


def first_readings(count: int) -> list[dict[str, Any]]:
    """Return the first readings of the demo's CSV, of one hour each."""
    with (EXAMPLES / "seattle-temps.csv").open() as file:
        rows = itertools.islice(csv.DictReader(file), count)
        return [
            {
                "key": "temp",
                "value": float(row["temp"]),
                "datetime": row["date"].replace("/", "-").replace(" ", "T") + ":00.000Z",
            }
            for row in rows
        ]


@asynccontextmanager
async def services() -> AsyncIterator[tuple[SlackStandIn, str]]:
    """Open what the examples speak to: Slack, and a service that turns Fahrenheit into Celsius."""

    async def celsius(received: Received) -> bytes:
        degrees = float(received.target.rpartition("=")[2])
        return answer(200, b'{"celsius": %.2f}' % ((degrees - 32) / 1.8))

    with SlackStandIn() as slack:
        async with http_server(celsius) as degrees:
            yield slack, degrees.url


async def demo(project: Project, slack: SlackStandIn, degrees_url: str) -> dict[str, Any]:
    """Run the examples on two days of readings and an hour, and return all that came of it."""
    device = await project.device("weather station", "Seattle")
    credentials = {"webhook_url": slack.webhook_url}
    alerts = {"kind": "slack", "credentials": credentials}
    await project.admin.ok("PUT", "/v1/connections/ALERTS", alerts)
    degrees = {
        "variables": {"DEGREES_URL": degrees_url},
        "allowed_hosts": [degrees_url.removeprefix("http://")],
    }
    heat = {"variables": {"HEAT_AT": "41", "FROST_AT": "37"}}
    for file, fields in {
        "daily_stats.js": {}, "alarms.ts": heat, "forecast.js": degrees, "nightly_report.js": {},
    }.items():  # fmt: skip
        body = {"files": {file: (EXAMPLES / file).read_text()}, "main": file, **fields}
        name = file.partition(".")[0]
        await project.develop.ok("POST", "/v1/functions", {"name": name, **body})
        if name in {"daily_stats", "alarms"}:
            trigger = {"function": name, "product": "weather station", "keys": ["temp"]}
            await project.develop.ok("POST", "/v1/triggers", trigger)
    path = f"/v1/devices/{device['id']}/values"
    for reading in first_readings(49)[::4]:
        runs = (await project.operate.ok("POST", path, {"values": [reading]}))["executions"]
        for run in runs:
            await until_ended(project, run)
    asked = {"device": device["id"], "from": "2010-01-01", "days": 3}
    report = await invoke(project, "nightly_report", asked)
    public = f"/f/{project.name}/forecast"
    forecast = await project.admin.http.get(public, params={"device": device["id"]})
    values = {
        key: [(one["datetime"], one["value"]) for one in await project.operate.items(path, key=key)]
        for key in ("temp_daily_min", "temp_daily_mean", "temp_daily_max")
    }
    found = {"report": report.json(), "forecast": forecast.json(), "values": values}
    for part in ("report", "forecast"):
        assert found[part].pop("device") == device["id"]
    return found


async def until_ended(project: Project, execution: str) -> None:
    for _ in range(500):
        found = await project.develop.ok("GET", f"/v1/executions/{execution}")
        if found["status"] not in {"queued", "running"}:
            assert found["status"] == "succeeded", found
            return
        await asyncio.sleep(0.01)
    raise AssertionError(execution)


@pytest.mark.slow
async def test_the_examples_come_to_the_same(project: Project, hardened: Project) -> None:
    """The functions of the demo store, send and answer the same in both kinds of cell."""
    async with services() as (slack, degrees_url):
        standard = await demo(project, slack, degrees_url)
        other = await demo(hardened, slack, degrees_url)
        async with asyncio.timeout(20):
            while len(slack.messages) % 2 or not slack.messages:
                await asyncio.sleep(0.05)
        texts = sorted(message["text"] for message in slack.messages)

    assert other == standard
    assert standard["report"]["found"] == 3
    assert len(standard["values"]["temp_daily_mean"]) == 2
    assert texts[::2] == texts[1::2]  # each alarm once of either project
    assert {house.kind.hardened for house in houses(hardened)} == {True}
    assert {house.kind.hardened for house in houses(project)} == {False}


async def test_javascript_has_no_webassembly(project: Project, hardened: Project) -> None:
    """V8's interpreter has none; the guest sees it missing, and so does an upload on trial."""
    source = "if (typeof WebAssembly !== 'undefined') throw Error('there it is');\n" + WHERE
    body = {"name": "picky", "source": source}

    taken = await hardened.develop.call("POST", "/v1/functions", body)
    refused = await project.develop.call("POST", "/v1/functions", body)
    there = await invoke(hardened, "picky")

    assert (taken.status_code, refused.status_code) == (201, 422)
    assert there.json()[0] == "undefined"


STOPPED = {
    "an endless loop": "for (;;);",
    "a loop of calls": "const f = (n) => n && f(n - 1); for (;;) f(100);",
    "a pattern that backtracks": "/^(a+)+$/.test('a'.repeat(60) + 'b');",
    "sorting for ever": "for (;;) Array.from({ length: 1e4 }, Math.random).sort();",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STOPPED)
async def test_javascript_is_stopped_by_its_cpu(hardened: Project, what: str) -> None:
    """The interpreter stops where compiled code would, and the next run is none the worse."""
    source = f"export default {{ job(params) {{ if (params) return 1; {STOPPED[what]} }} }}"
    await hardened.function("loop", source, limits={"cpu_ms": 150})

    stopped = await ended(hardened, "loop")
    after = await invoke(hardened, "loop", 1)

    assert stopped["status"] == "cpu_exceeded"
    assert stopped["limit"]["used"] >= stopped["limit"]["value"] == 150
    assert after.json() == 1


async def test_a_heap_that_fills_is_stopped(hardened: Project) -> None:
    """Memory is limited as ever."""
    source = "export default { job() { const a = []; for (;;) a.push({ a: [a.length] }); } }"
    await hardened.function("hoard", source, limits={"memory_mb": 16, "cpu_ms": 5_000})

    assert (await ended(hardened, "hoard"))["status"] == "memory_exceeded"


# --- WebAssembly -----------------------------------------------------------------------------


async def test_a_module_runs(hardened: Project) -> None:
    """By Wasmtime's interpreter: results, host calls, and many runs at once."""
    await module(hardened)

    found = await asyncio.gather(*(invoke(hardened, "module", 5) for _ in range(20)))

    assert [one.json() for one in found] == [5] * 20
    assert (await invoke(hardened, "module", [1])).status_code == 200


async def test_a_module_computes_the_same_bits(project: Project, hardened: Project) -> None:
    """A run can be repeated in either kind of cell: NaNs, roundings and vectors too."""
    body = {"name": "sums", "wasm": arithmetic(), "handlers": ["job"]}
    results = []
    for tenant in (project, hardened):
        await tenant.develop.ok("POST", "/v1/functions", body)
        text = (await invoke(tenant, "sums")).json()
        results.append([text[32 * n : 32 * n + 32] for n in range(len(ARITHMETIC))])

    standard, other = (list(zip(ARITHMETIC, found, strict=True)) for found in results)
    assert other == standard
    assert results[0][0] == bytes.fromhex(NAN)[::-1].hex().ljust(32, "0")  # it is as canonical


async def test_a_module_traps_as_ever(project: Project, hardened: Project) -> None:
    """The same error, with the same function and place, in both kinds of cell."""
    await module(project)
    await module(hardened)

    standard, other = await ended(project, "module", 2), await ended(hardened, "module", 2)

    assert standard["error"] == other["error"]
    assert other["error"]["message"] == "unreachable"


async def test_a_module_is_stopped(hardened: Project) -> None:
    """By its CPU, its memory and its fuel; its cell stays."""
    await module(hardened, limits={"cpu_ms": 100, "memory_mb": 16})
    await module(hardened, "metered", limits={"fuel": 1_000_000})
    await invoke(hardened, "module", 1)
    (before,) = (house.cell for house in houses(hardened))

    spun, grown = await ended(hardened, "module", 3), await ended(hardened, "module", 4)
    burnt = await ended(hardened, "metered", 3)

    assert (spun["status"], spun["limit"]["name"]) == ("cpu_exceeded", "cpu_ms")
    assert (grown["status"], grown["limit"]["name"]) == ("memory_exceeded", "memory_mb")
    assert (burnt["status"], burnt["limit"]["name"]) == ("cpu_exceeded", "fuel")
    assert [house.cell for house in houses(hardened)] == [before]


async def test_a_module_is_compiled_for_each_kind_of_cell(project: Project) -> None:
    """A switch compiles it anew at its first run; both programs are stored, and serve again."""
    await module(project)
    await invoke(project, "module", 1)
    await project.admin.ok("PATCH", CURRENT, HARDENED)
    there = await invoke(project, "module", 5)
    await project.admin.ok("PATCH", CURRENT, STANDARD)
    back = await invoke(project, "module", 5)

    assert (there.json(), back.json()) == (5, 5)
    function = project.platform.catalogue.function(project.id, "module")
    assert function is not None
    ((_, version),) = function.shares
    query = select(artifacts.c.fingerprint).where(artifacts.c.version_id == version.id)
    with project.platform.database.engine.connect() as connection:
        stored = list(connection.execute(query).scalars())
    assert sorted("pulley64" in one for one in stored) == [False, True]


# --- nodes -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_other_nodes_follow(postgres: Postgres, tmp_path: Path) -> None:
    """Within the second in which a node reads what others have changed; both ways."""
    with postgres.database() as url:
        here, there = (
            Settings(data_dir=tmp_path / name, warm_cells=1, database_url=url)  # type: ignore[arg-type]
            for name in ("here", "there")
        )
        async with open_platform(here) as one, open_platform(there) as other:
            assert one.new_admin_key is not None
            transport = httpx.ASGITransport(other.asgi(), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
                caller = Caller(http, one.new_admin_key)
                body = {"name": "where", "source": WHERE}
                project_id = (await caller.ok("GET", CURRENT))["id"]
                await caller.ok("POST", "/v1/functions", body)
                for isolation, expected in KINDS_SEEN.items():
                    await change_project(one, project_id, isolation=isolation, allowances={})
                    async with asyncio.timeout(5):
                        seen = ""
                        while seen != expected:
                            seen, _ = await caller.ok("POST", "/v1/functions/where/invoke")
                            await asyncio.sleep(0.02)


# --- the change ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_switch_under_load_loses_nothing(project: Project) -> None:
    """No run begins in a cell of the former kind after the answer, and none is lost, both ways."""
    source = (
        "export default { async job() {\n"
        "  const seen = [typeof WebAssembly, Date.now()];\n"
        "  const until = Date.now(); for (let i = 0; i < 2e4; i++);\n"
        "  await new Promise((resume) => setTimeout(resume, 5));\n"
        "  return seen;\n} }"
    )
    await project.function("where", source)
    switches = [(0, "object")]
    results: list[httpx.Response] = []
    over = False

    async def keep_calling() -> None:
        while not over:
            results.append(await invoke(project, "where"))

    async with asyncio.TaskGroup() as group:
        for _ in range(24):
            group.create_task(keep_calling())
        for isolation in ("hardened", "standard", "hardened", "standard", "hardened"):
            await asyncio.sleep(0.6)
            await project.admin.ok("PATCH", CURRENT, {"isolation": isolation})
            switches.append((project.platform.clock(), KINDS_SEEN[isolation]))
        await asyncio.sleep(0.6)
        over = True

    assert {one.status_code for one in results} == {200}
    for kind, began_ms in (one.json() for one in results):
        # A run of the moment in which the change is made may be of either kind.
        allowed = {known for at, known in switches if at <= began_ms}
        last = [known for at, known in switches if at < began_ms][-1]
        soon = [known for at, known in switches if at >= began_ms][:1]
        assert kind in allowed | set(soon)
        assert kind == last or kind in soon, (kind, began_ms, switches)
    assert {one.json()[0] for one in results} == {"undefined", "object"}
    assert {house.kind.hardened for house in houses(project)} == {True}


async def test_what_waits_moves_to_the_other_cell(project: Project) -> None:
    """Runs that wait behind others begin in the new kind of cell; those inside end in the old."""
    source = (
        "export default { job() { const seen = typeof WebAssembly;\n"
        "  if (seen === 'object') for (let i = 0; i < 6e7; i++); return seen; } }"
    )
    await project.function("slow", source, limits={"cpu_ms": 5_000, "wall_ms": 20_000})
    await invoke(project, "slow")  # it is known to be slow from now on: one in a batch
    calls = [asyncio.create_task(invoke(project, "slow")) for _ in range(8)]
    await asyncio.sleep(0.01)

    await project.admin.ok("PATCH", CURRENT, HARDENED)

    found = [(await call).json() for call in calls]
    assert found[0] == "object"
    assert set(found[2:]) == {"undefined"}
    assert [house.kind.hardened for house in houses(project)] == [True]


async def test_an_idle_cell_of_the_former_kind_is_given_up(project: Project) -> None:
    """It holds the project's code and secrets, so it does not stay."""
    await project.function("where", WHERE)
    await invoke(project, "where")
    (house,) = houses(project)
    assert house.cell is not None
    process = os.pidfd_open(house.cell.pid)

    await project.admin.ok("PATCH", CURRENT, HARDENED)

    assert houses(project) == []
    async with asyncio.timeout(5):
        await asyncio.to_thread(_wait_for_end, process)


def _wait_for_end(process: int) -> None:
    deadline = time.monotonic() + 5
    try:
        while time.monotonic() < deadline:
            try:
                signal.pidfd_send_signal(process, 0)
            except ProcessLookupError:
                return
            time.sleep(0.01)
    finally:
        os.close(process)
    raise TimeoutError


async def test_a_cell_that_was_being_started_is_not_left_over(project: Project) -> None:
    """A switch while the first cell is on its way: the run moves; the cell goes when it comes."""
    await project.function("where", WHERE)
    sandbox, dispatcher = project.platform.sandbox, project.platform.dispatcher
    assert sandbox._zygote is not None
    zygote = sandbox._zygote.process
    zygote.send_signal(signal.SIGSTOP)  # so that no cell can be ready too soon
    try:
        for warm in tuple(sandbox._warm[CellKind(Runtime.JAVASCRIPT)]):
            warm.give_up()
            await asyncio.sleep(0)
        call = asyncio.create_task(invoke(project, "where"))
        while not houses(project):
            await asyncio.sleep(0)
        await project.admin.ok("PATCH", CURRENT, HARDENED)
    finally:
        zygote.send_signal(signal.SIGCONT)

    assert (await call).json()[0] == "undefined"
    async with asyncio.timeout(10):
        while True:
            wanted = {cell for cells in sandbox._warm.values() for cell in cells}
            wanted |= set(dispatcher.houses())
            if not sandbox._filling and set(sandbox._zygote.cells.values()) == wanted:
                break
            await asyncio.sleep(0.02)


async def test_runs_of_a_cell_that_dies_start_again_in_the_other_kind(project: Project) -> None:
    """Also when it dies after the switch, with runs inside that began before."""
    source = (
        "export default { async job() {\n"
        "  await new Promise((resume) => setTimeout(resume, 300)); return typeof WebAssembly;\n} }"
    )
    await project.function("sleeper", source)
    await invoke(project, "sleeper")
    calls = [asyncio.create_task(invoke(project, "sleeper")) for _ in range(5)]
    await asyncio.sleep(0.1)
    (house,) = houses(project)

    await project.admin.ok("PATCH", CURRENT, HARDENED)
    house.kill()

    assert {(await call).json() for call in calls} == {"undefined"}


async def test_suspects_and_quarantined_versions_are_in_hardened_cells(hardened: Project) -> None:
    """What may have killed a cell runs alone, or in quarantine: in a cell of the project's kind."""
    source = (
        "export default { job(params) {\n"
        "  const seen = typeof WebAssembly; if (params === 'spin') for (;;);\n"
        "  for (let i = 0; i < 8e6; i++); return seen;\n} }"
    )
    await hardened.function("suspect", source, limits={"cpu_ms": 8_000, "wall_ms": 20_000})
    await hardened.function("culprit", source, limits={"cpu_ms": 100})
    assert (await invoke(hardened, "suspect")).json() == "undefined"
    kinds: set[bool] = set()
    call = asyncio.create_task(invoke(hardened, "suspect"))
    await asyncio.sleep(0.1)

    houses(hardened)[0].kill()
    while not call.done():
        kinds |= {house.kind.hardened for house in houses(hardened)}
        await asyncio.sleep(0.005)
    stopped = await ended(hardened, "culprit", "spin")
    quarantined = await hardened.develop.call("POST", "/v1/functions/culprit/invoke", 1)

    assert (await call).json() == "undefined"
    assert kinds == {True}
    assert stopped["status"] == "cpu_exceeded"
    assert quarantined.status_code in {200, 502}, quarantined.text
    assert {house.kind.hardened for house in houses(hardened)} == {True}
