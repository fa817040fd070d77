"""What the engine refuses, and why. Every class has a stable `code`; statuses: api/problems.

EngineError
|- Invalid            the caller's: a field is wrong (names it)
|- NotFound           the caller's: no such thing in this project
|- Conflict           the caller's: it exists already, or is in use
|- PayloadTooLarge    the caller's: names the limit
|- QuotaExceeded      the project's: names the allowance
|- HostCallRefused    the guest's: one host call, answered with an error
`- StoreFailed        ours: in store.journal
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

_UNKNOWN: Final = "Object contains unknown field "


class EngineError(Exception):
    """Base of everything the engine refuses with a reason for the caller."""

    code = "engine_error"


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One wrong field: a JSON pointer and what is wrong with it."""

    pointer: str
    message: str


class Invalid(EngineError):
    """The request is well-formed but cannot be accepted."""

    code = "validation_failed"

    def __init__(self, detail: str, pointer: str = "", **extra: Any) -> None:
        self.problems: tuple[FieldProblem, ...] = (FieldProblem(pointer, detail),)
        self.extra = extra
        super().__init__(detail)


class CompileFailed(Invalid):
    """The source does not compile or load; names the author's own file, line and column."""

    code = "compile_error"


class NotFound(EngineError):
    """There is no such thing in the key's project."""

    code = "not_found"

    def __init__(self, what: str, asked: str) -> None:
        where = "" if what == "project" else " in this project"
        super().__init__(f"no {what} {asked!r}{where}")


class Conflict(EngineError):
    """The name is taken, or the thing is still in use."""

    code = "conflict"


class PayloadTooLarge(EngineError):
    """The body, event or bundle is larger than the limit it names."""

    code = "payload_too_large"

    def __init__(self, what: str, limit_name: str, limit_bytes: int, used_bytes: int) -> None:
        self.limit = {"name": limit_name, "value": limit_bytes, "used": used_bytes}
        super().__init__(f"{what} is {used_bytes} bytes; the limit {limit_name} is {limit_bytes}")


class QuotaExceeded(EngineError):
    """The project has as much of something as it may have: an allowance of `engine.allowances`."""

    code = "quota_exceeded"

    def __init__(
        self, name: str, value: float, used: float, *, retry_after_s: int, why: str
    ) -> None:
        self.limit = {"name": name, "value": value, "used": used}
        self.retry_after_s = retry_after_s
        super().__init__(
            f"{why}: {name} is {value:,}, used {used:,}; try again in {retry_after_s} s"
        )


class HostCallRefused(EngineError):
    """One host call of a guest cannot be done; the guest sees this as an error it can catch."""

    code = "host_call_refused"


def explained(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return message and JSON pointer of what msgspec says: `... - at `$.values[0].key``."""
    message, _, place = str(error).partition(" - at `")
    pointer = place.rstrip("`").removeprefix("$").replace("[", ".").replace("]", "")
    if message.startswith(_UNKNOWN):
        pointer += "." + message.removeprefix(_UNKNOWN).strip("` ")
    return message, pointer.replace(".", "/")
