"""What classic scripts notify people with: `email`, `Twilio`, `Telegram`, and the `Twitter` of old.

Each test has a project of its own; the providers are stand-ins that keep the providers' rules.
"""

# ruff: noqa: E501, ISC004 - a script stays one row, or rows in one place, where it can

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Engine
from tests.standins.project import Project
from tests.standins.providers import sendgrid, telegram, twilio

SMS = {"to": "+15005550010", "from": twilio.OWNED, "body": "Boiler 3: 93 °C"}
MAIL = {
    "from": sendgrid.SENDER, "to": "b@example.com", "subject": "Boiler 3", "text": "93 °C",
}  # fmt: skip
CHAT = telegram.StandIn.message["chat_id"]
CREDENTIALS = '"AC0123456789abcdef0123456789abcdef", "ffeeddccbbaa99887766554433221100"'
# Of a region that there is not: what is sent with it goes nowhere.
SES = (
    '{ service: "SES", auth: { accessKeyId: "AKIAIOSFODNN7EXAMPLE", '
    'secretAccessKey: "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY", region: "eu-nowhere-1" } }'
)


@pytest.fixture
def project(engine: Engine) -> Project:
    return Project(engine, "classic")


@pytest.fixture(scope="module")
def sms() -> Iterator[twilio.StandIn]:
    with twilio.StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def bot() -> Iterator[telegram.StandIn]:
    with telegram.StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def post() -> Iterator[sendgrid.StandIn]:
    with sendgrid.StandIn() as running:
        yield running


# Twilio


@pytest.mark.parametrize("made", ["new Twilio()", 'new Twilio("SMS")', "new Twilio(null, null)"])
def test_a_stored_connection_sends_the_sms(
    project: Project, sms: twilio.StandIn, made: str
) -> None:
    """The callback gets what Twilio's library gave, with the delivery's id as its sid."""
    project.connect("SMS", sms)
    send = project.classic(f"{made}.sendMessage(p, callback);")

    answer = project.ask(send, SMS)

    (row,) = project.delivered(1)
    assert answer == SMS | {"sid": row["id"], "status": "queued", "direction": "outbound-api"}
    assert row["connection"] == "SMS"


def test_the_old_ways_to_write_a_message_are_understood(
    project: Project, sms: twilio.StandIn
) -> None:
    """Twilio's library took capitals, camels and numbers; `sendSms` was its `sendMessage`, too."""
    project.connect("SMS", sms)
    send = project.classic(
        "new Twilio().sendSms({ To: p.to, From: p.from, Body: 42, "
        "mediaUrl: 'https://example.com/a.png' }, callback);"
    )

    project.ask(send, SMS)

    project.delivered(1)
    with sms.lock:
        assert (sms.accepted[-1]["Body"], sms.accepted[-1]["MediaUrl"]) == (
            "42",
            "https://example.com/a.png",
        )


def test_a_call_is_made_with_the_url_of_its_twiml(project: Project, sms: twilio.StandIn) -> None:
    """`makeCall` is the connector's `call`."""
    project.connect("SMS", sms)
    call = project.classic("new Twilio().makeCall(p, callback);")
    asked = {"to": SMS["to"], "from": SMS["from"], "url": "https://example.com/hello.xml"}

    assert project.ask(call, asked)["status"] == "queued"

    project.delivered(1)
    with sms.lock:
        assert (sms.accepted[-1]["resource"], sms.accepted[-1]["Url"]) == ("Calls", asked["url"])


def test_a_wrong_message_comes_back_as_an_error(project: Project, sms: twilio.StandIn) -> None:
    """With message, stack and a toString that says it, as scripts read them."""
    project.connect("SMS", sms)
    send = project.classic(
        "new Twilio().sendMessage({ from: p.from, body: 'x' }, (error, answer) => callback(null, "
        "[error.message, typeof error.stack, '' + error, answer === undefined]));"
    )

    message, stack, text, unanswered = project.ask(send, SMS)

    assert "to" in message
    assert message in text
    assert (stack, unanswered) == ("string", True)
    assert project.deliveries() == []


def test_the_scripts_callback_passed_on_ends_the_run(project: Project, sms: twilio.StandIn) -> None:
    """`sendMessage(m, callback)`: an error of the message is the run's."""
    project.connect("SMS", sms)
    send = project.classic("new Twilio().sendMessage({}, callback);")

    run = project.run(send)

    assert run["status"] == "failed"
    assert "to" in run["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        "new Twilio().sendMessage({ body: 'x' }); callback(null, 'done');",
        "callback(null, 'done'); new Twilio().sendMessage({ body: 'x' });",
        "new Twilio().sendMessage(null); callback(null, 'done');",
        "new Twilio('NO').sendMessage(p); callback(null, 'done');",
        "email({ service: 'SendGrid', auth: { api_key: 'x' } }, p); callback(null, 'done');",
    ],
)
def test_without_a_callback_errors_go_to_the_log(
    project: Project, sms: twilio.StandIn, body: str
) -> None:
    """Also when the script has called back already: nothing is refused unheard."""
    project.connect("SMS", sms)
    send = project.classic(body)

    run = project.run(send, SMS)

    assert (run["status"], run["result"]) == ("succeeded", "done")
    ((level, text),) = project.log(run)
    assert level in {"warn", "error"}
    assert text.startswith("connection.send: ")
    assert text.count("connection.send: ") == 1


def test_fire_and_forget_is_sent(project: Project, sms: twilio.StandIn) -> None:
    """The script calls back at once, and the message is the run's all the same."""
    project.connect("SMS", sms)
    send = project.classic("callback(null, 'done'); new Twilio().sendMessage(p);")

    run = project.run(send, SMS)

    (row,) = project.delivered(1)
    assert [effect["id"] for effect in run["effects"]] == [row["id"]]
    assert project.log(run) == []


def test_a_run_that_fails_sends_nothing(project: Project, sms: twilio.StandIn) -> None:
    """The callback has said yes, and then the script fails."""
    project.connect("SMS", sms)
    send = project.classic("new Twilio().sendMessage(p, () => { throw new Error('late'); });")

    run = project.run(send, SMS)

    assert (run["status"], run["effects"]) == ("failed", [])
    assert project.deliveries() == []


def test_a_message_is_what_it_was_at_the_call(project: Project, sms: twilio.StandIn) -> None:
    """Later changes of the script's object, and what its getters count, are not sent."""
    project.connect("SMS", sms)
    send = project.classic(
        "let reads = 0; const m = { ...p, get body() { return 'read ' + ++reads; } };"
        "new Twilio().sendMessage(m, (e, answer) => callback(e, answer.body)); m.to = 'nobody';"
    )

    assert project.ask(send, SMS) == "read 1"


# Telegram


def test_a_bot_says_shows_and_points(project: Project, bot: telegram.StandIn) -> None:
    """Three methods, each the connector's action."""
    project.connect("TG", bot)
    send = project.classic(
        "const bot = new Telegram(); const done = []; const next = (e, answer) => {"
        " if (e) return callback(e); done.push(answer.chat.id); if (done.length === 3) callback(null, done); };"
        "bot.sendMessage({ chat_id: p, text: 'Hi' }, next);"
        "bot.sendPhoto({ chat_id: p, photo: 'https://example.com/a.png' }, next);"
        "bot.sendLocation({ chat_id: p, latitude: 1.5, longitude: 2.5 }, next);"
    )

    assert project.ask(send, CHAT) == [CHAT] * 3

    rows = project.delivered(3)
    assert {row["connection"] for row in rows} == {"TG"}


# E-mail


@pytest.mark.parametrize(
    "call",
    [
        "email(null, p, callback)",
        "email({}, p, callback)",
        "email(undefined, p, callback)",
        "email(p, callback)",
        "email({ service: 'SendGrid' }, p, callback)",
        "email({ service: 'sendgrid', auth: {} }, p, callback)",
        "email({ service: 'SendGrid', auth: { api_key: undefined } }, p, callback)",
        "email({ connection: 'POST' }, p, callback)",
        "email('POST', p, callback)",
    ],
)
def test_a_mail_without_credentials_takes_the_stored_ones(
    project: Project, post: sendgrid.StandIn, call: str
) -> None:
    """In every way that a script may leave them out."""
    project.connect("POST", post)
    send = project.classic(f"{call};")

    answer = project.ask(send, MAIL)

    (row,) = project.delivered(1)
    assert answer == {
        "messageId": row["id"], "status": "queued", "from": MAIL["from"], "to": MAIL["to"],
    }  # fmt: skip
    assert (row["kind"], row["connection"]) == ("sendgrid", "POST")


def test_several_receivers_in_one_text_are_several(
    project: Project, post: sendgrid.StandIn
) -> None:
    """As mail programs write them."""
    project.connect("POST", post)
    send = project.classic("email(null, p, callback);")

    answer = project.ask(send, MAIL | {"to": "b@example.com, Carl <c@example.com>"})

    assert answer["to"] == ["b@example.com", "Carl <c@example.com>"]
    project.delivered(1)


def test_of_several_mailers_the_error_names_all(project: Project, post: sendgrid.StandIn) -> None:
    """Unless one is called EMAIL or MAIL."""
    project.connect("NEWS", post)
    project.connect("ALARMS", post)
    send = project.classic("email(null, p, callback);")

    told = project.run(send, MAIL)["error"]["message"]
    project.connect("MAIL", post)
    project.ask(send, MAIL)

    assert "ALARMS, NEWS" in told
    (row,) = project.delivered(1)
    assert row["connection"] == "MAIL"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("email(null, p, callback)", "PUT /v1/connections/EMAIL"),
        ("email({ service: 'SES' }, p, callback)", "PUT /v1/connections/MAIL"),
        ("email({ service: 'Pigeon', auth: { a: 1 } }, p, callback)", '"Pigeon"'),
        ("email({ auth: { api_key: 'SG.a.b' } }, p, callback)", "service"),
        (
            "email({ service: 'SendGrid', auth: { api_key: 'hidden-part' } }, p, callback)",
            "api_key",
        ),
        ("email({ service: 'SendGrid', auth: { api_key: { a: 1 } } }, p, callback)", "api_key"),
        ("email({ service: 'SendGrid', auth: 'hidden-part' }, p, callback)", "api_key"),
        ("email({ service: 'Mandrill', auth: { key: 'hidden-part' } }, p, callback)", "key"),
        ("email(42, p, callback)", "object"),
        ("email({ service: 'constructor', auth: { a: 1 } }, p, callback)", "constructor"),
        ("new Twilio('AC1', 'hidden-part').sendMessage({}, callback)", "account_sid"),
        ("new Twilio({}, []).sendMessage({}, callback)", "account_sid"),
        ("new Telegram('1:hidden-part').sendMessage({}, callback)", "token"),
        ("new Telegram({})", "Telegram: the bot's token, or a connection's name, must be a text"),
        ("new Telegram(5)", "Telegram: the bot's token, or a connection's name, must be a text"),
        ("new Twilio(1)", "Twilio: the connection's name must be a text"),
        ("new Twilio('AC1', 5)", "Twilio: auth_token must be a text"),
        ("new Twilio(5, 'hidden-part')", "Twilio: account_sid must be a text"),
        ("new Twilio(null, 'hidden-part')", "Twilio: account_sid must be a text"),
        ("email({ connection: 5 }, p, callback)", "email: the connection's name must be a text"),
        ("new Twilio(Symbol('x'), 'hidden-part').sendMessage({}, callback)", "account_sid"),
        ("const a = {}; a.a = a; new Twilio().sendMessage(a, callback)", "circular"),
        ("new Telegram().sendMessage({ get text() { throw Error('mine') } }, callback)", "mine"),
        ("email(new Proxy({}, { ownKeys() { throw Error('mine') } }), p, callback)", "mine"),
        ("email({ toJSON: () => 'hidden-part' }, p, callback)", "must be an object"),
        ("new Twilio().sendMessage({ toJSON: () => 'hidden-part' }, callback)", "message"),
    ],
)
def test_what_is_wrong_is_said_without_a_credential(
    project: Project, call: str, named: str
) -> None:
    """The error names the service, the field or the remedy; never what was in the field."""
    send = project.classic(f"{call};")

    run = project.run(send, MAIL)

    assert run["status"] == "failed"
    assert named in run["error"]["message"]
    assert "hidden-part" not in json.dumps([run, project.log(run)])
    assert project.deliveries() == []


# Credentials in the script


def test_credentials_in_the_script_are_used_and_never_seen(
    engine: Engine, project: Project
) -> None:
    """Not in the run, its log, its delivery or any file; the log warns once."""
    send = project.classic(f"email({SES}, p); email({SES}, p); callback(null, 'sent');")

    run = project.run(send, MAIL)

    assert run["result"] == "sent"
    rows = project.deliveries()
    assert len(rows) == 2
    (name,) = {row["connection"] for row in rows}
    assert name.startswith("inline:mail:")
    ((level, text),) = project.log(run)
    assert (level, "PUT /v1/connections/" in text) == ("warn", True)
    shown = project.ok("GET", f"/v1/executions/{run['id']}")
    assert [step[1]["credentials"] for step in shown["transcript"]] == ["[not shown]"] * 2
    seen = json.dumps([shown, rows, project.log(run)]) + engine.stderr()
    assert "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY" not in seen


def test_what_one_run_does_to_the_globals_no_other_sees(
    project: Project, sms: twilio.StandIn, post: sendgrid.StandIn
) -> None:
    """They stay what they are, though all runs of a script share one world."""
    project.connect("SMS", sms)
    project.connect("POST", post)
    send = project.deploy(
        """
        function main(p, callback) {
          if (p === 'spoil') {
            const stolen = () => { throw new Error('stolen'); };
            try { Twilio.prototype.sendMessage = stolen; } catch (e) {}
            try { Object.defineProperty(Twilio.prototype, 'sendMessage', { value: stolen }); } catch (e) {}
            try { Twilio = email = Telegram = stolen; } catch (e) {}
            try { globalThis.Twilio = stolen; } catch (e) {}
            try { Object.defineProperty(globalThis, 'Twilio', { value: stolen }); } catch (e) {}
            try { delete globalThis.Twilio; } catch (e) {}
            for (const name of ['to', 'body', 'sid', 'kind', 'credentials', 'sendMessage', '0']) {
              Object.defineProperty(Object.prototype, name, { set: stolen, configurable: true });
            }
            Object.prototype.connection = 'OTHER';
            Object.prototype.service = 'Pigeon';
            JSON.stringify = JSON.parse = Object.keys = Object.assign = stolen;
            String.prototype.slice = String.prototype.toLowerCase = stolen;
            return callback(null, 'spoilt');
          }
          email({}, p.mail);
          new Twilio().sendMessage(p.sms, callback);
        }
        """
    )

    assert project.ask(send, "spoil") == "spoilt"
    assert project.ask(send, {"sms": SMS, "mail": MAIL})["status"] == "queued"

    rows = project.delivered(2)
    assert {row["connection"] for row in rows} == {"SMS", "POST"}


@pytest.mark.parametrize(
    "source",
    [
        "function email() { return 'mine'; } function main(p, callback) { callback(null, email()); }",
        "var email = () => 'mine'; function main(p, callback) { callback(null, email()); }",
        "const email = () => 'mine'; function main(p, callback) { callback(null, email()); }",
        "class Twilio { my() { return 'mine'; } }"
        " function main(p, callback) { callback(null, new Twilio().my()); }",
    ],
)
def test_a_script_may_have_names_of_its_own(project: Project, source: str) -> None:
    """What its file declares counts."""
    assert project.ask(project.deploy(source)) == "mine"


def test_modules_have_none_of_these(project: Project) -> None:
    """They have `env`."""
    look = project.module("return [typeof email, typeof Twilio, typeof Telegram, typeof Twitter]")

    assert project.ask(look) == ["undefined"] * 4


def test_no_message_is_sent_while_the_file_is_loaded(project: Project) -> None:
    """The upload fails, and says where to call it."""
    body = {
        "name": "early",
        "source": f"new Twilio().sendMessage({json.dumps(SMS)}); function main() {{}}",
    }

    answer = project.request("POST", "/v1/functions", body)

    assert answer.status_code == 422
    assert "call it in a handler" in answer.json()["detail"]


def test_ten_thousand_messages_are_twenty(project: Project, sms: twilio.StandIn) -> None:
    """The run that wants more ends, and sends nothing at all; the next one is unharmed."""
    project.connect("SMS", sms)
    send = project.classic(
        "for (let i = 0; i < p.count; i++) new Twilio().sendMessage({ ...p.sms, body: 'n' + i });"
        "callback(null, 'done');"
    )

    flood = project.run(send, {"sms": SMS, "count": 10_000})
    one = project.run(send, {"sms": SMS, "count": 1})

    assert flood["status"] == "effects_exceeded"
    assert flood["limit"]["name"] == "deliveries"
    assert (one["status"], len(one["effects"])) == ("succeeded", 1)
    assert len(project.deliveries()) == 1


# Twitter


@pytest.mark.parametrize("callback", ["callback", ""])
def test_twitter_says_that_it_is_gone(project: Project, callback: str) -> None:
    """To the callback, else to the log; the remedy is named."""
    given = f", {callback}" if callback else ""
    done = "" if callback else "callback(null, 'done');"
    tweet = project.classic(
        f"new Twitter({{ consumerKey: 'k' }}).postTweet({{ status: 'Hi' }}{given}); {done}"
    )

    run = project.run(tweet)

    told = run["error"]["message"] if callback else project.log(run)[0][1]
    assert run["status"] == ("failed" if callback else "succeeded")
    assert "not supported" in told
    assert "httpRequest" in told


# Warnings at the upload


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (f"function main(p, cb) {{\n  new Twilio({CREDENTIALS});\n}}", [(2, 52, "Twilio")]),
        (f"function main(p, cb) {{\n  email({SES}, p);\n}}", [(2, 89, "email")]),
        ("const t = 'tok';\nfunction main() { new Twilio('AC1', t); }", [(1, 11, "Twilio")]),
        (
            "var c = { service: 'Gmail', auth: { user: 'u', pass: 'p' } };\n"
            "function main() { email(c, {}); email(c, {}); }",
            [(1, 54, "email")],
        ),
        (
            "var keys = { sid: 'AC1', token: `tok` };\n"
            "function main() { new Twilio(keys.sid, keys.token); }",
            [(1, 33, "Twilio")],
        ),
        ("function main() { new Telegram('123456:abc'); }", [(1, 32, "Telegram")]),
        (
            "export default { job() { return 'xoxb-' + 1 + 'xoxb-123456789012-abcdefghij'; } };",
            [(1, 47, "Slack token")],
        ),
        ("function main() { new Twilio(); new Twilio('SMS'); new Telegram('TG'); }", []),
        ("function main(p) { new Twilio(p.sid, p.token); email(p.c, p); }", []),
        ("function main() { new Twilio('AC1', ''); }", []),
        ("function main() { return 'new Twilio(\"AC1\", \"tok\")'; } // email({auth: 'x'})", []),
        ("class Twilio {}\nfunction main() { new Twilio('AC1', 'tok'); }", []),
        (
            "export default { job() { const email = (a) => a; email({ auth: { pass: 'x' } }); } };",
            [],
        ),
    ],
)
def test_an_upload_is_warned_of_credentials_in_it(
    project: Project, source: str, places: list[tuple[int, int, str]]
) -> None:
    """File, line and column of the literal, and what to do instead; it is uploaded all the same."""
    made = project.ok("POST", "/v1/functions", {"name": "warned", "source": source})
    again = project.ok("POST", "/v1/functions/warned/versions", {"source": source})

    found = made["warnings"]
    assert [(one["line"], one["column"]) for one in found] == [place[:2] for place in places]
    for warning, (_, _, what) in zip(found, places, strict=True):
        assert warning["file"] == "main.js"
        assert what in warning["message"]
        assert "/v1/connections/" in warning["message"]
        assert "tok" not in warning["message"].replace("token", "")
    assert again["warnings"] == found


def test_a_flood_of_credentials_is_twenty_warnings(project: Project) -> None:
    """An answer stays one that can be read."""
    source = "function main() {}\n" + f"new Twilio({CREDENTIALS});\n" * 5_000

    made: dict[str, Any] = project.ok("POST", "/v1/functions", {"name": "many", "source": source})

    assert len(made["warnings"]) == 20


@pytest.mark.parametrize(
    "made",
    [
        "email({ service: 'SendGrid', auth: { api_key: 'SG.abcdefghij.klmnopqrst' } }, p)",
        f"email({SES}, p)",
        f"new Twilio({CREDENTIALS}).sendMessage(p)",
        "new Telegram('123456:abcdefghijklmnopqrstuvwxyz0123456789').sendMessage(p)",
    ],
)
def test_the_upload_and_the_run_advise_the_same_name(project: Project, made: str) -> None:
    """Who follows both stores one connection."""
    source = f"function main(p, callback) {{ {made}; callback(Error('sent: nothing')); }}"
    messages = {"Twilio": SMS, "Telegram": {"chat_id": CHAT, "text": "Hi"}}
    message = next((one for name, one in messages.items() if name in made), MAIL)

    uploaded = project.ok("POST", "/v1/functions", {"name": "advised", "source": source})
    run = project.run("advised", message)

    ((_, logged),) = project.log(run)
    told = [re.findall(r"/v1/connections/(\w+)", text) for text in
            (uploaded["warnings"][0]["message"], logged)]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0]) == 1
