"""Reads what a hostile guest says about its own end: the comments at its top.

;; expect: <outcome> [<limit>] [limits=cpu_ms=50,memory_mb=8,fuel=1000] [io=text] [reuse=true]
           [cell=lost]: it ends its cell, which only its own project notices
;; expect: refused <words that the refusal has to contain> [limits=...]
;; error: <name> <words that the message has to contain>
;; result: <JSON>, or `ok false`: an answer of the engine that is an error
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wasmtime import wat2wasm

HERE: Final = Path(__file__).parent
REFUSED: Final = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One module and the end that it has to come to."""

    name: str
    module: Callable[[], bytes]
    outcome: str
    limit: str  # "" for none
    words: tuple[str, ...]  # of a refusal
    limits: dict[str, int]
    options: dict[str, Any]
    error: tuple[str, ...]  # name, then words; () for any
    result: str  # "" for any
    keeps_cell: bool


def guest_of(name: str, module: Callable[[], bytes], says: str) -> Guest:
    """Return the guest whose comments are `says`, without their semicolons."""
    lines = dict(line.split(": ", 1) for line in says.splitlines() if ": " in line)
    outcome, *tokens = lines["expect"].split()
    words = tuple(token for token in tokens if "=" not in token)
    options = dict(token.split("=", 1) for token in tokens if "=" in token)
    keeps_cell = options.pop("cell", "") != "lost"
    limits = dict(part.split("=") for part in options.pop("limits", "").split(",") if part)
    return Guest(
        name=name,
        module=module,
        outcome=outcome,
        limit=words[0] if words and outcome != REFUSED else "",
        words=words if outcome == REFUSED else (),
        limits={key: int(value) for key, value in limits.items()},
        options={key: _BARE.get(value, value) for key, value in options.items()},
        error=tuple(lines.get("error", "").split()),
        result=lines.get("result", ""),
        keeps_cell=keeps_cell,
    )


def text_guests() -> list[Guest]:
    """Return the guests of this folder."""
    return [_text_guest(path) for path in sorted(HERE.glob("*.wat"))]


def is_result(guest: Guest, result: Any) -> bool:
    """Say whether `result` is what the guest has announced."""
    if guest.result == "ok false":
        return isinstance(result, dict) and result.get("ok") is False and bool(result["error"])
    return bool(result == json.loads(guest.result))


def _text_guest(path: Path) -> Guest:
    text = path.read_text()
    comments = [line[3:] for line in text.split("(", 1)[0].splitlines()]
    return guest_of(path.stem, lambda: bytes(wat2wasm(text)), "\n".join(comments))


_BARE: Final = {"true": True, "false": False}
