"""The example of a schedule and a job, used as its first lines say."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.contracts.test_api_schedules import ended
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    platform,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = (Path(__file__).parents[2] / "examples" / "nightly_report.js").read_text()
NAME = "nightly_report"


async def with_readings(project: Project, readings: dict[str, float]) -> str:
    """Deploy the report, and return a device that has measured this."""
    device = await project.device("weather")
    values = [{"key": "temp", "value": value, "datetime": at} for at, value in readings.items()]
    path = f"/v1/devices/{device['id']}/values"
    await project.operate.ok("POST", path, {"values": values})
    await project.function(NAME, SOURCE)
    return str(device["id"])


async def test_a_job_reports_the_days_that_it_is_asked_for(project: Project) -> None:
    """One entry a day with readings, and how many there were."""
    noon, night = "2010-01-01T12:00:00Z", "2010-01-01T23:59:59Z"
    device = await with_readings(project, {noon: 50, night: 40, "2010-01-03T00:00:00Z": 60})
    payload = {"device": device, "from": "2010-01-01", "days": 3}

    made = await project.develop.ok("POST", "/v1/jobs", {"function": NAME, "payload": payload})
    job = await project.develop.ok("GET", f"/v1/jobs/{made['id']}?wait=30")

    assert job["result"] == {"device": device, "days": 3, "found": 2}
    keys = (await project.develop.ok("GET", "/v1/kv/default?prefix=report:"))["items"]
    assert [one["key"][-10:] for one in keys] == ["2010-01-01", "2010-01-03"]
    report = await project.develop.ok("GET", f"/v1/kv/default/report:{device}:2010-01-01")
    assert report == {
        "start": "2010-01-01T00:00:00.000Z",
        "readings": 2, "lowest": 40, "mean": 45, "highest": 50,
    }  # fmt: skip


async def test_the_schedule_reports_the_last_24_hours(project: Project) -> None:
    """Of one device, here by hand."""
    now = datetime.now(UTC)
    at = {(now - timedelta(hours=hours)).isoformat(): 70.0 - hours for hours in (1, 23, 25)}
    device = await with_readings(project, at)
    local = {"cron": "0 0 * * *", "device_local": {"product": "weather"}}
    body = {"name": "nightly", "function": NAME, **local}

    await project.develop.ok("POST", "/v1/schedules", body)
    path = f"/v1/schedules/nightly/trigger?device={device}"
    made = await project.develop.ok("POST", path)
    run = await ended(project, made["execution_id"])

    assert run["status"] == "succeeded", run
    report = await project.develop.ok("GET", f"/v1/kv/default/report:{device}:last")
    assert (report["readings"], report["lowest"], report["highest"]) == (2, 47, 69)
