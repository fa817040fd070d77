"""What modules send through connections: `env.NAME.<action>(message)`, and the host call below it.

Each test has a project of its own; the providers are stand-ins that keep the providers' rules.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine.catalogue import BoundConnection, Version
from engine.errors import EngineError
from engine.hostcalls.broker import Broker
from engine.hostcalls.connections import Connections
from engine.quotas import limits_for
from engine.run import DeliveryEffect, Run
from engine.runner import LimitReached
from engine.vault import Vault, delivery_context
from runtimes.contract import LimitHit, Outcome, Runtime
from tests.conftest import Engine
from tests.standins.project import Project
from tests.standins.providers import telegram, twilio, webhook

TO = "+15005550010"
SMS = {"to": TO, "from": twilio.OWNED, "body": "Boiler 3: 93 °C"}
ACCOUNT = "AC" + "0123456789abcdef" * 2
TOKEN = "ffeeddccbbaa99887766554433221100"
INLINE = {"kind": "twilio", "credentials": {"account_sid": ACCOUNT, "auth_token": TOKEN}}


@pytest.fixture
def project(engine: Engine) -> Project:
    return Project(engine, "notify")


@pytest.fixture(scope="module")
def sms() -> Iterator[twilio.StandIn]:
    with twilio.StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def bot() -> Iterator[telegram.StandIn]:
    with telegram.StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def hook() -> Iterator[webhook.StandIn]:
    with webhook.StandIn() as running:
        yield running


def test_send_gives_the_id_of_the_delivery(project: Project, sms: twilio.StandIn) -> None:
    """One method, the provider's own field names, and one row that can be looked up."""
    project.connect("SMS", sms)
    send = project.module("return env.SMS.send(p)")

    given = project.ask(send, SMS)

    (row,) = project.delivered(1)
    assert row["id"] == given
    assert (row["kind"], row["connection"], row["state"]) == ("twilio", "SMS", "delivered")
    with sms.lock:
        assert [one["Body"] for one in sms.accepted if one["To"] == TO][-1:] == [SMS["body"]]


def test_each_action_is_a_method_and_no_other(
    project: Project, sms: twilio.StandIn, bot: telegram.StandIn
) -> None:
    """What a connector cannot do is undefined, like any property."""
    project.connect("SMS", sms)
    project.connect("TG", bot)
    look = project.module(
        "return [env.SMS, env.TG].map((one) => "
        "['send', 'call', 'sendPhoto', 'fly', 'kind'].map((name) => typeof one[name]))"
    )

    found = project.ask(look)

    assert found == [
        ["function", "function", "undefined", "undefined", "string"],
        ["function", "undefined", "function", "undefined", "string"],
    ]


def test_a_call_and_a_photo_are_delivered_as_such(
    project: Project, sms: twilio.StandIn, bot: telegram.StandIn
) -> None:
    """The action goes with the message."""
    project.connect("SMS", sms)
    project.connect("TG", bot)
    send = project.module(
        "return [await env.SMS.call({ to: p.to, from: p.from, say: 'Boiler 3' }), "
        "await env.TG.sendLocation({ chat_id: p.chat, latitude: 1.5, longitude: 2.5 })]"
    )

    project.ask(send, SMS | {"chat": telegram.StandIn.message["chat_id"]})

    rows = {row["kind"]: row for row in project.delivered(2)}
    assert rows.keys() == {"twilio", "telegram"}
    with sms.lock:
        assert "Calls" in [one["resource"] for one in sms.accepted]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("{ from: p.from, body: 'x' }", "to"),
        ("{ ...p, to: '0170 1234567' }", "to"),
        ("{ ...p, body: 'x'.repeat(1601) }", "body"),
        ("{ ...p, boddy: 'x' }", "boddy"),
        ("{ ...p, body: 42 }", "body"),
        ("null", "message"),
        ("'text'", "message"),
        ("[]", "message"),
    ],
)
def test_a_wrong_message_is_a_rejection_that_names_the_field(
    project: Project, sms: twilio.StandIn, message: str, named: str
) -> None:
    """The author can catch it; the run goes on, and sends nothing."""
    project.connect("SMS", sms)
    send = project.module(f"return env.SMS.send({message}).catch((error) => error.message)")

    told = project.ask(send, SMS)

    assert named in told
    assert project.deliveries() == []


def test_a_refused_message_that_nobody_waits_for_is_in_the_log(
    project: Project, sms: twilio.StandIn
) -> None:
    """It would be lost without a word: the run itself succeeds."""
    project.connect("SMS", sms)
    done = project.run(project.module("env.SMS.send({ ...p, body: 42 }); return 1"), SMS)

    ((level, text),) = project.log(done)

    assert level == "warn"
    assert "body" in text
    assert project.deliveries() == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("const a = {}; a.a = a; return env.HOOK.send(a)", "circular"),
        ("return env.HOOK.send({ get a() { throw new Error('mine') } })", "mine"),
        ("return env.HOOK.send({ toJSON() { return 'text' } })", "message"),
        ("return env.HOOK.send(new Proxy({}, { ownKeys() { throw new Error('no') } }))", "no"),
        ("let a = {}; for (let i = 0; i < 300; i++) a = { a }; return env.HOOK.send(a)", "deeper"),
        ("return env.HOOK.send({ a: 'x'.repeat(300000) })", "262144"),
        ("return env.HOOK.send({ a: 10n })", "BigInt"),
        ("return env.HOOK.send()", "message"),
    ],
)
def test_hostile_messages_are_refused(
    project: Project, hook: webhook.StandIn, message: str, said: str
) -> None:
    """Whatever the object does when it is looked at, the run sees an error it can catch."""
    project.connect("HOOK", hook)
    send = project.module(
        f"try {{ return await (async () => {{ {message} }})() }} catch (error) "
        "{ return error.message }"
    )

    told = project.ask(send)

    assert said in told
    assert project.deliveries() == []


def test_odd_names_are_only_names(project: Project, hook: webhook.StandIn) -> None:
    """`__proto__` and `constructor` are sent as any field, and change nobody's prototype."""
    project.connect("HOOK", hook)
    message = '{"__proto__":{"admin":true},"constructor":1,"toString":"x","\\ud83d\\ude00":null}'
    send = project.module("await env.HOOK.send(JSON.parse(p)); return {}.admin ?? 'clean'")

    assert project.ask(send, message) == "clean"

    project.delivered(1)
    with hook.lock:
        assert json.loads(message) in hook.accepted


def test_ten_thousand_sends_are_twenty(project: Project, hook: webhook.StandIn) -> None:
    """The run that wants more ends, and sends nothing at all."""
    project.connect("HOOK", hook)
    flood = project.module("for (let i = 0; i < 10000; i++) env.HOOK.send({ i }).catch(() => {})")

    run = project.run(flood)

    assert run["status"] == "effects_exceeded"
    assert run["limit"]["name"] == "deliveries"
    assert run["limit"]["value"] == 20
    assert project.deliveries() == []


def test_who_may_not_use_a_connection_has_none(project: Project, hook: webhook.StandIn) -> None:
    """Its name is undefined in `env`, and by the host call's own name it is refused."""
    project.connect("HOOK", hook, functions=["somebody-else"])
    look = project.module("return [typeof env.HOOK, typeof env.OTHER]")

    assert project.ask(look) == ["undefined", "undefined"]


def test_what_a_run_does_to_its_bindings_stays_in_it(
    project: Project, hook: webhook.StandIn
) -> None:
    """Each run has its own, and cannot change even those."""
    project.connect("HOOK", hook)
    send = project.module(
        "try { env.HOOK.send = () => 'stolen' } catch {} "
        "Object.defineProperty(Object.prototype, 'send', { set() {}, configurable: true });"
        "Object.prototype.HOOK = Object.prototype.connection = Object.prototype.kind = 'OTHER';"
        "return env.HOOK.send({ n: p });"
    )

    ids = [project.ask(send, n) for n in (1, 2)]

    assert [one[:4] for one in ids] == ["dlv_", "dlv_"]
    assert len(project.delivered(2)) == 2


@pytest.mark.parametrize(
    ("kind", "settings", "message", "recipient", "line"),
    [
        ("twilio", {}, SMS, TO, TO),
        ("twilio", {"ordered": False}, SMS, TO, None),  # the cost guard counts them all the same
        ("webhook", {}, {"a": 1}, None, None),
        ("webhook", {"ordered": True}, {"a": 1}, None, "*"),
    ],
)
def test_what_is_kept_in_order_stands_in_a_line(
    kind: str,
    settings: dict[str, Any],
    message: dict[str, Any],
    recipient: str | None,
    line: str | None,
) -> None:
    """As the kind does, unless the connection's settings say otherwise."""
    run = a_run(ONE=BoundConnection(kind=kind, settings=settings))

    sent(run, {"connection": "ONE", "message": message})

    assert (run.effects[-1].recipient, run.effects[-1].line) == (recipient, line)


# The host call: what it chooses, and credentials that come with it.


def a_run(**connections: BoundConnection) -> Run:
    """Return a run that may use these connections."""
    version = Version(
        id="ver_1", number=1, function_id="fn_1", function="notifier", project_id="prj_1",
        runtime=Runtime.JAVASCRIPT, program="{}", handlers=("default",), overrides={},
        allowed_hosts=(), bindings={"variables": {}, "secrets": {}, "connections": {}},
        connections=connections,
    )  # fmt: skip
    return Run(
        execution_id="exe_1", version=version, handler="default", cause="invoke",
        limits=limits_for("default", {}), input=b"null", created_ms=0, created_ns=0,
        root_id="exe_" + "0" * 32,
    )  # fmt: skip


VAULT = Vault(bytes(range(32)))


def sent(run: Run, arguments: Any, told: list[Any] | None = None) -> str:
    def tell(_run: Run, lines: list[tuple[str, int, str]]) -> None:
        if told is not None:
            told.extend(lines)

    return Connections(VAULT, tell).send(run, msgspec.json.encode(arguments), 1)


def refused(run: Run, arguments: Any) -> str:
    with pytest.raises((EngineError, msgspec.ValidationError)) as caught:
        sent(run, arguments)
    assert run.effects == []
    return str(caught.value)


def bound(kind: str) -> BoundConnection:
    return BoundConnection(kind=kind, settings={})


def test_whom_it_is_for_has_no_control_characters() -> None:
    """PostgreSQL has no text with a NUL: the run could not be stored, ever."""
    message = {"text": "x", "channel": "C\0"}

    told = refused(a_run(TEAM=bound("slack")), {"connection": "TEAM", "message": message})

    assert "recipient 'C\\x00'" in told


def test_whom_it_is_for_is_short_enough_for_a_key() -> None:
    """Of a long one there is a name: equal for equal ones, another for others."""
    run, start = a_run(TEAM=bound("slack")), "żółw" * 1_000
    for channel in (f"{start}1", f"{start}1", f"{start}2", "C1"):
        sent(run, {"connection": "TEAM", "message": {"text": "x", "channel": channel}})

    first, same, other, plain = (effect.line for effect in effects(run))
    assert first == same != other
    assert first.startswith("żółw")
    assert len(first.encode()) < 255
    assert plain == "C1"


def test_a_mail_to_many_has_a_short_recipient() -> None:
    """Whatever their order, and whoever they are."""
    run = a_run(MAIL=bound("mail"))
    people = [f"someone.with.a.long.name.{n}@example.com" for n in range(100)]
    for to in (people, people[::-1], people[1:]):
        mail = {"from": "a@example.com", "to": to, "subject": "x", "text": "x"}
        sent(run, {"connection": "MAIL", "message": mail})

    first, same, other = (effect.line for effect in effects(run))
    assert first == same != other
    assert "and 99 more" in first


def effects(run: Run) -> list[Any]:
    return [effect for effect in run.effects if isinstance(effect, DeliveryEffect)]


def test_the_only_connection_of_a_kind_is_meant() -> None:
    """A message by its kind alone goes through the one that is stored."""
    run = a_run(ALARMS=bound("twilio"), HOOK=bound("webhook"))

    sent(run, {"kind": "twilio", "message": SMS})

    assert run.effects[-1].connection == "ALARMS"


def test_of_several_the_one_with_the_usual_name_is_meant() -> None:
    """Else the error names all there are."""
    several = {"A": bound("twilio"), "B": bound("twilio")}
    named = a_run(**several, SMS=bound("twilio"))

    sent(named, {"kind": "twilio", "message": SMS})
    told = refused(a_run(**several), {"kind": "twilio", "message": SMS})

    assert named.effects[-1].connection == "SMS"
    assert "A, B" in told


@pytest.mark.parametrize(
    ("connections", "meant"),
    [
        ({"NEWS": "sendgrid"}, "NEWS"),
        ({"NEWS": "mailchimp"}, "NEWS"),
        ({"NEWS": "sendgrid", "EMAIL": "mailchimp"}, "EMAIL"),
        ({"NEWS": "sendgrid", "MAIL": "sendgrid", "X": "twilio"}, "MAIL"),
    ],
)
def test_an_email_goes_through_whatever_can_mail(connections: dict[str, str], meant: str) -> None:
    """`kind: email` is any of them; the same message fits all."""
    run = a_run(**{name: bound(kind) for name, kind in connections.items()})
    message = {"from": "a@example.com", "to": "b@example.com", "subject": "s", "text": "t"}

    sent(run, {"kind": "email", "message": message})

    assert run.effects[-1].connection == meant


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"message": {}}, "give connection, or kind"),
        ({"kind": "twilio", "message": SMS}, "PUT /v1/connections/TWILIO"),
        ({"kind": "email", "message": {}}, "PUT /v1/connections/EMAIL"),
        ({"kind": "pigeon", "message": {}}, "no connector for pigeon"),
        ({"connection": "NO", "message": {}}, "'NO'"),
        ({"connection": "HOOK", "kind": "email", "message": {}}, "HOOK is webhook"),
        ({"connection": "HOOK", "action": "fly", "message": {}}, "webhook cannot 'fly'"),
        ({"connection": "HOOK", "credentials": {}, "message": {}}, "credentials need a kind"),
        ({"credentials": {}, "message": {}}, "credentials need a kind"),
        ({"kind": "email", "credentials": {}, "message": {}}, "no connector for email"),
        ({"connection": "HOOK", "message": "text"}, "$.message"),
        ({"connection": 1, "message": {}}, "$.connection"),
    ],
)
def test_what_is_asked_wrongly_is_refused_by_name(asked: dict[str, Any], named: str) -> None:
    """Each error names what was asked, and what there is."""
    assert named in refused(a_run(HOOK=bound("webhook")), asked)


def test_credentials_of_the_script_are_sealed_with_the_delivery() -> None:
    """They open for this delivery alone; its name tells them apart, and tells nobody what."""
    run = a_run()

    made = sent(run, {**INLINE, "message": SMS})

    (effect,) = run.effects
    assert isinstance(effect, DeliveryEffect)
    assert effect.sealed is not None
    opened = VAULT.open(effect.sealed, context=delivery_context("prj_1", made))
    assert json.loads(opened) == INLINE["credentials"]
    assert effect.connection.startswith("inline:twilio:")
    assert len(effect.connection) == len("inline:twilio:") + 8
    assert TOKEN not in repr(effect) + effect.payload


def test_the_same_credentials_have_the_same_name() -> None:
    """Order, breaker and the one row of an intent hang on it."""
    runs = [a_run() for _ in range(3)]
    turned = dict(reversed(INLINE["credentials"].items()))
    other = INLINE["credentials"] | {"auth_token": TOKEN[::-1]}

    ids = [
        sent(run, {"kind": "twilio", "credentials": credentials, "message": SMS})
        for run, credentials in zip(runs, (INLINE["credentials"], turned, other), strict=True)
    ]

    assert ids[0] == ids[1] != ids[2]
    assert runs[0].effects[0].connection == runs[1].effects[0].connection
    assert runs[0].effects[0].connection != runs[2].effects[0].connection


def test_a_run_is_warned_once_of_its_credentials() -> None:
    """In its log, and to who follows it; the line says what to do, and no credential."""
    run, told = a_run(), []

    for body in "abc":
        sent(run, {**INLINE, "message": SMS | {"body": body}}, told)

    assert run.log == told
    ((level, _, text),) = run.log
    assert level == "warn"
    assert "PUT /v1/connections/TWILIO" in text
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("kind", "credentials"),
    [
        ("webhook", {"url": "https://example.com/"}),
        ("apprise", {"url": "json://example.com/"}),
        ("slack", {"webhook_url": "https://example.com/services/T0/B0/x"}),
        ("slack", {"webhook_url": "https://hooks.slack.com@example.com/services/T0/B0/x"}),
        ("mail", {"username": "u", "password": "p"}),
    ],
)
def test_credentials_that_would_lead_anywhere_must_be_stored(
    kind: str, credentials: dict[str, str]
) -> None:
    """A script reaches its allowed hosts, and the providers themselves."""
    told = refused(a_run(), {"kind": kind, "credentials": credentials, "message": {"text": "x"}})

    assert "store" in told


@pytest.mark.parametrize(
    "credentials",
    [
        {"account_sid": ACCOUNT},
        {"account_sid": ACCOUNT, "auth_token": 12345678},
        {"account_sid": ACCOUNT, "auth_token": {"secret-part": TOKEN}},
        {"account_sid": TOKEN, "auth_token": ACCOUNT},
        {"account_sid": ACCOUNT, "auth_token": TOKEN, "base_url": "http://127.0.0.1"},
        {"account_sid": ACCOUNT, "auth_token": "x" * 20_000},
        {},
    ],
)
def test_wrong_credentials_are_refused_without_a_word_of_them(credentials: dict[str, Any]) -> None:
    """The error names the field, never its value; nor can they say where the provider is."""
    told = refused(a_run(), {"kind": "twilio", "credentials": credentials, "message": SMS})

    assert "auth_token" in told or "account_sid" in told or "base_url" in told
    assert not any(text in told for text in (TOKEN, ACCOUNT, "12345678", "x" * 100))


def test_the_deliveries_of_all_kinds_count_together() -> None:
    """Twenty a run, with whatever credentials."""
    run = a_run(SMS=bound("twilio"))
    for n in range(20):
        asked = INLINE if n % 2 else {"connection": "SMS"}
        sent(run, {**asked, "message": SMS | {"body": str(n)}})

    with pytest.raises(LimitReached):
        sent(run, {**INLINE, "message": SMS})


@pytest.mark.parametrize("key", ["credentials", "\\u0063redentials"])
@pytest.mark.parametrize("kind", ["twilio", "pigeon"])
def test_the_transcript_has_no_credentials(key: str, kind: str) -> None:
    """Taken or refused, and however the field's name is written."""
    run = a_run()
    asked = json.dumps({"kind": kind, "message": SMS})[:-1]
    arguments = f'{asked}, "{key}": {json.dumps(INLINE["credentials"])}}}'
    answers: list[tuple[bool, bytes]] = []
    broker = Broker({"connection.send": Connections(VAULT, lambda _run, _lines: None).send})

    broker.handle(
        run, 1, "connection.send", arguments.encode(), lambda ok, text: answers.append((ok, text))
    )

    ((operation, shown, ok, _),) = map(json.loads, run.transcript)
    assert (operation, ok) == ("connection.send", kind == "twilio")
    assert shown["credentials"] == "[not shown]"
    assert shown["message"] == SMS
    assert TOKEN.encode() not in b"".join(run.transcript) + answers[0][1]


def test_a_mistake_of_ours_is_an_error_for_the_guest_alone() -> None:
    """Whether the capability answers at once or later; a limit still ends the run."""
    answers: list[tuple[bool, Any]] = []

    def fails(*_: object) -> Any:
        raise AttributeError("a bug")

    def too_much(*_: object) -> Any:
        raise LimitReached(Outcome.EFFECTS_EXCEEDED, LimitHit(name="x", value=1, used=2))

    broker = Broker({"fails": fails, "unwritable": lambda *_: object(), "too_much": too_much})
    for operation in ("fails", "unwritable"):
        broker.handle(a_run(), 1, operation, b"{}", lambda *told: answers.append(told))
    with pytest.raises(LimitReached):
        broker.handle(a_run(), 1, "too_much", b"{}", lambda *told: answers.append(told))

    assert [ok for ok, _ in answers] == [False, False]
    assert [json.loads(told)["code"] for _, told in answers] == ["internal"] * 2
    assert "a bug" not in str(answers)


def test_one_that_is_for_others_is_named_with_the_remedy() -> None:
    """To store another one would be the wrong advice."""
    run = a_run()
    run.version.withheld["SMS"] = "twilio"

    told = refused(run, {"kind": "twilio", "message": SMS})

    remedy = "cloudcode connections put SMS --kind twilio --keep-credentials --function notifier"
    assert remedy in told
