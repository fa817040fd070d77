"""The long tail: any of 200 services that the library Apprise knows, by its URL.

Source: appriseit.com (the services and their URLs); what a failed one means: the HTTP status.

Apprise is synchronous and opens its connections itself, so it runs in processes of its own. What
such a process may reach is the same as what `Egress` may; `apprise_child` says how that is kept.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engine.connectors.apprise_processes import AppriseProcesses, NoAnswer
from engine.connectors.apprise_services import ELSEWHERE, SCHEMAS
from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    EVERYTHING,
    SEND_MS_MAX,
    URL_CHARS_MAX,
    Answer,
    CommonSettings,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_size,
    judged,
)
from engine.egress import Egress, Response
from engine.errors import HostCallRefused, Invalid

TITLE_CHARS_MAX: Final = 1_000
TYPES: Final = ("info", "success", "warning", "failure")
FORMATS: Final = ("text", "markdown", "html")
SECRET_CHARS_MIN: Final = 4  # of the parts of a URL that no error shows

_SCHEMA: Final = re.compile(r"([A-Za-z0-9]{1,20})://")
_BETWEEN: Final = re.compile(r"[/@:?&=,+#]+")
_ADDRESS: Final = re.compile(r"[0-9.]+|[0-9a-f:]*:[0-9a-f:.]*")
_FILES: Final = "no file of this machine is read"
_OFF: Final[Mapping[str, str]] = {
    "verify": "certificates are always checked",
    "redirect": "redirects are not followed",
    "retry": "the connection's settings.retries say so",
    "wait": "the connection's settings.retries say so",
    "optional": "a failure would count as delivered",
    "tag": "one connection is one URL",
    "attach": _FILES,
    "template": _FILES,
    "keyfile": _FILES,
    "subfile": _FILES,
    "pgpkey": _FILES,
}
_AUTH: Final = frozenset({401, 403})


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    url: str  # one: several could be taken in part, and another attempt would double those


class Reported(msgspec.Struct, kw_only=True):
    """What `apprise_child` says of one notification."""

    refused: str = ""  # the URL cannot be sent to
    service: str = ""
    taken: bool = False
    requests: int = 0
    status: int | None = None  # of the last request
    retry_after: str | None = None
    forbidden: str = ""  # nothing was connected to, because of this
    trouble: str = ""  # of the network
    log: str = ""  # Apprise's own last word


class Apprise:
    """Credentials `{url}`, e.g. `ntfys://token@ntfy.example.com/alarms`; no settings of its own."""

    kind = "apprise"
    title = "Apprise: Discord, Teams, ntfy, PagerDuty and 150 more, by one URL"
    actions = ("send",)
    shapes = (Credentials, CommonSettings)
    habits = Habits(concurrency=2)

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        _check_url(credentials["url"])
        if settings.get("base_url") is not None:
            raise Invalid(
                "an Apprise URL names its server itself; most services have only one",
                "/settings/base_url",
            )

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        body, title = message.get("body"), message.get("title", "")
        if not isinstance(body, str) or not body.strip():
            raise HostCallRefused("apprise: body is required, a string")
        if not isinstance(title, str) or len(title) > TITLE_CHARS_MAX:
            raise HostCallRefused(f"apprise: title must be a string, at most {TITLE_CHARS_MAX}")
        for name, known in (("type", TYPES), ("format", FORMATS)):
            if message.get(name, known[0]) not in known:
                raise HostCallRefused(f"apprise: {name} must be one of {', '.join(known)}")
        for name in message.keys() - {"body", "title", "type", "format"}:
            raise HostCallRefused(
                f"apprise: {name[:80]} is not a field; known: title, body, type, format"
            )
        check_size(message, self.kind)
        return message

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        return EVERYTHING  # a URL has one target

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        message, url = outgoing.message, outgoing.credentials["url"]
        question = {
            "url": url,
            "body": message["body"],
            "title": message.get("title", ""),
            "type": message.get("type", TYPES[0]),
            "format": message.get("format", FORMATS[0]),
        }
        told = await _asked(client, question, outgoing.timeout_ms)
        if isinstance(told, Retry):
            return told
        if told.forbidden and not told.taken:
            client.blocked["address"] += 1
        return _meaning(told, outgoing.now_ms)

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Say which service the URL names. Asks nobody: Apprise has no way to do that."""
        told = await _asked(client, {"url": credentials["url"]}, SEND_MS_MAX)
        if isinstance(told, Retry):
            return told
        if told.refused:
            return Refused(None, told.refused)
        return Sent(None, f"a URL of {told.service}; whether it knows us is seen when one is sent")


async def _asked(client: Egress, question: dict[str, Any], timeout_ms: int) -> Reported | Retry:
    """Put a question to a process, which gets less time than we wait: it says more than silence."""
    budget_ms = timeout_ms - min(500, timeout_ms // 5)
    processes = client.companion(AppriseProcesses)
    try:
        told = await processes.ask({**question, "budget_ms": budget_ms}, timeout_ms=timeout_ms)
    except NoAnswer as error:
        known = "" if error.sent else "; nothing was sent"
        return Retry(None, None, f"{error}{known}")
    return _scrubbed(msgspec.convert(told, type=Reported), question["url"])


def _meaning(told: Reported, now_ms: int) -> Answer:
    """Return what to make of it: Apprise says yes or no, the status says why."""
    if told.refused:
        return Refused(None, f"{told.refused}; PUT the connection with another URL, then recover")
    if told.taken:
        return Sent(told.status)
    if told.forbidden:
        return Refused(None, told.forbidden)
    if told.status is None:
        if told.requests:
            return Retry(None, None, told.trouble or told.log or "no answer")
        return Refused(None, f"nothing was sent: {told.log or 'Apprise does not say why'}")
    headers = () if told.retry_after is None else (("retry-after", told.retry_after),)
    response = Response(status=told.status, reason="", headers=headers, body=b"")
    answer = judged(response, now_ms, text=told.log or "Apprise does not say why")
    if isinstance(answer, Response):
        # A 2xx that Apprise takes for a failure: somebody has it; again could double it.
        return Refused(told.status, f"HTTP {told.status}, but {told.log or 'not as expected'}")
    if isinstance(answer, Refused) and told.status in _AUTH:
        remedy = "PUT the connection with a URL that is valid, then recover"
        return Refused(told.status, f"{answer.error}; {remedy}")
    return answer


def _check_url(url: str) -> None:
    pointer = "/credentials/url"
    if len(url) > URL_CHARS_MAX:
        raise Invalid(f"has more than {URL_CHARS_MAX} characters", pointer)
    if any(not character.isprintable() or character == " " for character in url):
        raise Invalid("has a space or a control character in it; write %20", pointer)
    found = _SCHEMA.match(url)
    if found is None:
        raise Invalid("must be a URL of Apprise, e.g. ntfys://ntfy.sh/alarms", pointer)
    schema = found[1].lower()
    if schema not in SCHEMAS:
        remedy = ELSEWHERE.get(schema, "the page of this connector lists those that are")
        raise Invalid(f"{schema}:// is not one of the services here; {remedy}", pointer)
    try:
        query = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError:
        raise Invalid("is not a URL", pointer) from None  # its text may hold a piece of it
    for name, value in query:
        why = _OFF.get(name.lower())
        if name.lower() == "overflow" and value.lower().startswith("s"):
            why = "split makes several messages of one"
        if why is not None:
            raise Invalid(f"{name.lower()}= is not possible here: {why}", pointer)


def _scrubbed(told: Reported, url: str) -> Reported:
    """Take each part of the URL out of what is told: which are secrets, only Apprise knows."""
    _, _, rest = url.partition("://")
    parts = {rest, *_BETWEEN.split(rest), *_BETWEEN.split(unquote(rest))}
    secret = [
        re.escape(part)
        for part in sorted(parts, key=len, reverse=True)
        if len(part) >= SECRET_CHARS_MIN and not _ADDRESS.fullmatch(part)
    ]
    if not secret:
        return told
    pattern = re.compile("|".join(secret), re.IGNORECASE)
    refused, log = (
        pattern.sub("[credential]", text)[:ERROR_CHARS_MAX] for text in (told.refused, told.log)
    )
    return msgspec.structs.replace(told, refused=refused, log=log)
