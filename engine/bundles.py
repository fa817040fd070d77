"""Checks what an author uploads: one source or several files, or a WebAssembly module.

Path:   functions -> here; what passes goes to the Builder, which looks inside
"""

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import msgspec

from engine.errors import CompileFailed, Invalid, PayloadTooLarge
from engine.quotas import (
    BUNDLE_BYTES_MAX,
    BUNDLE_FILES_MAX,
    EXPORT_NAME_BYTES_MAX,
    HANDLER_LIMITS,
    WASM_ARGS_BYTES_MAX,
    WASM_ARGS_MAX,
    WASM_BYTES_MAX,
)

FILE_NAME: Final = re.compile(r"(?!.*(\.\.|//|/$))[A-Za-z0-9_@][A-Za-z0-9_@./+-]{0,127}")
MAIN_DEFAULTS: Final = ("main.js", "main.ts")
# A module says by itself which inputs it understands. Not `fetch`, which makes it public.
HANDLER_DEFAULTS: Final = ("default", "afterStore", "job", "scheduled")
# The other two are styles of JavaScript.
WASM_HANDLERS: Final = tuple(name for name in HANDLER_LIMITS if name not in {"trigger", "main"})
EXPORT_DEFAULTS: Final[Mapping[str, str]] = {"alloc": "alloc", "handle": "handle"}
IO: Final = ("json", "text")
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]")
_PIECE_CHARS: Final = 256 * 1024  # decoded at a time: a thread holds the interpreter for 1 ms
_MAGIC: Final = b"\0asm"
_CORE: Final = b"\x01\0\0\0"
assert set(HANDLER_DEFAULTS) < set(WASM_HANDLERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An upload that has passed every check there is without building it."""

    files: dict[str, str]
    main: str
    is_one_source: bool  # it came as `source`: problems point there

    @property
    def body(self) -> bytes:
        """What a cell compiles."""
        return msgspec.json.encode(self.files)

    def pointer(self, file: str) -> str:
        """Return the JSON pointer, into the request's body, of one of the files."""
        if self.is_one_source or file not in self.files:
            return "/source" if self.is_one_source else "/files"
        return "/files/" + file.replace("~", "~0").replace("/", "~1")

    def explain(self, error: CompileFailed) -> CompileFailed:
        """Return the builder's complaint with a pointer into this upload."""
        return CompileFailed(
            str(error), self.pointer(str(error.extra.get("file", ""))), **error.extra
        )


def check_bundle(source: str | None, files: Mapping[str, str] | None, main: str | None) -> Bundle:
    """Take `source`, or `files` and `main`, but not both.

    Raises:
        Invalid: names the field.
        PayloadTooLarge: all files together are larger than a bundle may be.
    """
    if (source is None) == (files is None):
        raise Invalid("give either source, or files and main", "/source")
    if source is not None:
        files = {main if main is not None else MAIN_DEFAULTS[0]: source}
    assert files is not None
    if not 1 <= len(files) <= BUNDLE_FILES_MAX:
        raise Invalid(f"must be 1 to {BUNDLE_FILES_MAX} files, not {len(files)}", "/files")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            pointer = "/main" if source is not None else "/files"
            raise Invalid(f"{name[:80]!r} is no file name: use letters and . _ - /", pointer)
    used = sum(len(text.encode()) for text in files.values())
    if used > BUNDLE_BYTES_MAX:
        raise PayloadTooLarge("the bundle", "bundle_bytes", BUNDLE_BYTES_MAX, used)
    return Bundle(files=dict(files), main=_main(files, main), is_one_source=source is not None)


def _main(files: Mapping[str, str], main: str | None) -> str:
    candidates = MAIN_DEFAULTS if main is None else (main,)
    for name in candidates:
        if name in files:
            return name
    if main is None and len(files) == 1:
        return next(iter(files))
    if main is None:
        raise Invalid("name the file to start with; there is no main.js among them", "/main")
    raise Invalid(f"there is no file {main[:80]!r} among files", "/main")


@dataclass(frozen=True, slots=True, kw_only=True)
class WasmOptions:
    """How a module is run; a version keeps them as JSON. Checked by `check_options`."""

    handlers: tuple[str, ...] = HANDLER_DEFAULTS
    args: tuple[str, ...] = ()  # argv of a command, behind the function's name
    io: str = IO[0]
    exports: Mapping[str, str] = field(default_factory=lambda: dict(EXPORT_DEFAULTS))
    reuse: bool = False  # core modules: one instance serves many runs

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"handlers": list(self.handlers), "args": list(self.args)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A WebAssembly module that has passed every check there is without compiling it."""

    wasm: bytes = field(repr=False)
    options: WasmOptions

    def explain(self, error: CompileFailed) -> CompileFailed:
        """Return the builder's complaint with a pointer into the upload."""
        return CompileFailed(str(error), "/wasm", **error.extra)


def decode_wasm(text: str) -> bytes:
    """Return the bytes of a module that came as base64, and nothing but base64.

    Raises:
        Invalid: says at which character it stops being that.
        PayloadTooLarge: the module is larger than WASM_BYTES_MAX.
    """
    used = len(text) * 3 // 4 - text.count("=", -2)
    if used > WASM_BYTES_MAX:
        raise PayloadTooLarge("the module", "wasm_bytes", WASM_BYTES_MAX, used)
    digits = len(text) - len(text[-4:]) + len(text[-4:].rstrip("="))
    pieces = (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))
    padding_fits = len(text) % 4 == 0 and len(text) - digits <= 2  # noqa: PLR2004 - RFC 4648, 4
    try:
        if (
            padding_fits and text.find("=", 0, digits) < 0
        ):  # else a piece could pass that ends early
            return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except ValueError:  # binascii.Error is one
        pass
    wrong = _NOT_BASE64.search(text, 0, digits)
    if wrong is not None:
        raise Invalid(_not_base64(text, wrong.start()), "/wasm")
    raise Invalid(
        f"wasm is not base64: {len(text)} characters and their padding do not fit; was it cut? "
        "Encode the file anew: base64 -w0 FILE",
        "/wasm",
    )


def check_module(wasm: bytes | None, options: WasmOptions) -> Module:
    """Refuse at once what cannot be a module.

    Raises:
        Invalid: there is none.
        CompileFailed: it is something else; says what, and how a module is made of it.
    """
    if wasm is None:
        raise Invalid("give the module as wasm: its binary as base64", "/wasm")
    if not wasm:
        raise Invalid("wasm is empty; give the module's binary as base64", "/wasm")
    if len(wasm) > WASM_BYTES_MAX:
        raise PayloadTooLarge("the module", "wasm_bytes", WASM_BYTES_MAX, len(wasm))
    if wasm[:4] != _MAGIC or wasm[4:8] != _CORE:
        raise CompileFailed(
            f"this is no WebAssembly module: {_guess(wasm)}", "/wasm", file="", line=0, column=0
        )
    return Module(wasm=wasm, options=options)


def check_options(
    handlers: Sequence[str] | None,
    args: Sequence[str] | None,
    io: str | None,
    exports: Mapping[str, str] | None,
    reuse: bool | None,
) -> WasmOptions:
    """Return the options with their defaults, None: not given.

    Raises:
        Invalid: names the field.
    """
    return WasmOptions(
        handlers=HANDLER_DEFAULTS if handlers is None else _handlers(handlers),
        args=() if args is None else _args(args),
        io=IO[0] if io is None else _io(io),
        exports=dict(EXPORT_DEFAULTS) if exports is None else _exports(exports),
        reuse=bool(reuse),
    )


def _not_base64(text: str, at: int) -> str:
    if text.lstrip()[:1] in {"(", ";"}:
        return "wasm is WebAssembly text; assemble it (wat2wasm FILE.wat) and encode the binary"
    if text.startswith("data:"):
        return "wasm is a data: URL; send what stands behind its comma"
    if text[at] in "\r\n\t ":
        return f"wasm has a blank or line break at character {at}; encode without: base64 -w0 FILE"
    if text[at] in "-_":
        return f"wasm is base64 in the alphabet of URLs (character {at}); use + and / for - and _"
    return f"wasm is not base64: character {at} is {text[at]!r}; encode the binary: base64 -w0 FILE"


def _guess(data: bytes) -> str:
    """Say what it is instead, and what to do."""
    if data[:4] == _MAGIC and data[4:8] == b"\x0d\0\x01\0":
        return "it is a component; build a core module, for the target wasm32-wasip1"
    if data[:4] == _MAGIC:
        return f"its version is {data[4:8].hex() or 'missing'}, not {_CORE.hex()}; was it cut?"
    if data.lstrip()[:1] in {b"(", b";"}:
        return "it is WebAssembly text; assemble it: wat2wasm FILE.wat"
    if data[:2] == b"\x1f\x8b":
        return "it is compressed by gzip; unpack it first"
    if data[:4] == b"\x7fELF":
        return "it is a program for Linux; build for the target wasm32-wasip1"
    if data[:7] == b"AGFzbQE":  # the magic, encoded
        return "it is base64 twice; encode the binary once"
    return f"it begins with {data[:4].hex(' ')}, a module with {_MAGIC.hex(' ')}"


def _handlers(handlers: Sequence[str]) -> tuple[str, ...]:
    if not handlers:
        raise Invalid(f"name at least one of {', '.join(WASM_HANDLERS)}", "/handlers")
    for position, name in enumerate(handlers):
        if name not in WASM_HANDLERS:
            raise Invalid(
                f"{name[:80]!r} is no handler of a module; there are {', '.join(WASM_HANDLERS)}",
                f"/handlers/{position}",
            )
    return tuple(dict.fromkeys(handlers))


def _args(args: Sequence[str]) -> tuple[str, ...]:
    if len(args) > WASM_ARGS_MAX:
        raise Invalid(f"at most {WASM_ARGS_MAX} arguments, not {len(args)}", "/args")
    for position, text in enumerate(args):
        if "\0" in text:
            raise Invalid(
                "has a NUL character, which ends an argument; leave it out", f"/args/{position}"
            )
    used = sum(len(text.encode()) + 1 for text in args)
    if used > WASM_ARGS_BYTES_MAX:
        raise Invalid(
            f"the arguments have {used} bytes together, each with its end; the most is "
            f"{WASM_ARGS_BYTES_MAX}. Hand over what is large as a variable or in the input",
            "/args",
        )
    return tuple(args)


def _io(io: str) -> str:
    if io not in IO:
        raise Invalid(f"must be {' or '.join(IO)}, not {io[:80]!r}", "/io")
    return io


def _exports(exports: Mapping[str, str]) -> dict[str, str]:
    for role, name in exports.items():
        if role not in EXPORT_DEFAULTS:
            raise Invalid(
                f"{role[:80]!r} is no function of the ABI; name {' and '.join(EXPORT_DEFAULTS)}",
                "/exports",
            )
        if not 1 <= len(name.encode()) <= EXPORT_NAME_BYTES_MAX:
            raise Invalid(
                f"must be the name of an export, 1 to {EXPORT_NAME_BYTES_MAX} bytes",
                f"/exports/{role}",
            )
    named = {**EXPORT_DEFAULTS, **exports}
    if named["alloc"] == named["handle"]:
        raise Invalid(f"alloc and handle are both {named['alloc']!r}; they differ", "/exports")
    return named
