"""`/v1/deliveries`: lists and filters, and what people may do with one delivery or with many."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, insert, select

from engine.clock import iso
from engine.connectors import CONNECTORS
from engine.deliveries import NEXT, State
from engine.ids import new_id
from engine.store.delivery_actions import Action
from engine.store.journal import Commit
from engine.store.tables import deliveries
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)
from tests.standins.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_MS = 86_400_000
NOWHERE = {"kind": "webhook", "credentials": {"url": "http://127.0.0.1:8/nowhere"}}
# What each action makes of each state; None: 409.
MADE: dict[Action, dict[State, State | None]] = {
    Action.RESEND: {
        State.QUEUED: State.QUEUED, State.SENDING: None, State.DELIVERED: State.QUEUED,
        State.RETRYING: State.QUEUED, State.FAILED: State.QUEUED,
        State.CANCELLED: State.QUEUED, State.HELD: None,
    },
    Action.CANCEL: {
        State.QUEUED: State.CANCELLED, State.SENDING: None, State.DELIVERED: None,
        State.RETRYING: State.CANCELLED, State.FAILED: None, State.CANCELLED: State.CANCELLED,
        State.HELD: State.CANCELLED,
    },
    Action.HOLD: {
        State.QUEUED: State.HELD, State.SENDING: None, State.DELIVERED: None,
        State.RETRYING: State.HELD, State.FAILED: None, State.CANCELLED: None,
        State.HELD: State.HELD,
    },
    Action.RELEASE: {
        State.QUEUED: State.QUEUED, State.SENDING: None, State.DELIVERED: None,
        State.RETRYING: State.RETRYING, State.FAILED: None, State.CANCELLED: None,
        State.HELD: State.QUEUED,
    },
}  # fmt: skip


async def put(project: Project, state: State = State.FAILED, **fields: Any) -> str:
    """Put a delivery into the table, due tomorrow, and tell no outbox of it; return its id."""
    now_ms = project.platform.clock()
    row = {
        "id": new_id("dlv"),
        "project_id": project.id,
        "execution_id": new_id("exe"),
        "position": 0,
        "connection": "HOOK",
        "kind": "webhook",
        "payload": '{"type": "x", "data": {}}',
        "state": state.value,
        "attempts": 0,
        "next_ms": now_ms + DAY_MS,
        "created_ms": now_ms,
        "ended_ms": None,
        "node_id": project.platform.outbox_node(),
    } | fields

    def change(connection: Connection) -> None:
        connection.execute(insert(deliveries).values(row))

    await project.platform.journal.commit(Commit(change=change))
    return str(row["id"])


def checked(provider: Provider) -> str:
    """Return the provider's message as a run would have left it."""
    settings = provider.connection()["settings"]
    message = CONNECTORS[provider.kind].check_message("send", dict(provider.message), settings)
    return msgspec.json.encode(message).decode()


async def row_of(project: Project, delivery_id: str) -> Any:
    query = select(deliveries).where(deliveries.c.id == delivery_id)
    return await project.platform.database.read(
        lambda connection: connection.execute(query).mappings().one()
    )


async def ended(project: Project, delivery_id: str) -> dict[str, Any]:
    """Return a delivery once the outbox is done with it."""
    for _ in range(500):
        shown: dict[str, Any] = await project.operate.ok("GET", f"/v1/deliveries/{delivery_id}")
        if shown["state"] in ("failed", "delivered", "cancelled"):
            return shown
        await asyncio.sleep(0.01)  # the outbox is another task, and tells nobody
    raise AssertionError(shown)


async def test_lists_are_newest_first_whatever_the_ids_say(project: Project) -> None:
    """An id is made from its root's, so pages go by the time; of one instant, by the id."""
    now_ms = project.platform.clock()
    times = [now_ms - 5, now_ms - 1, now_ms - 3, now_ms - 3, now_ms - 3, now_ms - 9]
    made = [(at_ms, await put(project, created_ms=at_ms)) for at_ms in times]
    first = await project.operate.ok("GET", "/v1/deliveries", params={"limit": 2})
    new = await put(project, created_ms=now_ms)

    rest = await project.operate.items("/v1/deliveries", limit=2, cursor=first["next_cursor"])

    shown = [one["id"] for one in first["items"] + rest]
    assert shown == [delivery_id for _, delivery_id in sorted(made, reverse=True)]
    assert new not in shown


async def test_every_filter_finds_its_own(project: Project) -> None:
    """Alone, and together with others."""
    now_ms = project.platform.clock()
    mine = await put(
        project,
        State.HELD,
        connection="SMS",
        kind="twilio",
        recipient="+15558675310",
        function="alarm",
        execution_id="exe_" + "7" * 32,
        created_ms=now_ms - DAY_MS,
        reason="held by hand",
    )
    await put(project, State.QUEUED, recipient="+15551230000", function="report")
    until = iso(now_ms - DAY_MS + 1)
    filters = {
        "state": "held", "connection": "SMS", "kind": "twilio", "recipient": "+15558675310",
        "function": "alarm", "execution": "exe_" + "7" * 32, "until": until,
    }  # fmt: skip

    for name, value in filters.items():
        found = await project.operate.items("/v1/deliveries", **{name: value})
        assert [one["id"] for one in found] == [mine], name
    both = await project.operate.items("/v1/deliveries", **filters)
    none = await project.operate.items("/v1/deliveries", **filters | {"since": until})

    assert [(one["function"], one["reason"]) for one in both] == [("alarm", "held by hand")]
    assert both[0]["next_attempt_at"] is None
    assert none == []


async def test_a_function_is_found_by_its_id_too(project: Project) -> None:
    """Deliveries keep the name."""
    function = await project.function("alarm")
    mine = await put(project, function="alarm")
    await put(project, function="other")

    found = await project.operate.items("/v1/deliveries", function=function["id"])

    assert [one["id"] for one in found] == [mine]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=gone", "?state"),
        ("since=soon", "?since"),
        ("until=never", "?until"),
        ("limit=0", "?limit"),
        ("cursor=x", "?cursor"),
        ("cursor=dlv_" + "0" * 32, "?cursor"),
    ],
)
async def test_a_wrong_filter_is_named(shared: Project, query: str, pointer: str) -> None:
    """A cursor that is gone too: ids do not say where they stood."""
    problem = await shared.operate.refused(422, "GET", f"/v1/deliveries?{query}")

    assert problem["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("state", State)
async def test_each_action_makes_of_each_state_what_it_should(
    project: Project, action: Action, state: State
) -> None:
    """What the table of states forbids is a conflict that says why; nothing is changed then."""
    delivery_id = await put(project, state, attempts=3)
    path, made = f"/v1/deliveries/{delivery_id}/{action}", MADE[action][state]

    if made is None:
        problem = await project.operate.refused(409, "POST", path)
        stored = await row_of(project, delivery_id)
        assert stored["state"] == state
        assert (state is State.SENDING) == ("ask again in a moment" in problem["detail"])
    else:
        taken = await project.operate.ok("POST", path)
        assert taken == {"id": delivery_id, "state": made.value}
        assert made is state or made in NEXT[state]


@pytest.mark.parametrize("action", Action)
async def test_an_action_that_is_asked_for_twice_is_done_once(
    project: Project, action: Action
) -> None:
    """By itself, and under an Idempotency-Key."""
    start = {Action.RESEND: State.FAILED, Action.RELEASE: State.HELD}.get(action, State.QUEUED)
    delivery_id = await put(project, start, connection="GONE")
    path, key = f"/v1/deliveries/{delivery_id}/{action}", {"headers": {"Idempotency-Key": action}}

    first = await project.operate.call("POST", path, **key)
    again = await project.operate.call("POST", path, **key)

    assert first.is_success
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    if action in (Action.CANCEL, Action.HOLD):
        before = await row_of(project, delivery_id)
        assert (await project.operate.call("POST", path)).json() == first.json()
        assert await row_of(project, delivery_id) == before


async def test_a_resend_starts_anew_and_is_sent_at_once(project: Project) -> None:
    """Attempts are counted on; what was known of the first message is forgotten."""
    delivery_id = await put(
        project,
        attempts=8,
        connection="GONE",
        reason="the provider says undelivered",
        message_id="SM1",
        provider_status="undelivered",
        provider_ms=1,
        ended_ms=1,
    )

    taken = await project.operate.call("POST", f"/v1/deliveries/{delivery_id}/resend")
    shown = await ended(project, delivery_id)
    stored = await row_of(project, delivery_id)

    assert (taken.status_code, taken.json()["state"]) == (202, "queued")
    assert (stored["base_attempts"], shown["attempts"]) == (8, 9)
    assert "PUT /v1/connections/GONE" in shown["last_error"]
    assert (shown["message_id"], shown["provider_status"]) == (None, None)


async def test_a_release_clears_it_for_the_cost_guard(project: Project) -> None:
    """And it is sent at once."""
    delivery_id = await put(project, State.HELD, connection="GONE", reason="the guard")

    await project.operate.ok("POST", f"/v1/deliveries/{delivery_id}/release")
    shown = await ended(project, delivery_id)

    assert shown["attempts"] == 1
    assert (await row_of(project, delivery_id))["cleared"]


async def test_a_hold_and_a_cancel_say_why(project: Project) -> None:
    """In the reason, for whoever looks later."""
    held, gone = await put(project, State.QUEUED), await put(project, State.RETRYING)

    await project.operate.ok("POST", f"/v1/deliveries/{held}/hold")
    await project.operate.ok("POST", f"/v1/deliveries/{gone}/cancel")
    shown = [await project.operate.ok("GET", f"/v1/deliveries/{one}") for one in (held, gone)]

    assert [one["reason"] for one in shown] == ["held by hand", "cancelled by hand"]
    assert [one["ended_at"] is None for one in shown] == [True, False]


async def test_deliveries_of_others_are_not_there(project: Project, neighbour: Project) -> None:
    """Neither to see nor to change, one or many."""
    delivery_id = await put(neighbour, connection="GONE")

    await project.operate.refused(404, "GET", f"/v1/deliveries/{delivery_id}")
    for action in Action:
        await project.operate.refused(404, "POST", f"/v1/deliveries/{delivery_id}/{action}")
    body = {"action": "resend", "filter": {"connection": "GONE"}}
    done = await project.operate.ok("POST", "/v1/deliveries:bulk", body)
    page = f"/v1/deliveries?cursor={delivery_id}"
    await project.operate.refused(422, "GET", page)

    assert done["count"] == 0
    assert (await row_of(neighbour, delivery_id))["state"] == "failed"


async def test_many_are_counted_then_sent_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one step; what was delivered is left alone, unless its state is asked for."""
    monkeypatch.setattr("engine.ledger.STEP", 5)
    ids = [await put(project, connection="GONE", created_ms=n) for n in range(1, 24)]
    fine = await put(project, State.DELIVERED, connection="GONE")
    body = {"action": "resend", "filter": {"connection": "GONE"}}

    would = await project.operate.ok("POST", "/v1/deliveries:bulk", body | {"dry_run": True})
    left = await project.operate.items("/v1/deliveries", connection="GONE", state="failed")
    done = await project.operate.ok("POST", "/v1/deliveries:bulk", body)
    one = {"action": "resend", "filter": {"connection": "GONE", "state": "delivered"}}
    again = await project.operate.ok("POST", "/v1/deliveries:bulk", one)

    assert (would["count"], would["ids"], would["dry_run"]) == (23, ids[:10], True)
    assert len(left) == 23
    assert (done["count"], done["ids"], done["skipped"]) == (23, ids[:10], 0)
    assert (again["count"], again["ids"]) == (1, [fine])
    assert (await ended(project, ids[-1]))["attempts"] == 1


async def test_what_failed_since_then_is_recovered_whenever_it_was_made(project: Project) -> None:
    """Who looks for an outage's victims knows when it began, not when the messages were made."""
    long_ago_ms, outage_ms = 1_000, 1_262_304_000_000
    before = {"connection": "GONE", "created_ms": long_ago_ms}
    await put(project, **before, ended_ms=outage_ms - 1)
    victim = await put(project, **before, ended_ms=outage_ms)
    since = "2010-01-01T00:00:00Z"
    body = {"action": "resend", "filter": {"connection": "GONE", "ended_since": since}}

    shown = await project.operate.items("/v1/deliveries", connection="GONE", ended_since=since)
    done = await project.operate.ok("POST", "/v1/deliveries:bulk", body)

    assert [one["id"] for one in shown] == [victim]
    assert (done["count"], done["ids"]) == (1, [victim])


async def test_what_cannot_be_done_is_told(project: Project) -> None:
    """What is being sent right now is skipped, and named."""
    waits = await put(project, State.QUEUED)
    sends = await put(project, State.SENDING)
    body = {"action": "cancel", "filter": {"connection": "HOOK"}}

    would = await project.operate.ok("POST", "/v1/deliveries:bulk", body | {"dry_run": True})
    done = await project.operate.ok("POST", "/v1/deliveries:bulk", body)

    assert (would["count"], would["ids"]) == (1, [waits])
    assert (done["count"], done["ids"], done["skipped"]) == (1, [waits], 1)
    assert "being sent right now" in done["reasons"][sends]


async def test_many_are_those_of_before_the_request(project: Project) -> None:
    """What runs make meanwhile is not theirs."""
    later = await put(project, created_ms=project.platform.clock() + DAY_MS)
    body = {"action": "resend", "filter": {"state": "failed", "since": "2010-10-29"}}

    done = await project.operate.ok("POST", "/v1/deliveries:bulk", body)

    assert done["count"] == 0
    assert (await row_of(project, later))["state"] == "failed"


async def test_many_are_held_and_released(project: Project) -> None:
    """By any filter."""
    ids = [await put(project, State.QUEUED, recipient="+1", created_ms=n) for n in (1, 2, 3)]
    kept = await put(project, State.QUEUED, recipient="+2")
    some = {"recipient": "+1"}

    held = await project.operate.ok(
        "POST", "/v1/deliveries:bulk", {"action": "hold", "filter": some}
    )
    again = await project.operate.ok(
        "POST", "/v1/deliveries:bulk", {"action": "hold", "filter": some}
    )
    freed = await project.operate.ok(
        "POST", "/v1/deliveries:bulk", {"action": "release", "filter": some}
    )

    assert (held["ids"], again["ids"], freed["ids"]) == (ids, [], ids)
    assert (await row_of(project, kept))["state"] == "queued"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"action": "resend", "filter": {}}, "/filter"),
        ({"action": "delete", "filter": {"kind": "slack"}}, "/action"),
        ({"action": "resend", "filter": {"state": "held"}}, "/filter/state"),
        ({"action": "cancel", "filter": {"state": "delivered"}}, "/filter/state"),
        ({"action": "hold", "filter": {"state": "x"}}, "/filter/state"),
        ({"action": "hold", "filter": {"since": "x"}}, "/filter/since"),
        ({"action": "hold", "filter": {"status": "queued"}}, "/filter/status"),
        ({"action": "hold"}, "/filter"),
        ({"action": "hold", "filter": {"kind": "x"}, "dry_run": "yes"}, "/dry_run"),
    ],
)
async def test_a_wrong_request_about_many_is_refused(
    shared: Project, body: dict[str, Any], pointer: str
) -> None:
    """Before anything is done; a filter that is forgotten is not all there are."""
    problem = await shared.operate.refused(422, "POST", "/v1/deliveries:bulk", body)

    assert problem["errors"][0]["pointer"] == pointer


async def test_a_mistyped_parameter_does_not_act_for_real(project: Project) -> None:
    """As everywhere: `dry_run` belongs into the body."""
    body = {"action": "resend", "filter": {"state": "failed"}}

    problem = await project.operate.refused(422, "POST", "/v1/deliveries:bulk?dry_run=true", body)

    assert problem["errors"][0]["pointer"] == "?dry_run"


async def test_a_delivery_shows_what_each_attempt_said(project: Project) -> None:
    """From a run to its end: who sent it, to whom, and the provider's error."""
    await project.develop.ok("PUT", "/v1/connections/HOOK", NOWHERE)
    source = "export async function job(p, env) { await env.HOOK.send({type: 'x', data: {}}) }"
    await project.function("notify", source)
    await project.develop.ok("POST", "/v1/functions/notify/invoke")

    (listed,) = await project.operate.items("/v1/deliveries", function="notify")
    shown = await ended(project, listed["id"])

    assert (listed["function"], listed["action"]) == ("notify", "send")
    assert (shown["state"], shown["payload"]) == ("failed", {"type": "x", "data": {}})
    (attempt,) = shown["attempts_log"]
    assert (attempt["attempt"], attempt["delivered"], attempt["message_id"]) == (1, False, None)
    assert attempt["error"] == shown["last_error"] is not None
