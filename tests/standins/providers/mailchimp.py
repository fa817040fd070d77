"""Both of Mailchimp's APIs: transactional mail, and the members of an audience.

Transactional: the key in the JSON body; errors come with HTTP 500 and have a name. Marketing: HTTP
Basic with the key as password; errors are problem+json with a title. The paths tell them apart.
"""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from tests.standins.provider import Asked, Case, HttpProvider, Reply

API_KEY = "0123456789abcdef0123456789abcdef-us21"
OTHER_API_KEY = "fedcba9876543210fedcba9876543210-us21"
TRANSACTIONAL_KEY = "md-standInKey_0123456789"
OTHER_TRANSACTIONAL_KEY = "md-revokedKey_0123456789"
LIST_ID = "a1b2c3d4e5"
STATUSES = ("subscribed", "unsubscribed", "cleaned", "pending", "transactional")
TEMPLATES = ("door-open",)


def hash_of(email: str) -> str:
    return hashlib.md5(email.lower().encode()).hexdigest()


class StandIn(HttpProvider):
    kind: ClassVar[str] = "mailchimp"
    message: ClassVar[dict[str, Any]] = {
        "to": "ops@example.com",
        "subject": "Door open",
        "text": "The door of hall 3 is open.",
    }

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.members: dict[str, dict[str, Any]] = {}
        self.denylist: dict[str, str] = {}  # address -> reject_reason

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"api_key": API_KEY, "transactional_key": TRANSACTIONAL_KEY},
            "settings": {
                "base_url": self.url,
                "list_id": LIST_ID,
                "from_email": "alarm@example.com",
            },
        }

    def judge(self, asked: Asked) -> Reply:
        path = asked.path.partition("?")[0]
        if path.startswith("/api/1.0/"):
            reply = self._transactional(asked, path.removeprefix("/api/1.0/"))
        elif path.startswith("/3.0/"):
            reply = self._marketing(asked, path.removeprefix("/3.0/"))
        else:
            reply = Reply(status=404, body=b"<html>Not Found")
        if reply.status >= 400:
            with self.lock:
                self.refused.append(reply.body.decode())
        return reply

    # Transactional: every answer is JSON, and every error HTTP 500.

    def _transactional(self, asked: Asked, call: str) -> Reply:
        if asked.method != "POST" or asked.headers.get("content-type") != "application/json":
            return failed("ValidationError", "You must specify a key value")
        body = json.loads(asked.body)
        if not isinstance(body.get("key"), str):
            return failed("ValidationError", "You must specify a key value")
        if body["key"] != TRANSACTIONAL_KEY:
            return failed("Invalid_Key", "Invalid API key")
        if call == "users/info":
            return as_json(200, {"username": "hall3", "reputation": 90})
        broken = _broken(call, body)
        if broken is not None:
            return broken
        message = body["message"]
        results = [self._result(one["email"], message, body) for one in message["to"]]
        if any(one["status"] not in ("rejected", "invalid") for one in results):
            with self.lock:
                self.accepted.append(message)
        return as_json(200, results)

    def _result(self, email: str, message: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {"email": email, "_id": secrets.token_hex(16)}
        if ".." in email:
            return result | {"status": "invalid", "reject_reason": None}
        if message.get("from_email", "").endswith("@unsigned.example"):
            return result | {"status": "rejected", "reject_reason": "unsigned"}
        if email in self.denylist:
            return result | {"status": "rejected", "reject_reason": self.denylist[email]}
        if "send_at" in body:
            return result | {"status": "scheduled", "reject_reason": None}
        if body.get("async") or len(message["to"]) > 10:
            return result | {"status": "queued", "queued_reason": "batch"}
        return result | {"status": "sent", "reject_reason": None}

    # Marketing: problems with a title, and 204 without a body where there is nothing to say.

    def _marketing(self, asked: Asked, path: str) -> Reply:
        scheme, _, encoded = asked.headers.get("authorization", "").partition(" ")
        _, _, key = base64.b64decode(encoded).decode().partition(":")
        if scheme != "Basic" or not key:
            return problem(401, "API Key Missing", "Your request did not include an API key.")
        if key != API_KEY:
            detail = "Your API key may be invalid, or you've attempted to access the wrong one."
            return problem(401, "API Key Invalid", detail)
        if path == "" and asked.method == "GET":
            return as_json(200, {"account_name": "Hall 3"})
        pieces = path.split("/")
        if pieces[:2] != ["lists", LIST_ID] or pieces[2:3] != ["members"] or len(pieces) < 4:
            return problem(404, "Resource Not Found", "The requested resource could not be found.")
        name, rest = pieces[3], pieces[4:]
        if asked.method == "DELETE" and not rest:
            return self._archive(name)
        if asked.headers.get("content-type") != "application/json":
            return problem(415, "Unsupported Media Type", "Send JSON.")
        body = json.loads(asked.body)
        if asked.method == "PUT" and not rest:
            return self._put(name, body)
        if asked.method == "POST" and rest == ["tags"]:
            return self._tag(name, body)
        return problem(405, "Method Not Allowed", "See the Allow header.")

    def _put(self, name: str, body: dict[str, Any]) -> Reply:
        email = body.get("email_address")
        wrong = [
            {"field": field, "message": "Data presented is not one of the accepted values"}
            for field in ("status", "status_if_new")
            if field in body and body[field] not in STATUSES
        ]
        if wrong or not isinstance(email, str) or hash_of(email) != name:
            detail = "The resource submitted could not be validated. See the 'errors' array."
            return problem(400, "Invalid Resource", detail, errors=wrong)
        if email.startswith("fake@"):
            detail = f"{email} looks fake or invalid, please enter a real email address."
            return problem(400, "Invalid Resource", detail)
        if email.startswith("eager@"):
            detail = f"{email} has signed up to a lot of lists very recently;"
            return problem(400, "Invalid Resource", f"{detail} we're not allowing more for now")
        if email.startswith("left@") and body.get("status") == "subscribed":
            detail = f"{email} is in a compliance state due to unsubscribe, bounce, or"
            text = f"{detail} compliance review and cannot be subscribed."
            return problem(400, "Member In Compliance State", text)
        if email.startswith("forgotten@"):
            detail = f"{email} was permanently deleted and cannot be re-imported."
            text = f"{detail} The contact must re-subscribe to get back on the list."
            return problem(400, "Forgotten Email Not Subscribed", text)
        if name not in self.members and "status_if_new" not in body:
            return problem(400, "Invalid Resource", "status_if_new is required for new members")
        with self.lock:
            status = self.members.get(name, {}).get("status", body["status_if_new"])
            member = {"id": name, "email_address": email, "status": body.get("status", status)}
            self.members[name] = member | {"tags": self.members.get(name, {}).get("tags", set())}
            self.accepted.append(body)
        return as_json(200, member)

    def _tag(self, name: str, body: dict[str, Any]) -> Reply:
        if name not in self.members:
            return problem(404, "Resource Not Found", "The requested resource could not be found.")
        tags = body.get("tags")
        if not isinstance(tags, list) or not all(
            one.get("name") and one.get("status") in ("active", "inactive") for one in tags
        ):
            return problem(400, "Invalid Resource", "tags: name and status are required")
        with self.lock:
            for one in tags:
                kept = self.members[name]["tags"]
                (kept.add if one["status"] == "active" else kept.discard)(one["name"])
            self.accepted.append(body)
        return Reply(status=204)

    def _archive(self, name: str) -> Reply:
        if name not in self.members:
            return problem(404, "Resource Not Found", "The requested resource could not be found.")
        if self.members[name]["status"] == "archived":
            detail = "Can not archive a contact that is bounced, pending or archived"
            text = f"This list member cannot be removed. {detail}"
            return problem(405, "Method Not Allowed", text)
        with self.lock:
            self.members[name]["status"] = "archived"
            self.accepted.append({"archived": name})
        return Reply(status=204)

    def add(self, email: str, status: str = "subscribed") -> None:
        """Put somebody on the audience."""
        name = hash_of(email)
        self.members[name] = {"id": name, "email_address": email, "status": status, "tags": set()}

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        fake, eager = subscribed("fake@example.com"), subscribed("eager@example.com")
        other_center = "The API key provided is linked to a different datacenter."
        return {
            "takes a template": changed(template="door-open", global_merge_vars={"hall": "3"}),
            "queues it for 600 recipients, and says a result of each": lambda case: (
                case.message.update(to=[f"user{at}@example.com" for at in range(600)])
            ),
            "queues it": changed(**{"async": True}),
            "rejects one recipient of two": self._rejects("gone@example.com"),
            "rejects all recipients": self._rejects("gone@example.com", "ops@example.com"),
            "finds the sender's domain unsigned": changed(**{"from": "a@unsigned.example"}),
            "does not know the transactional key": other_keys,
            "answers `PaymentRequired`": self._says(failed("PaymentRequired", "Pay first.")),
            "answers `ValidationError`": self._says(failed("ValidationError", "text: a string")),
            "does not know the template": changed(template="no-such"),
            "does not know the subaccount": changed(subaccount="hall"),
            "answers `GeneralError`": self._says(failed("GeneralError", "An unexpected error")),
            "answers 200 with a page": self._says(Reply(body=b"<html>Log in", taken=True)),
            "gets a mail without `to`": without("to"),
            "gets a mail without a subject": without("subject"),
            "gets a mail without text, html and template": without("text"),
            "gets a line break in the subject": changed(subject="Door\r\nBcc: all@example.com"),
            "gets a mail of more than 256 KB": changed(text="x" * (256 * 1024)),
            "gets a mail without a transactional key": without_key,
            "adds a member": self._does("setMember", subscribed("ops@example.com")),
            "tags a member": self._does("tag", TAGGED, known=True),
            "archives a member": self._does("archive", {"email": "ops@example.com"}, known=True),
            "knows no such member": self._does("tag", TAGGED),
            "finds a member in compliance state": self._does(
                "setMember", subscribed("left@example.com")
            ),
            "has forgotten the address": self._does(
                "setMember", subscribed("forgotten@example.com")
            ),
            "finds the address fake": self._does("setMember", fake),
            "sees too many sign-ups of the address": self._does("setMember", eager),
            "does not know the API key": other_keys_for_a_member,
            "is in another data centre": self._of_member(
                problem(403, "Wrong Datacenter", other_center)
            ),
            "has disabled the user": self._of_member(
                problem(403, "User Disabled", "This account has been deactivated.")
            ),
            "forbids it": self._of_member(
                problem(403, "Forbidden", "You are not permitted to access this resource.")
            ),
            "throttles with a bare 403": self._of_member(Reply(status=403, body=b"Access Denied")),
            "answers 429 with a problem": self._of_member(
                problem(429, "Too Many Requests", "You have exceeded the limit of 10 connections.")
            ),
            "answers 500 with a problem": self._of_member(
                problem(500, "Internal Server Error", "An unexpected internal error has occurred.")
            ),
            "gets a member without a status": self._does("setMember", {"email": "a@example.com"}),
            "gets a member without an address": self._does("setMember", {"status": "subscribed"}),
            "gets no tags": self._does("tag", {"email": "ops@example.com", "tags": []}),
        }

    def _says(self, reply: Reply) -> Callable[[Case], None]:
        return lambda _case: self.then(reply)

    def _does(
        self, action: str, message: dict[str, Any], *, known: bool = False
    ) -> Callable[[Case], None]:
        def prepare(case: Case) -> None:
            case.action, case.message = action, dict(message)
            if known:
                self.add(message["email"])

        return prepare

    def _of_member(self, reply: Reply) -> Callable[[Case], None]:
        def prepare(case: Case) -> None:
            case.action, case.message = "setMember", subscribed("ops@example.com")
            self.then(reply)

        return prepare

    def _rejects(self, *emails: str) -> Callable[[Case], None]:
        def prepare(case: Case) -> None:
            case.message["to"] = ["gone@example.com", "ops@example.com"]
            self.denylist = dict.fromkeys(emails, "hard-bounce")

        return prepare


TAGGED = {"email": "ops@example.com", "tags": ["night", {"name": "day", "status": "inactive"}]}


def _broken(call: str, body: dict[str, Any]) -> Reply | None:
    """Return the error of a request that breaks a rule."""
    if call not in ("messages/send", "messages/send-template"):
        return failed("UnknownError", f'Unknown method "{call}"')
    message = body.get("message")
    if not isinstance(message, dict):
        return failed("ValidationError", 'Validation error: {"message":"Please enter a value"}')
    people = message.get("to")
    if not isinstance(people, list) or not all(isinstance(one, dict) for one in people):
        return failed("ValidationError", 'Validation error: {"message":{"to":"an array"}}')
    if message.get("subaccount"):
        return failed("Unknown_Subaccount", "No subaccount exists with the id 'hall'", 12)
    if call == "messages/send":
        return None
    if not isinstance(body.get("template_content"), list):
        return failed("ValidationError", 'Validation error: {"template_content":"an array"}')
    if body.get("template_name") not in TEMPLATES:
        return failed("Unknown_Template", f'No such template "{body["template_name"]}"', 5)
    return None


def changed(**fields: Any) -> Callable[[Case], None]:
    return lambda case: case.message.update(fields)


def without(field: str) -> Callable[[Case], None]:
    return lambda case: case.message.pop(field)


def without_key(case: Case) -> None:
    del case.credentials["transactional_key"]


def other_keys(case: Case) -> None:
    case.credentials = {"api_key": OTHER_API_KEY, "transactional_key": OTHER_TRANSACTIONAL_KEY}


def other_keys_for_a_member(case: Case) -> None:
    other_keys(case)
    case.action, case.message = "setMember", subscribed("ops@example.com")


def subscribed(email: str) -> dict[str, Any]:
    return {"email": email, "status": "subscribed", "merge_fields": {"FNAME": "Ada"}}


def failed(name: str, message: str, code: int = -1) -> Reply:
    body = {"status": "error", "code": code, "name": name, "message": message}
    return as_json(500, body)


def problem(status: int, title: str, detail: str, **more: Any) -> Reply:
    place = "https://mailchimp.com/developer/marketing/docs/errors/"
    body = {"type": place, "title": title, "status": status, "detail": detail, "instance": "1-2"}
    return as_json(status, body | more, "application/problem+json; charset=utf-8")


def as_json(status: int, body: Any, content_type: str = "application/json; charset=utf-8") -> Reply:
    return Reply(
        status=status, body=json.dumps(body).encode(), headers={"Content-Type": content_type}
    )
