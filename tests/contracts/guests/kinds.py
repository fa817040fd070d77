"""The kinds of guest that the engine runs, and for each the one that plays the tests' steps.

What a kind has nothing of stands in its `lacks`, with the reason; everything else holds for all.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tests.standins.wasm_toolchains import ROOT, c_module

HERE: Final = Path(__file__).parent
REACTOR: Final = "-mexec-model=reactor"  # clang's word for a module without `main`

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_JAVASCRIPT: Final = {
    "big numbers": "numbers of JavaScript are doubles",
    "any host call": "scripts reach the engine by functions of the prelude alone",
    "WASI": "JavaScript has neither arguments nor an environment, stderr or sleep",
    "traps": "JavaScript throws, and says so",
    "exact use": "V8 tells the CPU of a whole batch, and the memory of a whole cell",
    "fuel": "V8 does not count instructions",
    "any answer": "the fetch handler of a script returns a Response, or it fails",
}
_CLASSIC: Final = {
    "env": "a classic script is handed no env",
    "ctx": "a classic script is handed no ctx",
    "kv": "a classic script has no key-value store",
    "events": "a trigger gets the vendor's parameters: see test_guest_world",
    "fetch handler": "a classic script has no handler `fetch`",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to write a function."""

    name: str
    fields: Callable[[], dict[str, Any]]  # of an upload
    lacks: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    error: str = "ExitError"  # the name of an error of its own making
    keeps_memory: bool = False  # from one run to the next

    @property
    def wasm(self) -> bool:
        return "fuel" not in self.lacks


@cache
def module(*flags: str) -> bytes:
    """Return guest.c, built."""
    return c_module(HERE / "guest.c", f"-I{ROOT / 'examples' / 'wasm' / 'c'}", *flags)


def script(style: str) -> str:
    return (HERE / "steps.js").read_text() + (HERE / style).read_text()


def encoded(wasm: bytes) -> str:
    return base64.b64encode(wasm).decode()


def _wasm(*flags: str, **options: Any) -> dict[str, Any]:
    handlers = ["default", "afterStore", "job", "fetch"]
    return {"wasm": encoded(module(*flags)), "handlers": handlers, **options}


KINDS: Final = (
    Kind(
        name="module",
        fields=lambda: {"source": script("module.js")},
        lacks=_JAVASCRIPT,
        error="Error",
        keeps_memory=True,
    ),
    Kind(
        name="classic",
        fields=lambda: {"source": script("classic.js")},
        lacks=_JAVASCRIPT | _CLASSIC,
        error="Error",
        keeps_memory=True,
    ),
    Kind(name="core", fields=lambda: _wasm(REACTOR)),
    Kind(name="reused", fields=lambda: _wasm(REACTOR, reuse=True), keeps_memory=True),
    Kind(name="command", fields=lambda: _wasm("-DCOMMAND")),
)
