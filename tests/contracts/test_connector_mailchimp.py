"""Mailchimp, beyond its page: what is sent to which API, and what each error means."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.connectors.contract import (
    Answer,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_connection,
)
from engine.connectors.mailchimp import Mailchimp
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.standins.http_server import Received, answer, http_server
from tests.standins.provider import Reply
from tests.standins.providers.mailchimp import (
    API_KEY,
    LIST_ID,
    OTHER_API_KEY,
    OTHER_TRANSACTIONAL_KEY,
    TRANSACTIONAL_KEY,
    StandIn,
    as_json,
    failed,
    hash_of,
    problem,
)

NOW = 1_700_000_000_500
DELIVERY = "dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"
MAILCHIMP = Mailchimp()
MAIL = {"to": "ops@example.com", "subject": "Door", "text": "open", "from": "a@example.com"}
MEMBER = {"email": "Ada@Example.com", "status": "subscribed", "list_id": LIST_ID}
TAGS = {"email": "ada@example.com", "tags": ["night"], "list_id": LIST_ID}
SETTINGS = {"list_id": LIST_ID, "from_email": "alarm@example.com", "from_name": "Hall 3"}


@pytest.fixture
def provider() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def do(
    egress: Egress,
    provider: StandIn,
    action: str,
    message: dict[str, Any],
    *,
    attempt: int = 1,
    credentials: dict[str, Any] | None = None,
    **settings: Any,
) -> Answer:
    connection = provider.connection()
    settings = connection["settings"] | settings
    credentials = connection["credentials"] if credentials is None else credentials
    check_connection(MAILCHIMP, credentials, settings)
    checked = MAILCHIMP.check_message(action, message, settings)
    return await MAILCHIMP.send(
        egress,
        Outgoing(
            action=action,
            message=json.loads(json.dumps(checked)),
            credentials=credentials,
            settings=settings,
            delivery_id=DELIVERY,
            attempt=attempt,
            now_ms=NOW,
            timeout_ms=2_000,
        ),
    )


# Transactional mail.


async def test_a_short_mail_becomes_the_apis_own(egress: Egress, provider: StandIn) -> None:
    """Each field stands where the reference has it; unknown ones belong to the message."""
    result = await do(
        egress,
        provider,
        "send",
        {
            "to": ["Ops <ops@example.com>", {"email": "b@example.com"}],
            "cc": "c@example.com",
            "bcc": ["d@example.com"],
            "from": "Hall 3 <hall@example.com>",
            "reply_to": "desk@example.com",
            "subject": "Tür offen ☃",
            "text": "offen",
            "html": "<b>offen</b>",
            "headers": {"X-Hall": "3"},
            "global_merge_vars": {"hall": 3},
            "tags": ["alarm"],
            "async": True,
        },
    )

    (asked,) = provider.asked
    assert isinstance(result, Sent)
    assert result.message_id
    assert asked.path == "/api/1.0/messages/send"
    assert asked.headers["content-type"] == "application/json"
    assert "authorization" not in asked.headers
    assert json.loads(asked.body) == {
        "key": TRANSACTIONAL_KEY,
        "async": True,
        "message": {
            "to": [
                {"email": "ops@example.com", "name": "Ops", "type": "to"},
                {"email": "b@example.com", "type": "to"},
                {"email": "c@example.com", "type": "cc"},
                {"email": "d@example.com", "type": "bcc"},
            ],
            "from_email": "hall@example.com",
            "from_name": "Hall 3",
            "subject": "Tür offen ☃",
            "text": "offen",
            "html": "<b>offen</b>",
            "headers": {"X-Hall": "3", "Reply-To": "desk@example.com"},
            "global_merge_vars": [{"name": "hall", "content": 3}],
            "tags": ["alarm"],
        },
    }


async def test_a_whole_message_is_passed_on(egress: Egress, provider: StandIn) -> None:
    """The API's own body; what it leaves out of the sender, the connection has."""
    message = {"to": [{"email": "a@example.com"}], "subject": "x", "html": "x", "important": True}

    result = await do(
        egress, provider, "send", {"message": message, "send_at": "2026-01-01 00:00:00"}
    )

    assert isinstance(result, Sent)
    assert provider.accepted == [{"from_email": "alarm@example.com", **message}]


async def test_a_template_goes_to_its_own_call(egress: Egress, provider: StandIn) -> None:
    """It brings subject, text and sender; Mailchimp needs its content, if only an empty list."""
    plain = {"to": "a@example.com", "template": "door-open"}

    first = await do(egress, provider, "send", plain)
    second = await do(egress, provider, "send", plain | {"template_content": {"main": "<b>3</b>"}})

    bodies = [json.loads(asked.body) for asked in provider.asked]
    assert isinstance(first, Sent)
    assert isinstance(second, Sent)
    assert {asked.path for asked in provider.asked} == {"/api/1.0/messages/send-template"}
    assert [body["template_name"] for body in bodies] == ["door-open"] * 2
    assert [body["template_content"] for body in bodies] == [
        [],
        [{"name": "main", "content": "<b>3</b>"}],
    ]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("hard-bounce", "denylist"),
        ("soft-bounce", "denylist"),
        ("spam", "spam"),
        ("unsub", "unsubscribed"),
        ("custom", "denylist"),
        ("invalid-sender", "from_email"),
        ("invalid", "invalid"),
        ("test-mode-limit", "demo"),
        ("unsigned", "Sending Domains"),
        ("rule", "rule"),
        ("something-new", "something-new"),
    ],
)
async def test_a_rejected_mail_says_why(
    egress: Egress, provider: StandIn, reason: str, words: str
) -> None:
    """HTTP 200, and nobody got it: the error has Mailchimp's reason, and what it means."""
    provider.denylist["ops@example.com"] = reason

    result = await do(egress, provider, "send", MAIL)

    assert isinstance(result, Refused)
    assert not result.disables
    assert result.error.startswith(f"HTTP 200: ops@example.com rejected: {reason}")
    assert words in result.error


async def test_an_invalid_address_among_others_is_noted(egress: Egress, provider: StandIn) -> None:
    """One was taken, so it is sent, and must not be sent again; the note names the other."""
    provider.denylist["b@example.com"] = "unsub"
    people = ["a..b@example.com", "b@example.com", "c@example.com"]

    result = await do(egress, provider, "send", MAIL | {"to": people})

    assert isinstance(result, Sent)
    assert result.message_id
    assert result.note == (
        "a..b@example.com invalid: no reason given; "
        "b@example.com rejected: unsub (the reader unsubscribed)"
    )


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("Invalid_Key", Refused, "transactional_key"),
        ("PaymentRequired", Refused, "pay"),
        ("PoorReputation", Refused, "reputation"),
        ("ValidationError", Refused, "ValidationError: why"),
        ("Unknown_Template", Refused, "make the template"),
        ("Unknown_Subaccount", Refused, "make the subaccount"),
        ("Unknown_Pool", Refused, "make the pool"),
        ("Unknown_Sender", Refused, "verify"),
        ("Invalid_Tag_Name", Refused, "why"),
        ("Metadata_FieldLimit", Refused, "why"),
        ("GeneralError", Retry, "GeneralError: why"),
        ("ServiceUnavailable", Retry, "why"),
        ("Something_New", Retry, "why"),
    ],
)
async def test_a_transactional_error_is_read_by_its_name(
    egress: Egress, provider: StandIn, name: str, expected: type, words: str
) -> None:
    """All come with HTTP 500; the name says whose fault it is."""
    provider.then(failed(name, "why"))

    result = await do(egress, provider, "send", MAIL)

    assert type(result) is expected
    assert isinstance(result, Retry | Refused)
    assert result.status == 500
    assert result.error.startswith(f"HTTP 500: {name}: why")
    assert words in result.error
    disables = name in ("Invalid_Key", "PaymentRequired", "PoorReputation")
    assert isinstance(result, Retry) or result.disables == disables


@pytest.mark.parametrize(
    ("status", "expected"), [(200, Refused), (401, Refused), (422, Refused), (429, Retry)]
)
async def test_an_unknown_name_is_read_by_its_status(
    egress: Egress, provider: StandIn, status: int, expected: type
) -> None:
    """Later versions of the API have other statuses than 500."""
    body = {"status": "error", "code": 1, "name": "Something_New", "message": "why"}
    provider.then(as_json(status, body))

    result = await do(egress, provider, "send", MAIL)

    assert type(result) is expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"[5]", b'[{"status": "eaten"}]', b"<html>", b"[" * 60_000, b'"x"']
)
async def test_an_answer_that_is_none_is_no_success(
    egress: Egress, provider: StandIn, body: bytes
) -> None:
    """And not tried again: somebody took it."""
    provider.then(Reply(body=body))

    result = await do(egress, provider, "send", MAIL)

    assert isinstance(result, Refused)
    assert result.status == 200
    assert len(result.error) <= 400


# The members of an audience.


async def test_a_member_is_added_and_updated_by_the_same_request(
    egress: Egress, provider: StandIn
) -> None:
    """PUT to the hash of the address in small letters, with what it becomes when it is new."""
    message = {"email": "Ada@Example.com", "status": "pending", "merge_fields": {"FNAME": "Ada"}}

    first = await do(egress, provider, "setMember", message)
    second = await do(egress, provider, "setMember", message)

    asked = provider.asked[0]
    basic = base64.b64encode(f"cloudcode:{API_KEY}".encode()).decode()
    assert first == second == Sent(200, hash_of("ada@example.com"))
    assert asked.method == "PUT"
    assert asked.path == f"/3.0/lists/{LIST_ID}/members/{hash_of('ada@example.com')}"
    assert asked.headers["authorization"] == f"Basic {basic}"
    assert json.loads(asked.body) == {
        "email_address": "Ada@Example.com",
        "status": "pending",
        "status_if_new": "pending",
        "merge_fields": {"FNAME": "Ada"},
    }
    assert len(provider.members) == 1


async def test_what_new_members_become_may_differ(egress: Egress, provider: StandIn) -> None:
    """`status_if_new` alone leaves those who are there as they are."""
    provider.add("ada@example.com", "unsubscribed")
    message = {"email_address": "ada@example.com", "status_if_new": "subscribed", "vip": True}

    result = await do(egress, provider, "setMember", message)

    assert isinstance(result, Sent)
    assert provider.members[hash_of("ada@example.com")]["status"] == "unsubscribed"
    assert provider.accepted == [message]


@pytest.mark.parametrize(("given", "query"), [(True, "?skip_merge_validation=true"), (False, "")])
async def test_merge_fields_can_be_left_out(
    egress: Egress, provider: StandIn, given: bool, query: str
) -> None:
    """Which the API is told in the query, and in no field of the member."""
    message = {"email": "ada@example.com", "status": "subscribed", "skip_merge_validation": given}

    result = await do(egress, provider, "setMember", message)

    assert isinstance(result, Sent)
    (asked,) = provider.asked
    assert asked.path == f"/3.0/lists/{LIST_ID}/members/{hash_of('ada@example.com')}{query}"
    assert "skip_merge_validation" not in json.loads(asked.body)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            "send",
            {"to": "a@example.com", "subject": "s", "text": "x", "cc": None, "reply_to": None,
             "headers": None, "attachments": None, "template": None, "from": None},
        ),
        (
            "setMember",
            {"email": "a@example.com", "email_address": None, "status": None,
             "status_if_new": "pending", "merge_fields": None, "list_id": None},
        ),
    ],
)  # fmt: skip
async def test_null_is_nothing(
    egress: Egress, provider: StandIn, action: str, message: dict[str, Any]
) -> None:
    """As with every other kind."""
    assert isinstance(await do(egress, provider, action, message), Sent)


async def test_many_recipients_make_a_long_answer(egress: Egress, provider: StandIn) -> None:
    """A result of each, which is more than 64 KiB; the mail was taken, and is not sent again."""
    message = {
        "to": [f"user{at}@example.com" for at in range(600)],
        "subject": "Door open",
        "text": "x",
    }

    assert isinstance(await do(egress, provider, "send", message), Sent)


async def test_tags_are_put_on_and_taken_off(egress: Egress, provider: StandIn) -> None:
    """A name is put on; with a status it says which."""
    provider.add("ada@example.com")
    provider.members[hash_of("ada@example.com")]["tags"] = {"day"}
    tags = ["night", {"name": "day", "status": "inactive"}, {"name": "hall 3"}]

    result = await do(egress, provider, "tag", {"email": "ada@example.com", "tags": tags})

    (asked,) = provider.asked
    assert result == Sent(204)
    assert (asked.method, asked.path.rpartition("/")[2]) == ("POST", "tags")
    assert json.loads(asked.body).keys() == {"tags"}
    assert provider.members[hash_of("ada@example.com")]["tags"] == {"night", "hall 3"}


async def test_a_member_is_archived(egress: Egress, provider: StandIn) -> None:
    """By DELETE, without a body; another audience may be named."""
    provider.add("ada@example.com")

    result = await do(
        egress, provider, "archive", {"email": "ada@example.com", "list_id": LIST_ID}, list_id="zz"
    )

    (asked,) = provider.asked
    assert result == Sent(204)
    assert (asked.method, asked.body) == ("DELETE", b"")
    assert provider.members[hash_of("ada@example.com")]["status"] == "archived"


async def test_archiving_again_after_a_lost_answer_is_done(
    egress: Egress, provider: StandIn
) -> None:
    """The first attempt did it; the second finds it done. Without a first one it is an error."""
    provider.add("ada@example.com")
    provider.then(Reply(fault="drop", taken=True))
    message = {"email": "ada@example.com"}

    first = await do(egress, provider, "archive", message)
    second = await do(egress, provider, "archive", message, attempt=2)
    alone = await do(egress, provider, "archive", message)
    unknown = await do(egress, provider, "archive", {"email": "b@example.com"})

    assert isinstance(first, Retry)
    assert second == Sent(405)
    assert isinstance(alone, Refused)
    assert isinstance(unknown, Refused)
    assert unknown.status == 404


@pytest.mark.parametrize(
    ("reply", "expected", "words"),
    [
        (problem(400, "Member In Compliance State", "x"), Refused, "status pending"),
        (problem(400, "Forgotten Email Not Subscribed", "x"), Refused, "sign-up form"),
        (problem(400, "Member Exists", "Use PUT"), Refused, "Member Exists: Use PUT"),
        (
            problem(400, "Invalid Resource", "x", errors=[{"field": "FNAME", "message": "empty"}]),
            Refused,
            "Invalid Resource: x: FNAME: empty",
        ),
        (
            problem(
                400, "Invalid Resource", "a@b has signed up to a lot of lists very recently; x"
            ),
            Retry,
            "very recently",
        ),
        (problem(404, "Resource Not Found", "x"), Refused, "Resource Not Found: x"),
        (problem(405, "Method Not Allowed", "x"), Refused, "Method Not Allowed"),
        (problem(403, "Forbidden", "x"), Refused, "Forbidden"),
        (Reply(status=403, body=b"<html>"), Retry, "HTTP 403"),
        (problem(429, "Too Many Requests", "x"), Retry, "Too Many Requests"),
        (problem(500, "Internal Server Error", "x"), Retry, "Internal Server Error"),
        (problem(503, "Service Unavailable", "x"), Retry, "Service Unavailable"),
        (Reply(status=200, body=b"<html>"), Refused, "expected the member"),
        (Reply(status=400, body=b"[5]"), Refused, "HTTP 400"),
        (Reply(status=400, body=b'{"title": 5, "errors": 7}'), Refused, "HTTP 400"),
        (as_json(400, {"title": "T", "detail": 5, "errors": [5, {}]}), Refused, "HTTP 400: T"),
    ],
)
async def test_a_problem_of_a_member_is_told(
    egress: Egress, provider: StandIn, reply: Reply, expected: type, words: str
) -> None:
    """This member's; the connection goes on."""
    provider.then(reply)

    result = await do(egress, provider, "setMember", MEMBER)

    assert type(result) is expected
    assert isinstance(result, Retry | Refused)
    assert words in result.error
    assert len(result.error) <= 300
    assert isinstance(result, Retry) or not result.disables


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (401, "API Key Invalid"),
        (401, "API Key Missing"),
        (401, "Something New"),
        (403, "User Disabled"),
        (403, "Wrong Datacenter"),
        (403, "WrongDatacenter"),
        (403, "Compliance Related"),
    ],
)
async def test_a_problem_of_the_account_disables(
    egress: Egress, provider: StandIn, status: int, title: str
) -> None:
    """Nothing else would get through, until somebody looks after it; the error says how."""
    provider.then(problem(status, title, "x" * 500))

    result = await do(egress, provider, "setMember", MEMBER)

    assert isinstance(result, Refused)
    assert result.disables
    assert len(result.error) <= 300
    assert " - " in result.error


@pytest.mark.parametrize("action", ["tag", "archive"])
async def test_a_page_instead_of_204_is_no_success(
    egress: Egress, provider: StandIn, action: str
) -> None:
    """A captive portal answers 200 to everything."""
    provider.then(Reply(body=b"<html>Log in"))

    result = await do(egress, provider, action, TAGS)

    assert result == Refused(200, "expected HTTP 204, got HTTP 200: <html>Log in")


# What both share.


@pytest.mark.parametrize(
    ("action", "message", "field"),
    [
        ("send", {}, "to is required"),
        ("send", MAIL | {"to": []}, "to is required"),
        ("send", MAIL | {"to": 7}, "to"),
        ("send", MAIL | {"to": ["a@example.com", "x"]}, r"to\[1\]"),
        ("send", MAIL | {"to": "a@b.c\r\nBcc: d@e.f"}, "to"),
        ("send", MAIL | {"cc": 5}, "cc"),
        ("send", MAIL | {"from": "x"}, "from"),
        ("send", MAIL | {"from_email": "x", "from": None}, "from_email"),
        ("send", MAIL | {"subject": "a\r\nBcc: x@y.z"}, "subject"),
        ("send", MAIL | {"subject": ["a"]}, "subject"),
        ("send", MAIL | {"text": 5}, "text"),
        ("send", MAIL | {"text": ""}, "text, html or template"),
        ("send", MAIL | {"template": 5}, "template_name"),
        ("send", MAIL | {"template": ""}, "template_name"),
        ("send", MAIL | {"template": "a", "template_content": "x"}, "template_content"),
        (
            "send",
            MAIL | {"template": "a", "template_content": [{"content": 1}]},
            "template_content",
        ),
        ("send", MAIL | {"global_merge_vars": [5]}, "global_merge_vars"),
        ("send", MAIL | {"headers": {"a": "b\nc"}}, "headers.a"),
        ("send", MAIL | {"headers": {"a\r\nb": "c"}}, "headers"),
        ("send", MAIL | {"headers": []}, "headers"),
        ("send", MAIL | {"headers": [], "reply_to": "a@b.c"}, "headers"),
        ("send", MAIL | {"reply_to": "a\nb"}, "reply_to"),
        ("send", MAIL | {"attachments": {}}, "attachments"),
        ("send", MAIL | {"attachments": [{"name": "a", "type": "b"}]}, r"attachments\[0\].content"),
        (
            "send",
            MAIL | {"attachments": [{"name": "a", "type": "b", "content": "%%"}]},
            "not base64",
        ),
        ("send", MAIL | {"key": "md-mine"}, "key"),
        ("send", MAIL | {"text": "x" * 300_000}, "262144"),
        ("send", {"message": 5}, "message"),
        ("send", {"message": {"to": "a@b.c"}}, "to is required"),
        ("send", {"message": {"to": ["a@b.c"]}}, r"message.to\[0\]"),
        ("send", {"message": {"to": [{"email": "a@b.c", "type": "x"}]}}, "type"),
        ("send", {"message": {"to": [{"email": "a@b.c"}], "html": "x"}}, "subject"),
        ("setMember", {}, "email_address"),
        ("setMember", MEMBER | {"email": 5}, "email_address"),
        ("setMember", MEMBER | {"status": "archived"}, "status"),
        ("setMember", {"email": "a@b.c", "status_if_new": None}, "status_if_new"),
        ("setMember", {"email": "a@b.c"}, "status_if_new is required"),
        ("setMember", MEMBER | {"merge_fields": []}, "merge_fields"),
        ("setMember", MEMBER | {"list_id": "../lists"}, "list_id"),
        ("setMember", MEMBER | {"list_id": 5}, "list_id"),
        ("tag", {"email": "a@b.c"}, "tags"),
        ("tag", TAGS | {"tags": "night"}, "tags"),
        ("tag", TAGS | {"tags": [5]}, r"tags\[0\]"),
        ("tag", TAGS | {"tags": [""]}, r"tags\[0\]"),
        ("tag", TAGS | {"tags": [{"name": "a", "status": "on"}]}, "status"),
        ("tag", TAGS | {"tags": ["a"] * 101}, "100"),
        ("archive", {"email": "nobody"}, "email_address"),
    ],
)
def test_a_wrong_message_is_refused_at_once(
    action: str, message: dict[str, Any], field: str
) -> None:
    """The guest learns it while it runs, with the name of the field."""
    with pytest.raises(HostCallRefused, match=field):
        MAILCHIMP.check_message(action, message, SETTINGS)


@pytest.mark.parametrize(
    ("action", "message", "field"),
    [
        ("send", {key: value for key, value in MAIL.items() if key != "from"}, "from_email"),
        ("archive", {"email": "a@b.c"}, "list_id"),
    ],
)
def test_without_settings_the_message_says_more(
    action: str, message: dict[str, Any], field: str
) -> None:
    """Who sends, and to which audience."""
    with pytest.raises(HostCallRefused, match=f"{field} is required"):
        MAILCHIMP.check_message(action, message, {})


def test_an_address_cannot_leave_its_place_in_the_url() -> None:
    """Its hash stands there."""
    checked = MAILCHIMP.check_message("archive", {"email": "a@b/../../x"}, SETTINGS)

    assert checked == {"email_address": "a@b/../../x", "list_id": LIST_ID}


@pytest.mark.parametrize(
    ("action", "message", "expected"),
    [
        ("send", MAIL, "ops@example.com"),
        ("send", MAIL | {"to": ["B@x.org", "A <a@x.org>"], "bcc": "c@x.org"}, "a@x.org,b@x.org"),
        ("send", {"message": {"to": [{"email": "a@b.c"}], "subject": "x", "text": "x"}}, "a@b.c"),
        ("setMember", MEMBER, "ada@example.com"),
        ("tag", TAGS, "ada@example.com"),
        ("archive", {"email_address": "Ada@example.com"}, "ada@example.com"),
    ],
)
def test_order_is_kept_for_a_mailbox(action: str, message: dict[str, Any], expected: str) -> None:
    """A mail's readers, or the member, whatever the case of the letters."""
    checked = MAILCHIMP.check_message(action, message, SETTINGS)

    assert MAILCHIMP.recipient(action, checked) == expected


@pytest.mark.parametrize(
    ("credentials", "settings", "pointer"),
    [
        ({}, {}, "/credentials"),
        ({"api_key": None}, {}, "/credentials"),
        ({"api_key": "0123"}, {}, "/credentials/api_key"),
        ({"api_key": "0123-evil.example/"}, {}, "/credentials/api_key"),
        ({"api_key": "0123-us21\r\nX: y"}, {}, "/credentials/api_key"),
        ({"transactional_key": "x y"}, {}, "/credentials/transactional_key"),
        ({"transactional_key": "md-secret", "key": "x"}, {}, "/credentials/key"),
        ({"api_key": API_KEY}, {"list_id": "a/b"}, "/settings/list_id"),
        ({"api_key": API_KEY}, {"from_email": "x"}, "/settings/from_email"),
        ({"api_key": API_KEY}, {"from_name": "a\nb"}, "/settings/from_name"),
        ({"api_key": API_KEY}, {"base_url": "//x"}, "/settings/base_url"),
    ],
)
def test_a_wrong_connection_is_refused_when_it_is_put(
    credentials: dict[str, Any], settings: dict[str, Any], pointer: str
) -> None:
    """The error points at the field, and does not repeat what stands there."""
    with pytest.raises(Invalid) as refused:
        check_connection(MAILCHIMP, credentials, settings)

    assert refused.value.problems[0].pointer == pointer
    assert not any(str(value) in str(refused.value) for value in credentials.values() if value)


@pytest.mark.parametrize(
    "key", ["md-0123456789abcdefABCDEF", "0123456789abcdef_-ABCD", TRANSACTIONAL_KEY]
)
def test_older_transactional_keys_are_taken_too(key: str) -> None:
    """They have 22 characters, and no prefix."""
    check_connection(MAILCHIMP, {"transactional_key": key}, {})


@pytest.mark.parametrize(
    ("action", "message", "kept", "missing"),
    [
        ("send", MAIL, "api_key", "transactional_key"),
        ("setMember", MEMBER, "transactional_key", "api_key"),
    ],
)
async def test_an_action_without_its_key_says_so(
    egress: Egress, provider: StandIn, action: str, message: dict[str, Any], kept: str, missing: str
) -> None:
    """One key is enough for the actions of its API; nothing is asked without one."""
    credentials = {kept: provider.connection()["credentials"][kept]}

    result = await do(egress, provider, action, message, credentials=credentials)

    assert isinstance(result, Refused)
    assert f"the connection has no {missing}" in result.error
    assert not result.disables
    assert provider.asked == []


@pytest.mark.parametrize(("action", "message"), [("send", MAIL), ("setMember", MEMBER)])
async def test_one_attempt_is_one_request(
    egress: Egress, provider: StandIn, action: str, message: dict[str, Any]
) -> None:
    """The outbox decides when to try again, also when Mailchimp fails."""
    for _ in range(3):
        provider.then(Reply(status=503, taken=True))

    results = [await do(egress, provider, action, message) for _ in range(3)]

    assert all(isinstance(result, Retry) for result in results)
    assert len(provider.asked) == 3


@pytest.mark.parametrize(
    ("action", "message", "path"),
    [
        ("send", MAIL, "/proxy/mc/api/1.0/messages/send"),
        (
            "archive",
            {"email": "a@b.c"},
            f"/proxy/mc/3.0/lists/{LIST_ID}/members/{hash_of('a@b.c')}",
        ),
    ],
)
async def test_a_base_url_may_have_a_path(
    egress: Egress, provider: StandIn, action: str, message: dict[str, Any], path: str
) -> None:
    """An operator's proxy has both APIs behind one prefix."""

    async def respond(received: Received) -> bytes:
        return answer(204)

    async with http_server(respond) as server:
        await do(egress, provider, action, message, base_url=f"{server.url}/proxy/mc/")

    assert [received.target for received in server.received] == [path]


@pytest.mark.parametrize(("action", "message"), [("send", MAIL), ("tag", TAGS)])
async def test_an_address_inside_is_refused(
    provider: StandIn, action: str, message: dict[str, Any]
) -> None:
    """By the same guard as everything else."""
    egress = Egress(())

    result = await do(egress, provider, action, message, base_url="http://10.0.0.5")
    await egress.close()

    assert isinstance(result, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in result.error


async def test_the_key_names_the_data_centre() -> None:
    """Without a base_url, each API has its own host; a name that leads inside shows which."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.5"]

    egress = Egress((), resolve=resolve)
    with StandIn() as provider:
        for action, message in (("send", MAIL), ("setMember", MEMBER)):
            await do(egress, provider, action, message, base_url=None)
    await egress.close()

    assert asked == ["mandrillapp.com", "us21.api.mailchimp.com"]


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (
            {"api_key": API_KEY, "transactional_key": TRANSACTIONAL_KEY},
            "transactional mail of hall3; audiences of Hall 3",
        ),
        ({"api_key": API_KEY}, "audiences of Hall 3"),
        ({"transactional_key": TRANSACTIONAL_KEY}, "transactional mail of hall3"),
    ],
)
async def test_a_test_asks_each_api_for_its_account(
    egress: Egress, provider: StandIn, credentials: dict[str, Any], expected: str
) -> None:
    """And sends nobody anything."""
    result = await MAILCHIMP.test(egress, credentials, {"base_url": provider.url}, now_ms=NOW)

    assert result == Sent(200, expected)
    assert len(provider.asked) == len(credentials)
    assert provider.accepted == []


@pytest.mark.parametrize(
    "credentials",
    [
        {"api_key": OTHER_API_KEY, "transactional_key": TRANSACTIONAL_KEY},
        {"api_key": API_KEY, "transactional_key": OTHER_TRANSACTIONAL_KEY},
    ],
)
async def test_a_test_fails_when_one_key_does(
    egress: Egress, provider: StandIn, credentials: dict[str, Any]
) -> None:
    """The error says which, and not what it is."""
    result = await MAILCHIMP.test(egress, credentials, {"base_url": provider.url}, now_ms=NOW)

    assert isinstance(result, Refused)
    assert result.disables
    assert not any(key in result.error for key in credentials.values())


async def test_a_test_of_something_else_is_no_success(egress: Egress, provider: StandIn) -> None:
    """A captive portal answers 200 to everything."""
    for credentials in ({"api_key": API_KEY}, {"transactional_key": TRANSACTIONAL_KEY}):
        provider.then(Reply(body=b"<html>Log in"))

        result = await MAILCHIMP.test(egress, credentials, {"base_url": provider.url}, now_ms=NOW)

        assert isinstance(result, Refused)


async def test_an_attempt_shows_nobody_its_keys(egress: Egress, provider: StandIn) -> None:
    """Not in a repr, whoever logs it."""
    outgoing = Outgoing(
        action="send",
        message=MAIL,
        credentials={"api_key": API_KEY, "transactional_key": TRANSACTIONAL_KEY},
        settings={},
        delivery_id=DELIVERY,
        attempt=1,
        now_ms=NOW,
    )

    assert API_KEY not in repr(outgoing)
    assert TRANSACTIONAL_KEY not in repr(outgoing)


@pytest.mark.slow
def test_no_sdk_is_loaded() -> None:
    """Neither of Mailchimp's, nor the `requests` that they bring."""
    program = """
import sys
from engine.connectors.mailchimp import Mailchimp
print([name for name in sys.modules if name.split(".")[0] in ("requests", "mailchimp_marketing")])
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "[]\n"
