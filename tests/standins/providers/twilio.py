"""Answers like Twilio's REST API, `2010-04-01`: messages, calls, the account; signs callbacks.

Source of the rules: twilio.com/docs: Message and Call resource, "Test credentials" (the magic
numbers), "Error and Warning Dictionary", "Security" (the signature of callbacks).
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from tests.standins.provider import Asked, Case, HttpProvider, Reply

ACCOUNT = "AC" + "0123456789abcdef" * 2
TOKEN = "8c1f0e63d5b24a7f9be0427d6a315cd8"
KEY = "SK" + "fedcba9876543210" * 2
KEY_SECRET = "kZyXwVuTsRqPoNmLkJiHgFeDcBa98765"
OWNED = "+15005550006"  # "Test credentials": the number that may send

# "Test credentials": what a number is for, by resource.
TO = {
    "Messages": {
        "+15005550001": 21211, "+15005550002": 21612, "+15005550003": 21408,
        "+15005550004": 21610, "+15005550009": 21614,
    },
    "Calls": {
        "+15005550001": 21217, "+15005550002": 21214, "+15005550003": 21215,
        "+15005550004": 21216,
    },
}  # fmt: skip
FROM = {"+15005550001": 21212, "+15005550007": 21606, "+15005550008": 21611}
TEXTS = {
    14107: "SMS send rate limit exceeded",
    20003: "Authenticate",
    20404: "The requested resource was not found",
    20429: "Too Many Requests",
    21201: "No 'To' number is specified",
    21205: "Url is not a valid URL",
    21211: "Invalid 'To' Phone Number",
    21212: "Invalid 'From' Number",
    21213: "No 'From' number is specified",
    21217: "Phone number does not appear to be valid",
    21408: "Permission to send an SMS has not been enabled for the region indicated by 'To'",
    21603: "A 'From' phone number is required",
    21604: "A 'To' phone number is required",
    21606: "The 'From' phone number is not a valid, message-capable Twilio phone number",
    21608: "The number is unverified. Trial accounts cannot send messages to unverified numbers",
    21609: "The 'StatusCallback' URL is not a valid URL",
    21610: "Attempt to send to unsubscribed recipient",
    21611: "This 'From' number has exceeded the maximum number of queued messages",
    21614: "'To' number is not a valid mobile number",
    21617: "The concatenated message body exceeds the 1600 character limit",
    21619: "A text message body or media urls must be specified",
    21623: "Number of media files exceeds allowed limit",
    21624: "Invalid validity period value",
    21626: "Invalid StatusCallbackEvent",
    63007: "Twilio could not find a Channel with the specified From address",
}
STATUS = {20003: 401, 20404: 404, 20429: 429, 21611: 429, 14107: 429, 63038: 429}
EVENTS = {"initiated", "ringing", "answered", "completed"}


def error(code: int, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error as the API writes it."""
    status = STATUS.get(code, 400)
    body = {
        "code": code,
        "message": TEXTS.get(code, f"error {code}"),
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    sent = {"Content-Type": "application/json", **(headers or {})}
    return Reply(status=status, body=json.dumps(body).encode(), headers=sent)


def signed(
    url: str, params: Mapping[str, str], auth_token: str = TOKEN
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a status callback for `url`.

    "Security": the URL, then each parameter's name and value, sorted by name; HMAC-SHA1 with the
    auth token; base64.
    """
    text = url + "".join(name + params[name] for name in sorted(params))
    mac = hmac.new(auth_token.encode(), text.encode(), hashlib.sha1)
    headers = {
        "content-type": "application/x-www-form-urlencoded; charset=UTF-8",
        "user-agent": "TwilioProxy/1.1",
        "x-twilio-signature": base64.b64encode(mac.digest()).decode(),
    }
    return headers, urlencode(params).encode()


class StandIn(HttpProvider):
    kind: ClassVar[str] = "twilio"
    message: ClassVar[dict[str, Any]] = {"to": "+15005550010", "body": "Boiler 3: 93 °C"}

    prefix = ""  # a path before the API's own, as behind an operator's proxy

    def connection(self) -> dict[str, Any]:
        return {
            "kind": "twilio",
            "credentials": {"account_sid": ACCOUNT, "auth_token": TOKEN},
            "settings": {"base_url": self.url + self.prefix, "from": OWNED},
        }

    def judge(self, asked: Asked) -> Reply:
        url = urlsplit(asked.path.removeprefix(self.prefix))
        found = re.fullmatch(
            r"/2010-04-01/Accounts/(AC[0-9a-f]{32})(?:/(Messages|Calls))?\.json", url.path
        )
        if not self._is_known(asked.headers.get("authorization", "")):
            return self._no(20003)
        if found is None or found[1] != ACCOUNT:
            return self._no(20404)
        if asked.method == "GET":
            return self._shown(found[2], asked)
        kind = asked.headers.get("content-type", "").partition(";")[0]
        if found[2] is None or kind != "application/x-www-form-urlencoded":
            return self._no(21604)
        form = parse_qs(asked.body.decode(), keep_blank_values=True)
        one = {name: values[0] for name, values in form.items()}
        code = _message_error(form, one) if found[2] == "Messages" else _call_error(form, one)
        if code is not None:
            return self._no(code)
        return self._taken(found[2], form, one)

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        def spoil(**fields: Any) -> Callable[[Case], None]:
            return lambda case: case.message.update(fields)

        def say(reply: Reply) -> Callable[[Case], None]:
            return lambda _case: self.then(reply)

        def call(case: Case, **fields: Any) -> None:
            case.action = "call"
            case.message = {"to": "+15005550010", "say": "Boiler 3 is too hot"} | fields

        def without_sender(case: Case) -> None:
            del case.settings["from"]

        def by_key(case: Case) -> None:
            del case.credentials["auth_token"]
            case.credentials |= {"api_key_sid": KEY, "api_key_secret": KEY_SECRET}

        def whatsapp(case: Case) -> None:
            case.action = "whatsapp"

        return {
            "takes a message with an API key": by_key,
            "takes a WhatsApp message": whatsapp,
            "takes a call": call,
            "does not know the token (20003)": lambda case: case.credentials.update(
                auth_token=TOKEN[::-1]
            ),
            "does not know the account (20404)": lambda case: case.credentials.update(
                account_sid="AC" + "f" * 32, api_key_sid=KEY, api_key_secret=KEY_SECRET
            ),
            "has suspended the account (20005)": say(error(20005)),
            "has too many requests at once (20429)": say(error(20429)),
            "wants it later (20429 with `Retry-After: 3`)": say(error(20429, {"Retry-After": "3"})),
            "has a full queue for the sender (21611)": spoil(**{"from": "+15005550008"}),
            "sees too many messages to one number (14107)": say(error(14107)),
            "is under maintenance (21730)": say(error(21730)),
            "has sent the day's messages (63038)": say(error(63038)),
            "knows they answered STOP (21610)": spoil(to="+15005550004"),
            "knows no such number (21211)": spoil(to="+15005550001"),
            "knows it is no mobile number (21614)": spoil(to="+15005550009"),
            "has no route to it (21612)": spoil(to="+15005550002"),
            "may not send to the country (21408)": spoil(to="+15005550003"),
            "does not own the sender (21606)": spoil(**{"from": "+15005550007"}),
            "is on trial and the number is not verified (21608)": say(error(21608)),
            "has no WhatsApp sender (63007)": say(error(63007)),
            "wants a template (63016)": say(error(63016)),
            "may not call the country (21215)": lambda case: call(case, to="+15005550003"),
            "cannot reach the number to call (21214)": lambda case: call(case, to="+15005550002"),
            "answers with a code that is not known here": say(error(29999)),
            "answers 401 without a body": say(Reply(status=401)),
            "answers 201 with garbage": say(Reply(status=201, body=b"<html>Log in", taken=True)),
            "answers 200 with no sid": say(Reply(status=200, body=b'{"status": "queued"}')),
            "answers 201, and it has failed": say(
                Reply(
                    status=201,
                    body=json.dumps(
                        {"sid": "SM" + "a" * 32, "status": "failed", "error_code": 21610}
                    ).encode(),
                )
            ),
            "gets no `to`": lambda case: case.message.pop("to"),
            "gets a `to` that is not E.164": spoil(to="0170 1234567"),
            "gets no sender": without_sender,
            "gets nothing to send": spoil(body=""),
            "gets a body of 1,601 characters": spoil(body="x" * 1601),
            "gets a field that it does not have": spoil(boddy="x"),
            "gets a call with nothing to say": lambda case: (
                call(case),
                case.message.pop("say"),
            )[0],
        }

    def status_callback(
        self, url: str, params: Mapping[str, str], auth_token: str = TOKEN, to: str | None = None
    ) -> httpx.Response:
        """Post a status callback for `url`, signed; `to`: where that public URL is in a test."""
        headers, body = signed(url, params, auth_token)
        with httpx.Client(trust_env=False) as client:
            return client.post(to or url, headers=headers, content=body)

    def _is_known(self, authorization: str) -> bool:
        pairs = (f"{ACCOUNT}:{TOKEN}", f"{KEY}:{KEY_SECRET}")
        return authorization in [
            "Basic " + base64.b64encode(pair.encode()).decode() for pair in pairs
        ]

    def _no(self, code: int) -> Reply:
        with self.lock:
            self.refused.append(str(code))
        return error(code)

    def _shown(self, resource: str | None, asked: Asked) -> Reply:
        if resource is not None:
            return _json(200, {"messages": [], "page": 0, "page_size": 1})
        if KEY in base64.b64decode(asked.headers["authorization"][6:]).decode():
            return self._no(20003)  # only a main key may read /Accounts
        return _json(200, {"sid": ACCOUNT, "friendly_name": "Boilers", "status": "active"})

    def _taken(self, resource: str, form: dict[str, list[str]], one: dict[str, str]) -> Reply:
        with self.lock:
            self.accepted.append({"resource": resource, **one, "all": form})
            number = len(self.accepted)
        letters = "CA" if resource == "Calls" else "MM" if "MediaUrl" in form else "SM"
        sid = f"{letters}{number:032x}"
        made = {
            "account_sid": ACCOUNT,
            "api_version": "2010-04-01",
            "date_created": "Thu, 24 Aug 2023 05:01:45 +0000",
            "direction": "outbound-api",
            "from": one.get("From"),
            "sid": sid,
            "status": "accepted" if "MessagingServiceSid" in form else "queued",
            "to": one["To"],
            "uri": f"/2010-04-01/Accounts/{ACCOUNT}/{resource}/{sid}.json",
        }
        if resource == "Messages":
            made |= {"body": one.get("Body"), "error_code": None, "error_message": None}
        return _json(201, made)


def _json(status: int, shown: Mapping[str, Any]) -> Reply:
    headers = {"Content-Type": "application/json;charset=utf-8"}
    return Reply(status=status, body=json.dumps(shown).encode(), headers=headers)


def _message_error(form: dict[str, list[str]], one: dict[str, str]) -> int | None:
    to, sender, service = one.get("To", ""), one.get("From", ""), one.get("MessagingServiceSid", "")
    wrong = _address_error(to, sender, service)
    if wrong is not None:
        return wrong
    if not (one.get("Body") or one.get("MediaUrl") or one.get("ContentSid")):
        return 21619
    if len(one.get("Body", "")) > 1600:
        return 21617
    if len(form.get("MediaUrl", [])) > 10:
        return 21623
    if "ValidityPeriod" in one and not 1 <= int(one["ValidityPeriod"]) <= 36_000:
        return 21624
    if "StatusCallback" in one and not _is_public(one["StatusCallback"]):
        return 21609
    return TO["Messages"].get(to)


def _address_error(to: str, sender: str, service: str) -> int | None:
    channel, _, number = to.rpartition(":")
    if not to:
        return 21604
    if not re.fullmatch(r"\+[1-9]\d{6,14}", number):
        return 21211
    if not sender and not re.fullmatch(r"MG[0-9a-f]{32}", service):
        return 21603
    if sender and sender.rpartition(":")[0] != channel:
        return 63007
    if sender and sender.removeprefix("whatsapp:") != OWNED:
        return FROM.get(sender, 21606)
    return None


def _call_error(form: dict[str, list[str]], one: dict[str, str]) -> int | None:
    to, sender = one.get("To", ""), one.get("From", "")
    if not to:
        return 21201
    if not sender:
        return 21213
    if sender != OWNED:
        return FROM.get(sender, 21210)
    if not re.fullmatch(r"\+[1-9]\d{6,14}", to):
        return 21217
    if not (one.get("Twiml") or one.get("ApplicationSid")) and not _is_public(one.get("Url", "")):
        return 21205
    if len(one.get("Twiml", "")) > 4000:
        return 21205
    if not set(form.get("StatusCallbackEvent", [])) <= EVENTS:
        return 21626
    return TO["Calls"].get(to)


def _is_public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return urlsplit(url).scheme in ("http", "https") and bool(host) and "_" not in host
