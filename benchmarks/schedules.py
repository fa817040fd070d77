"""How late 10,000 schedules fire that are due in the same second, on each database.

`python benchmarks/schedules.py [--count 10000] [--nodes 3] [--only sqlite,postgresql] [--json]`

Lag is from the due time until the transaction with the run is on disk. Then the tables are counted:
none twice, none missed. PostgreSQL has a process for each scheduler; SQLite is one process's alone,
so its schedulers share that one. Nothing runs the runs: what that takes is measured elsewhere.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import func, insert, select

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers of the tests

from engine.catalogue import Function, Version
from engine.clock import wall_clock
from engine.ids import new_id
from engine.policies import LANES
from engine.scheduler import Pass, Scheduler
from engine.store.database import Database
from engine.store.flow import unpark
from engine.store.journal import Journal
from engine.store.tables import (
    functions,
    projects,
    run_queue,
    schedule_cursors,
    schedule_fires,
    schedules,
)
from jobs.schedule import Spec, next_after
from runtimes.contract import Runtime

PROJECT, FUNCTION = "prj_bench", "fn_bench"
ZONES = (
    "UTC", "Europe/Madrid", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata",
    "America/Sao_Paulo", "Africa/Casablanca", "Asia/Tokyo", "Pacific/Auckland", "Europe/London",
)  # fmt: skip
LEAD_S = 3.0  # between the end of the preparations and the due time
GIVE_UP_S = 60.0
GOAL_S = 2.0


class Live:
    """One function with one version."""

    def __init__(self) -> None:
        version = Version(
            id="ver_bench",
            number=1,
            function_id=FUNCTION,
            function="bench",
            project_id=PROJECT,
            runtime=Runtime.JAVASCRIPT,
            program="",
            handlers=("scheduled",),
            overrides={},
            allowed_hosts=(),
            bindings={},
        )
        self._function = Function(
            id=FUNCTION, name="bench", project_id=PROJECT, shares=((100, version),)
        )

    def function_by_id(self, function_id: str) -> Function | None:
        return self._function if function_id == FUNCTION else None


class Timed(Scheduler):
    """Notes how late each fire was when its transaction was on disk."""

    due_ms = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.lags: list[tuple[int, int]] = []

    async def fire_due(self) -> Pass:
        done = await super().fire_due()
        count = sum(done.outcomes.values())
        if count:
            self.lags.append((self._clock() - self.due_ms, count))
        return done


def fill(database: Database, count: int, now_ms: int) -> int:
    """Insert schedules that are all due at the next full minute, which is returned."""
    due_ms = (now_ms // 60_000 + 1) * 60_000
    rows, cursors = [], []
    for number in range(count):
        # Every minute of some hours, in many zones and by some hundred lines.
        line = f"* * {1 + number % 3}-31 * *" if number % 2 else f"*/1 0-23 * * {number % 4}-6"
        line = line if number % 5 else "* * * * *"
        spec = Spec(cron=line, timezone=ZONES[number % len(ZONES)])
        if next_after(spec, now_ms) != due_ms:
            spec = Spec(cron="* * * * *", timezone=spec.timezone)
        schedule_id = new_id("sch")
        rows.append(
            {
                "id": schedule_id,
                "project_id": PROJECT,
                "name": schedule_id,
                "function_id": FUNCTION,
                "spec": msgspec.json.encode(spec).decode(),
                "options": "{}",
                "payload": json.dumps({"number": number}),
                "failures": 0,
                "created_ms": now_ms,
                "updated_ms": now_ms,
            }
        )
        cursors.append({"schedule_id": schedule_id, "timezone": spec.timezone, "next_ms": due_ms})
    with database.engine.begin() as connection:
        connection.execute(insert(projects).values(id=PROJECT, name="bench", created_ms=now_ms))
        connection.execute(
            insert(functions).values(
                id=FUNCTION, project_id=PROJECT, name="bench", runtime="javascript",
                created_ms=now_ms,
            )
        )  # fmt: skip
        connection.execute(insert(schedules), rows)
        connection.execute(insert(schedule_cursors), cursors)
    return due_ms


def ready(due_ms: int) -> int:
    """Return how far the schedulers' clock is ahead, so that the minute is full soon."""
    return due_ms - wall_clock() - int(LEAD_S * 1000)


async def fire(
    url: str, schedulers_count: int, due_ms: int, start: Callable[[], int]
) -> list[tuple[int, int]]:
    """Run schedulers of one process until nothing of this minute is left; return their lags.

    `start` returns how far their clock is ahead, once everybody is ready.
    """
    database = Database(url)
    made: list[tuple[Timed, Journal]] = []
    ahead_ms = start()
    for _ in range(schedulers_count):
        journal = Journal(database)
        journal.gather(LANES, unpark, lambda _freed: None)
        scheduler = Timed(
            database,
            journal,
            Live(),
            lambda: wall_clock() + ahead_ms,
            wake=lambda *_: None,
            cancelled=lambda _ids: None,
        )
        scheduler.due_ms = due_ms
        await scheduler.start()
        made.append((scheduler, journal))
    deadline = time.monotonic() + GIVE_UP_S
    left = select(func.count()).where(schedule_cursors.c.next_ms <= due_ms)
    while await database.read(lambda connection: connection.execute(left).scalar_one()):
        assert time.monotonic() < deadline, "not all of them fired"
        await asyncio.sleep(0.25)
    lags = []
    for scheduler, journal in made:
        await scheduler.close()
        await journal.close()
        lags += scheduler.lags
    database.close()
    return lags


def child(url: str, due_ms: int) -> None:
    """Be one of the schedulers' processes: says that it is ready, is told the clock."""

    def start() -> int:
        print("ready", flush=True)
        return int(sys.stdin.readline())

    print(json.dumps(asyncio.run(fire(url, 1, due_ms, start))))


def children(url: str, due_ms: int, count: int) -> list[tuple[int, int]]:
    arguments = [sys.executable, __file__, "--node", url, str(due_ms)]
    made = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for one in made:
        assert one.stdout.readline() == "ready\n"
    ahead_ms = ready(due_ms)
    for one in made:
        one.stdin.write(f"{ahead_ms}\n")
        one.stdin.flush()
    answers = [one.communicate(timeout=GIVE_UP_S * 2)[0] for one in made]
    assert all(one.returncode == 0 for one in made), answers
    return [lag for answer in answers for lag in json.loads(answer)]


def measure(url: str, count: int, nodes: int) -> dict[str, Any]:
    database = Database(url)
    database.migrate()
    due_ms = fill(database, count, wall_clock())
    if database.is_sqlite:
        lags = asyncio.run(fire(url, nodes, due_ms, lambda: ready(due_ms)))
    else:
        lags = children(url, due_ms, nodes)
    at = schedule_fires.c.due_ms == due_ms
    counts = (
        select(func.count()).select_from(schedule_fires).where(at),
        select(func.count()).select_from(run_queue),
        select(func.count(func.distinct(run_queue.c.schedule_id))),
    )
    with database.engine.connect() as connection:
        fires, runs, fired = (connection.execute(query).scalar_one() for query in counts)
    database.close()
    each = sorted(lag for lag, times in lags for _ in range(times))
    return {
        "fires": fires,
        "twice": runs - fired,
        "missed": count - fired,
        "lag_p50_s": each[len(each) // 2] / 1000,
        "lag_p99_s": each[len(each) * 99 // 100] / 1000,
        "lag_max_s": each[-1] / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--only", default="sqlite,postgresql")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.node:
        child(asked.node[0], int(asked.node[1]))
        return
    found = {}
    if "sqlite" in asked.only:
        with tempfile.TemporaryDirectory(prefix="cloudcode-bench-") as folder:
            found["sqlite"] = measure(f"sqlite:///{folder}/engine.db", asked.count, asked.nodes)
    if "postgresql" in asked.only:
        from tests.standins.servers import Postgres

        with Postgres() as server:
            url = server.new_database()
            found["postgresql"] = measure(url, asked.count, asked.nodes)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(
            f"{name}: {figures['fires']} schedules due at once, {asked.nodes} schedulers: "
            f"lag p50 {figures['lag_p50_s']:.2f} s, p99 {figures['lag_p99_s']:.2f} s "
            f"(goal {GOAL_S:.0f} s), most {figures['lag_max_s']:.2f} s; "
            f"{figures['twice']} twice, {figures['missed']} missed"
        )


if __name__ == "__main__":
    main()
