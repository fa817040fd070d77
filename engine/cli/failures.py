"""What ends a command with a non-zero exit code: what was asked, what was found, what to do.

Failure
|- Unreachable    nobody's: there is no server there, or it does not answer in time
|- NotAnEngine    the caller's: something else answers at that URL
|- Misused        the caller's: an argument is wrong in a way that only we can see
|  `- NotText     bytes, where only text can be sent
`- Refused        the caller's, mostly: the engine answered with a problem (RFC 9457)
   `- DoesNotCompile   the author's: in source.py, shown with the line of their own file
"""

from collections.abc import Mapping
from typing import Any, Final

REMEDIES: Final[Mapping[str, str]] = {
    "unauthorized": "give an API key with --key or CLOUDCODE_KEY; "
    "the first start of `cloudcode serve` prints the admin key once",
    "forbidden_scope": "use a key that holds the scope; "
    "an admin makes one with `cloudcode keys create NAME --scope SCOPE`",
    "not_found": "see what there is: `cloudcode functions list`, `cloudcode devices list`, "
    "`cloudcode products list`",
    "rate_limited": "wait so long, or have an admin allow more: "
    "`cloudcode keys set KEY --requests-per-minute 600`, 0 for no limit",
    "function_error": "read what it wrote: `cloudcode logs {execution_id}`",
    "function_timeout": "raise it with `cloudcode deploy --wall-ms`; "
    "`cloudcode limits` shows the most",
    "cpu_exceeded": "raise it with `cloudcode deploy --cpu-ms`; `cloudcode limits` shows the most",
    "memory_exceeded": "raise it with `cloudcode deploy --memory-mb`; "
    "`cloudcode limits` shows the most",
    "payload_too_large": "`cloudcode limits` shows every size",
    "overloaded": "try again in a moment",
    "breaker_open": "see why: `cloudcode breakers list`; deploy a version that behaves, or close "
    "it: `cloudcode breakers close BREAKER`",
}
# What lists the things of which one was not found, by how the engine calls them.
LISTS: Final[Mapping[str, str]] = {
    "project": "projects list",
    "API key": "keys list",
    "function": "functions list",
    "device": "devices list",
    "product": "products list",
    "connection": "connections list",
    "connector": "connections kinds",
    "delivery": "deliveries list",
    "secret": "secret list",
    "execution": "executions list",
    "job": "jobs list",
    "dead letter": "dlq list",
    "breaker": "breakers list",
    "schedule": "schedule list",
    "trigger": "trigger list",
    "node": "admin nodes",
}


class Failure(Exception):
    """The command could not be done. Printed by `screen`, exit code 1."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(message)

    def lines(self) -> list[str]:
        """Return what to print, in order, without the remedy."""
        return [self.message]

    def document(self) -> dict[str, Any]:
        """Return the same for `--json`."""
        return {"detail": self.message, "remedy": self.remedy}


class Unreachable(Failure):
    """No connection, or no answer in time."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"cannot reach the engine at {url}: {reason}",
            remedy="start one with `cloudcode serve`, or name another with --url or CLOUDCODE_URL",
        )


class NotAnEngine(Failure):
    """Something answered, but not as the engine would."""

    def __init__(self, url: str, found: str) -> None:
        super().__init__(
            f"what answers at {url} is not a cloudcode engine: {found}",
            remedy="check --url or CLOUDCODE_URL",
        )


class Misused(Failure):
    """An argument that cannot be used; the message names it."""


class NotText(Misused):
    """Bytes that are no UTF-8, where the engine takes text only."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not UTF-8 text; encode binary values, for example in base64")


class Refused(Failure):
    """The engine answered with a problem document; nothing was changed."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.problem = dict(problem)
        self.code = str(problem.get("code", ""))
        self.status = int(problem.get("status", 0))
        detail = str(problem.get("detail") or problem.get("title") or "refused without a reason")
        remedy = str(problem.get("remedy") or _remedy(self.code, detail))
        limit = (problem.get("limit") or {}).get("name")
        if limit == "fuel":
            remedy = remedy.replace("--cpu-ms", "--fuel")
        elif limit == "stack_bytes":
            remedy = "recurse less deeply: the stack of a module cannot be raised"
        execution_id = str(problem.get("execution_id") or "EXECUTION")
        super().__init__(detail, remedy=remedy.replace("{execution_id}", execution_id))

    def lines(self) -> list[str]:
        """Return the detail, each wrong field, the limit that was hit and where to look."""
        label = " ".join(str(part) for part in (self.status or "", self.code) if part)
        lines = [f"{self.message} ({label})" if label else self.message]
        for error in self.problem.get("errors") or ():
            pointer, message = str(error.get("pointer", "")), str(error.get("message", ""))
            if message == self.message:
                lines += [f"  at {pointer}"] if pointer else []
            else:
                lines.append(f"  {pointer or 'body'}: {message}")
        if limit := self.problem.get("limit"):
            lines.append(
                f"  limit {limit.get('name')} is {limit.get('value')}, used {limit.get('used')}"
            )
        thrown = self.problem.get("error") or {}
        if stack := thrown.get("stack"):
            lines += [f"  {line}" for line in str(stack).splitlines()]
        for name in ("execution_id", "request_id"):
            if self.problem.get(name):
                lines.append(f"  {name}: {self.problem[name]}")
        return lines

    def document(self) -> dict[str, Any]:
        return {**self.problem, "remedy": self.remedy}


def _remedy(code: str, detail: str) -> str:
    if code == "not_found":
        for what, place in LISTS.items():
            if detail.startswith((f"no {what} '", f'no {what} "')):
                return f"see what there is: `cloudcode {place}`"
    return REMEDIES.get(code, "")
