"""`/v1/connectors` and `/v1/connections`: what goes in, what is shown, and whether it works."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engine.connectors import CONNECTORS
from engine.deliveries import State
from engine.gates import Breaker, Gate
from engine.settings import Settings
from engine.store.gates import disabled_reason, write
from engine.store.vaulted import get_connection
from engine.vault import connection_context
from engine.wiring import Platform, open_platform
from tests.contracts.test_api_deliveries import checked, ended, put, row_of
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    project,
    shared,
)
from tests.standins.provider import Reply
from tests.standins.providers.twilio import TOKEN
from tests.standins.providers.twilio import StandIn as Twilio

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMS = "/v1/connections/SMS"
HOOK = {"kind": "webhook", "credentials": {"url": "https://example.com/s3cr3t-path"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str]
) -> AsyncIterator[Platform]:
    """One that may reach this machine, where the stand-ins are."""
    data_dir = tmp_path_factory.mktemp("api") / "data"
    settings = Settings(data_dir=data_dir, egress_allow="127.0.0.0/8", **database_settings)
    async with open_platform(settings) as opened:
        yield opened


@pytest.fixture
def twilio() -> Iterator[Twilio]:
    with Twilio() as stand_in:
        yield stand_in


async def credentials_of(project: Project, name: str) -> Any:
    """Return what is sealed: no request may see it."""
    stored = await project.platform.database.read(get_connection, project.id, name)
    context = connection_context(project.id, name)
    return msgspec.json.decode(project.platform.vault.open(stored.sealed, context=context))


async def set_gate(project: Project, name: str, gate: Gate) -> None:
    await project.platform.journal.run_alone(write, {(project.id, name): gate})


async def test_every_connector_tells_what_it_takes(shared: Project) -> None:
    """JSON Schemas of both structs, its actions and habits; one by its kind, too."""
    listed = await shared.operate.items("/v1/connectors")
    one = await shared.operate.ok("GET", "/v1/connectors/twilio")
    await shared.operate.refused(404, "GET", "/v1/connectors/pigeon")

    assert [connector["kind"] for connector in listed] == list(CONNECTORS)
    assert one in listed
    assert (one["actions"][0], one["callbacks"]) == ("send", True)
    assert "auth_token" in str(one["credentials"])
    for connector in listed:
        assert {"base_url", "rate", "guard", "retries"} <= set(_fields(connector["settings"]))
        assert connector["habits"]["concurrency"] >= 1


def _fields(schema: dict[str, Any]) -> dict[str, Any]:
    shape = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    found: dict[str, Any] = shape["properties"]
    return found


async def test_a_connection_is_shown_without_its_credentials(project: Project) -> None:
    """Settings, who may use it, and how it does; the same in the list."""
    body = HOOK | {"settings": {"guard": {"per_day": 5}}, "functions": ["alarm"]}

    made = await project.develop.ok("PUT", "/v1/connections/HOOK", body)
    shown = await project.operate.ok("GET", "/v1/connections/HOOK")
    listed = await project.operate.items("/v1/connections")

    assert made == shown == listed[0]
    assert (shown["settings"], shown["functions"]) == ({"guard": {"per_day": 5}}, ["alarm"])
    assert shown["gate"] == {
        "breaker": "closed", "until": None, "failures": 0, "failing_since": None,
        "last_error": None, "disabled": None,
    }  # fmt: skip
    assert "s3cr3t" not in str((made, shown, listed))


async def test_what_is_left_out_stays_as_it_was(project: Project) -> None:
    """Nobody types a secret again to change a setting; nor a setting to change the secret."""
    path, other = "/v1/connections/HOOK", {"url": "https://example.com/other"}
    await project.develop.ok("PUT", path, HOOK | {"functions": ["alarm"]})

    settings = await project.develop.ok(
        "PUT", path, {"kind": "webhook", "settings": {"ordered": False}}
    )
    kept = await credentials_of(project, "HOOK")
    credentials = await project.develop.ok("PUT", path, {"kind": "webhook", "credentials": other})
    functions = await project.develop.ok("PUT", path, {"kind": "webhook", "functions": None})

    assert kept == HOOK["credentials"]
    assert await credentials_of(project, "HOOK") == other
    assert settings["settings"] == credentials["settings"] == {"ordered": False}
    assert (credentials["functions"], functions["functions"]) == (["alarm"], None)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "webhook"}, "/credentials"),
        ({"kind": "slack"}, "/credentials"),
        ({"kind": "pigeon"}, "/kind"),
        ({"kind": "pigeon", "credentials": {}}, "/kind"),
        ({"kind": "webhook", "credentials": {"uri": "x"}}, "/credentials/uri"),
        ({**HOOK, "settings": {"rate": {"limit": 0}}}, "/settings/rate/limit"),
        ({**HOOK, "settings": {"speed": 1}}, "/settings/speed"),
        ({**HOOK, "functions": "alarm"}, "/functions"),
        ({**HOOK, "function": ["alarm"]}, "/function"),
    ],
)
async def test_a_wrong_connection_is_refused_with_its_field(
    shared: Project, body: dict[str, Any], pointer: str
) -> None:
    """Without credentials there must be some already, of the same kind."""
    path = "/v1/connections/NEW"
    if body == {"kind": "slack"}:
        path = "/v1/connections/OLD"
        await shared.develop.ok("PUT", path, HOOK)

    problem = await shared.develop.refused(422, "PUT", path, body)

    assert problem["errors"][0]["pointer"] == pointer
    assert "s3cr3t" not in str(problem)
    await shared.operate.refused(404, "GET", "/v1/connections/NEW")


async def test_the_gate_says_why_nothing_is_sent(project: Project) -> None:
    """In words for people; and until when."""
    await project.develop.ok("PUT", "/v1/connections/HOOK", HOOK)
    gate = Gate(
        breaker=Breaker.OPEN,
        until_ms=1_288_310_400_000,
        failures=5,
        since_ms=1_288_310_300_000,
        last_error="HTTP 500",
        disabled="HTTP 401",
    )
    await set_gate(project, "HOOK", gate)

    shown = await project.operate.ok("GET", "/v1/connections/HOOK")

    assert shown["gate"] == {
        "breaker": "open", "until": "2010-10-29T00:00:00.000Z", "failures": 5,
        "failing_since": "2010-10-28T23:58:20.000Z", "last_error": "HTTP 500",
        "disabled": "HTTP 401",
    }  # fmt: skip


async def test_enabling_opens_it_and_releases_what_was_held_for_it(project: Project) -> None:
    """Not what was held by hand or by the cost guard; and these have still to pass the guard."""
    await project.develop.ok("PUT", "/v1/connections/HOOK", HOOK)
    gate = Gate(next_ms=7, breaker=Breaker.OPEN, until_ms=1, failures=9, disabled="HTTP 401")
    await set_gate(project, "HOOK", gate)
    why = disabled_reason("HOOK", "HTTP 401")
    for_it = await put(project, State.HELD, reason=why)
    by_hand = await put(project, State.HELD, reason="held by hand")
    of_another = await put(project, State.HELD, reason=why, connection="OTHER")

    done = await project.operate.ok("POST", "/v1/connections/HOOK/enable")
    again = await project.operate.ok("POST", "/v1/connections/HOOK/enable")
    shown = await project.operate.ok("GET", "/v1/connections/HOOK")
    await project.operate.refused(404, "POST", "/v1/connections/NOPE/enable")

    assert (done, again["released"]) == ({"name": "HOOK", "released": 1}, 0)
    assert (shown["gate"]["breaker"], shown["gate"]["disabled"]) == ("closed", None)
    assert (await row_of(project, for_it))["state"] != "held"
    assert not (await row_of(project, for_it))["cleared"]
    assert (await row_of(project, by_hand))["state"] == "held"
    assert (await row_of(project, of_another))["state"] == "held"


async def test_new_credentials_enable_it_and_new_settings_do_not(
    project: Project, twilio: Twilio
) -> None:
    """What was held for the old ones is sent with the new ones."""
    body = twilio.connection()
    await project.develop.ok("PUT", SMS, body)
    await set_gate(project, "SMS", replace(Gate(), disabled="HTTP 401"))
    waits = await put(
        project,
        State.HELD,
        connection="SMS",
        kind="twilio",
        payload=checked(twilio),
        reason=disabled_reason("SMS", "HTTP 401"),
    )

    await project.develop.ok("PUT", SMS, {"kind": "twilio", "settings": body["settings"]})
    before = await row_of(project, waits)
    await project.develop.ok("PUT", SMS, body)
    after = await ended(project, waits)

    assert before["state"] == "held"
    assert after["state"] == "delivered"
    assert len(twilio.accepted) == 1


async def test_a_deleted_connection_is_gone(project: Project, neighbour: Project) -> None:
    """And another project's was never there."""
    await neighbour.develop.ok("PUT", "/v1/connections/HOOK", HOOK)

    for method, path in (("GET", ""), ("POST", "/test"), ("POST", "/enable"), ("DELETE", "")):
        await project.admin.refused(404, method, f"/v1/connections/HOOK{path}")
    await neighbour.develop.ok("DELETE", "/v1/connections/HOOK")

    await neighbour.operate.refused(404, "GET", "/v1/connections/HOOK")


async def test_a_test_asks_the_provider_alone(project: Project, twilio: Twilio) -> None:
    """Whether the credentials are good, and as whom it knows us; nobody is sent anything."""
    await project.develop.ok("PUT", SMS, twilio.connection())

    good = await project.operate.ok("POST", f"{SMS}/test")
    twilio.then(Reply(status=500, body=b"oops"))
    down = await project.develop.ok("POST", f"{SMS}/test", {})

    assert (good["ok"], good["status"], good["detail"]) == (True, 200, "Boilers (active)")
    assert good["took_ms"] >= 0
    assert good["delivery_id"] is None
    assert (down["ok"], down["status"]) == (False, 500)
    assert twilio.accepted == []


async def test_a_test_tells_of_wrong_credentials(project: Project, twilio: Twilio) -> None:
    """Without them, even if the provider says them back."""
    body = twilio.connection()
    wrong = body | {"credentials": body["credentials"] | {"auth_token": TOKEN[::-1]}}
    await project.develop.ok("PUT", SMS, wrong)
    twilio.then(Reply(status=401, body=f'{{"message": "no {TOKEN[::-1]}"}}'.encode()))

    told = await project.operate.ok("POST", f"{SMS}/test")
    plain = await project.operate.ok("POST", f"{SMS}/test")

    assert [one["ok"] for one in (told, plain)] == [False, False]
    assert plain["status"] == 401
    assert TOKEN[::-1] not in str((told, plain))


async def test_a_test_can_send_a_message_at_once(project: Project, twilio: Twilio) -> None:
    """It is no delivery: neither in the list, nor tried again."""
    await project.develop.ok("PUT", SMS, twilio.connection())
    body = {"message": twilio.message}

    sent = await project.operate.ok("POST", f"{SMS}/test", body)
    twilio.then(Reply(status=500, body=b"oops"))
    failed = await project.operate.ok("POST", f"{SMS}/test", body)

    assert sent["ok"]
    assert sent["delivery_id"].startswith("dlv_test")
    assert sent["detail"].startswith("SM")
    assert not failed["ok"]
    assert len(twilio.accepted) == 1
    assert await project.operate.items("/v1/deliveries") == []


async def test_a_test_with_a_wrong_message_is_refused(project: Project, twilio: Twilio) -> None:
    """As in a run: the field is named; nothing is sent."""
    await project.develop.ok("PUT", SMS, twilio.connection())

    bad = await project.operate.refused(422, "POST", f"{SMS}/test", {"message": {"to": "x"}})
    body = {"message": twilio.message, "action": "fax"}
    unknown = await project.operate.refused(422, "POST", f"{SMS}/test", body)

    assert bad["code"] == "validation_failed"
    assert bad["errors"][0]["pointer"] == "/message"
    assert unknown["errors"][0]["pointer"] == "/action"
    assert twilio.accepted == []


async def test_a_test_with_a_message_counts_for_the_cost_guard(
    project: Project, twilio: Twilio
) -> None:
    """Also one that fails; and what is only asked costs nothing."""
    body = twilio.connection()
    settings = body["settings"] | {"guard": {"recipient_per_hour": 2, "per_day": 100}}
    await project.develop.ok("PUT", SMS, body | {"settings": settings})
    message = {"message": twilio.message}
    for _ in range(2):
        await project.operate.ok("POST", f"{SMS}/test", message)

    refused = await project.operate.refused(409, "POST", f"{SMS}/test", message)
    asked = await project.operate.ok("POST", f"{SMS}/test")

    assert "at most 2; raise settings.guard.recipient_per_hour" in refused["detail"]
    assert asked["ok"]
    assert len(twilio.accepted) == 2


MAIL: dict[str, Any] = {
    "kind": "mail",
    "credentials": {"username": "u", "password": "s3cr3t-password"},
    "settings": {"host": "mail.example.com", "from": "a@example.com"},
}
CHAT = {"kind": "slack", "credentials": {"token": "xoxb-000000000000-s3cr3t"}}


@pytest.mark.parametrize(
    ("stored", "changed"),
    [
        (CHAT, {"base_url": "https://evil.example.com"}),
        (HOOK, {"base_url": "https://evil.example.com"}),
        (MAIL, {"host": "evil.example.com"}),
        (MAIL, {"port": 2525}),
        (MAIL, {"security": "tls"}),
        (MAIL, {"ca_pem": "-----BEGIN CERTIFICATE-----"}),
    ],
)
async def test_kept_credentials_go_to_no_other_server(
    project: Project, stored: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Whoever may change a connection may not read what is in it by having it sent to himself."""
    path, before = "/v1/connections/KEPT", stored.get("settings", {})
    await project.develop.ok("PUT", path, stored)
    body = {"kind": stored["kind"], "settings": before | changed}

    refused = await project.develop.refused(422, "PUT", path, body)
    shown = await project.develop.ok("GET", path)
    await project.develop.ok("PUT", path, body | {"settings": before | {"ordered": False}})

    assert refused["errors"] == [
        {
            "pointer": "/credentials",
            "message": "give the credentials again: they would go to another server",
        }
    ]
    assert shown["settings"] == before


async def test_certificates_that_are_no_text_of_pem_are_refused(project: Project) -> None:
    """Python says so by another error than for other text."""
    body = MAIL | {"settings": MAIL["settings"] | {"ca_pem": "Zertifikat für Köln"}}

    refused = await project.develop.refused(422, "PUT", "/v1/connections/MAIL", body)

    assert refused["errors"][0]["pointer"] == "/settings/ca_pem"


async def test_a_secret_and_a_connection_have_two_names(project: Project) -> None:
    """Both are in env: one of them would win without a word."""
    await project.develop.ok("PUT", "/v1/secrets/FIRST", {"value": "s3cr3t"})
    await project.develop.ok("PUT", "/v1/connections/SECOND", HOOK)

    connection = await project.develop.refused(409, "PUT", "/v1/connections/FIRST", HOOK)
    secret = await project.develop.refused(409, "PUT", "/v1/secrets/SECOND", {"value": "s3cr3t"})

    assert "there is a secret FIRST" in connection["detail"]
    assert "there is a connection SECOND" in secret["detail"]
    assert "choose another name, or delete" in secret["detail"]


async def test_what_a_disabled_connection_holds_is_not_released(project: Project) -> None:
    """It would be held again at once; what another connection holds is."""
    await project.develop.ok("PUT", "/v1/connections/HOOK", HOOK)
    await set_gate(project, "HOOK", Gate(disabled="HTTP 401"))
    why = disabled_reason("HOOK", "HTTP 401")
    held = await put(project, State.HELD, reason=why)
    other = await put(project, State.HELD, reason="held by hand", connection="OTHER")

    one = await project.operate.refused(409, "POST", f"/v1/deliveries/{held}/release")
    body = {"action": "release", "filter": {"state": "held"}}
    bulk = await project.operate.ok("POST", "/v1/deliveries:bulk", body)

    remedy = "the connection is disabled: enable it (cloudcode connections enable HOOK)"
    assert remedy in one["detail"]
    assert (bulk["ids"], bulk["reasons"]) == ([other], {held: remedy})
    assert (await row_of(project, held))["state"] == "held"


async def test_a_test_is_not_made_twice_under_one_key(project: Project, twilio: Twilio) -> None:
    """A message costs money: an Idempotency-Key holds here, too."""
    await project.develop.ok("PUT", SMS, twilio.connection())
    options = {"headers": {"Idempotency-Key": "once"}}
    body = {"message": twilio.message}

    first = await project.operate.call("POST", f"{SMS}/test", body, **options)
    again = await project.operate.call("POST", f"{SMS}/test", body, **options)

    assert again.json() == first.json()
    assert len(twilio.accepted) == 1


@pytest.mark.parametrize("action", ["cancel", "hold"])
async def test_what_is_taken_out_of_a_line_lets_the_next_one_pass(
    project: Project, twilio: Twilio, action: str
) -> None:
    """Deliveries to one recipient go one after the other; those that wait no more block nobody."""
    await project.develop.ok("PUT", SMS, twilio.connection())
    now_ms = project.platform.clock()
    line: dict[str, Any] = {"connection": "SMS", "kind": "twilio", "recipient": "+15005550010"}
    line |= {"payload": checked(twilio), "line": "+15005550010"}
    tried = {"attempts": 1, "next_ms": now_ms + 60_000}
    first = await put(project, State.RETRYING, **line, **tried, created_ms=now_ms - 2)
    second = await put(project, State.QUEUED, **line, created_ms=now_ms - 1, next_ms=now_ms)
    project.platform.outbox.notice([first, second])
    await project.platform.outbox.drain()
    waits = await row_of(project, second)

    await project.operate.ok("POST", f"/v1/deliveries/{first}/{action}")

    assert waits["state"] == "queued"
    assert (await ended(project, second))["state"] == "delivered"
