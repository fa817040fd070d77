"""Part (f) of `make bench`: WebAssembly in the cell, over HTTP, and beside what else there is.

In one process: Extism's Python SDK and wasmtime-py's own classes. In a real, locked cell: ours,
in batches of 64, as the engine sends them under load. All run a function of the same work.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

import extism
import psutil
import wasmtime

from runtimes.contract import FRAME_BYTES_MAX, CellKind, GuestError, Runtime, ToCell, packed
from sandbox.supervisor import Cell, Death, Sandbox

if TYPE_CHECKING:
    from run import Bench

ROUNDS = 5
BATCH = 64
INPUT = json.dumps("x" * 98)  # 100 bytes
OPTIONS = {"handlers": ["default"], "args": [], "io": "json", "exports": {}}

# Hands its input back: 1.1 MB of memory, a data segment, and room for what it is given.
ECHO = """
(module
  (memory (export "memory") 17)
  (global $top (mut i32) (i32.const 1048576))
  (data (i32.const 64) "some text that every instance begins with")
  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  (func (export "handle") (param $at i32) (param $size i32) (result i64)
    (global.set $top (i32.const 1048576))
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size))))
%s)
"""
EXTISM_ECHO = """
(module
  (import "extism:host/env" "input_length" (func $length (result i64)))
  (import "extism:host/env" "input_load_u64" (func $load (param i64) (result i64)))
  (import "extism:host/env" "input_load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (memory (export "memory") 17)
  (func (export "handle") (result i32)
    (local $size i64) (local $at i64) (local $i i64)
    (local.set $size (call $length))
    (local.set $at (call $alloc (local.get $size)))
    (block $words (loop $next
      (br_if $words
        (i64.gt_u (i64.add (local.get $i) (i64.const 8)) (local.get $size)))
      (call $store (i64.add (local.get $at) (local.get $i)) (call $load (local.get $i)))
      (local.set $i (i64.add (local.get $i) (i64.const 8)))
      (br $next)))
    (block $bytes (loop $next
      (br_if $bytes (i64.ge_u (local.get $i) (local.get $size)))
      (call $store_u8 (i64.add (local.get $at) (local.get $i)) (call $load_u8 (local.get $i)))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br $next)))
    (call $output (local.get $at) (local.get $size))
    (i32.const 0)))
"""


def webassembly(bench: "Bench") -> None:
    """(f)."""
    cell = asyncio.run(_in_a_cell())
    bench.add(
        "(f) wasm: fresh instance + 100 bytes, in the cell", cell["fresh"], "ms", 0.25, most=True
    )
    bench.add(
        "(f) wasm: warm call (reuse) of 100 bytes, in the cell", cell["warm"], "ms", 0.06, most=True
    )
    for what, figure in _peers().items():
        bench.add(f"(f) {what}", figure, "ms")
    _over_http(bench)
    _first_calls(bench)
    _memory(bench)


def _over_http(bench: "Bench") -> None:
    for name, reuse in (("wasm_fresh", False), ("wasm_reuse", True)):
        _deploy(bench, name, _binary(ECHO % ""), reuse=reuse)
        request = ["POST", f"/v1/functions/{name}/invoke", dict(bench.client.headers), INPUT]
        bench.load([request], 32, 1.0)
        many = median(bench.load([request], 32)["per_second"] for _ in range(3))
        one = median(bench.load([request], 1, 2.0)["p50_ms"] for _ in range(3))
        label = "wasm, reuse" if reuse else "wasm"
        bench.add(f"(f) invoke {label}, 32 connections", many, "/s", 8_000)
        bench.add(f"(f) invoke {label}, 1 connection, p50", one, "ms")


def _first_calls(bench: "Bench") -> None:
    binary = _binary(ECHO % _padding(100 * 1024))
    uploads, firsts = [], []
    for n in range(12):
        time.sleep(0.3)  # a warm node: its pool is full
        began = time.perf_counter()
        _deploy(bench, f"wasm_100k_{n}", binary)
        uploaded = time.perf_counter()
        bench.post(f"/v1/functions/wasm_100k_{n}/invoke", "x")
        firsts.append((time.perf_counter() - uploaded) * 1000)
        uploads.append((uploaded - began) * 1000)
    what = f"a module of {len(binary) // 1024} KB"
    bench.add(f"(f) upload of {what}, compiled, p50", median(uploads), "ms")
    bench.add(
        f"(f) first call after the upload of {what}, p50", median(firsts), "ms", 25, most=True
    )


def _memory(bench: "Bench") -> None:
    """Of a project's cell, and of what each loaded function adds to it and to the engine."""

    engine = psutil.Process(bench.process.pid)

    def cells() -> dict[int, int]:
        zygote = next(iter(engine.children()))
        return {cell.pid: cell.memory_full_info().uss for cell in zygote.children()}

    binary, count = _binary(ECHO % _padding(10 * 1024)), 50
    _deploy(bench, "wasm_first", binary)
    bench.post("/v1/functions/wasm_first/invoke", "x")
    time.sleep(0.5)  # the pool fills up, and a cell makes its spare isolate: no part of the figure
    before, engine_before = cells(), engine.memory_full_info().uss
    for n in range(count):
        _deploy(bench, f"wasm_idle_{n}", binary)
        bench.post(f"/v1/functions/wasm_idle_{n}/invoke", "x")
    time.sleep(0.5)  # the same again
    after, engine_after = cells(), engine.memory_full_info().uss
    # The project's cell is the one that has grown; the others are blank, or of JavaScript.
    cell = max(before.keys() & after.keys(), key=lambda pid: after[pid] - before[pid])
    added = (after[cell] - before[cell] + engine_after - engine_before) / count / 1e6
    what = f"memory per idle function of {len(binary) // 1024} KB"
    bench.add(f"(f) wasm: {what}", added, "MB")
    bench.add("(f) wasm: memory per project cell", before[cell] / 1e6, "MB")


def _padding(size: int) -> str:
    """Return functions of ordinary arithmetic, about `size` bytes of them when compiled."""
    rows = []
    for n in range(size // 104):
        steps = "".join(
            "(local.set 0 (i32.add (local.get 1)"
            f" (i32.mul (local.get 0) (i32.const {n * 7919 + k}))))"
            for k in range(8)
        )
        rows.append(f"(func (param i32 i32) (result i32) {steps} (local.get 0))")
    return "\n".join(rows)


def _binary(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def _deploy(bench: "Bench", name: str, binary: bytes, *, reuse: bool = False) -> None:
    wasm = base64.b64encode(binary).decode()
    bench.post("/v1/functions", {"name": name, "runtime": "wasm", "wasm": wasm, "reuse": reuse})


class _Listener:
    """sandbox.supervisor.CellListener: one answer at a time."""

    def __init__(self, cell: Cell) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        cell.listener = self

    def room_for(self, _kind: str, _isolate: int) -> int:
        return FRAME_BYTES_MAX

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        self.heard.put_nowait(messages)
        return iter(())

    def on_built(self, isolate: int, program: bytes) -> None:
        self.heard.put_nowait(program)

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self.heard.put_nowait(answer)

    def on_refused(self, isolate: int, error: GuestError) -> None:
        raise SystemExit(error.message)

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        raise SystemExit(stop.decode())

    def on_death(self, death: Death) -> None:
        raise SystemExit(f"the cell died: {death}")


async def _in_a_cell() -> dict[str, float]:
    """Return ms a run, of instances made for it and of instances used again."""
    sandbox = Sandbox(warm_count=0, cell_memory_mb=512, strict=False)
    await sandbox.start()
    found = {}
    for name, reuse in (("fresh", False), ("warm", True)):
        cell = await sandbox.acquire(CellKind(Runtime.WASM))
        listener = _Listener(cell)
        options = OPTIONS | {"reuse": reuse}
        header = {"options": options, "memory_mb": 64, "now_ms": 0}
        cell.send(ToCell.BUILD, 0, packed(_encoded(header), _binary(ECHO % "")))
        program = await listener.heard.get()
        cell.send(ToCell.LOAD, 1, packed(_encoded(header), program))
        await listener.heard.get()
        context = ["exe_bench", 1, 1, 10_000, "exe_bench", 0]
        batch = [
            [0, n, "default", 0, "00", 200, 1 << 20, 256, 1 << 16, context, json.loads(INPUT)]
            for n in range(1, BATCH + 1)
        ]
        times = []
        for n in range(ROUNDS * 40):
            began = time.perf_counter()
            cell.send(ToCell.BATCH, 1, _encoded(batch))
            answer = await listener.heard.get()
            if n >= 40:
                times.append((time.perf_counter() - began) * 1000 / BATCH)
        assert answer.count(b'"ok"') == BATCH
        found[name] = median(times)
        cell.listener = None
        cell.kill()
    await sandbox.close()
    return found


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def _peers() -> dict[str, float]:
    """Return ms a call of what a Python programmer would use instead, without a sandbox process."""
    data = INPUT.encode()
    compiled = extism.extism.CompiledPlugin({"wasm": [{"data": _binary(EXTISM_ECHO)}]})
    kept = extism.Plugin(compiled)
    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, _binary(ECHO % ""))
    ready = wasmtime.Linker(engine).instantiate_pre(module)

    def call(store: wasmtime.Store, exports: Any) -> bytes:
        memory = exports["memory"]
        at = exports["alloc"](store, len(data))
        memory.write(store, data, at)
        where = exports["handle"](store, at, len(data))
        return bytes(memory.read(store, where >> 32, (where >> 32) + (where & 0xFFFF_FFFF)))

    def bare() -> bytes:
        store = wasmtime.Store(engine)
        return call(store, ready.instantiate(store).exports(store))

    store = wasmtime.Store(engine)
    exports = ready.instantiate(store).exports(store)
    return {
        "Extism's Python SDK: fresh plug-in + 100 bytes": _timed(
            lambda: extism.Plugin(compiled).call("handle", data), data
        ),
        "Extism's Python SDK: warm call of 100 bytes": _timed(
            lambda: kept.call("handle", data), data
        ),
        "wasmtime-py's classes: fresh instance + 100 bytes": _timed(bare, data),
        "wasmtime-py's classes: warm call of 100 bytes": _timed(lambda: call(store, exports), data),
    }


def _timed(work: Callable[[], Any], expected: bytes, count: int = 300) -> float:
    assert bytes(work()) == expected
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(count):
            work()
        times.append((time.perf_counter() - began) * 1000 / count)
    return median(times)
