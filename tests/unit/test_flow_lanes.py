"""Who gets which rows of the queue: limits, order, gates; on both databases, by many at once."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, func, insert, select, text, update

from engine.flow import BURST, in_order, queued_for
from engine.ids import new_id
from engine.policies import (
    PLAIN,
    Concurrency,
    Debounce,
    Flow,
    Policy,
    Queued,
    RateLimit,
    Singleton,
    Throttle,
    write_queued,
)
from engine.store import flow
from engine.store.database import Database
from engine.store.run_queue import claim, queue_row
from engine.store.tables import PARKED, run_queue
from tests.standins.servers import Postgres

NOW = 1_700_000_000_000


class Queue:
    """A database with a queue, and what nodes do with it; each step is a transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def step(self, change: Callable[..., Any], *args: Any) -> Any:
        with self.database.engine.connect() as connection:
            if self.database.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            answer = change(connection, *args)
            connection.commit()
            return answer

    def put(
        self,
        policy: Policy | Queued,
        given: str = "null",
        *,
        now_ms: int = NOW,
        count: int = 1,
        **columns: Any,
    ) -> list[str]:
        """Queue runs of one function, and return their ids."""
        queued, lane = policy, None
        if isinstance(policy, Policy):
            queued, lane = queued_for(policy, given, "prj_1", "fn_1")
        ids = [new_id("exe") for _ in range(count)]
        fields: dict[str, Any] = {
            "project_id": "prj_1", "function_id": "fn_1", "cause": "job", "handler": "job",
            "root_id": "exe_root", "created_ms": now_ms, "due_ms": now_ms, "given": given,
            "lane": lane, "policy": write_queued(queued),
        } | columns  # fmt: skip

        def change(connection: Connection) -> None:
            names = run_queue.columns.keys()
            rows = [
                dict(zip(names, queue_row(run_id=run_id, **fields), strict=True)) for run_id in ids
            ]
            connection.execute(insert(run_queue), rows)
            for run_id in ids:
                flow.note_here(connection, queued, run_id, now_ms)

        self.step(change)
        return ids

    def claim(
        self, node_id: str = "node_a", now_ms: int = NOW, limit: int = 100, project: str = "prj_1"
    ) -> list[str]:
        """Return what the node gets to run; what it is told to skip is skipped."""
        found = self.step(claim, project, node_id, now_ms, limit)
        self.skipped = {row.id: row.skip[0] for row in found.rows if row.skip}
        self.cancelled = found.cancelled
        if self.skipped:
            self.step(
                lambda it: it.execute(delete(run_queue).where(run_queue.c.id.in_(self.skipped)))
            )
        return [row.id for row in found.rows if not row.skip]

    def end(self, *ids: str, now_ms: int = NOW) -> None:
        """End runs, as the settling transaction does."""

        def change(connection: Connection) -> None:
            gone = delete(run_queue).where(run_queue.c.id.in_(ids)).returning(run_queue.c.lane)
            lanes = {lane for lane in connection.execute(gone).scalars() if lane is not None}
            flow.unpark(connection, lanes, now_ms)

        self.step(change)

    def retry(self, run_id: str, due_ms: int) -> str:
        """End a run and queue its next attempt."""

        def change(connection: Connection) -> str:
            query = delete(run_queue).where(run_queue.c.id == run_id).returning(*run_queue.columns)
            row = dict(connection.execute(query).mappings().one())
            node_id, lane = row["node_id"], row["lane"]
            again = row | {"id": new_id("exe"), "node_id": None, "due_ms": due_ms}
            again["attempt"] += 1
            connection.execute(insert(run_queue).values(again))
            if lane is not None:
                flow.hold_back(connection, lane, node_id)
                flow.unpark(connection, [lane])
            return again["id"]

        return self.step(change)

    def die(self, node_id: str) -> None:
        """Free what a dead node had, as who takes over does."""
        self.step(
            lambda it: it.execute(
                update(run_queue)
                .where(run_queue.c.node_id == node_id)
                .values(node_id=None, takeovers=run_queue.c.takeovers + 1)
            )
        )

    @contextmanager
    def counted(self) -> Iterator[Callable[[], int]]:
        """Count rows of the queue that the block reads; on SQLite, hundreds of its steps."""
        if not self.database.is_sqlite:
            before = self._rows_read()
            yield lambda: self._rows_read() - before
            return
        steps = itertools.count()

        def count(connection: Any, *_: object) -> None:
            connection.set_progress_handler(lambda: next(steps) and None, 100)

        event.listen(self.database.engine, "checkout", count)
        yield lambda: next(steps)
        event.remove(self.database.engine, "checkout", count)

    def _rows_read(self) -> int:
        self.database.engine.dispose()  # a connection tells what it has read when it closes
        query = text(
            "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
            " WHERE relname = 'run_queue'"
        )
        return int(self.step(lambda it: it.execute(query).scalar_one()))

    def nodes(self) -> Counter[str | None]:
        query = select(run_queue.c.node_id, func.count()).group_by(run_queue.c.node_id)
        return Counter(dict(self.step(lambda it: it.execute(query).all())))

    def row(self, run_id: str) -> Any:
        query = select(run_queue).where(run_queue.c.id == run_id)
        return self.step(lambda it: it.execute(query).one())


@pytest.fixture
def queue_on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Queue]]:
    opened: list[Database] = []

    def make(kind: str) -> Queue:
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path / 'engine.db'}"
        else:
            server: Postgres = request.getfixturevalue("postgres")
            url = server.new_database()
        database = Database(url)
        database.migrate()
        opened.append(database)
        return Queue(database)

    yield make
    for database in opened:
        database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, queue_on: Callable[[str], Queue]) -> Queue:
    return queue_on(request.param)


def limited(limit: int, key: str = "") -> Policy:
    return Policy(flow=Flow(concurrency=Concurrency(limit=limit, key=key)))


# -- Concurrency


def test_a_lane_gives_no_more_than_its_limit(queue: Queue) -> None:
    """Of 10 runs with a limit of 3, three are given and seven are parked."""
    ids = queue.put(limited(3), count=10)

    got = queue.claim()

    assert got == ids[:3]
    assert queue.nodes() == {"node_a": 3, PARKED: 7}
    assert queue.claim("node_b") == []


def test_an_end_frees_the_next(queue: Queue) -> None:
    """The run that has waited longest comes when there is room, whoever claims it."""
    ids = queue.put(limited(2), count=5)
    queue.claim()

    queue.end(ids[1])

    assert queue.claim("node_b") == [ids[2]]
    assert queue.nodes() == {"node_a": 1, "node_b": 1, PARKED: 2}


def test_lanes_are_told_apart_by_their_key(queue: Queue) -> None:
    """Each value of the key has a limit of its own; one that is missing is a value too."""
    policy = limited(1, "payload.user.id")
    for given in ('{"user":{"id":1}}', '{"user":{"id":"1"}}', "{}", '{"user":{"id":1}}'):
        queue.put(policy, given)

    assert len(queue.claim()) == 3


def test_a_limit_of_the_project_counts_all_functions(queue: Queue) -> None:
    """Runs of two functions with the same word share it."""
    shared = Policy(flow=Flow(concurrency=Concurrency(limit=1, key="'printer'", scope="project")))
    other, lane = queued_for(shared, "{}", "prj_1", "fn_2")
    queue.put(shared, "{}")
    queue.put(other, "{}", function_id="fn_2", lane=lane)

    assert len(queue.claim()) == 1


def test_a_run_that_is_not_due_takes_no_place(queue: Queue) -> None:
    """One for later does not hold up one for now, and comes when it is due."""
    (later,) = queue.put(limited(1), due_ms=NOW + 5_000)
    now = queue.put(limited(1), count=3)

    assert queue.claim() == now[:1]
    queue.end(now[0])
    assert queue.claim() == now[1:2]
    queue.end(now[1])
    assert queue.claim() == now[2:]
    queue.end(now[2])
    assert queue.claim() == []
    assert queue.claim(now_ms=NOW + 5_000) == [later]


def test_high_priority_is_freed_first(queue: Queue) -> None:
    """Of the parked rows of a lane those of high priority come first."""
    first, *_ = queue.put(limited(1), count=3)
    queue.claim()
    (urgent,) = queue.put(limited(1), priority=0)
    queue.claim()

    queue.end(first)

    assert queue.claim() == [urgent]


def test_a_dead_nodes_places_are_free_again(queue: Queue) -> None:
    """What it had is claimed by another node, before what was parked."""
    ids = queue.put(limited(2), count=4)
    queue.claim("node_a")

    queue.die("node_a")

    assert queue.claim("node_b") == ids[:2]


def test_stale_lanes_are_freed(queue: Queue) -> None:
    """Parked rows without anybody whose end would free them do not wait for ever."""
    ids = queue.put(limited(1), count=2)
    queue.put(limited(1, "a"), '{"a":1}', count=2)
    queue.claim()
    queue.step(lambda it: it.execute(delete(run_queue).where(run_queue.c.id == ids[0])))

    freed = queue.step(flow.unpark_stale, 10)

    assert freed == [("prj_1", 1)]
    assert queue.claim() == [ids[1]]


@pytest.mark.slow
def test_no_more_than_the_limit_run_however_many_claim(
    queue_on: Callable[[str], Queue],
) -> None:
    """Four nodes claim and end runs of two lanes at once; each run is given once."""
    queue, limits = queue_on("postgresql"), {"a": 2, "b": 3}
    lanes = {
        run_id: key
        for key, limit in limits.items()
        for run_id in queue.put(limited(limit, "k"), f'{{"k":"{key}"}}', count=100)
    }
    given, running, most = Counter[str](), Counter[str](), Counter[str]()
    guard = threading.Lock()

    def work(node_id: str) -> None:
        mine, deadline = Queue(queue.database), time.monotonic() + 60
        while given.total() < len(lanes) and time.monotonic() < deadline:
            ids = mine.claim(node_id, limit=5)
            with guard:
                given.update(ids)
                running.update(lanes[run_id] for run_id in ids)
                for key in limits:
                    most[key] = max(most[key], running[key])
            for run_id in ids:
                with guard:
                    running[lanes[run_id]] -= 1
                mine.end(run_id)

    with ThreadPoolExecutor(4) as threads:
        works = [threads.submit(work, f"node_{at}") for at in range(4)]
    for each in works:
        each.result()

    assert set(given.values()) == {1}
    assert len(given) == len(lanes)
    assert most == limits
    assert queue.nodes() == {}


@pytest.mark.slow
def test_parked_rows_do_not_slow_claims(queue: Queue) -> None:
    """With 20,000 rows of a full lane, a claim of another lane reads none of them."""
    fill_lane(queue)
    others = queue.put(limited(1, "a"), '{"a":2}')

    with queue.counted() as read:
        got = queue.claim("node_b")

    assert got == others
    assert read() < 100
    assert queue.nodes() == {"node_a": 1, "node_b": 1, PARKED: 20_000}


@pytest.mark.slow
def test_parked_rows_do_not_slow_their_own_lane(queue: Queue) -> None:
    """The end of a run, and the claim of the next, read only a few of 20,000 parked rows."""
    ids = fill_lane(queue)

    with queue.counted() as read:
        queue.end(ids[0])
        got = queue.claim()

    assert got == [ids[1]]
    assert read() < 100


@pytest.mark.slow
def test_stale_lanes_are_found_beside_long_ones(queue: Queue) -> None:
    """Looking for them steps over the 20,000 parked rows of a lane that is at work."""
    fill_lane(queue)
    (stale,) = queue.put(limited(1, "a"), '{"a":2}', node_id=PARKED)

    with queue.counted() as read:
        queue.step(flow.unpark_stale, 10)

    assert queue.claim() == [stale]
    assert read() < 100


def fill_lane(queue: Queue) -> list[str]:
    """Have one run of a lane at work and 20,000 parked behind it."""
    ids = queue.put(limited(1, "a"), '{"a":1}', count=20_001)
    while queue.nodes()[None]:
        queue.claim()
    with queue.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as it:
        it.execute(text("ANALYZE" if queue.database.is_sqlite else "VACUUM ANALYZE"))
    return ids


# -- Order


def put_ordered(
    queue: Queue,
    *positions: int,
    queued: Queued = PLAIN,
    device: str = "dev_1",
    **columns: Any,
) -> list[str]:
    """Queue runs of one device at these event times."""
    policy, lane = in_order(queued, "trg_1", device)
    fields = {"lane": lane, "device_id": device} | columns
    return [
        queue.put(policy, position_ms=position_ms, event_id=new_id("evt"), **fields)[0]
        for position_ms in positions
    ]


def test_an_ordered_lane_is_given_to_one_node_in_order(queue: Queue) -> None:
    """All that is due of a device goes to one node; whoever else claims gets none of it."""
    third, first, second = put_ordered(queue, 30, 10, 20)

    assert queue.claim("node_a") == [first, second, third]
    put_ordered(queue, 40)
    assert queue.claim("node_b") == []
    assert queue.nodes() == {"node_a": 3, PARKED: 1}


def test_the_last_end_frees_what_was_parked(queue: Queue) -> None:
    """While a node has runs of the lane the rest stays parked; then any node gets it."""
    ids = put_ordered(queue, 1, 2)
    queue.claim("node_a")
    later = put_ordered(queue, 3, 4)
    queue.claim("node_b")

    queue.end(ids[0])
    assert queue.claim("node_b") == []
    queue.end(ids[1])
    assert queue.claim("node_b") == later


def test_a_long_lane_is_given_in_portions(queue: Queue) -> None:
    """A node takes a burst of a lane at a time, in order."""
    ids = put_ordered(queue, *range(BURST + 5))

    first = queue.claim(limit=200)
    assert first == ids[:BURST]
    queue.end(*first)
    assert queue.claim(limit=200) == ids[BURST:]


def test_equal_times_keep_the_order_of_their_events(queue: Queue) -> None:
    """Also when the first of them has to be tried again."""
    ids = put_ordered(queue, 7, 7, 7)
    queue.claim(limit=1)

    again = queue.retry(ids[0], NOW + 1_000)

    assert queue.claim() == []
    assert queue.claim(now_ms=NOW + 1_000) == [again]


def test_a_retry_holds_the_rest_back(queue: Queue) -> None:
    """While the head waits for its next attempt nothing of its lane runs."""
    ids = put_ordered(queue, 1, 2, 3)
    queue.claim("node_a")

    again = queue.retry(ids[0], NOW + 1_000)

    assert queue.claim("node_b") == []
    put_ordered(queue, 4)
    assert queue.claim("node_b", NOW + 999) == []
    assert queue.claim("node_b", NOW + 1_000) == [again]
    queue.end(again)
    assert queue.claim("node_b", NOW + 1_000)[:2] == ids[1:]


def test_a_late_value_within_the_window_comes_first(queue: Queue) -> None:
    """Once the earliest is due, what stands before it is due with it."""
    put = [
        put_ordered(queue, position_ms, due_ms=NOW + due_ms)[0]
        for position_ms, due_ms in ((20, 100), (10, 150), (30, 160))
    ]

    assert queue.claim(now_ms=NOW + 99) == []
    assert queue.claim(now_ms=NOW + 100) == [put[1], put[0]]
    assert queue.claim(now_ms=NOW + 160) == [put[2]]


def test_a_late_value_after_the_window_comes_next(queue: Queue) -> None:
    """It runs as soon as it may, never beside another of its device."""
    (later,) = put_ordered(queue, 20)
    queue.claim("node_a")
    (earlier,) = put_ordered(queue, 10)

    assert queue.claim("node_b") == []
    queue.end(later)
    assert queue.claim("node_b") == [earlier]


def test_a_crash_keeps_the_order(queue: Queue) -> None:
    """What a dead node had of a lane comes before what was parked behind it."""
    ids = put_ordered(queue, 1, 2, 3)
    queue.claim("node_a")
    ids += put_ordered(queue, 4, 5)
    queue.claim("node_b")

    queue.die("node_a")

    assert queue.claim("node_b") == ids[:3]
    queue.end(*ids[:3])
    assert queue.claim("node_c") == ids[3:]


def test_a_head_that_came_too_late_does_not_hold_up_the_rest(queue: Queue) -> None:
    """It is skipped, and what was parked behind it can be claimed."""
    (first,) = put_ordered(queue, 1, queued=Queued(expires_ms=NOW + 10), due_ms=NOW + 5)
    rest = put_ordered(queue, 2, 3)
    queue.step(lambda it: it.execute(
        update(run_queue).where(run_queue.c.id.in_(rest)).values(node_id=PARKED)
    ))  # fmt: skip

    assert queue.claim(now_ms=NOW + 11) == []
    assert queue.skipped == {first: "expired"}
    assert queue.claim(now_ms=NOW + 11) == rest


def test_devices_do_not_wait_for_each_other(queue: Queue) -> None:
    """A lane is one device's."""
    put_ordered(queue, 1)
    queue.claim("node_a")
    other = put_ordered(queue, 1, device="dev_2")

    assert queue.claim("node_b") == other


class Devices:
    """What several nodes see of the runs of some devices."""

    def __init__(self, queue: Queue, devices: Sequence[str], count: int) -> None:
        self.place = {
            run_id: (device, at)
            for device in devices
            for at, run_id in enumerate(put_ordered(queue, *range(count), device=device))
        }
        self.left = len(self.place)
        self.done: dict[str, list[int]] = {device: [] for device in devices}
        self.at_work: Counter[str] = Counter()
        self.beside: list[str] = []
        self.guard = threading.Lock()

    def work(self, queue: Queue, node_id: str, dies_every: int) -> None:
        """Claim and end runs; die now and then, and try some runs again."""
        deadline = time.monotonic() + 60
        for turn in itertools.count(1):
            if not self.left or time.monotonic() > deadline:
                return
            ids = queue.claim(node_id, limit=7)
            if turn % dies_every:
                for run_id in ids:
                    if not self.run(queue, run_id, fails=turn % 2 == 0):
                        break  # those behind it are held back
            queue.die(node_id)  # what is left when it broke off

    def run(self, queue: Queue, run_id: str, *, fails: bool) -> bool:
        device, at = self.place[run_id]
        with self.guard:
            self.at_work[device] += 1
            if self.at_work[device] > 1:
                self.beside.append(run_id)
        if fails and at % 10 == 3:
            with self.guard:
                self.at_work[device] -= 1
            again = queue.retry(run_id, NOW)
            self.place[again] = (device, at)
            return False
        with self.guard:
            self.done[device].append(at)
            self.left -= 1
            self.at_work[device] -= 1
        queue.end(run_id)
        return True


@pytest.mark.slow
def test_order_holds_under_many_claimers(queue_on: Callable[[str], Queue]) -> None:
    """Four nodes work on three devices, with retries and deaths: each in order, none beside."""
    queue = queue_on("postgresql")
    devices = Devices(queue, ("dev_1", "dev_2", "dev_3"), 40)

    with ThreadPoolExecutor(4) as threads:
        works = [
            threads.submit(devices.work, Queue(queue.database), f"node_{at}", 5 + at)
            for at in range(4)
        ]
    for work in works:
        work.result()

    assert devices.beside == []
    assert devices.done == {device: list(range(40)) for device in devices.done}


# -- Gates


def test_a_throttle_spreads_runs_evenly(queue: Queue) -> None:
    """Three a second: each has its own place, to the millisecond, without drift."""
    policy = Policy(flow=Flow(throttle=Throttle(limit=3, period_ms=1_000)))
    ids = queue.put(policy, count=7)

    assert queue.claim() == ids[:1]
    places = [queue.row(run_id).due_ms - NOW for run_id in ids[1:]]
    assert places == [334, 667, 1000, 1334, 1667, 2000]
    assert queue.claim(now_ms=NOW + 333) == []
    assert queue.claim(now_ms=NOW + 667) == ids[1:3]
    assert queue.claim(now_ms=NOW + 2_000) == ids[3:]


def test_a_burst_goes_through_at_once(queue: Queue) -> None:
    """`burst` more than one; the rest waits its turn."""
    policy = Policy(flow=Flow(throttle=Throttle(limit=2, period_ms=1_000, burst=2)))
    ids = queue.put(policy, count=5)

    assert queue.claim() == ids[:3]
    assert queue.claim(now_ms=NOW + 500) == ids[3:4]
    assert queue.claim(now_ms=NOW + 1_000) == ids[4:]


def test_a_throttled_run_is_not_asked_again(queue: Queue) -> None:
    """It keeps the place it was given, whatever has come since, also when its node dies."""
    policy = Policy(flow=Flow(throttle=Throttle(limit=1, period_ms=1_000)))
    first, second = queue.put(policy, count=2)
    queue.claim()
    queue.put(policy, count=3)
    queue.claim()

    assert queue.claim("node_a", NOW + 1_000) == [second]
    queue.die("node_a")
    assert queue.claim("node_b", NOW + 1_000) == [first, second]


def test_a_rate_limit_skips_what_is_too_many(queue: Queue) -> None:
    """`limit` at once; then one more each time that a part of the period is over."""
    policy = Policy(flow=Flow(rate_limit=RateLimit(limit=2, period_ms=1_000, key="k")))
    ids = queue.put(policy, '{"k":1}', count=4)
    other = queue.put(policy, '{"k":2}')

    assert queue.claim() == [*ids[:2], *other]
    assert queue.skipped == dict.fromkeys(ids[2:], "rate_limited")
    more = queue.put(policy, '{"k":1}', count=2)
    assert queue.claim(now_ms=NOW + 500) == more[:1]


def test_a_limited_run_is_not_limited_again(queue: Queue) -> None:
    """Once it was let through, neither a node's death nor a retry asks for another place."""
    policy = Policy(flow=Flow(rate_limit=RateLimit(limit=1, period_ms=1_000)))
    (run_id,) = queue.put(policy)
    queue.claim("node_a")
    queue.die("node_a")

    assert queue.claim("node_b") == [run_id]
    again = queue.retry(run_id, NOW)
    assert queue.claim("node_b") == [again]


def test_only_the_last_of_a_burst_runs(queue: Queue) -> None:
    """The others are skipped when their own time comes."""
    policy = Policy(flow=Flow(debounce=Debounce(period_ms=100)))
    ids = [
        queue.put(policy, now_ms=NOW + at_ms, due_ms=NOW + at_ms + 100)[0] for at_ms in (0, 50, 99)
    ]

    assert queue.claim(now_ms=NOW + 100) == []
    assert queue.skipped == {ids[0]: "debounced"}
    assert queue.claim(now_ms=NOW + 150) == []
    assert queue.claim(now_ms=NOW + 199) == ids[2:]


def test_a_debounce_ends_at_its_timeout(queue: Queue) -> None:
    """However often it is put off: at `timeout` after the first the newest one runs."""
    policy = Policy(flow=Flow(debounce=Debounce(period_ms=100, timeout_ms=250)))
    got: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    for at_ms in range(0, 800, 10):
        if at_ms % 60 == 0 and at_ms <= 540:
            ids[at_ms] = queue.put(policy, now_ms=NOW + at_ms, due_ms=NOW + at_ms + 100)[0]
        for _ in range(2):  # the first may find that another one is due
            if found := queue.claim(now_ms=NOW + at_ms):
                got[at_ms] = found

    assert got == {250: [ids[240]], 550: [ids[540]]}


def test_a_singleton_skips_while_one_runs(queue: Queue) -> None:
    """Of those that come at once the first runs; one that waits for its retry counts as well."""
    policy = Policy(flow=Flow(singleton=Singleton(key="k")))
    first, second = queue.put(policy, '{"k":1}', count=2)
    other = queue.put(policy, '{"k":2}')

    assert queue.claim() == [first, *other]
    assert queue.skipped == {second: "singleton"}
    again = queue.retry(first, NOW + 1_000)
    (third,) = queue.put(policy, '{"k":1}')
    assert queue.claim() == []
    assert queue.skipped == {third: "singleton"}
    assert queue.claim(now_ms=NOW + 1_000) == [again]
    queue.end(again)
    assert queue.claim(now_ms=NOW + 1_000) == []
    (fourth,) = queue.put(policy, '{"k":1}')
    assert queue.claim() == [fourth]


def test_a_singleton_survives_its_node(queue: Queue) -> None:
    """The one that a dead node had runs again; a new one is skipped meanwhile."""
    policy = Policy(flow=Flow(singleton=Singleton()))
    (first,) = queue.put(policy)
    queue.claim("node_a")
    queue.die("node_a")
    (second,) = queue.put(policy)

    assert queue.claim("node_b") == [first]
    assert queue.skipped == {second: "singleton"}


def test_a_singleton_that_cancels_takes_the_place(queue: Queue) -> None:
    """The one that runs is named for cancelling; of two that come at once the last one runs."""
    policy = Policy(flow=Flow(singleton=Singleton(mode="cancel")))
    (first,) = queue.put(policy)
    queue.claim()
    second, third = queue.put(policy, count=2)

    assert queue.claim() == [third]
    assert queue.cancelled == [first]
    assert queue.skipped == {second: "singleton"}


def test_what_is_too_late_is_skipped(queue: Queue) -> None:
    """A run has a time to live, up to its start."""
    (run_id,) = queue.put(Queued(expires_ms=NOW + 10))

    assert queue.claim(now_ms=NOW + 11) == []
    assert queue.skipped == {run_id: "expired"}
