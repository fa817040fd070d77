"""Every host call, asked by a run of one project for what another project has.

The run's cell is played (`standins.paper_cells`): it asks whatever a cell can ask. What it is told
about another project's things is what it is told about things that do not exist, and nothing
comes of it. A new capability needs a row here.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engine.run import CallEffect, Run, WriteEffect
from engine.wiring import Platform
from runtimes.contract import ANSWER, FromCell, Outcome
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    new_project,
    platform,
)
from tests.standins.paper_cells import Stage, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "function main(params, callback) { callback(null, params); }"
SECRET = "what-the-victim-keeps-9f2c"
VALUES = [{"key": "temp", "value": 666}]
THEIRS = "theirs"
NUL = "\x00"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Things:
    """What a project has, by the ids and names that a call could give."""

    project: str
    device: str
    token: str
    product: str
    function: str
    connection: str
    namespace: str
    key: str
    job: str
    execution: str


MADE_UP = Things(
    project="prj_01a2033725cc733b8dfcc0f1ba883028",
    device="dev_01a2033725cc733b8dfcc0f1ba883028",
    token="A" * 43,
    product="prd_01a2033725cc733b8dfcc0f1ba883028",
    function="no-such-function",
    connection="NOTHING",
    namespace="nowhere",
    key="no-such-key",
    job="job_01a2033725cc733b8dfcc0f1ba883028",
    execution="exe_01a2033725cc733b8dfcc0f1ba883028",
)
Ask = Callable[[Things], dict[str, Any]]


def _of(things: Things) -> dict[str, Any]:
    """Every name under which somebody could hope to be asked for whose things he means."""
    return {
        "project": things.project, "project_id": things.project, "tenant": things.project,
        "product": things.product, "product_id": things.product, "device_id": things.device,
        "job_id": things.job, "execution_id": things.execution, "run": things.execution,
        "function_id": things.function, "version": {"project_id": things.project},
    }  # fmt: skip


# Each capability, and what of another project it could be asked for.
ASKED: dict[str, list[Ask]] = {
    "devices.values": [
        lambda it: {"device": it.device, "key": "temp", "limit": 1_000},
        lambda it: {"device": it.token, "key": "temp", **_of(it)},
        lambda it: {"device": f"{it.project}/{it.device}", "key": "temp"},
    ],
    "devices.write": [
        lambda it: {"device": it.device, "values": VALUES},
        lambda it: {"device": it.token, "values": VALUES, **_of(it)},
    ],
    "devices.list": [_of],
    "kv.get": [
        lambda it: {"key": it.key, "namespace": it.namespace},
        lambda it: {"key": it.key, "namespace": it.namespace, **_of(it)},
        lambda it: {"key": f"../{it.project}/{it.key}"},
    ],
    "kv.put": [lambda it: {"key": it.key, "namespace": it.namespace, "value": 666, **_of(it)}],
    "kv.delete": [lambda it: {"key": it.key, "namespace": it.namespace, **_of(it)}],
    "kv.list": [
        lambda it: {"namespace": it.namespace, **_of(it)},
        lambda it: {"namespace": it.namespace, "prefix": it.key[:2], "cursor": ""},
    ],
    "connection.send": [
        lambda it: {"connection": it.connection, "message": {"text": "x"}, **_of(it)},
        lambda it: {"kind": "slack", "message": {"text": "x"}, **_of(it)},
        lambda it: {"connection": it.connection, "action": "ping", "message": {}},
    ],
    "function.call": [
        lambda it: {"function": it.function},
        lambda it: {"function": it.function, "payload": 1, **_of(it)},
        lambda it: {"function": f"{it.project}/{it.function}"},
    ],
    "job.progress": [lambda it: {"value": 0.99, "message": "mine", **_of(it)}],
    "fetch": [
        lambda it: {"url": f"http://127.0.0.1:8700/v2/things/{it.token}/resources/temp"},
        lambda it: {"url": "http://hooks.slack.com/", "headers": [["x-project", it.project]]},
    ],
    "timer": [lambda it: {"ms": 1, **_of(it)}],
}
ROWS = [
    pytest.param(operation, ask, id=f"{operation}-{number}")
    for operation, asks in ASKED.items()
    for number, ask in enumerate(asks, 1)
]


@dataclass
class Sides:
    stage: Stage
    victim: Project
    theirs: Things
    mine: Things

    async def ask(
        self, operation: str, arguments: dict[str, Any], *, run: Run | None = None
    ) -> tuple[Run, bool, bytes]:
        """Have a run of the attacker ask, and end; return it, and what it was told."""
        cell, ended = await self.stage.begin(run)
        text = msgspec.json.encode(arguments)
        cell.say(FromCell.OUTPUT, 1, said(b'[1,1,1,"%b",%b]' % (operation.encode(), text)))
        await self.stage.until(2)
        (answer,) = (one for one in msgspec.json.decode(self.stage.batches[1]) if one[0] == ANSWER)
        cell.say(FromCell.OUTPUT, 1, said(b'[0,1,"ok",null]'))
        return await ended.once(), answer[4], msgspec.json.encode(answer[5])

    async def everything(self) -> list[Any]:
        """Return all that the victim has, as it sees it."""
        ask, it = self.victim.operate.ok, self.theirs
        kv = f"/v1/kv/{it.namespace}"
        return [
            await ask("GET", f"/v1/devices/{it.device}/values", params={"key": "temp"}),
            await ask("GET", kv),
            await ask("GET", f"{kv}/{it.key}"),
            await ask("GET", "/v1/devices"),
            await ask("GET", "/v1/executions"),
            await ask("GET", "/v1/deliveries"),
            await ask("GET", "/v1/jobs"),
        ]


async def furnished(project: Project, name: str) -> Things:
    """Give a project one of everything."""
    await project.function(name, ECHO)
    device = await project.device(f"{name}-product")
    body = {"values": [{"key": "temp", "value": f"{SECRET}-{name}"}]}
    await project.ingest.ok("POST", f"/v1/devices/{device['id']}/values", body)
    connection = f"CONNECTION_{name.upper()}"
    if name == THEIRS:  # with one of its own, the attacker's would be meant
        url = f"https://hooks.slack.com/{SECRET}"
        given = {"kind": "slack", "credentials": {"webhook_url": url}}
        await project.develop.ok("PUT", f"/v1/connections/{connection}", given)
    await project.develop.ok("PUT", f"/v1/secrets/SECRET_{name.upper()}", {"value": SECRET})
    await project.operate.ok("PUT", f"/v1/kv/{name}-space/{name}-key", {"is": SECRET})
    job = await project.develop.ok("POST", "/v1/jobs", {"function": name, "delay_seconds": 3600})
    return Things(
        project=project.id,
        device=device["id"],
        token=device["token"],
        product=f"{name}-product",
        function=name,
        connection=connection,
        namespace=f"{name}-space",
        key=f"{name}-key",
        job=job["id"],
        execution=job["execution_id"],
    )


@pytest.fixture(scope="module")
def database_settings() -> dict[str, str]:
    """SQLite alone: whose something is, is decided by the same statements on both."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(platform: Platform, http: Any) -> AsyncIterator[Sides]:
    attacker = await new_project(platform, http, "attacker")
    victim = await new_project(platform, http, "victim")
    mine, theirs = await furnished(attacker, "mine"), await furnished(victim, THEIRS)
    await attacker.function("echo", ECHO)
    stage = Stage(platform, attacker)
    with stage.plays():
        yield Sides(stage, victim, theirs, mine)


async def test_every_capability_has_a_row(sides: Sides) -> None:
    """Whoever adds one says here what of another project it could be asked for."""
    assert sides.stage.platform.dispatcher.broker.operations() == ASKED.keys()


@pytest.mark.parametrize(("operation", "ask"), ROWS)
async def test_what_another_project_has_does_not_exist(
    sides: Sides, operation: str, ask: Ask
) -> None:
    """The answer is that for made-up names, and the victim's project is as it was."""
    before = await sides.everything()

    run, ok, told = await sides.ask(operation, ask(sides.theirs))
    _, made_up_ok, made_up = await sides.ask(operation, ask(MADE_UP))
    after = await sides.everything()

    assert after == before
    assert (ok, _nameless(told, sides.theirs)) == (made_up_ok, _nameless(made_up, MADE_UP))
    assert SECRET.encode() not in told
    assert b"internal" not in told
    record = await sides.victim.admin.call("GET", f"/v1/executions/{run.execution_id}")
    assert record.status_code == 404  # the run is not the victim's
    for effect in run.effects:
        if isinstance(effect, WriteEffect):
            assert effect.device.project_id == run.project_id
        if isinstance(effect, CallEffect):
            assert effect.version.project_id == run.project_id


def _nameless(told: bytes, things: Things) -> str:
    """Return the answer without what was asked for in it, which it may repeat, or a part of it."""
    text = told.decode()
    for name in (*vars(things).values(), things.token[:6], THEIRS):
        text = text.replace(json.dumps(name)[1:-1], "IT")
    return "made-anew" if text.startswith('{"execution_id"') else text


@pytest.mark.parametrize(
    ("operation", "ask"),
    [row for row in ROWS if row.values[0] in {"devices.values", "kv.get", "function.call"}],
)
async def test_what_the_project_itself_has_is_there(sides: Sides, operation: str, ask: Ask) -> None:
    """The same questions about its own things are answered: so the refusals above say something."""
    _, ok, told = await sides.ask(operation, ask(sides.mine))

    plain = "/" not in json.dumps(ask(sides.mine))
    assert (ok and told != b"null") == plain, told


async def test_a_run_of_a_device_lists_its_own_product_alone(sides: Sides) -> None:
    """Also when it names the other's."""
    platform = sides.stage.platform
    run = sides.stage.run()
    run.device = await platform.catalogue.device_by_id(sides.mine.project, sides.mine.device)

    _, ok, told = await sides.ask("devices.list", _of(sides.theirs), run=run)

    assert ok
    assert [device["id"] for device in msgspec.json.decode(told)] == [sides.mine.device]


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("devices.values", {"device": NUL, "key": "temp"}),
        ("devices.values", {"device": "x" * 2_000_000, "key": "temp"}),
        ("devices.values", {"device": "MINE", "key": NUL}),
        ("devices.values", {"device": "MINE", "key": "x" * 2_000_000}),
        ("devices.values", {"device": "MINE", "key": "temp", "start": 10**18, "limit": -(10**18)}),
        ("devices.values", {"device": "MINE", "key": "temp", "end": -(10**18), "limit": 10**18}),
        ("devices.write", {"device": NUL, "values": VALUES}),
        ("devices.write", {"device": "MINE", "values": [{"key": NUL, "value": 1}]}),
        ("devices.write", {"device": "MINE", "values": [{"key": "a", "value": 1, "datetime": -1}]}),
        ("kv.get", {"key": NUL}),
        ("kv.get", {"key": "x" * 2_000_000}),
        ("kv.list", {"prefix": NUL}),
        ("kv.list", {"prefix": "x" * 2_000_000, "cursor": "x" * 2_000_000}),
        ("kv.list", {"cursor": NUL, "limit": 10**18}),
        ("kv.put", {"key": "a", "value": NUL}),
        ("kv.put", {"key": "a", "value": 1, "ttl_seconds": 10**18}),
        ("function.call", {"function": NUL}),
        ("function.call", {"function": "echo", "payload": NUL, "handler": NUL}),
        ("connection.send", {"connection": NUL, "message": {}}),
        ("connection.send", {"kind": "slack", "message": {}, "credentials": {NUL: NUL}}),
        ("job.progress", {"value": 1e308, "message": NUL}),
        ("fetch", {"url": NUL}),
        ("fetch", {"url": "http://" + "x" * 2_000_000}),
        ("timer", {"ms": -1}),
        ("timer", {"ms": 1e-300}),
        ("no.such.call", {}),
        ("", {}),
        (NUL, {}),
    ],
)  # fmt: skip
async def test_arguments_of_any_kind_are_answered_as_the_guests_mistake(
    sides: Sides, operation: str, arguments: dict[str, Any]
) -> None:
    """No name, size or number makes a call fail inside the engine, or the run's record unfit."""
    given = {
        name: sides.mine.device if text == "MINE" else text for name, text in arguments.items()
    }
    encoded = json.dumps(operation)[1:-1]

    run, _, told = await sides.ask(encoded, given)

    assert b'"internal"' not in told, told[:300]
    assert b"store_failed" not in told, told[:300]
    assert run.outcome is Outcome.SUCCEEDED
    assert not run.unstored
