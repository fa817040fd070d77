"""Holds what the engine stored against what it promised, straight from the SQLite file.

Path:   a test, when the load is over -> `settled` -> `audit`
Never:  opens the files of an engine that is down, for that would recover them; it opens a copy.
"""

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.load import Promises

DATABASE = "engine.db"
SETTLE_S = 40.0


@contextmanager
def database(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(data_dir / DATABASE, timeout=30)) as connection:
        yield connection


@contextmanager
def copy_of_database(data_dir: Path, copy_dir: Path) -> Iterator[sqlite3.Connection]:
    """Open what a power cut would have left, and leave it as it is."""
    shutil.rmtree(copy_dir, ignore_errors=True)
    copy_dir.mkdir()
    for name in (DATABASE, f"{DATABASE}-wal"):
        if (data_dir / name).exists():
            shutil.copy(data_dir / name, copy_dir)
    with database(copy_dir) as connection:
        yield connection


def is_sound(connection: sqlite3.Connection) -> bool:
    return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def sending(connection: sqlite3.Connection) -> set[str]:
    """Return the items whose delivery may be on its way."""
    rows = connection.execute("SELECT payload FROM deliveries WHERE state = 'sending'")
    return {json.loads(row[0])["text"] for row in rows}


def settled(engine: Engine) -> None:
    """Wait until nothing is queued and every delivery has ended."""
    deadline = time.monotonic() + SETTLE_S
    with database(engine.data_dir) as connection:
        while left := unfinished(connection):
            assert time.monotonic() < deadline, (left, engine.stderr()[-2000:])
            time.sleep(0.05)  # the engine is another process, so it has to be asked


def unfinished(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return what still has to run or to be sent, and how much of it."""
    query = (
        "SELECT 'run of ' || handler, count(*) FROM run_queue GROUP BY handler UNION ALL"
        " SELECT 'delivery ' || state, count(*) FROM deliveries"
        " WHERE state NOT IN ('delivered', 'failed', 'cancelled') GROUP BY state"
    )
    return connection.execute(query).fetchall()


def restarted(connection: sqlite3.Connection) -> int:
    """Return how many ended runs have lost a cell on their way."""
    query = """SELECT count(*) FROM executions WHERE report LIKE '%"restarts":%'"""
    return int(connection.execute(query).fetchone()[0])


def audit(engine: Engine, promises: Promises, slack: SlackStandIn) -> Counter[str]:
    """Assert that every promise was kept exactly once, and that nothing is there by half.

    Returns:
        How often the stand-in got each item.
    """
    with database(engine.data_dir) as connection:
        assert is_sound(connection)
        events = _events(connection)
        values = {key: _values(connection, key) for key in ("item", "twin", "seen", "noted")}
        runs = _runs(connection)
        deliveries = _deliveries(connection)
    received = Counter(message["text"] for message in slack.messages)

    _all_once(events, "an event is stored twice")
    assert promises.writes <= events.keys(), sorted(promises.writes - events.keys())[:5]
    allowed = promises.writes | promises.maybe_writes
    assert events.keys() <= allowed, sorted(events.keys() - allowed)[:5]
    assert values["item"] == values["twin"] == values["seen"] == events
    assert runs["seen"] == events

    jobs = runs["note"]
    _all_once(jobs, "a job ran twice")
    assert promises.runs <= jobs.keys(), sorted(promises.runs - jobs.keys())[:5]
    assert jobs.keys() <= promises.runs | promises.maybe_runs
    assert values["noted"] == jobs

    assert deliveries == events + jobs
    assert received.keys() == deliveries.keys()
    return received


def _all_once(items: Counter[str], message: str) -> None:
    doubled = [item for item, number in items.items() if number != 1]
    assert not doubled, (message, doubled[:5])


def _events(connection: sqlite3.Connection) -> Counter[str]:
    rows = connection.execute("SELECT payload FROM events WHERE source != 'function'")
    return Counter(json.loads(row[0])["values"][0]["value"] for row in rows)


def _values(connection: sqlite3.Connection, key: str) -> Counter[str]:
    rows = connection.execute('SELECT value FROM "values" WHERE "key" = ?', (key,))
    return Counter(json.loads(row[0]) for row in rows)


def _runs(connection: sqlite3.Connection) -> dict[str, Counter[str]]:
    """Return the items of the runs of each function; every one of them has succeeded."""
    query = (
        "SELECT x.function, x.status, x.input, e.payload, x.report FROM executions x"
        " LEFT JOIN events e ON e.id = x.event_id WHERE x.function IN ('seen', 'note')"
    )
    runs: dict[str, Counter[str]] = {"seen": Counter(), "note": Counter()}
    for function, status, given, payload, report in connection.execute(query):
        assert status == "succeeded", (function, status, report)
        item = json.loads(given)["item"] if given else json.loads(payload)["values"][0]["value"]
        runs[function][item] += 1
    return runs


def _deliveries(connection: sqlite3.Connection) -> Counter[str]:
    rows = connection.execute("SELECT payload, state FROM deliveries").fetchall()
    assert {state for _, state in rows} <= {"delivered"}, Counter(state for _, state in rows)
    return Counter(json.loads(payload)["text"] for payload, _ in rows)
