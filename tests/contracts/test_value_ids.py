"""Values with an id of their sender: what is sent again is stored once, and triggers nothing."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Connection, func, select

from engine.store.tables import events
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ON_WRITE,
    Caller,
    Project,
    http,
    platform,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = "2010-10-29T00:00:00Z"
LATER = "2010-10-29T00:00:01Z"


def value(value_id: str | None, key: str = "a", at: str | None = AT, is_: Any = 1) -> Any:
    made = {"key": key, "value": is_}
    made |= {} if value_id is None else {"id": value_id}
    return made | ({} if at is None else {"datetime": at})


class Timeline:
    def __init__(self, project: Project, device: dict[str, Any]) -> None:
        self.project = project
        self.id, self.token = device["id"], device["token"]
        self.path = f"/v1/devices/{self.id}/values"

    async def write(self, *values: Any) -> tuple[int, dict[str, Any]]:
        answer = await self.project.ingest.call("POST", self.path, {"values": list(values)})
        return answer.status_code, answer.json()

    async def count(self) -> int:
        return len(await self.project.operate.items(self.path))

    async def events_count(self) -> int:
        def read(connection: Connection) -> int:
            query = select(func.count()).where(events.c.device_id == self.id)
            return connection.execute(query).scalar_one()

        return await self.project.platform.database.read(read)


@pytest_asyncio.fixture(loop_scope="module")
async def timeline(project: Project) -> Timeline:
    """A device whose writes run a function."""
    device = await project.device()
    await project.function("alarm", ON_WRITE)
    await project.develop.ok(
        "POST", "/v1/triggers", {"function": "alarm", "product": "thermometer"}
    )
    return Timeline(project, device)


async def test_a_value_that_is_sent_again_is_stored_once(timeline: Timeline) -> None:
    """The second answer says so: no event, no run."""
    first = await timeline.write(value("1"))
    again = await timeline.write(value("1", is_=2))

    assert (first[0], first[1]["values"], first[1]["duplicates"]) == (201, 1, 0)
    assert len(first[1]["executions"]) == 1
    assert again == (200, {"event_id": None, "values": 0, "executions": [], "duplicates": 1})
    assert await timeline.count() == 1
    assert await timeline.events_count() == 1


async def test_the_new_ones_of_a_write_are_stored(timeline: Timeline) -> None:
    """The rest of a write that was sent in part before; values without an id always are."""
    await timeline.write(value("1"), value("2"))

    status, body = await timeline.write(value("2"), value("3"), value(None))

    assert (status, body["values"], body["duplicates"]) == (201, 2, 1)
    assert await timeline.count() == 4


@pytest.mark.parametrize(
    "other",
    [value("2"), value("1", key="b"), value("1", at=LATER), value("1", at=None), value(None)],
    ids=["id", "key", "time", "no time", "no id"],
)
async def test_what_differs_is_another_value(timeline: Timeline, other: Any) -> None:
    """In its id, its key or its time."""
    await timeline.write(value("1"))

    status, _ = await timeline.write(other)

    assert status == 201
    assert await timeline.count() == 2


async def test_without_a_time_the_id_alone_counts(timeline: Timeline) -> None:
    """Its time would be that of its arrival, another one each time."""
    await timeline.write(value("1", at=None))

    status, _ = await timeline.write(value("1", at=None))

    assert status == 200
    assert await timeline.count() == 1


async def test_a_write_may_repeat_itself(timeline: Timeline) -> None:
    """Within one body, too, the first one counts."""
    status, body = await timeline.write(value("1", is_="first"), value("1", is_="second"))

    stored = await timeline.project.operate.items(timeline.path)
    assert (status, body["values"], body["duplicates"]) == (201, 1, 1)
    assert [one["value"] for one in stored] == ["first"]


async def test_of_many_at_once_one_is_stored(timeline: Timeline) -> None:
    """Also when each of them brings something new besides."""
    answers = await asyncio.gather(
        *(timeline.write(value("same"), value(f"own {n}")) for n in range(20))
    )

    assert {status for status, _ in answers} == {201}
    assert sum(body["duplicates"] for _, body in answers) == 19
    assert await timeline.count() == 21


async def test_other_writes_of_the_group_are_not_held_up(timeline: Timeline) -> None:
    """A duplicate voids its own commit alone."""
    await timeline.write(value("1"))

    answers = await asyncio.gather(
        *(timeline.write(value("1" if n % 2 else None)) for n in range(20))
    )

    assert sorted(status for status, _ in answers) == [200] * 10 + [201] * 10
    assert await timeline.count() == 11


async def test_a_gateway_is_told_of_each_item(timeline: Timeline) -> None:
    """An item of duplicates is no error; one that repeats an earlier item is one, too."""
    items = [
        {"device": timeline.id, "values": [value("1"), value(None)]},
        {"token": timeline.token, "values": [value("1")]},
        {"device": timeline.id, "values": [value("")]},
    ]

    first = await timeline.project.ingest.ok("POST", "/v1/writes", items)
    again = await timeline.project.ingest.ok("POST", "/v1/writes", items)

    assert [one["status"] for one in first["items"]] == [201, 200, 422]
    assert [one.get("duplicates") for one in first["items"]] == [0, 1, None]
    assert [one.get("duplicates") for one in again["items"]] == [1, 1, None]
    assert (first["accepted"], first["rejected"]) == (2, 1)
    assert first["items"][1]["event_id"] is None
    assert await timeline.count() == 3


async def test_a_device_is_told_in_its_own_words(timeline: Timeline) -> None:
    """201 when something was stored, 200 when nothing was."""
    nobody = Caller(timeline.project.operate.http, "")
    thing = f"/v2/things/{timeline.token}"

    first = await nobody.call("POST", thing, {"values": [value("1")]})
    again = await nobody.call("POST", thing, {"values": [value("1")]})
    plain = await nobody.ok("POST", thing, {"values": [value(None)]})

    assert first.status_code == 201
    assert first.json()["duplicates"] == 0
    assert again.status_code == 200
    assert again.json() == {
        "status": "duplicate",
        "message": "every value was sent before",
        "event_id": None,
        "duplicates": 1,
    }
    assert "duplicates" not in plain


@pytest.mark.parametrize("value_id", ["", "a" * 129, "a\0b", 5, ["a"]])
async def test_an_id_that_is_none_is_refused(timeline: Timeline, value_id: Any) -> None:
    """1 to 128 characters, text; the field is named."""
    body = {"values": [{"key": "a", "value": 1, "id": value_id}]}

    problem = await timeline.project.ingest.refused(422, "POST", timeline.path, body)

    assert problem["errors"][0]["pointer"] == "/values/0/id"
    assert await timeline.count() == 0


async def test_an_id_may_be_any_text(timeline: Timeline) -> None:
    """Of any script, with spaces and lines; 128 characters are enough for everybody."""
    for value_id in ("é" * 128, "a b\nc", "'; DROP TABLE value_ids --"):
        assert (await timeline.write(value(value_id)))[0] == 201
        assert (await timeline.write(value(value_id)))[0] == 200
