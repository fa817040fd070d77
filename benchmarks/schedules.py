"""How late 10,000 schedules fire that are due in the same second, on each database.

`python benchmarks/schedules.py [--count 10000] [--nodes 3] [--only sqlite] [--clock wall] [--json]`

Once by the wall clock; then by one that is put (`--clock manual`), through the clock changes of a
year. Lag is from the due time, or the putting, until the transaction with the run is on disk; then
the tables are counted. PostgreSQL has a process for each scheduler; SQLite's share one.
Nothing runs the runs: what that takes is measured elsewhere.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import delete, func, insert, select

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers of the tests

from engine.catalogue import Function, Version
from engine.clock import Clock, wall_clock
from engine.ids import new_id
from engine.policies import LANES
from engine.scheduler import Pass, Scheduler
from engine.store.database import Database
from engine.store.fires import next_due
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
LOOK_S = 0.05
# Of 2026: where, the day, and a local time that does not exist on it, or that comes twice.
CHANGES = (
    ("America/New_York", date(2026, 3, 8), "02:30"),
    ("Europe/Madrid", date(2026, 3, 29), "02:30"),
    ("Australia/Lord_Howe", date(2026, 4, 5), "01:45"),
    ("Australia/Lord_Howe", date(2026, 10, 4), "02:15"),
    ("Europe/Madrid", date(2026, 10, 25), "02:30"),
    ("America/New_York", date(2026, 11, 1), "01:30"),
)
CHANGED_ZONES = ("Europe/Madrid", "America/New_York", "Australia/Lord_Howe")
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


T = TypeVar("T", bound="Timed")


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

    def late_ms(self) -> int:
        return self._clock() - self.due_ms

    async def fire_due(self) -> Pass:
        done = await super().fire_due()
        count = sum(done.outcomes.values())
        if count:
            self.lags.append((self.late_ms(), count))
        return done


class Put(Timed):
    """By a clock that stands where it is put; late is what has really passed since then."""

    put_ms = 0  # on the wall

    def late_ms(self) -> int:
        return wall_clock() - self.put_ms


def prepare(database: Database, now_ms: int) -> None:
    """Insert what schedules belong to."""
    with database.engine.begin() as connection:
        connection.execute(insert(projects).values(id=PROJECT, name="bench", created_ms=now_ms))
        connection.execute(
            insert(functions).values(
                id=FUNCTION, project_id=PROJECT, name="bench", runtime="javascript",
                created_ms=now_ms,
            )
        )  # fmt: skip


def fill(database: Database, count: int, now_ms: int) -> int:
    """Insert schedules that are all due at the next full minute, which is returned."""
    due_ms = (now_ms // 60_000 + 1) * 60_000
    specs = []
    for number in range(count):
        # Every minute of some hours, in many zones and by some hundred lines.
        line = f"* * {1 + number % 3}-31 * *" if number % 2 else f"*/1 0-23 * * {number % 4}-6"
        line = line if number % 5 else "* * * * *"
        spec = Spec(cron=line, timezone=ZONES[number % len(ZONES)])
        if next_after(spec, now_ms) != due_ms:
            spec = Spec(cron="* * * * *", timezone=spec.timezone)
        specs.append(spec)
    insert_schedules(database, specs, now_ms)
    return due_ms


def insert_schedules(database: Database, specs: Iterable[Spec], now_ms: int) -> list[str]:
    """Insert schedules as if made now; return their ids."""
    rows, cursors = [], []
    for number, spec in enumerate(specs):
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
        next_ms = next_after(spec, now_ms)
        cursors.append({"schedule_id": schedule_id, "timezone": spec.timezone, "next_ms": next_ms})
    with database.engine.begin() as connection:
        connection.execute(insert(schedules), rows)
        connection.execute(insert(schedule_cursors), cursors)
    return [str(row["id"]) for row in rows]


def ready(due_ms: int) -> int:
    """Return how far the schedulers' clock is ahead, so that the minute is full soon."""
    return due_ms - wall_clock() - int(LEAD_S * 1000)


def scheduler_on(database: Database, kind: type[T], clock: Clock) -> tuple[T, Journal]:
    journal = Journal(database)
    journal.gather(LANES, unpark, lambda _freed: None)
    scheduler = kind(
        database,
        journal,
        Live(),
        clock,
        wake=lambda *_: None,
        cancelled=lambda _ids: None,
        has_room=lambda *_: True,
    )
    return scheduler, journal


async def fire(
    url: str, schedulers_count: int, due_ms: int, start: Callable[[], int]
) -> list[tuple[int, int]]:
    """Run schedulers of one process until nothing of this minute is left; return their lags.

    `start` returns how far their clock is ahead, once everybody is ready.
    """
    database = Database(url)
    ahead_ms = start()
    made = [
        scheduler_on(database, Timed, lambda: wall_clock() + ahead_ms)
        for _ in range(schedulers_count)
    ]
    for scheduler, _ in made:
        scheduler.due_ms = due_ms
        await scheduler.start()
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
    prepare(database, wall_clock())
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
    return {"fires": fires, "twice": runs - fired, "missed": count - fired, **spread(lags)}


def spread(lags: Iterable[tuple[int, int]]) -> dict[str, float]:
    each = sorted(lag for lag, times in lags for _ in range(times))
    return {
        "lag_p50_s": each[len(each) // 2] / 1000,
        "lag_p99_s": each[len(each) * 99 // 100] / 1000,
        "lag_max_s": each[-1] / 1000,
    }


# -- Clock changes. What is due, and when, is worked out here once more, by the zones' own offsets.


def ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000


def exists(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(fold=0) == local


def instants(zone: str, clock: str, days: Iterable[date]) -> Iterator[tuple[datetime, datetime]]:
    """Yield when a local time is due, of each day, and when it would be by the other offset."""
    for day in days:
        local = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=ZoneInfo(zone))
        other = local.replace(fold=1).astimezone(UTC)
        while not exists(local):
            local += MINUTE
        yield local.astimezone(UTC), other


def follow(database: Database, zone: str, day: date, clock: str, count: int) -> "Followed":
    """Insert schedules of three zones that are due in the same minute: at a change in one of them.

    That time and the day after are expected, and that the clock is put to them, and to where a
    scheduler would be wrong that knew one offset only.
    """
    pairs = list(instants(zone, clock, (day, day + DAY)))
    at = pairs[0][0]
    lines, expected_of = {}, {}
    stops = {ms(one) for pair in pairs for one in pair}
    for here in CHANGED_ZONES:
        local = at.astimezone(ZoneInfo(here))
        shown = clock if here == zone else f"{local:%H:%M}"
        lines[here] = f"{int(shown[3:])} {int(shown[:2])} * * *"
        days = (local.date(), local.date() + DAY)
        expected_of[here] = [ms(one) for one, _ in instants(here, shown, days)]
        assert expected_of[here][0] == ms(at)
        stops.update(expected_of[here])
    zones = [CHANGED_ZONES[number % len(CHANGED_ZONES)] for number in range(count)]
    ids = insert_schedules(
        database, (Spec(cron=lines[here], timezone=here) for here in zones), ms(at - DAY / 2)
    )
    expected = Counter(
        (of, due_ms) for of, here in zip(ids, zones, strict=True) for due_ms in expected_of[here]
    )
    return expected, sorted(stops)


Followed = tuple[Counter[tuple[str, int]], list[int]]
"""Schedule and due time of all that is to fire, and where the clock is put."""


async def obey(url: str, schedulers_count: int) -> None:
    """Be a process of schedulers: is told where the clock is put, says when nothing is due."""
    database = Database(url)
    now_ms = 0
    made = [scheduler_on(database, Put, lambda: now_ms) for _ in range(schedulers_count)]
    for scheduler, _ in made:
        await scheduler.start()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        now_ms, put_ms = map(int, line.split())
        for scheduler, _ in made:
            scheduler.put_ms = put_ms
            scheduler.poke()
        deadline = time.monotonic() + GIVE_UP_S
        while (next_ms := await database.read(next_due)) is not None and next_ms <= now_ms:
            assert time.monotonic() < deadline, "not all of them fired"
            await asyncio.sleep(LOOK_S)
        for _, journal in made:
            await journal.run(lambda _: None)  # after what it has committed: its lag is noted
        lags = [lag for scheduler, _ in made for lag in scheduler.lags]
        for scheduler, _ in made:
            scheduler.lags = []
        print(json.dumps(lags), flush=True)
    for scheduler, journal in made:
        await scheduler.close()
        await journal.close()
    database.close()


def put(nodes: list[subprocess.Popen[str]], now_ms: int) -> list[tuple[int, int]]:
    """Put everybody's clock; return the lags of what fired."""
    line = f"{now_ms} {wall_clock()}\n"
    for one in nodes:
        one.stdin.write(line)
        one.stdin.flush()
    return [tuple(lag) for one in nodes for lag in json.loads(one.stdout.readline())]


def through_changes(url: str, count: int, nodes_count: int) -> list[dict[str, Any]]:
    """Let schedules fire through the clock changes of a year; return what happened at each."""
    database = Database(url)
    database.migrate()
    prepare(database, 0)
    arguments = [sys.executable, __file__, "--obey", url]
    arguments.append(str(nodes_count if database.is_sqlite else 1))
    found = []
    with ExitStack() as stack:
        nodes = []
        for _ in range(1 if database.is_sqlite else nodes_count):
            node = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            nodes.append(stack.enter_context(node))
        for one in nodes:
            assert one.stdout.readline() == "ready\n"
        for change in CHANGES:
            expected, stops = follow(database, *change, count)
            runs: Counter[tuple[str, int]] = Counter()
            lags = {}
            for at_ms in stops:
                lags[at_ms] = put(nodes, at_ms)
                with database.engine.begin() as connection:  # they end at once
                    runs.update(
                        (row.schedule_id, row.due_ms)
                        for row in connection.execute(select(run_queue))
                    )
                    connection.execute(delete(run_queue))
            with database.engine.begin() as connection:
                columns = schedule_fires.c
                rows = connection.execute(
                    select(columns.schedule_id, columns.due_ms).where(columns.outcome == "queued")
                )
                fires: Counter[tuple[str, int]] = Counter(
                    (row.schedule_id, row.due_ms) for row in rows
                )
                for table in (schedule_fires, schedule_cursors, schedules):
                    connection.execute(delete(table))
            found += [
                {
                    "zone": change[0],
                    "at": f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%MZ}",
                    "fires": sum(runs[key] for key in runs if key[1] == at_ms),
                    **spread(lags[at_ms]),
                }
                for at_ms in stops
                if lags[at_ms]
            ]
            # A time that is not expected is one too many.
            found[-1]["twice"] = ((runs | fires) - expected).total()
            found[-1]["missed"] = (expected - (runs & fires)).total()
    database.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--only", default="sqlite,postgresql")
    parser.add_argument("--clock", default="wall,manual")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--obey", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.node:
        child(asked.node[0], int(asked.node[1]))
        return
    if asked.obey:
        asyncio.run(obey(asked.obey[0], int(asked.obey[1])))
        return
    found = measured(asked)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        if "fires" in figures:
            print(f"{name}, {asked.nodes} schedulers, wall clock: {shown(figures)}")
        for one in figures.get("changes", ()):
            print(f"{name}, {asked.nodes} schedulers, {one['zone']} {one['at']}: {shown(one)}")
    everything = [one for of in found.values() for one in (of, *of.get("changes", ()))]
    if any(one.get("twice") or one.get("missed") for one in everything):
        raise SystemExit("not each schedule fired once")


def measured(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        new_urls: dict[str, Callable[[], str]] = {}
        if "sqlite" in asked.only:
            new_urls["sqlite"] = lambda: (
                "sqlite:///"
                + stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudcode-bench-"))
                + "/engine.db"
            )
        if "postgresql" in asked.only:
            from tests.standins.servers import Postgres

            new_urls["postgresql"] = stack.enter_context(Postgres()).new_database
        for name, new_url in new_urls.items():
            found[name] = {}
            if "wall" in asked.clock:
                found[name] = measure(new_url(), asked.count, asked.nodes)
            if "manual" in asked.clock:
                found[name]["changes"] = through_changes(new_url(), asked.count, asked.nodes)
    return found


def shown(figures: dict[str, Any]) -> str:
    counted = ""
    if "twice" in figures:  # at a change: of both its days
        counted = f"; {figures['twice']} twice, {figures['missed']} missed"
    return (
        f"{figures['fires']} due at once, lag p50 {figures['lag_p50_s']:.2f} s, "
        f"p99 {figures['lag_p99_s']:.2f} s (goal {GOAL_S:.0f} s), most "
        f"{figures['lag_max_s']:.2f} s{counted}"
    )


if __name__ == "__main__":
    main()
