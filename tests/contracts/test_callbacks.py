"""`/v1/callbacks`: what a provider tells later, if it is the provider that tells it."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from engine.callbacks import callback_url
from engine.deliveries import State
from engine.quotas import CALLBACK_BYTES_MAX
from engine.settings import Settings
from engine.store.tables import deliveries
from engine.vault import delivery_context
from engine.wiring import Platform, open_platform
from tests.contracts.test_api_deliveries import checked, ended, put
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    project,
)
from tests.standins.providers import sendgrid
from tests.standins.providers.twilio import StandIn as Twilio
from tests.standins.providers.twilio import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = "https://cloud.example.com/engine"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str]
) -> AsyncIterator[Platform]:
    """One that the world reaches under another name, behind a proxy."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("api") / "data",
        egress_allow="127.0.0.0/8",
        public_url=PUBLIC + "/",
        **database_settings,
    )
    async with open_platform(settings) as opened:
        yield opened


@pytest.fixture
def twilio() -> Iterator[Twilio]:
    with Twilio() as stand_in:
        yield stand_in


async def tell(
    project: Project, url: str, headers: Mapping[str, str], body: bytes
) -> httpx.Response:
    """Post as the provider does; the proxy takes the public part away."""
    return await project.admin.http.post(
        url.removeprefix(PUBLIC), headers=dict(headers), content=body
    )


async def show(project: Project, delivery_id: str) -> Any:
    return await project.operate.ok("GET", f"/v1/deliveries/{delivery_id}")


def url_of(project: Project, delivery_id: str, name: str = "SMS") -> str:
    url = callback_url(PUBLIC, project.id, name, delivery_id)
    assert url is not None
    return url


async def sent(project: Project, twilio: Twilio) -> str:
    """Return the id of an SMS that Twilio has taken."""
    await project.develop.ok("PUT", "/v1/connections/SMS", twilio.connection())
    fields = {"connection": "SMS", "kind": "twilio", "payload": checked(twilio)}
    delivery_id = await put(project, **fields)
    await project.operate.ok("POST", f"/v1/deliveries/{delivery_id}/resend")
    shown = await ended(project, delivery_id)
    assert shown["state"] == "delivered", shown
    return delivery_id


async def test_the_provider_is_told_where_to_call_back(project: Project, twilio: Twilio) -> None:
    """The public URL, with project, connection and delivery."""
    delivery_id = await sent(project, twilio)

    assert twilio.accepted[0]["StatusCallback"] == url_of(project, delivery_id)


async def test_a_message_that_did_not_arrive_has_failed_after_all(
    project: Project, twilio: Twilio
) -> None:
    """With the provider's reason; what it tells on the way there is shown, too."""
    delivery_id = await sent(project, twilio)
    url, message_id = url_of(project, delivery_id), (await show(project, delivery_id))["message_id"]
    words = {"MessageSid": message_id, "MessageStatus": "sent"}
    lost = {"MessageSid": message_id, "MessageStatus": "undelivered", "ErrorCode": "30003"}

    first = await tell(project, url, *signed(url, words))
    on_its_way = await show(project, delivery_id)
    last = await tell(project, url, *signed(url, lost))
    late = await tell(project, url, *signed(url, words))
    shown = await show(project, delivery_id)

    assert [one.status_code for one in (first, last, late)] == [204, 204, 204]
    assert (on_its_way["state"], on_its_way["provider_status"]) == ("delivered", "sent")
    assert (shown["state"], shown["provider_status"]) == ("failed", "undelivered")
    assert "30003" in shown["reason"]
    assert shown["provider_status_at"] is not None


async def test_a_callback_that_is_not_signed_so_is_refused(
    project: Project, twilio: Twilio
) -> None:
    """No signature, another token, another URL, another body: nothing is written."""
    delivery_id = await sent(project, twilio)
    url, words = url_of(project, delivery_id), {"MessageStatus": "failed", "MessageSid": "SM1"}
    headers, body = signed(url, words)
    wrong = {
        "unsigned": ({}, body),
        "of another token": signed(url, words, auth_token="0" * 32),
        "of the address behind the proxy": signed(url.removeprefix(PUBLIC), words),
        "of another delivery": signed(url_of(project, "dlv_" + "0" * 32), words),
        "of another body": (headers, body + b"&ErrorCode=1"),
    }

    for what, (some, text) in wrong.items():
        answer = await tell(project, url, some, text)
        assert (answer.status_code, answer.json()["code"]) == (403, "callback_refused"), what
    shown = await show(project, delivery_id)

    assert (shown["state"], shown["provider_status"]) == ("delivered", None)


async def test_the_header_host_is_not_believed(project: Project, twilio: Twilio) -> None:
    """Who signs for a host of their own has signed for another URL."""
    delivery_id = await sent(project, twilio)
    url = url_of(project, delivery_id)
    mine = url.replace("cloud.example.com/engine", "evil.example.com")
    headers, body = signed(mine, {"MessageStatus": "failed"})
    forged = headers | {"host": "evil.example.com", "x-forwarded-host": "evil.example.com"}

    assert (await tell(project, url, forged, body)).status_code == 403


async def test_nobody_learns_what_there_is(project: Project, twilio: Twilio) -> None:
    """An unknown project, an unknown connection, a kind that tells nothing: one and the same."""
    delivery_id = await sent(project, twilio)
    hook = {"kind": "webhook", "credentials": {"url": "https://example.com/"}}
    await project.develop.ok("PUT", "/v1/connections/HOOK", hook)
    nobody = "prj_" + "0" * 32

    answers = [
        await tell(project, f"/v1/callbacks/{path}", {}, b"MessageStatus=failed")
        for path in (
            f"{nobody}/SMS/{delivery_id}", f"{project.id}/NOPE/{delivery_id}",
            f"{project.id}/HOOK/{delivery_id}", f"{project.id}/inline:twilio:00000000/x",
            f"{project.id}/inline:twilio:00000000",
        )
    ]  # fmt: skip

    assert {answer.status_code for answer in answers} == {404}
    details = {
        answer.json()["detail"].replace(answer.json()["instance"], "PATH") for answer in answers
    }
    assert details == {"there is nothing at PATH"}


async def test_a_connection_tells_of_its_own_deliveries_alone(
    project: Project, neighbour: Project, twilio: Twilio
) -> None:
    """Rightly signed, of another connection or another project: as if it were not there."""
    delivery_id = await sent(project, twilio)
    await project.develop.ok("PUT", "/v1/connections/OTHER", twilio.connection())
    await neighbour.develop.ok("PUT", "/v1/connections/SMS", twilio.connection())
    message_id = (await show(project, delivery_id))["message_id"]
    words = {"MessageStatus": "failed", "MessageSid": message_id}

    for url in (url_of(project, delivery_id, "OTHER"), url_of(neighbour, delivery_id)):
        answer = await tell(project, url, *signed(url, words))
        assert answer.status_code == 204  # Twilio would only ask again

    assert (await show(project, delivery_id))["state"] == "delivered"


async def test_events_of_many_mails_come_in_one_post(project: Project) -> None:
    """SendGrid's signed event webhook, without a delivery in the path; unknown ones are left."""
    key = sendgrid.new_key()
    with sendgrid.StandIn() as provider:
        connection = provider.connection()
    connection["credentials"]["webhook_public_key"] = sendgrid.public_text(key)
    await project.develop.ok("PUT", "/v1/connections/MAIL", connection)
    ids = [
        await put(project, State.DELIVERED, connection="MAIL", kind="sendgrid") for _ in range(3)
    ]
    words = [
        sendgrid.event("delivered", ids[0]),
        sendgrid.event("bounce", ids[1], reason="550 no such user"),
        sendgrid.event("processed", ids[2]),
        sendgrid.event("bounce", "dlv_" + "0" * 32),
        {"event": "open"},
    ]
    url = f"/v1/callbacks/{project.id}/MAIL"

    answer = await tell(project, url, *sendgrid.signed(words, key))
    forged = await tell(project, url, *sendgrid.signed(words, sendgrid.new_key()))
    shown = [await show(project, one) for one in ids]

    assert (answer.status_code, forged.status_code) == (204, 403)
    assert [one["state"] for one in shown] == ["delivered", "failed", "delivered"]
    assert [one["provider_status"] for one in shown] == ["delivered", "bounce", "processed"]
    assert "550 no such user" in shown[1]["reason"]


async def test_a_delivery_with_credentials_of_its_own_is_told_of(
    project: Project, twilio: Twilio
) -> None:
    """The token that its script gave verifies, and no other delivery's."""
    name, delivery_id = "inline:twilio:0a1b2c3d", "dlv_" + "5" * 32
    sealed = project.platform.vault.seal(
        msgspec.json.encode(twilio.connection()["credentials"]),
        context=delivery_context(project.id, delivery_id),
    )
    await put(
        project, State.DELIVERED, id=delivery_id, connection=name, kind="twilio", sealed=sealed
    )
    url = url_of(project, delivery_id, name)
    words = {"MessageStatus": "failed", "MessageSid": "SM1"}

    answer = await tell(project, url, *signed(url, words))
    forged = await tell(project, url, *signed(url, words, auth_token="0" * 32))

    assert (answer.status_code, forged.status_code) == (204, 403)
    assert (await show(project, delivery_id))["state"] == "failed"


async def test_what_is_too_large_is_not_read(project: Project, twilio: Twilio) -> None:
    """Nor kept: the limit is named."""
    delivery_id = await sent(project, twilio)
    url = url_of(project, delivery_id)
    count = select(func.count()).select_from(deliveries)
    before = await project.platform.database.read(lambda stored: stored.execute(count).scalar())

    answer = await tell(project, url, {}, b"a" * (CALLBACK_BYTES_MAX + 1))

    assert (answer.status_code, answer.json()["limit"]["name"]) == (413, "callback_bytes")
    after = await project.platform.database.read(lambda stored: stored.execute(count).scalar())
    assert before == after


async def test_without_a_public_url_nobody_is_told(project: Project) -> None:
    """A provider could not reach the engine."""
    assert callback_url("", project.id, "SMS", "dlv_1") is None
