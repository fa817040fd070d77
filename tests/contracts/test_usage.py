"""CPU budgets of projects: what is counted, who is refused, what waits, and when it goes on.

The clock is ahead as far as a test says, so no test waits for a minute to end.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.clock import wall_clock
from engine.settings import Settings
from engine.usage import MINUTE_MS, minute_of
from engine.wiring import Platform, open_platform
from tests.contracts.test_flow import until
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Caller,
    Project,
    http,
    neighbour,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
SPIN = """function spin(loops) { let x = 0; while (x < loops) x++; return x; }
export default {
  async job(loops) { return spin(loops); },
  async afterStore(event) { return spin(event.data.values[0].value); },
}"""
LOOPS = 200_000_000  # 0.1 to 0.4 s
SOON_S = 2  # a budget is new when its usage has been looked at
SPENT = 0.06  # CPU seconds that one run of so many uses up, however fast the machine
WRITE = {"values": [{"key": "loops", "value": 10}]}


class AheadClock:
    """The machine's time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead_ms

    def next_minute(self) -> None:
        """Go to the beginning of the next minute: a test has all of it."""
        self.ahead_ms += MINUTE_MS - self() % MINUTE_MS

    def after(self, refused: httpx.Response) -> None:
        """Go to the time that a refusal names."""
        self.ahead_ms += int(refused.headers["retry-after"]) * 1_000 + 1_000

    def next_month(self) -> None:
        now = datetime.fromtimestamp(self() / 1000, UTC)
        year, month = divmod(now.year * 12 + now.month, 12)
        self.ahead_ms += int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp() * 1000) - self()


@pytest.fixture(scope="module")
def clock() -> AheadClock:
    return AheadClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str], clock: AheadClock
) -> AsyncIterator[Platform]:
    """One for all tests of a module, on each kind of database."""
    data_dir = tmp_path_factory.mktemp("usage") / "data"
    settings = Settings(data_dir=data_dir, warm_cells=2, **database_settings)
    async with open_platform(settings, clock=clock) as opened:
        yield opened


async def allow(project: Project, **allowances: float | None) -> None:
    await project.admin.ok("PATCH", f"/v1/projects/{project.id}", {"allowances": allowances})


async def invoke(caller: Caller, loops: int, **headers: str) -> httpx.Response:
    path = "/v1/functions/spin/invoke"
    answer: httpx.Response = await caller.call("POST", path, loops, headers=headers)
    return answer


async def usage(project: Project) -> Any:
    (found,) = (await project.develop.ok("GET", "/v1/usage"))["items"]
    return found


async def spend(project: Project, clock: AheadClock, **budget: float) -> Any:
    """Use the project's budget up, early in a minute; return the answer to the next call."""
    clock.next_minute()
    await project.function("spin", SPIN, limits=CALM)
    await allow(project, **budget)
    assert (await invoke(project.develop, LOOPS)).status_code == 200
    await project.platform.usage.look()  # all of it is this minute's
    return await invoke(project.develop, 1)


async def pay_back(project: Project, clock: AheadClock, refused: httpx.Response) -> None:
    """Go to when the project is told that it may run again; it may."""
    clock.after(refused)

    async def accepted() -> bool:
        again = await invoke(project.develop, 1)
        if int(again.headers.get("retry-after", 0)) > SOON_S:  # its cell used more than was known
            clock.after(again)
        return again.status_code == 200

    await until(accepted)


async def test_what_runs_use_is_counted_by_minute_and_by_month(
    project: Project, neighbour: Project, clock: AheadClock
) -> None:
    """At least what the runs say of themselves, of this project alone; with what it may use."""
    clock.next_minute()
    await project.function("spin", SPIN, limits=CALM)
    for loops in (1, 1, LOOPS):
        assert (await invoke(project.develop, loops)).status_code == 200
    runs = await project.develop.items("/v1/executions", function="spin")

    async def counted() -> Any:
        found = await usage(project)
        return found if found["month"]["runs"] == 3 else None

    found = await until(counted)

    told_s = sum(run["cpu_ms"] for run in runs) / 1000
    assert found["month"]["cpu_seconds"] >= told_s >= SPENT
    assert found["minute"] == found["month"]
    assert (found["project"], found["exceeded"]) == (project.name, None)
    assert found["allowances"]["cpu_seconds_per_month"] == 0
    assert (await usage(neighbour))["month"] == {"cpu_seconds": 0, "runs": 0}


async def test_an_admin_key_sees_all_projects(project: Project, neighbour: Project) -> None:
    """Unless it names one; another month has none of this one's."""
    whole = await project.admin.ok("GET", "/v1/usage?month=2001-01")
    one = await project.admin.ok("GET", "/v1/usage", headers={"X-Project": neighbour.name})

    assert {project.name, neighbour.name} <= {item["project"] for item in whole["items"]}
    assert whole["month"] == "2001-01"
    assert {item["month"]["runs"] for item in whole["items"]} == {0}
    assert [item["project"] for item in one["items"]] == [neighbour.name]
    problem = await project.develop.refused(422, "GET", "/v1/usage?month=2001-13")
    assert problem["errors"][0]["pointer"] == "?month"


async def test_a_past_month_has_no_now_and_one_project_can_be_named(
    project: Project, neighbour: Project
) -> None:
    """Of a past month there is no current minute; only an admin key may name others."""
    path = f"/v1/usage?month=2001-01&project={neighbour.name}"

    (past,) = (await project.admin.ok("GET", path))["items"]
    (own,) = (await project.develop.ok("GET", f"/v1/usage?project={project.name}"))["items"]
    refused = await project.develop.refused(403, "GET", path)

    assert past["project"] == neighbour.name
    assert (past["minute"], past["owed_cpu_seconds"], past["exceeded"]) == (None, None, None)
    assert own["minute"] == {"cpu_seconds": 0, "runs": 0}
    assert isinstance(own["allowances"]["concurrency"], int)
    assert refused["code"] == "forbidden_scope"


async def test_over_its_minute_calls_and_jobs_are_refused_by_name(
    project: Project, neighbour: Project, clock: AheadClock
) -> None:
    """Retry-After is when what was overspent is paid back; others go on meanwhile."""
    await neighbour.function("spin", SPIN, limits=CALM)

    answer = await spend(project, clock, cpu_seconds_per_minute=SPENT)

    problem = answer.json()
    left_s = (MINUTE_MS - clock() % MINUTE_MS) / 1000
    # Minutes that the run has used the budgets of; what is told is rounded to a millisecond.
    least, most = ((problem["limit"]["used"] + by) // SPENT for by in (-0.001, 0.001))
    assert (answer.status_code, problem["code"]) == (429, "quota_exceeded")
    assert problem["limit"]["name"] == "cpu_seconds_per_minute"
    assert problem["limit"]["value"] == SPENT
    assert problem["limit"]["used"] >= SPENT
    soonest_s, latest_s = (left_s + (minutes - 1) * 60 for minutes in (least, most))
    assert soonest_s <= int(answer.headers["retry-after"]) <= latest_s + 10
    job = await project.develop.refused(429, "POST", "/v1/jobs", {"function": "spin"})
    later = await invoke(project.develop, 1, prefer="respond-async")
    assert job["limit"]["name"] == later.json()["limit"]["name"] == "cpu_seconds_per_minute"
    assert (await usage(project))["exceeded"] == "cpu_seconds_per_minute"
    assert (await invoke(neighbour.develop, 1)).status_code == 200

    await pay_back(project, clock, answer)


async def test_the_public_is_told_no_numbers_of_a_budget(
    project: Project, clock: AheadClock
) -> None:
    """Whoever knows a function's address learns when to come again, and no more."""
    await project.function("page", "export default { async fetch() { return new Response(); } }")
    path = f"/f/{project.name}/page/"
    before = await project.develop.http.get(path)
    told = await spend(project, clock, cpu_seconds_per_minute=SPENT)

    answer = await project.develop.http.get(path)
    later = await invoke(project.develop, 1)

    assert before.status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    # As those are told who may know: before, and, should its cell have used more, afterwards.
    latest_s = max(int(told.headers["retry-after"]), int(later.headers["retry-after"]) + SOON_S)
    assert int(answer.headers["retry-after"]) <= latest_s
    assert "limit" not in answer.json()
    assert "cpu" not in answer.text


async def test_writes_are_stored_over_the_budget_and_their_runs_wait(
    project: Project, clock: AheadClock
) -> None:
    """`explain` and the run's own page say for what; when the next minute begins, they run."""
    device = await project.device()
    refused = await spend(project, clock, cpu_seconds_per_minute=SPENT)
    assert refused.status_code == 429
    trigger = {"function": "spin", "product": "thermometer"}
    await project.develop.ok("POST", "/v1/triggers", trigger)

    written = await project.ingest.ok("POST", f"/v1/devices/{device['id']}/values", WRITE)

    (run_id,) = written["executions"]
    told = await project.develop.ok("GET", f"/v1/events/{written['event_id']}/explain")
    run = await project.develop.ok("GET", f"/v1/executions/{run_id}")
    timeline = await project.operate.ok("GET", f"/v1/devices/{device['id']}/values?key=loops")
    assert len(timeline["items"]) == 1
    assert (run["status"], run["waits_for"]) == ("queued", "over_quota")
    (item,) = told["items"]
    assert (item["outcome"], item["reason"]) == ("waiting", "over_quota")
    assert "cpu_seconds_per_minute is 0.06" in item["detail"]
    assert datetime.fromisoformat(item["due_at"]).second == 0

    await pay_back(project, clock, refused)

    async def ended() -> Any:
        found = await project.develop.ok("GET", f"/v1/executions/{run_id}")
        return found if found["status"] == "succeeded" else None

    assert (await until(ended))["waits_for"] is None


async def test_what_was_overspent_is_owed_in_the_next_minute(
    project: Project, clock: AheadClock
) -> None:
    """It is shown, and counts there; a budget that is new has no debts of before."""
    refused = await spend(project, clock, cpu_seconds_per_minute=SPENT)
    used = refused.json()["limit"]["used"]

    clock.next_minute()
    await project.platform.usage.look()

    found = await usage(project)
    assert found["owed_cpu_seconds"] == pytest.approx(used - SPENT, abs=0.05)
    assert found["minute"]["cpu_seconds"] < SPENT
    await allow(project, cpu_seconds_per_minute=None)
    await project.platform.usage.look()
    assert (await invoke(project.develop, LOOPS)).status_code == 200
    await project.platform.usage.look()
    clock.next_minute()
    await project.platform.usage.look()
    await allow(project, cpu_seconds_per_minute=SPENT)
    await project.platform.usage.look()
    assert (await usage(project))["owed_cpu_seconds"] == 0
    assert (await invoke(project.develop, 1)).status_code == 200


async def test_an_upload_is_refused_over_the_budget(project: Project, clock: AheadClock) -> None:
    """It is compiled and loaded, which takes CPU time, too; nothing is stored."""
    assert (await spend(project, clock, cpu_seconds_per_minute=SPENT)).status_code == 429

    body = {"name": "more", "source": SPIN}
    first = await project.develop.refused(429, "POST", "/v1/functions", body)
    next_one = await project.develop.refused(
        429, "POST", "/v1/functions/spin/versions", {"source": SPIN}
    )

    assert first["code"] == next_one["code"] == "quota_exceeded"
    assert len(await project.develop.items("/v1/functions")) == 1


async def test_over_its_month_a_project_waits_for_the_next_one(
    project: Project, clock: AheadClock
) -> None:
    """A new minute is no help; more room, or the first of the month, is."""
    answer = await spend(project, clock, cpu_seconds_per_month=SPENT)
    clock.next_minute()
    await project.platform.usage.look()
    again = await invoke(project.develop, 1)

    assert {answer.status_code, again.status_code} == {429}
    assert again.json()["limit"]["name"] == "cpu_seconds_per_month"
    first = datetime.fromtimestamp(clock() / 1000 + int(again.headers["retry-after"]), UTC)
    assert (first.day, first.hour) == (1, 0)
    await allow(project, cpu_seconds_per_month=1_000)
    await project.platform.usage.look()
    assert (await invoke(project.develop, 1)).status_code == 200

    await allow(project, cpu_seconds_per_month=SPENT)
    await project.platform.usage.look()
    assert (await invoke(project.develop, 1)).status_code == 429
    clock.next_month()
    await project.platform.usage.look()
    assert (await invoke(project.develop, 1)).status_code == 200


async def test_a_run_that_is_killed_for_its_cpu_is_charged(
    project: Project, clock: AheadClock
) -> None:
    """Its cell has no time to say what it has used: the limit counts, and what the kernel saw."""
    clock.next_minute()
    source = "export default { async job() { for (;;); } }"
    await project.function("spin", source, limits={"cpu_ms": 300, "wall_ms": 20_000})

    assert (await invoke(project.develop, 1)).json()["code"] == "cpu_exceeded"

    await project.platform.usage.look()
    assert (await usage(project))["minute"]["cpu_seconds"] >= 0.3


async def test_what_a_cell_hides_is_charged_as_the_kernel_counts_it(
    project: Project, clock: AheadClock
) -> None:
    """Native code could claim that its runs use nothing."""

    class Liar:
        used_ns = 0

        def cpu_ns(self) -> int:
            return self.used_ns

    clock.next_minute()
    counted, liar = project.platform.usage, Liar()
    counted.cell_begun(project.id, liar)
    liar.used_ns = 2_000_000_000
    counted.add(project.id, 0)
    counted.add(project.id, 500_000_000)
    await counted.look()
    before = (await usage(project))["minute"]
    counted.cell_ended(liar, 3_000_000_000)
    await counted.look()

    after = (await usage(project))["minute"]

    assert before == {"cpu_seconds": pytest.approx(2.0, abs=0.1), "runs": 2}
    assert after == {"cpu_seconds": pytest.approx(3.0, abs=0.1), "runs": 2}


async def test_minutes_are_forgotten_and_months_kept(project: Project, clock: AheadClock) -> None:
    """The table has at most an hour of minutes, and twelve rows a year."""
    clock.next_minute()
    counted = project.platform.usage
    counted.add(project.id, 1_000_000)
    await counted.look()
    earlier = minute_of(clock())
    clock.ahead_ms += 2 * 60 * MINUTE_MS

    await counted.sweep()

    def minutes(connection: Any) -> list[str]:
        query = "SELECT period FROM usage WHERE project_id = "
        rows = connection.exec_driver_sql(f"{query}'{project.id}'")
        return [row.period.partition(":")[0] for row in rows]

    assert await project.platform.database.read(minutes) == ["month"]
    assert earlier < minute_of(clock())


async def test_nodes_share_a_budget(
    project: Project,
    clock: AheadClock,
    database_kind: str,
    database_settings: dict[str, str],
    tmp_path: Any,
) -> None:
    """What one node has used up, another one refuses within a moment."""
    if database_kind == "sqlite":
        pytest.skip("one process has it alone")
    settings = Settings(data_dir=tmp_path / "other", warm_cells=1, **database_settings)
    async with open_platform(settings, clock=clock) as other:
        transport = httpx.ASGITransport(other.asgi(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
            there = Caller(client, project.develop.key)
            clock.next_minute()
            await project.function("spin", SPIN, limits=CALM)
            await allow(project, cpu_seconds_per_minute=SPENT)
            assert (await invoke(there, 1)).status_code == 200

            assert (await invoke(project.develop, LOOPS)).status_code == 200

            async def refused_there() -> bool:
                return (await invoke(there, 1)).status_code == 429

            async with asyncio.timeout(5):
                await until(refused_there)


async def test_what_an_upload_runs_is_charged(project: Project, clock: AheadClock) -> None:
    """Top-level code runs when it is uploaded, too, in a cell that is thrown away."""
    clock.next_minute()
    loop = f"let x = 0; while (x < {LOOPS}) x++;"
    await project.function("spin", f"{loop} export default {{ async job() {{ return x; }} }}")

    await project.platform.usage.look()

    assert (await usage(project))["minute"]["cpu_seconds"] >= SPENT
    assert (await usage(project))["minute"]["runs"] == 0
