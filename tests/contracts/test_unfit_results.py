"""A run whose effects the database never takes: it ends as failed, and is not made for ever."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

from tests.conftest import Engine

# As a row that breaks a rule of the table: refused each time, and nothing is wrong otherwise.
REFUSES = """
CREATE TRIGGER refuses BEFORE INSERT ON kv WHEN NEW.key = 'unfit'
BEGIN SELECT RAISE(ABORT, 'unfit'); END
"""
PUTS = """
export default { async job(p, env, ctx) {
  console.warn(`attempt ${ctx.attempt}`);
  await env.KV.put("unfit", 1);
} };
"""


def test_a_run_that_cannot_be_stored_fails(own_engine: Callable[..., Engine]) -> None:
    """Its attempts count, as those that fail otherwise; then it is a dead letter."""
    engine = own_engine()
    retries = {"max_attempts": 2, "backoff": {"kind": "fixed", "base_seconds": 0.05}}
    engine.deploy("puts", PUTS, retries=retries)
    (database,) = engine.data_dir.glob("*.db")
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(REFUSES)

    made = engine.ok("POST", "/v1/jobs", {"function": "puts"})
    job_id = made["id"]
    engine.until(lambda: engine.ok("GET", f"/v1/jobs/{job_id}")["status"] == "dead_lettered")

    job = engine.ok("GET", f"/v1/jobs/{job_id}")
    assert job["attempts"] == 2
    assert job["error"]["name"] == "StoreFailed"
    assert "IntegrityError" in job["error"]["message"]
    runs = engine.executions(function="puts")
    assert [run["status"] for run in runs] == ["failed", "failed"]
    assert engine.client.get("/v1/kv/default/unfit").status_code == 404
