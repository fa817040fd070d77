"""The engine is killed while its master key is changed, at each step of it: nothing is lost."""

# ruff: noqa: T201 - seeds and what was injected are printed

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import httpx
import pytest

from engine.master_keys import Mark, read_key_file
from engine.rotation import _CONTEXTS
from engine.settings import Settings
from engine.store import sealed
from engine.store.database import Database
from engine.vault import SealBroken, Vault, answer_context
from tests.conftest import ADMIN_KEY, Engine
from tests.faults.audit import database
from tests.standins.wasm_toolchains import wat_module

ROTATE = "/v1/admin/master-key/rotate"
SECRETS = 60
ANSWERS = 40
KILLS_AT_RANDOM = 3
# Some hundredths of a second for each answer that is sealed anew.
SLOW = (
    "CREATE TRIGGER slow BEFORE UPDATE OF answer ON idempotency_keys BEGIN SELECT count(*) FROM "
    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) "
    "SELECT i FROM n); END"
)
WASM = """
(module (memory (export "memory") 1) (data (i32.const 64) "42")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 0x4000000002)))
"""
READS = """export default { async job(params, env) {
    return Object.fromEntries(params.map(name => [name, env[name].split('-')])) } }"""


class Site:
    """An engine with sealed values of every kind, and somebody who goes on storing them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.names = [f"S{number}" for number in range(SECRETS)]
        self.stored = dict.fromkeys(self.names, 0)  # the last that was answered; kept through kills
        self.stop = threading.Event()

    @property
    def key_file(self) -> Path:
        return self.engine.data_dir / "master.key"

    def fill(self) -> None:
        for name in self.names:
            self.put(name, 0)
        hook = {"kind": "webhook", "credentials": {"url": "https://example.com/in"}}
        for name in self.names[:10]:
            self.engine.ok("PUT", f"/v1/connections/C_{name}", hook)
        for number in range(ANSWERS):
            body, headers = {"name": f"product {number}"}, {"Idempotency-Key": f"key-{number}"}
            self.engine.ok("POST", "/v1/products", body, headers=headers)
        self.engine.deploy("reads", READS, secrets=self.names[:40])
        wasm = base64.b64encode(wat_module(WASM)).decode()
        body = {"name": "compiled", "wasm": wasm, "handlers": ["job"]}
        self.engine.ok("POST", "/v1/functions", body)

    def put(self, name: str, number: int) -> None:
        body = {"value": f"value-{name}-{number}"}
        self.engine.ok("PUT", f"/v1/secrets/{name}", body)
        self.stored[name] = number

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Replace secrets all the time, whatever becomes of the engine."""

        def store() -> None:
            number = 0
            while not self.stop.is_set():
                number += 1
                with contextlib.suppress(httpx.HTTPError, AssertionError, RuntimeError):
                    self.put(self.names[number % SECRETS], number)

        thread = threading.Thread(target=store)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    @contextlib.contextmanager
    def rotating(self) -> Iterator[None]:
        """Change the key in steps, until the engine is gone."""
        ended, url = threading.Event(), self.engine.url

        def rotate() -> None:
            with (
                httpx.Client(base_url=url, headers=self.engine.headers, timeout=30) as http,
                contextlib.suppress(httpx.HTTPError),
            ):
                begin = True
                while not ended.is_set():
                    begin = http.post(ROTATE, json={"begin": begin}).json()["phase"] == "done"

        thread = threading.Thread(target=rotate)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def kill_when(self, reached: Callable[[], bool]) -> None:
        with self.rotating():
            deadline = time.monotonic() + 60
            while not reached():
                assert time.monotonic() < deadline, self.engine.stderr()[-2000:]
            self.engine.kill()
        self.check()
        self.engine.start()

    def execute(self, sql: str) -> None:
        with database(self.engine.data_dir) as opened:
            opened.execute(sql)
            opened.commit()

    def marks(self) -> set[Mark | None]:
        return {one.mark for one in read_key_file(self.key_file)}

    @contextlib.contextmanager
    def copy(self) -> Iterator[tuple[Database, Vault]]:
        """Open what a power cut would have left, and leave it as it is."""
        copy_dir = self.engine.data_dir.parent / "copy"
        shutil.rmtree(copy_dir, ignore_errors=True)
        copy_dir.mkdir()
        for path in self.engine.data_dir.glob("engine.db*"):
            if path.suffix in {".db", ".db-wal"}:
                shutil.copy(path, copy_dir)
        shutil.copy(self.key_file, copy_dir)
        copied = Database(f"sqlite:///{copy_dir / 'engine.db'}")
        try:
            yield copied, Vault.from_settings(Settings(data_dir=copy_dir))
        finally:
            copied.close()

    def check(self, *, alone: bool = False) -> dict[str, int]:
        """Open every sealed value with the keys of the file; `alone`: with its first key."""
        found: dict[str, int] = {}
        with self.copy() as (copied, all_keys):
            vault = Vault(all_keys.ring()[0].key) if alone else all_keys
            for place in sealed.PLACES:
                after, more = (), True
                while more:
                    rows, more = copied.read_here(partial(sealed.page, place=place, after=after))
                    for row in rows:
                        vault.open(row.sealed, context=_CONTEXTS[place](*row.context))
                        found[place] = found.get(place, 0) + 1
                        after = row.key
        return found

    def is_half_resealed(self) -> bool:
        """Say whether some answers open with the first key alone, and others do not."""
        first = Vault(read_key_file(self.key_file)[0].key)
        with database(self.engine.data_dir) as opened:
            rows = opened.execute("SELECT project_id, key, answer FROM idempotency_keys").fetchall()
        found = set()
        for project_id, key, answer in rows:
            try:
                first.open(answer, context=answer_context(project_id, key))
                found.add(True)
            except SealBroken:
                found.add(False)
        return found == {True, False}


def after(seconds: float) -> Callable[[], bool]:
    ends_s = time.monotonic() + seconds
    return lambda: time.monotonic() > ends_s


@pytest.mark.slow
def test_killed_at_each_step_of_a_change_of_the_key(
    own_engine: Callable[..., Engine],
) -> None:
    """Each start opens everything; what was stored last is what is read; the command ends it."""
    seed = time.time_ns()
    print(f"seed {seed}")
    rng = Random(seed)
    site = Site(own_engine())
    site.fill()
    before = site.key_file.read_text()
    engine = site.engine
    engine.kill()
    count = site.check()
    engine.start()

    with site.storing():
        site.kill_when(lambda: Mark.NEXT in site.marks())
        site.kill_when(lambda: Mark.LEAVING in site.marks())
        site.execute(SLOW)
        site.kill_when(site.is_half_resealed)
        site.execute("DROP TRIGGER slow")
        site.kill_when(lambda: site.marks() == {None})
        for _ in range(KILLS_AT_RANDOM):
            site.kill_when(after(rng.uniform(0, 1.5)))
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "engine", "admin", "rotate-key", "--json"],
        env={"PATH": os.environ["PATH"], "CLOUDCODE_URL": site.engine.url,
             "CLOUDCODE_KEY": ADMIN_KEY},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    asked = site.names[:40]
    read = site.engine.invoke("reads", asked).json()
    site.engine.kill()
    found = site.check(alone=True)
    site.engine.start()

    done = json.loads(ran.stdout)
    assert (done["phase"], done["others"], done["unreadable"]) == ("done", [], [])
    assert site.key_file.read_text() != before
    assert [path.name for path in site.engine.data_dir.glob("*master.key*")] == ["master.key"]
    assert found == {**count, "idempotency_keys": found["idempotency_keys"]}
    assert {name: parts[:2] for name, parts in read.items()} == {
        name: ["value", name] for name in asked
    }
    assert all(int(read[name][2]) >= site.stored[name] for name in asked)
    assert site.engine.invoke("compiled").json() == 42
    assert site.engine.ok(
        "POST", "/v1/products", {"name": "product 1"}, headers={"Idempotency-Key": "key-1"}
    )
    print(f"{4 + KILLS_AT_RANDOM} kills; {found}")
