"""A store that cannot give a compiled module: who waits is told, what is queued waits on."""

import base64
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from wasmtime import wat2wasm

from tests.conftest import Engine

ECHO = """
(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param $at i32) (param $size i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size)))))
"""


def rename(engine: Engine, before: str, after: str) -> None:
    with closing(sqlite3.connect(engine.data_dir / "engine.db")) as connection:
        connection.execute(f"ALTER TABLE {before} RENAME TO {after}")
        connection.commit()


@pytest.mark.slow
def test_an_unreadable_module_is_told_and_read_again(own_engine: Callable[..., Engine]) -> None:
    """A call gets an error at once; a queued run is done as soon as the store answers again."""
    engine = own_engine()
    wasm = base64.b64encode(wat2wasm(ECHO)).decode()
    engine.ok("POST", "/v1/functions", {"name": "echo", "runtime": "wasm", "wasm": wasm})
    engine.kill()
    rename(engine, "artifacts", "artifacts_away")
    engine.start()

    called = engine.invoke("echo", 1)
    path = "/v1/functions/echo/invoke"
    queued = engine.ok("POST", path, 2, headers={"Prefer": "respond-async"})
    rename(engine, "artifacts_away", "artifacts")

    execution = f"/v1/executions/{queued['execution_id']}"
    engine.until(lambda: engine.ok("GET", execution)["status"] == "succeeded")
    assert called.status_code == 502
    assert "could not be read from the store" in called.json()["detail"]
    assert engine.invoke("echo", 3).json() == 3
