"""Mail's connector, against a mail server that keeps to RFC 5321."""

import asyncio
import base64
import ssl
import subprocess
import sys
from collections.abc import Iterator
from json import dumps
from typing import Any

import pytest
import uvloop

from engine.connectors import CONNECTORS
from engine.connectors.contract import (
    Answer,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_connection,
)
from engine.connectors.mail import ses_password
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.conftest import Engine
from tests.contracts.test_connector_pages import ADDRESSES, NOW
from tests.standins.providers.mail import PASSWORD, USERNAME, StandIn, certificates

CONNECTOR = CONNECTORS["mail"]
HELLO = {"to": "ada@example.com", "subject": "Hello", "text": "Hi\n"}
ID = "dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(
    server: StandIn,
    egress: Egress,
    message: dict[str, Any],
    *,
    credentials: dict[str, Any] | None = None,
    attempt: int = 1,
    timeout_ms: int = 5_000,
    **settings: Any,
) -> Answer:
    connection = server.connection()
    known = connection["settings"] | settings
    known = {name: value for name, value in known.items() if value is not None}
    given = connection["credentials"] if credentials is None else credentials
    check_connection(CONNECTOR, given, known)
    return await CONNECTOR.send(
        egress,
        Outgoing(
            action="send",
            message=CONNECTOR.check_message("send", message, known),
            credentials=given,
            settings=known,
            delivery_id=ID,
            attempt=attempt,
            now_ms=NOW + attempt * 60_000,
            timeout_ms=timeout_ms,
        ),
    )


async def test_a_message_arrives_with_all_its_parts(server: StandIn, egress: Egress) -> None:
    """Names, copies, both texts, an attachment and a header; who got a Bcc stays unseen."""
    message = {
        "to": ["Żółć, Grażyna <g@example.com>", '"Doe, John" <john@example.com>'],
        "cc": "cc@example.com",
        "bcc": ["bcc@example.com", "g@example.com"],
        "reply_to": "Desk <desk@factory.example>",
        "subject": "21 °C in hall 2: " + "🌡" * 60,
        "text": "Zażółć\n.\n..\nFrom here\n" + "x" * 2_000,
        "html": "<p>Zażółć</p>",
        "attachments": [
            {"filename": 'wykres "żółty".png', "content": "iVBORw0KGgo=", "type": "image/png"}
        ],
        "headers": {"X-Device": "d-17", "List-Unsubscribe": f"<https://x.example/{'u' * 300}>"},
    }

    answer = await send(server, egress, message)

    assert answer == Sent(250, f"<{ID}@factory.example>")
    taken = server.accepted[0]
    letter = taken["message"]
    assert taken["sender"] == USERNAME
    assert taken["recipients"] == [
        "g@example.com",
        "john@example.com",
        "cc@example.com",
        "bcc@example.com",
    ]
    assert [str(one) for one in letter["To"].addresses] == [
        '"Żółć, Grażyna" <g@example.com>',
        '"Doe, John" <john@example.com>',
    ]
    assert str(letter["From"]) == f"Factory <{USERNAME}>"
    assert letter["Reply-To"].addresses[0].addr_spec == "desk@factory.example"
    assert letter["Subject"] == message["subject"]
    assert letter["Message-ID"] == f"<{ID}@factory.example>"
    assert letter["Date"].datetime.timestamp() == (NOW + 60_000) // 1000
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter["X-Device"] == "d-17"
    assert f"List-Unsubscribe: <https://x.example/{'u' * 300}>\r\n".encode() in taken["content"]
    plain, html = letter.get_body(("plain",)), letter.get_body(("html",))
    assert plain.get_content().splitlines() == message["text"].splitlines()
    assert html.get_content().strip() == message["html"]
    attached = next(letter.iter_attachments())
    assert attached.get_filename() == 'wykres "żółty".png'
    assert attached.get_content() == b"\x89PNG\r\n\x1a\n"
    assert attached.get_content_type() == "image/png"


async def test_every_attempt_has_the_same_message_id(server: StandIn, egress: Egress) -> None:
    """So that a receiver who took it, and could not say so, can drop the second one."""
    server.mood = "drops after data"
    first = await send(server, egress, HELLO)
    server.mood = ""
    second = await send(server, egress, HELLO, attempt=2)

    assert isinstance(first, Retry)
    assert isinstance(second, Sent)
    ids = {taken["message"]["Message-ID"] for taken in server.accepted}
    assert (len(server.accepted), len(ids)) == (2, 1)


async def test_one_attempt_is_one_connection_one_login_and_one_message(
    server: StandIn, egress: Egress
) -> None:
    """Nothing is tried again by the library, and nothing is left open."""
    await send(server, egress, HELLO)

    commands = [line.split()[0].decode() for line in server.lines]
    assert server.connections == 1
    assert commands == ["EHLO", "EHLO", "AUTH", "MAIL", "DATA"]
    assert server.lines[0] == b"EHLO [127.0.0.1]"


async def test_a_wrong_password_is_tried_once(server: StandIn, egress: Egress) -> None:
    """Whatever logins are offered: every further one brings the account nearer to a lock."""
    answer = await send(
        server, egress, HELLO, credentials={"username": USERNAME, "password": "wrong password"}
    )

    assert isinstance(answer, Refused)
    assert answer.disables
    assert "PUT the connection with valid credentials" in answer.error
    assert [line for line in server.lines if line.startswith(b"AUTH")] == [b"AUTH PLAIN"]


async def test_a_server_with_the_older_login_only(egress: Egress) -> None:
    """LOGIN in place of PLAIN; without either the connection is of no use."""
    with StandIn(logins=("LOGIN",)) as older, StandIn(logins=()) as none:
        by_login = await send(older, egress, HELLO)
        not_at_all = await send(none, egress, HELLO)

    assert isinstance(by_login, Sent)
    assert isinstance(not_at_all, Refused)
    assert not_at_all.disables
    assert "none of the logins" in not_at_all.error


async def test_tls_from_the_first_byte(egress: Egress) -> None:
    """`security: tls`, as on port 465."""
    with StandIn(security="tls") as server:
        answer = await send(server, egress, HELLO, security="tls")

        assert isinstance(answer, Sent)
        assert len(server.accepted) == 1


async def test_no_tls_only_without_credentials(egress: Egress) -> None:
    """A relay that knows us by our address."""
    with StandIn(security="none") as server:
        answer = await send(server, egress, HELLO, credentials={}, security="none")

        assert isinstance(answer, Sent)
        assert [line.split()[0] for line in server.lines] == [b"EHLO", b"MAIL", b"DATA"]


async def test_nothing_is_said_to_a_server_without_starttls(
    server: StandIn, egress: Egress
) -> None:
    """Neither the credentials nor the message: somebody may have taken STARTTLS away."""
    server.mood = "no starttls"

    answer = await send(server, egress, HELLO)

    assert isinstance(answer, Refused)
    assert answer.disables
    assert server.lines == [b"EHLO [127.0.0.1]"]


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_certificate_must_have_the_name_and_the_authority(
    egress: Egress, security: str
) -> None:
    """Otherwise nothing is said, and somebody may repair it meanwhile."""
    with StandIn(security=security, name="other.example") as other:
        wrong_name = await send(other, egress, HELLO, security=security)
        said = list(other.lines)
    with StandIn(security=security) as known:
        public = await send(known, egress, HELLO, security=security, ca_pem=None)
        of_another = certificates("other.example")[0]
        private = await send(known, egress, HELLO, security=security, ca_pem=of_another)

        for answer in (wrong_name, public, private):
            assert isinstance(answer, Retry), answer
            assert "certificate" in answer.error.lower()
        assert all(line.startswith(b"EHLO") for line in said + known.lines)


async def test_whom_it_was_not_taken_for_is_told(server: StandIn, egress: Egress) -> None:
    """And it is not sent again to those who have it."""
    three = ["ada@example.com", "nobody@example.com", "grey@example.com"]

    answer = await send(server, egress, {**HELLO, "to": three}, attempt=5)

    assert isinstance(answer, Sent)
    assert answer.note is not None
    assert "nobody@example.com: 550 5.1.1 No such user here" in answer.note
    assert "grey@example.com: 451" in answer.note
    assert server.accepted[0]["recipients"] == ["ada@example.com"]


@pytest.mark.parametrize("attempt", [1, 4])
async def test_nobody_gets_it_while_one_may_get_it_later(
    server: StandIn, egress: Egress, attempt: int
) -> None:
    """Else that one would never have it: who was not taken is not asked again."""
    two = ["ada@example.com", "grey@example.com"]

    later = await send(server, egress, {**HELLO, "to": two}, attempt=attempt)
    said = [line.split()[0] for line in server.lines]
    never = await send(server, egress, {**HELLO, "to": [two[0], "nobody@example.com"]})

    assert isinstance(later, Retry)
    assert later.status == 451
    assert "grey@example.com: 451" in later.error
    assert said[-1] == b"RSET"
    assert b"DATA" not in said
    assert isinstance(never, Sent)  # 5xx: waiting would change nothing
    assert len(server.accepted) == 1


@pytest.mark.parametrize(
    ("retries", "attempt"),
    [
        ({"max_attempts": 1}, 1),
        ({"max_attempts": 3}, 3),
        ({"max_age_s": 60}, 2),  # the third would be after half a minute and more
        ({"waits_s": [1, 80_000]}, 2),
    ],
)
async def test_some_get_it_when_there_will_be_no_other_attempt(
    server: StandIn, egress: Egress, retries: dict[str, Any], attempt: int
) -> None:
    """Better than nobody; and those who do not are named."""
    two = ["ada@example.com", "grey@example.com"]

    answer = await send(server, egress, {**HELLO, "to": two}, attempt=attempt, retries=retries)

    assert isinstance(answer, Sent)
    assert "grey@example.com: 451" in (answer.note or "")


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2009"])
async def test_an_app_password_may_be_pasted_as_google_shows_it(
    server: StandIn, egress: Egress, space: str
) -> None:
    """In four groups, with whatever space the page has between them."""
    shown = space.join(("abcd", "efgh", "ijkl", "mnop"))
    server.password = "abcdefghijklmnop"

    gmail = {"user": USERNAME, "app_password": shown}

    assert isinstance(await send(server, egress, HELLO, credentials={"gmail": gmail}), Sent)


def test_the_delivery_says_whom_it_was_not_taken_for(server: StandIn, engine: Engine) -> None:
    """It is delivered, and whoever looks at it sees who did not get it."""
    engine.ok("PUT", "/v1/connections/MAIL", server.connection())
    message = {**HELLO, "to": ["ada@example.com", "nobody@example.com"]}
    engine.deploy(
        "tells", f"export default {{ job: (p, env) => env.MAIL.send({dumps(message)}) }};"
    )

    delivery_id = engine.invoke("tells", {}).json()

    found = engine.until(
        lambda: [
            one
            for one in [engine.ok("GET", f"/v1/deliveries/{delivery_id}")]
            if one["state"] == "delivered"
        ]
    )
    assert "nobody@example.com: 550" in found[0]["attempts_log"][0]["error"]
    assert len(server.accepted) == 1


@pytest.mark.parametrize(
    ("recipient", "code", "after_ms"),
    [
        ("grey@example.com", 451, None),
        ("busy@example.com", 450, None),
        ("full@example.com", 452, None),
        ("slow@example.com", 550, 3_600_000),
    ],
)
async def test_not_now(
    server: StandIn, egress: Egress, recipient: str, code: int, after_ms: int | None
) -> None:
    """The first digit is a 4, or Gmail means it."""
    answer = await send(server, egress, {**HELLO, "to": recipient})

    assert isinstance(answer, Retry)
    assert (answer.status, answer.after_ms) == (code, after_ms)


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("nobody@example.com", 550),
        ("over@example.com", 552),
        ("odd@example.com", 553),
        ("strange@example.com", 550),
    ],
)
async def test_never(server: StandIn, egress: Egress, recipient: str, code: int) -> None:
    """The words are the server's, as far as they can be stored."""
    answer = await send(server, egress, {**HELLO, "to": recipient})

    assert isinstance(answer, Refused)
    assert (answer.status, answer.disables) == (code, False)
    assert recipient in answer.error
    assert "\x00" not in answer.error
    answer.error.encode()


@pytest.mark.parametrize(
    ("mood", "kind", "status", "words"),
    [
        ("421", Retry, 421, "shutting down"),
        ("454", Retry, 454, "Temporary"),
        ("throttles", Retry, 454, "Maximum sending rate"),
        ("closed", Refused, 554, "No mail here"),
        ("554", Refused, 554, "spam"),
        ("small", Refused, 552, "size"),
        ("http", Retry, None, "Malformed"),
        ("drops in data", Retry, None, "may have been taken"),
        ("drops after data", Retry, None, "may have been taken"),
    ],
)
async def test_moods_of_a_server(
    server: StandIn, egress: Egress, mood: str, kind: type, status: int | None, words: str
) -> None:
    """Each is one connection, and the error says which it was."""
    server.mood = mood

    answer = await send(server, egress, HELLO)

    assert isinstance(answer, kind), answer
    assert answer.status == status
    assert words in answer.error
    assert server.connections == 1


@pytest.mark.parametrize("mood", ["silent", "silent after data"])
async def test_a_silent_server_costs_the_attempts_time_only(
    server: StandIn, egress: Egress, mood: str
) -> None:
    """All of it together, the farewell included."""
    await send(server, egress, HELLO)  # whatever is loaded once
    server.mood = mood
    loop = asyncio.get_running_loop()
    began = loop.time()

    answer = await send(server, egress, HELLO, timeout_ms=200)

    assert isinstance(answer, Retry)
    assert "within 200 ms" in answer.error
    assert loop.time() - began < 2


async def test_a_forbidden_address_is_refused(server: StandIn) -> None:
    """As for HTTP: the operator's remedy is in the text, and nobody was connected to."""
    closed = Egress(())
    try:
        answer = await send(server, closed, HELLO)
    finally:
        await closed.close()

    assert isinstance(answer, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW=127.0.0.1/32" in answer.error
    assert server.connections == 0
    assert closed.blocked == {"address": 1}


async def test_a_closed_port_and_an_unknown_name_may_be_repaired(
    server: StandIn, egress: Egress
) -> None:
    """Both are tried again later."""
    closed = await send(server, egress, HELLO, port=1)
    unknown = await send(server, egress, HELLO, host="does-not-exist.invalid")

    assert isinstance(closed, Retry)
    assert isinstance(unknown, Retry)
    assert "does-not-exist.invalid" in unknown.error


async def test_no_credential_is_in_an_error(
    server: StandIn, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a server repeats what it was told, as it was or in base64."""
    secret = base64.b64encode(PASSWORD.encode()).decode()
    echo = f"550 5.7.1 {USERNAME} with {PASSWORD} or {secret} may not write to this user"
    monkeypatch.setitem(server_replies(), "echo@example.com", echo)

    answer = await send(server, egress, {**HELLO, "to": "echo@example.com"})

    assert isinstance(answer, Refused)
    for part in (USERNAME, PASSWORD, secret):
        assert part not in repr(answer)
    assert "may not write to this user" in answer.error


def server_replies() -> dict[str, Any]:
    from tests.standins.providers.mail import RECIPIENTS

    return RECIPIENTS


async def test_a_test_logs_in_and_sends_nothing(server: StandIn, egress: Egress) -> None:
    """It says where it was; a wrong password is told as when sending."""
    connection = server.connection()
    settings = connection["settings"]
    wrong = {"username": USERNAME, "password": "wrong password"}

    known = await CONNECTOR.test(egress, connection["credentials"], settings, now_ms=NOW)
    unknown = await CONNECTOR.test(egress, wrong, settings, now_ms=NOW)

    assert known == Sent(250, f"127.0.0.1:{server.port}")
    assert isinstance(unknown, Refused)
    assert server.accepted == []
    assert server.lines.count(b"NOOP") == 1


async def test_letters_beyond_ascii_before_the_at(egress: Egress) -> None:
    """By SMTPUTF8 where the server has it; a domain needs nothing of the kind."""
    message = {**HELLO, "to": ["żółw@example.com", "Ada <ada@straße.example>"]}
    with StandIn() as can, StandIn(smtputf8=False) as cannot:
        taken = await send(can, egress, message)
        refused = await send(cannot, egress, message)
        by_domain = await send(cannot, egress, {**HELLO, "to": "ada@straße.example"})

        assert isinstance(taken, Sent)
        recipients = ["żółw@example.com", "ada@xn--strae-oqa.example"]
        assert can.accepted[0]["recipients"] == recipients
        assert any(b"SMTPUTF8" in line for line in can.lines)
        assert isinstance(refused, Refused)
        assert not refused.disables
        assert isinstance(by_domain, Sent)
        assert cannot.accepted[0]["recipients"] == recipients[1:]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"to": []}, "to names nobody"),
        ({"to": None}, "missing required field `to`"),
        ({"to": 7}, "to: Expected"),
        ({"to": ["ada@example.com", 7]}, "to/1: Expected"),
        ({"to": "ada"}, "to must be an address"),
        ({"to": "a@b@c d"}, "to must be an address"),
        ({"to": "a@b.example, c@d.example"}, "to must be an address"),
        ({"to": "a@b.example> RCPT TO:<c@d.example"}, "to must be an address"),
        ({"to": "a@-b.example"}, "to must be an address"),
        ({"to": "a@b..example"}, "to must be an address"),
        ({"to": "<>"}, "to must be an address"),
        ({"to": " " * 100_000 + "<"}, "to must be an address"),
        ({"to": f"{'a' * 65}@example.com"}, "too long"),
        ({"to": f"{'n' * 201} <a@example.com>"}, "name of more than 200"),
        ({"to": ["a@example.com"] * 101}, "101 recipients"),
        ({"to": "a@example.com\r\nBcc: b@example.com"}, "line break"),
        ({"to": "Ada\nBcc: b@example.com <a@example.com>"}, "line break"),
        ({"cc": "Ada\u2028 <a@example.com>"}, "cc has a line break"),
        ({"from": "x"}, "from must be an address"),
        ({"reply_to": "a@example.com\r"}, "reply_to has a line break"),
        ({"subject": None}, "missing required field `subject`"),
        ({"subject": "a\r\nBcc: b@example.com"}, "subject has a line break"),
        ({"subject": "a\x85b"}, "subject has a line break"),
        ({"subject": "x" * 901}, "more than 900"),
        ({"subject": ["x"]}, "subject: Expected"),
        ({"text": None}, "text or html is required"),
        ({"text": "a\x00b"}, "NUL"),
        ({"body": "x"}, "unknown field `body`; known: to, cc, bcc, from"),
        ({"headers": {"Bcc": "b@example.com"}}, "Bcc is made from"),
        ({"headers": {"content-type": "text/html"}}, "content-type is made from"),
        ({"headers": {"X-A: b\r\nBcc": "c"}}, "not a header's name"),
        ({"headers": {"X-A": "b\r\nBcc: c@example.com"}}, "line break"),
        ({"headers": {"X-A": "b\r\n continued"}}, "line break"),
        ({"headers": {"X-A": "ż"}}, "must be ASCII"),
        ({"headers": {"X-A": "x" * 901}}, "more than 900"),
        ({"headers": {f"X-{at}": "x" for at in range(51)}}, "51 headers"),
        ({"attachments": [{"filename": "a", "content": "%"}]}, "attachments/0/content is not"),
        ({"attachments": [{"filename": "a\nb", "content": ""}]}, "filename has a line break"),
        ({"attachments": [{"filename": "", "content": ""}]}, "filename is empty"),
        (
            {"attachments": [{"content": ""}]},
            "attachments/0: Object missing required field `filename`",
        ),
        ({"attachments": [{"filename": "a", "content": "", "type": "a\r\nb/c"}]}, "type must be"),
        ({"attachments": [{"filename": "a", "content": "", "type": "message/rfc822"}]}, "type mu"),
        ({"attachments": [{"filename": "a", "content": "A" * 10_000_000}]}, "the limit is 262144"),
    ],
    ids=str,
)
def test_what_cannot_be_sent_is_refused_in_the_run(changed: dict[str, Any], words: str) -> None:
    """The field is named; nothing is stored, and nothing could be slipped into the headers."""
    settings = {"from": USERNAME}

    with pytest.raises(HostCallRefused, match="mail: ") as refused:
        CONNECTOR.check_message("send", HELLO | changed, settings)

    assert words in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?a=0D=0ABcc:_evil=40x.example?=",
        "a@evil.example, " + "x" * 150,
        "a@evil.example, " + "é" * 80,
        "é, <evil@x.example> " + "long words " * 12,
        '"\\" <evil@x.example>, "',
        "x" * 199,
        "\\",
        "  two  spaces  ",
    ],
)
async def test_a_name_and_a_subject_stay_what_they_are(
    server: StandIn, egress: Egress, text: str
) -> None:
    """No folding turns a piece of them into an address or a header."""
    message = {**HELLO, "to": f"{text} <ada@example.com>", "subject": text}
    if text.endswith("<evil@x.example>, "):
        message["to"] = f"{text} <ada@example.com>"

    answer = await send(server, egress, {**message, "from": f"{text} <{USERNAME}>"})

    assert isinstance(answer, Sent)
    taken = server.accepted[0]
    letter = taken["message"]
    assert [one.addr_spec for one in letter["To"].addresses] == ["ada@example.com"]
    assert [one.addr_spec for one in letter["From"].addresses] == [USERNAME]
    assert letter["Subject"].strip() == text.strip()
    assert [name for name in letter if name.lower() in ("bcc", "cc")] == []
    assert taken["recipients"] == ["ada@example.com"]


async def test_a_body_cannot_end_the_message(server: StandIn, egress: Egress) -> None:
    """A lone dot is a text as any other; what follows is no command."""
    text = "before\r\n.\r\nMAIL FROM:<evil@x.example>\r\n.\n\r.\r"

    answer = await send(server, egress, {**HELLO, "text": text})

    assert isinstance(answer, Sent)
    assert len(server.accepted) == 1
    body = server.accepted[0]["message"].get_content()
    assert body.splitlines() == text.splitlines()


async def test_a_large_message_arrives(server: StandIn, egress: Egress) -> None:
    """As large as a message may be, in letters and in an attachment."""
    text = "Zażółć gęślą jaźń. " * 4_000
    content = base64.b64encode(bytes(range(256)) * 400).decode()
    message = {**HELLO, "text": text, "attachments": [{"filename": "a.bin", "content": content}]}

    answer = await send(server, egress, message)

    assert isinstance(answer, Sent)
    letter = server.accepted[0]["message"]
    assert letter.get_body().get_content().strip() == text.strip()
    assert next(letter.iter_attachments()).get_content() == bytes(range(256)) * 400


def test_the_engines_own_loop_can_do_it_too() -> None:
    """It runs on uvloop, whose sockets and TLS are its own."""

    async def both() -> list[Answer]:
        egress = Egress(ADDRESSES)
        try:
            with StandIn() as by_starttls, StandIn(security="tls") as by_tls:
                by_starttls_answers = [await send(by_starttls, egress, HELLO)]
                by_starttls.mood = "other name"
                by_starttls_answers.append(await send(by_starttls, egress, HELLO))
                return [*by_starttls_answers, await send(by_tls, egress, HELLO, security="tls")]
        finally:
            await egress.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(both())

    assert [type(answer) for answer in answers] == [Sent, Retry, Sent]


@pytest.mark.parametrize(
    ("secret", "region", "password"),
    [
        ("some+secret+key", "eu-central-1", "BMXhUYlu5Z3gSXVQORxlVa7XPaz91aGWdfHxvkOZdWZ2"),
        ("another+secret+key", "eu-central-1", "BBbphbrQmrKMx42d1N6+C7VINYEBGI5v9VsZeTxwskfh"),
        ("some+secret+key", "us-west-1", "BH+jbMzper5WwlwUar9E1ySBqHa9whi0GPo+sJ0mVYJj"),
    ],
)
def test_the_password_of_ses(secret: str, region: str, password: str) -> None:
    """As others derive it, who log in with it every day."""
    assert ses_password(secret, region) == password


async def test_the_providers_that_need_no_host(
    server: StandIn, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SES and Gmail by their credentials alone; a host in the settings stands in for them."""
    asked: list[tuple[str, int]] = []

    async def no_such_name(host: str, port: int) -> list[str]:
        asked.append((host, port))
        raise OSError

    ses = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": "s" * 40, "region": "eu-west-1"}
    gmail = {"user": USERNAME, "app_password": "correct horse battery staple"}
    nowhere = Egress((), resolve=no_such_name)
    left_out = {"host": None, "port": None, "ca_pem": None}
    try:
        await send(server, nowhere, HELLO, credentials={"ses": ses}, **left_out)
        await send(server, nowhere, HELLO, credentials={"gmail": gmail}, **left_out)
        await send(server, nowhere, HELLO, credentials={"gmail": gmail}, **left_out, security="tls")
    finally:
        await nowhere.close()
    by_stand_in = await send(server, egress, HELLO, credentials={"ses": ses})

    assert asked == [
        ("email-smtp.eu-west-1.amazonaws.com", 587),
        ("smtp.gmail.com", 587),
        ("smtp.gmail.com", 465),
    ]
    assert isinstance(by_stand_in, Refused)  # it asked for the login of SES
    assert by_stand_in.status == 535


@pytest.mark.parametrize(
    ("credentials", "settings", "pointer"),
    [
        ({"username": "u", "password": "p"}, {}, "/settings/host"),
        ({}, {}, "/settings/host"),
        ({"username": "u"}, {"host": "h"}, "/credentials"),
        ({"username": "u", "password": "p\r\n"}, {"host": "h"}, "/credentials/password"),
        ({"username": "", "password": "p"}, {"host": "h"}, "/credentials/username"),
        (
            {"username": "u", "password": "p", "gmail": {"user": "u", "app_password": "p"}},
            {},
            "/credentials",
        ),
        ({"gmail": {"user": "u"}}, {}, "/credentials/gmail/app_password"),
        (
            {"ses": {"access_key_id": "a", "secret_access_key": "s", "region": "evil.example/"}},
            {},
            "/credentials/ses/region",
        ),
        (
            {"username": "u", "password": "p"},
            {"host": "h", "security": "none"},
            "/settings/security",
        ),
        ({}, {"host": "h", "security": "ssl"}, "/settings/security"),
        ({}, {"host": "h\r\nQUIT"}, "/settings/host"),
        ({}, {"host": "h", "port": 0}, "/settings/port"),
        ({}, {"host": "h", "base_url": "https://mail.example"}, "/settings/base_url"),
        ({}, {"host": "h", "from": "nobody"}, "/settings/from"),
        ({}, {"host": "h", "ca_pem": "x"}, "/settings/ca_pem"),
        ({}, {"host": "h", "form": "a@b.example"}, "/settings/form"),
    ],
)
def test_a_connection_that_cannot_work_is_refused(
    credentials: dict[str, Any], settings: dict[str, Any], pointer: str
) -> None:
    """When it is stored, with a pointer."""
    with pytest.raises(Invalid) as invalid:
        check_connection(CONNECTOR, credentials, settings)

    assert invalid.value.problems[0].pointer == pointer


def test_whom_it_is_for() -> None:
    """The addresses alone, in whatever order and with whatever names they come."""
    one = CONNECTOR.recipient("send", {"to": ["Bob <b@example.com>", "a@EXAMPLE.com"]})
    other = CONNECTOR.recipient("send", {"to": ["a@example.com", "b@example.com"]})
    single = CONNECTOR.recipient("send", {"to": "Ada <a@example.com>"})

    assert one == other == "a@example.com,b@example.com"
    assert single == "a@example.com"


def test_the_library_is_loaded_at_the_first_message_only() -> None:
    """An engine that sends no mail has no mail library."""
    program = "import sys, engine.connectors; print('aiosmtplib' in sys.modules)"

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert found.stdout == "False\n"


def test_certificates_are_always_checked() -> None:
    """There is no setting that would turn it off, and no context without it."""
    from engine.connectors.mail import _trusted

    for ca_pem in (None, certificates("127.0.0.1")[0]):
        context = _trusted(ca_pem)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
