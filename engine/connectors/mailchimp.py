"""Mailchimp: transactional mail, and the members of an audience.

Path:   outbox -> here -> mandrillapp.com (`send`), {dc}.api.mailchimp.com (the other actions)
Source: mailchimp.com/developer: "Marketing API", its errors; "Transactional API"; the project
        mailchimp-client-lib-codegen: the names of transactional errors.
Not by Mailchimp's SDKs: synchronous, on `requests`, and an answer's headers are lost; that of the
        Marketing API was last released in 2022.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import msgspec

from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    SEND,
    Answer,
    CommonSettings,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_size,
    exchange,
    judged,
    retry_after_ms,
    said,
)
from engine.connectors.mailboxes import Mailbox, mailbox, mailboxes, one_line, together
from engine.egress import Egress, Response
from engine.errors import HostCallRefused, Invalid

TRANSACTIONAL: Final = "https://mandrillapp.com"
TEST_MS_MAX: Final = 10_000
TAGS_MAX: Final = 100  # ours: nobody means more
SET_MEMBER: Final = "setMember"
TAG: Final = "tag"
ARCHIVE: Final = "archive"
SKIP: Final = "skip_merge_validation"  # of setMember, in the URL's query: no field of a member

_API_KEY: Final = re.compile(r"[0-9A-Za-z]+-([a-z]{2,4}[0-9]{1,4})")  # ends with the data centre
_TRANSACTIONAL_KEY: Final = re.compile(r"[0-9A-Za-z_-]{6,80}")
_LIST_ID: Final = re.compile(r"[0-9A-Za-z]{1,40}")
_STATUSES: Final = ("subscribed", "unsubscribed", "cleaned", "pending", "transactional")
_TAKEN: Final = frozenset({"sent", "queued", "scheduled"})
_NOT_TAKEN: Final = frozenset({"rejected", "invalid"})
# Fields of the request itself; all others of a short message are fields of its `message`.
_AROUND: Final = ("template_name", "template_content", "async", "ip_pool", "send_at")

_NEW_KEY: Final = "PUT the connection with a valid {key}"
_BACK: Final = "only the person can come back: by a sign-up form, or by confirming (status pending)"

# What a transactional error means, by its name: they come with HTTP 500, whosever fault it is.
# Of those that are not here: with a 4xx the request is wrong, with a 5xx it may work later.
_LATER: Final = frozenset({"GeneralError", "ServiceUnavailable"})
_DISABLES: Final[Mapping[str, str]] = {
    "Invalid_Key": _NEW_KEY.format(key="transactional_key"),
    "PaymentRequired": "pay at Mailchimp for transactional mail, then enable the connection",
    "PoorReputation": "Mailchimp stopped the account for its reputation: ask them, then enable",
}
_FOR_EVER: Final[Mapping[str, str]] = {
    "ValidationError": "",
    "Unknown_Template": "make the template at Mailchimp, then resend",
    "Unknown_Subaccount": "make the subaccount at Mailchimp, then resend",
    "Unknown_Pool": "make the pool of addresses at Mailchimp, then resend",
    "Unknown_Sender": "verify the sender's domain at Mailchimp, then resend",
    "Invalid_Tag_Name": "",
    "Metadata_FieldLimit": "",
}
_REJECTIONS: Final[Mapping[str, str]] = {
    "hard-bounce": "its last mail bounced: take it from the denylist if it works again",
    "soft-bounce": "its last mails bounced: it is on the denylist for a time",
    "spam": "the reader marked mail as spam",
    "unsub": "the reader unsubscribed",
    "custom": "it is on the denylist",
    "invalid-sender": "from_email is not a valid sender",
    "unsigned": "verify the sender's domain at Mailchimp (Sending Domains)",
    "test-mode-limit": "a demo account sends to its own domain alone",
    "rule": "a rule of the account refused it",
}

# What a problem of the Marketing API means, by its title without spaces (its errors' page writes
# them so). Those that are not here: by status.
_TITLES: Final[Mapping[str, tuple[str, bool]]] = {  # remedy, disables?
    "APIKeyInvalid": (_NEW_KEY.format(key="api_key"), True),
    "APIKeyMissing": (_NEW_KEY.format(key="api_key"), True),
    "UserDisabled": ("Mailchimp disabled the account: ask them, then enable", True),
    "WrongDatacenter": ("the api_key ends with another data centre: PUT it whole", True),
    "ComplianceRelated": ("Mailchimp reviews the account: ask them, then enable", True),
    "MemberInComplianceState": (_BACK, False),
    "ForgottenEmailNotSubscribed": (_BACK, False),
}
_TOO_MANY_SIGNUPS: Final = "a lot of lists very recently"  # an Invalid Resource that will pass


class Credentials(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    api_key: str | None = None  # of the Marketing API: "...-us21"
    transactional_key: str | None = None  # "md-..."


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    list_id: str | None = None  # the audience, where an action names none
    from_email: str | None = None
    from_name: str | None = None


class Mailchimp:
    """Credentials `{api_key? transactional_key?}`; settings `{list_id? from_email? from_name?}`."""

    kind = "mailchimp"
    title = "Mailchimp: transactional mail, and the members of an audience"
    actions = (SEND, SET_MEMBER, TAG, ARCHIVE)
    shapes = (Credentials, Settings)
    habits = Habits()  # 4 at once per node; Mailchimp takes 10 of an account

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        api_key, key = credentials.get("api_key"), credentials.get("transactional_key")
        if api_key is None and key is None:
            raise Invalid("give api_key, transactional_key or both", "/credentials")
        if api_key is not None and _API_KEY.fullmatch(api_key) is None:
            raise Invalid("must end with its data centre, as in ...-us21", "/credentials/api_key")
        if key is not None and _TRANSACTIONAL_KEY.fullmatch(key) is None:
            raise Invalid("is not a key as Mailchimp makes them", "/credentials/transactional_key")
        for name, checked in (("list_id", _list_id), ("from_email", _email), ("from_name", _text)):
            if settings.get(name) is not None:
                try:
                    checked(settings[name], name)
                except HostCallRefused as refused:
                    raise Invalid(str(refused), f"/settings/{name}") from refused

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the API takes; for members, with `list_id` and `email_address` in it."""
        message = {name: value for name, value in message.items() if value is not None}
        if action == SEND:
            checked = _mail(message, settings)
        else:
            checked = _member(message, settings)
            if action == SET_MEMBER:
                checked = _statuses(checked)
            elif action == TAG:
                checked = {**checked, "tags": list(_tags(message.get("tags")))}
        check_size(checked, self.kind)
        return checked

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        if action != SEND:
            return together([message["email_address"]])
        people = message["message"]["to"]
        return together(one["email"] for one in people if one.get("type", "to") == "to")

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        if outgoing.action == SEND:
            return await _send_mail(client, outgoing)
        return await _change_member(client, outgoing)

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Ask both APIs for which there is a key."""
        known: list[str] = []
        for asked in (_who_transactional, _who_marketing):
            answer = await asked(client, credentials, settings.get("base_url"), now_ms)
            if isinstance(answer, Retry | Refused):
                return answer
            known += [answer] if answer else []
        return Sent(httpx.codes.OK, "; ".join(known))


# Transactional mail.


def _mail(given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request's body without its key."""
    if "key" in given:
        raise HostCallRefused("mailchimp: key is the connection's and cannot be given")
    request: dict[str, Any] = dict(given) if "message" in given else _full(given)
    message = request["message"]
    if not isinstance(message, dict):
        raise HostCallRefused("mailchimp: message must be an object")
    message = {
        **{name: settings[name] for name in ("from_email", "from_name") if settings.get(name)},
        **message,
    }
    templated = request.get("template_name") is not None
    if templated:
        _text(request["template_name"], "template_name", empty=False)
        request.setdefault("template_content", [])  # required, though most templates need none
        _pairs(request["template_content"], "template_content")
    _check_people(message)
    _check_parts(message)
    if not templated:
        for name in ("from_email", "subject"):
            if not message.get(name):
                raise HostCallRefused(f"mailchimp: {name} is required, unless a template brings it")
        if not message.get("text") and not message.get("html"):
            raise HostCallRefused("mailchimp: text, html or template is required")
    return {**request, "message": message}


def _full(short: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of {to, from, subject, text, html, template, ...}; unknown fields stay."""
    message = dict(short)
    if "template" in message:
        message["template_name"] = message.pop("template")
    request: dict[str, Any] = {name: message.pop(name) for name in _AROUND if name in message}
    people: list[dict[str, Any]] = []
    for kind in ("to", "cc", "bcc"):
        value = message.pop(kind, None)
        found = [] if value is None else mailboxes(value, f"mailchimp: {kind}")
        people += [_person(one) | {"type": kind} for one in found]
    message["to"] = people
    if message.get("from") is not None:
        sender = mailbox(message["from"], "mailchimp: from")
        message["from_email"] = sender.email
        if sender.name:
            message["from_name"] = sender.name
    message.pop("from", None)
    if "reply_to" in message:
        reply_to = mailbox(message.pop("reply_to"), "mailchimp: reply_to").email
        headers = message.get("headers", {})
        message["headers"] = {**_strings(headers, "headers"), "Reply-To": reply_to}
    for name in ("global_merge_vars", "template_content"):
        holder = request if name in request else message
        if isinstance(holder.get(name), dict):
            holder[name] = [{"name": key, "content": to} for key, to in holder[name].items()]
    return {**request, "message": message}


def _person(found: Mailbox) -> dict[str, Any]:
    return {"email": found.email} | ({"name": found.name} if found.name else {})


def _check_people(message: Mapping[str, Any]) -> None:
    people = message.get("to")
    if not isinstance(people, list) or not people:
        raise HostCallRefused("mailchimp: to is required")
    for at, person in enumerate(people):
        if not isinstance(person, dict):
            raise HostCallRefused(f"mailchimp: message.to[{at}] must be an object with email")
        mailbox(person, f"mailchimp: message.to[{at}]")
        if person.get("type", "to") not in ("to", "cc", "bcc"):
            raise HostCallRefused(f"mailchimp: message.to[{at}].type must be to, cc or bcc")
    if message.get("from_email") is not None:
        _email(message["from_email"], "from_email")


def _check_parts(message: Mapping[str, Any]) -> None:
    for name in ("subject", "from_name"):
        if message.get(name) is not None:
            _text(message[name], name)
    for name in ("text", "html"):
        if not isinstance(message.get(name) or "", str):
            raise HostCallRefused(f"mailchimp: {name} must be a string")
    if message.get("headers") is not None:
        _strings(message["headers"], "headers")
    if message.get("global_merge_vars") is not None:
        _pairs(message["global_merge_vars"], "global_merge_vars")
    for kind in ("attachments", "images"):
        for at, item in enumerate(_objects(message.get(kind, []), kind)):
            _check_attachment(item, f"{kind}[{at}]")


def _check_attachment(item: Mapping[str, Any], place: str) -> None:
    for name in ("type", "name", "content"):
        _text(item.get(name), f"{place}.{name}", empty=False)
    try:
        base64.b64decode(item["content"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise HostCallRefused(f"mailchimp: {place}.content is not base64: {error}") from error


async def _send_mail(client: Egress, outgoing: Outgoing) -> Answer:
    key = outgoing.credentials.get("transactional_key")
    if key is None:
        return _without("transactional_key")
    templated = "template_name" in outgoing.message
    path = "messages/send-template" if templated else "messages/send"
    response = await _transactional(
        client,
        outgoing.settings.get("base_url"),
        path,
        {**outgoing.message, "key": key},
        timeout_ms=outgoing.timeout_ms,
    )
    answer = _transactional_judged(response, outgoing.now_ms)
    return answer if not isinstance(answer, Response) else _results(answer)


def _results(response: Response) -> Answer:
    """Return what the results of each recipient come to.

    One that was taken is enough: the mail again would reach that one twice.
    """
    status, found = response.status, _json(response.body)
    results = found if isinstance(found, list) else []
    words = [one.get("status") if isinstance(one, dict) else None for one in results]
    if not results or not all(word in _TAKEN | _NOT_TAKEN for word in words):
        return Refused(status, f"expected a result of each recipient, got {said(response)}")
    taken = [one.get("_id") for one in results if one["status"] in _TAKEN]
    why = "; ".join(_why(one) for one in results if one["status"] in _NOT_TAKEN)
    if not taken:
        return Refused(status, f"HTTP {status}: {why}"[:ERROR_CHARS_MAX])
    message_id = taken[0] if isinstance(taken[0], str) else None
    return Sent(status, message_id, why[:ERROR_CHARS_MAX] or None)


def _why(result: Mapping[str, Any]) -> str:
    reason = str(result.get("reject_reason") or "no reason given")
    remedy = _REJECTIONS.get(reason)
    text = f"{result.get('email')} {result['status']}: {reason}"
    return f"{text} ({remedy})" if remedy else text


async def _transactional(
    client: Egress, base_url: str | None, path: str, body: dict[str, Any], *, timeout_ms: int
) -> Response | Retry | Refused:
    url = f"{(base_url or TRANSACTIONAL).rstrip('/')}/api/1.0/{path}"
    headers = [("Content-Type", "application/json")]
    content = msgspec.json.encode(body)
    return await exchange(client, "POST", url, headers, content, timeout_ms=timeout_ms)


def _transactional_judged(
    response: Response | Retry | Refused, now_ms: int
) -> Response | Retry | Refused:
    """Return a 2xx response that is no error, or what the error's name means."""
    if not isinstance(response, Response):
        return response
    found = _json(response.body)
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str) or found.get("status") != "error":
        return judged(response, now_ms)
    status = response.status
    error = f"HTTP {status}: {name}: {found.get('message')}"
    if name in _DISABLES:
        return Refused(status, _with(error, _DISABLES[name]), disables=True)
    if name in _FOR_EVER:
        return Refused(status, _with(error, _FOR_EVER[name]))
    if name in _LATER or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        after_ms = retry_after_ms(response.header("retry-after"), now_ms)
        return Retry(after_ms, status, error[:ERROR_CHARS_MAX])
    answer = judged(response, now_ms, f"{name}: {found.get('message')}")
    return Refused(status, error[:ERROR_CHARS_MAX]) if isinstance(answer, Response) else answer


async def _who_transactional(
    client: Egress, credentials: Mapping[str, Any], base_url: str | None, now_ms: int
) -> str | Retry | Refused:
    key = credentials.get("transactional_key")
    if key is None:
        return ""
    asked = await _transactional(
        client, base_url, "users/info", {"key": key}, timeout_ms=TEST_MS_MAX
    )
    return _name_of(_transactional_judged(asked, now_ms), "username", "transactional mail")


# The members of an audience.


def _member(given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    member = dict(given)
    email = member.pop("email", None)
    member["email_address"] = _email(member.get("email_address", email), "email_address")
    list_id = member.get("list_id", settings.get("list_id"))
    if list_id is None:
        raise HostCallRefused(
            "mailchimp: list_id is required, here or in the connection's settings"
        )
    member["list_id"] = _list_id(list_id, "list_id")
    return member


def _statuses(member: dict[str, Any]) -> dict[str, Any]:
    """Return the member with what it becomes when it is new, which Mailchimp must be told."""
    for name in ("status", "status_if_new"):
        if name in member and member[name] not in _STATUSES:
            raise HostCallRefused(f"mailchimp: {name} must be one of {', '.join(_STATUSES)}")
    if "status" not in member and "status_if_new" not in member:
        raise HostCallRefused(
            "mailchimp: status_if_new is required: what a new member becomes, as in"
            " subscribed, or pending to let the person confirm"
        )
    if not isinstance(member.get("merge_fields", {}), dict):
        raise HostCallRefused("mailchimp: merge_fields must be an object")
    if not isinstance(member.get(SKIP, False), bool):
        raise HostCallRefused(f"mailchimp: {SKIP} must be true or false")
    return {"status_if_new": member.get("status"), **member}


def _tags(tags: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(tags, list) or not 0 < len(tags) <= TAGS_MAX:
        raise HostCallRefused(f"mailchimp: tags must be a list of 1 to {TAGS_MAX}")
    for at, tag in enumerate(tags):
        found = {"name": tag} if isinstance(tag, str) else tag
        if not isinstance(found, dict):
            raise HostCallRefused(f"mailchimp: tags[{at}] must be a string or {{name, status}}")
        _text(found.get("name"), f"tags[{at}].name", empty=False)
        if found.get("status", "active") not in ("active", "inactive"):
            raise HostCallRefused(f"mailchimp: tags[{at}].status must be active or inactive")
        yield {"status": "active", **found}


async def _change_member(client: Egress, outgoing: Outgoing) -> Answer:
    message = outgoing.message
    email, list_id = message["email_address"], message["list_id"]
    name = hashlib.md5(email.lower().encode(), usedforsecurity=False).hexdigest()
    path = f"lists/{list_id}/members/{name}"
    fields = {key: value for key, value in message.items() if key not in ("list_id", SKIP)}
    body: dict[str, Any] | None
    match outgoing.action:
        case "setMember":
            method, body = "PUT", fields
            path += f"?{SKIP}=true" if message.get(SKIP) else ""
        case "tag":
            method, path = "POST", f"{path}/tags"
            body = {key: value for key, value in fields.items() if key != "email_address"}
        case _:
            method, body = "DELETE", None
    response = await _marketing(
        client,
        outgoing.credentials,
        outgoing.settings.get("base_url"),
        method,
        path,
        body,
        timeout_ms=outgoing.timeout_ms,
    )
    answer = _marketing_judged(response, outgoing.now_ms)
    if isinstance(answer, Refused) and _is_gone(answer, outgoing):
        return Sent(answer.status)
    return answer if not isinstance(answer, Response) else _changed(answer, outgoing.action)


def _is_gone(answer: Refused, outgoing: Outgoing) -> bool:
    """Tell whether an earlier attempt archived the member, and only its answer was lost."""
    gone = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
    return outgoing.action == ARCHIVE and outgoing.attempt > 1 and answer.status in gone


def _changed(response: Response, action: str) -> Answer:
    if action != SET_MEMBER:
        if response.status == httpx.codes.NO_CONTENT:
            return Sent(response.status)
        return Refused(response.status, f"expected HTTP 204, got {said(response)}")
    found = _json(response.body)
    member_id = found.get("id") if isinstance(found, dict) else None
    if not isinstance(member_id, str):
        return Refused(response.status, f"expected the member, got {said(response)}")
    return Sent(response.status, member_id)


async def _marketing(
    client: Egress,
    credentials: Mapping[str, Any],
    base_url: str | None,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    timeout_ms: int,
) -> Response | Retry | Refused:
    api_key = credentials.get("api_key")
    if api_key is None:
        return _without("api_key")
    home = base_url or f"https://{api_key.rpartition('-')[2]}.api.mailchimp.com"
    basic = base64.b64encode(f"cloudcode:{api_key}".encode("ascii")).decode("ascii")
    headers = [("Authorization", f"Basic {basic}")]
    if body is not None:
        headers.append(("Content-Type", "application/json"))
    content = None if body is None else msgspec.json.encode(body)
    url = f"{home.rstrip('/')}/3.0/{path}"
    return await exchange(client, method, url, headers, content, timeout_ms=timeout_ms)


def _marketing_judged(
    response: Response | Retry | Refused, now_ms: int
) -> Response | Retry | Refused:
    """Return a 2xx response, or what the problem's title means."""
    if not isinstance(response, Response):
        return response
    problem = _json(response.body)
    title = problem.get("title") if isinstance(problem, dict) else None
    if not isinstance(title, str):
        if response.status == httpx.codes.FORBIDDEN:  # the edge, which throttles, not the API
            return Retry(None, response.status, said(response))
        return judged(response, now_ms)
    text = ": ".join([title, *_details(problem)])
    answer = judged(response, now_ms, text)
    if isinstance(answer, Refused) and _TOO_MANY_SIGNUPS in text:
        return Retry(None, answer.status, answer.error)
    known = _TITLES.get(title.replace(" ", ""))
    if isinstance(answer, Refused) and known is not None:
        remedy, disables = known
        return Refused(answer.status, _with(answer.error, remedy), disables=disables)
    if isinstance(answer, Refused) and answer.status == httpx.codes.UNAUTHORIZED:
        remedy = _NEW_KEY.format(key="api_key")
        return Refused(answer.status, _with(answer.error, remedy), disables=True)
    return answer


def _details(problem: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(problem.get("detail"), str):
        yield problem["detail"]
    errors = problem.get("errors")
    for error in errors if isinstance(errors, list) else []:
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            yield f"{error.get('field') or 'the request'}: {error['message']}"


async def _who_marketing(
    client: Egress, credentials: Mapping[str, Any], base_url: str | None, now_ms: int
) -> str | Retry | Refused:
    if credentials.get("api_key") is None:
        return ""
    asked = await _marketing(
        client, credentials, base_url, "GET", "?fields=account_name", None, timeout_ms=TEST_MS_MAX
    )
    return _name_of(_marketing_judged(asked, now_ms), "account_name", "audiences")


# What both APIs share.


def _name_of(answer: Response | Retry | Refused, field: str, what: str) -> str | Retry | Refused:
    if not isinstance(answer, Response):
        return answer
    found = _json(answer.body)
    name = found.get(field) if isinstance(found, dict) else None
    if not isinstance(name, str):
        return Refused(answer.status, f"expected the account, got {said(answer)}")
    return f"{what} of {name}"


def _without(key: str) -> Refused:
    remedy = f"the connection has no {key}, which this action needs"
    return Refused(None, f"{remedy}: PUT the connection with one, then recover")


def _with(error: str, remedy: str) -> str:
    if not remedy:
        return error[:ERROR_CHARS_MAX]
    return f"{error[: ERROR_CHARS_MAX - len(remedy) - 3]} - {remedy}"


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def _email(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise HostCallRefused(f"mailchimp: {name} must be a mail address")
    return mailbox({"email": value.strip()}, f"mailchimp: {name}").email


def _list_id(value: Any, name: str) -> str:
    if not isinstance(value, str) or _LIST_ID.fullmatch(value) is None:
        raise HostCallRefused(f"mailchimp: {name} must be the id of an audience, as in a1b2c3d4e5")
    return value


def _text(value: Any, name: str, *, empty: bool = True) -> str:
    text = one_line(value, f"mailchimp: {name}")
    if not text and not empty:
        raise HostCallRefused(f"mailchimp: {name} must not be empty")
    return text


def _strings(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise HostCallRefused(f"mailchimp: {name} must be an object")
    return {_text(key, name): _text(text, f"{name}.{key}") for key, text in value.items()}


def _pairs(value: Any, name: str) -> None:
    for at, item in enumerate(_objects(value, name)):
        _text(item.get("name"), f"{name}[{at}].name", empty=False)


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise HostCallRefused(f"mailchimp: {name} must be a list of objects")
    return value
