"""What a module may import and has to export: decides its kind, or says what is missing.

Path:   program.compile_module, program.Program -> here
Source: WASI: the "wasi_snapshot_preview1" document of the WebAssembly/WASI repository, phase 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from wasmtime import FuncType, MemoryType, Module, ValType

from runtimes.contract import GuestError, LoadFailed

WASI: Final = "wasi_snapshot_preview1"
ENGINE: Final = "engine"
PAGE_BYTES: Final = 65_536  # of linear memory
MISSING_SHOWN_MAX: Final = 20

Signature = tuple[str, str]  # parameters and results, a letter each: i for i32, I for i64

_WASI_SIGNATURES: Final[Mapping[str, Signature]] = {
    "args_get": ("ii", "i"),
    "args_sizes_get": ("ii", "i"),
    "clock_res_get": ("ii", "i"),
    "clock_time_get": ("iIi", "i"),
    "environ_get": ("ii", "i"),
    "environ_sizes_get": ("ii", "i"),
    "fd_advise": ("iIIi", "i"),
    "fd_allocate": ("iII", "i"),
    "fd_close": ("i", "i"),
    "fd_datasync": ("i", "i"),
    "fd_fdstat_get": ("ii", "i"),
    "fd_fdstat_set_flags": ("ii", "i"),
    "fd_fdstat_set_rights": ("iII", "i"),
    "fd_filestat_get": ("ii", "i"),
    "fd_filestat_set_size": ("iI", "i"),
    "fd_filestat_set_times": ("iIIi", "i"),
    "fd_pread": ("iiiIi", "i"),
    "fd_prestat_dir_name": ("iii", "i"),
    "fd_prestat_get": ("ii", "i"),
    "fd_pwrite": ("iiiIi", "i"),
    "fd_read": ("iiii", "i"),
    "fd_readdir": ("iiiIi", "i"),
    "fd_renumber": ("ii", "i"),
    "fd_seek": ("iIii", "i"),
    "fd_sync": ("i", "i"),
    "fd_tell": ("ii", "i"),
    "fd_write": ("iiii", "i"),
    "path_create_directory": ("iii", "i"),
    "path_filestat_get": ("iiiii", "i"),
    "path_filestat_set_times": ("iiiiIIi", "i"),
    "path_link": ("iiiiiii", "i"),
    "path_open": ("iiiiiIIii", "i"),
    "path_readlink": ("iiiiii", "i"),
    "path_remove_directory": ("iii", "i"),
    "path_rename": ("iiiiii", "i"),
    "path_symlink": ("iiiii", "i"),
    "path_unlink_file": ("iii", "i"),
    "poll_oneoff": ("iiii", "i"),
    "proc_exit": ("i", ""),
    "proc_raise": ("i", "i"),
    "random_get": ("ii", "i"),
    "sched_yield": ("", "i"),
    "sock_accept": ("iii", "i"),
    "sock_recv": ("iiiiii", "i"),
    "sock_send": ("iiiii", "i"),
    "sock_shutdown": ("ii", "i"),
}
SIGNATURES: Final[Mapping[tuple[str, str], Signature]] = {
    (ENGINE, "call"): ("ii", "I"),
    (ENGINE, "log"): ("iii", ""),
    **{(WASI, name): signature for name, signature in _WASI_SIGNATURES.items()},
}

_ALLOC: Final = ("i", "i")
_HANDLE: Final = ("ii", "I")
_NOTHING: Final = ("", "")
_REMEDIES: Final[Mapping[str, str]] = {
    "extism:host/env": "Extism plug-ins are not taken yet; export `alloc` and `handle` instead",
    "wasi_unstable": "built for an early WASI; build for wasm32-wasip1 (wasm32-wasi)",
    "env": (
        "`env` is what a compiler leaves undefined: link that code in; for AssemblyScript's abort "
        "use --use abort=..., for Emscripten's functions -sSTANDALONE_WASM"
    ),
    "a": "built by Emscripten for JavaScript; build with -sSTANDALONE_WASM, or with wasi-sdk",
    "wasi": "threads are not taken; build for wasm32-wasip1 without threads",
    "wbg": "built by wasm-bindgen for browsers; build for wasm32-wasip1",
    "__wbindgen_placeholder__": "built for wasm-bindgen; build for wasm32-wasip1",
    "gojs": "built by Go for browsers; build with GOOS=wasip1",
    "go": "built by Go for browsers; build with GOOS=wasip1",
}


class Kind(StrEnum):
    """How a module is run. Room for: component, extism."""

    CORE = "core"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What `shape_of` found out about a module."""

    kind: Kind
    imports: Mapping[tuple[str, str], FuncType]
    alloc: str  # the export that makes room for what the engine hands over; "" for none
    handle: str
    initialize: bool
    memory_bytes: int  # at the start


def shape_of(module: Module, names: Mapping[str, str]) -> Shape:
    """Return how to run the module.

    Args:
        module: compiled.
        names: the author's names for the exports `alloc` and `handle`.

    Raises:
        LoadFailed: ImportError or ExportError, which names everything that is missing.
    """
    imports = _imports(module)
    exports = {export.name: export.type for export in module.exports}
    alloc, handle = names.get("alloc", "alloc"), names.get("handle", "handle")
    found = {name: _signature(kind) for name, kind in exports.items() if isinstance(kind, FuncType)}
    memory = exports.get("memory")
    if not isinstance(memory, MemoryType):
        raise _failed("ExportError", "the module exports no memory named `memory`")
    if handle in found:
        wrong = [
            f"`{name}` has to be ({_text(wanted)}); it is "
            + (f"({_text(found[name])})" if name in found else "not exported")
            for name, wanted in ((alloc, _ALLOC), (handle, _HANDLE))
            if found.get(name) != wanted
        ]
        kind = Kind.CORE
    elif "_start" in found:
        wrong = [] if found["_start"] == _NOTHING else ["`_start` has to take and return nothing"]
        kind = Kind.COMMAND
    else:
        raise _failed(
            "ExportError",
            f"the module exports neither `{handle}` with `{alloc}`, as a core function has to, nor "
            f"`_start`, as a WASI command; it exports: {_some(sorted(exports)) or 'nothing'}. "
            'Functions of other names can be named in "exports"',
        )
    asks = (ENGINE, "call") in imports
    if asks and kind is Kind.COMMAND and found.get(alloc) != _ALLOC:
        wrong.append(f"a module that imports engine.call has to export `{alloc}` (i32) -> i32")
    if "_initialize" in found and found["_initialize"] != _NOTHING:
        wrong.append("`_initialize` has to take and return nothing")
    if wrong:
        raise _failed("ExportError", "; ".join(wrong))
    return Shape(
        kind=kind,
        imports=imports,
        alloc=alloc if found.get(alloc) == _ALLOC else "",
        handle=handle,
        initialize=kind is Kind.CORE and "_initialize" in found,
        memory_bytes=memory.limits.min * PAGE_BYTES,
    )


def has_lines(binary: bytes) -> bool:
    """Tell whether a module carries DWARF: one of its custom sections is `.debug_line`."""
    at = 8  # behind magic and version
    while at < len(binary):
        kind, at = binary[at], at + 1
        size, at = _leb128(binary, at)
        if kind == 0:
            length, start = _leb128(binary, at)
            if binary[start : start + length] == b".debug_line":
                return True
        at += size
    return False


def _leb128(binary: bytes, at: int) -> tuple[int, int]:
    """Return the unsigned number at `at`, and where it ends; the module is known to be valid."""
    value = shift = 0
    while True:
        byte = binary[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no high bit
            return value, at


def _imports(module: Module) -> dict[tuple[str, str], FuncType]:
    imports: dict[tuple[str, str], FuncType] = {}
    missing: list[str] = []
    spaces: list[str] = []
    for one in module.imports:
        key = (one.module, one.name or "")
        kind = one.type
        wanted = SIGNATURES.get(key)
        if isinstance(kind, FuncType) and wanted is not None and _signature(kind) == wanted:
            imports[key] = kind
            continue
        spaces.append(one.module)
        text = f"{key[0]}.{key[1]} "
        if not isinstance(kind, FuncType):
            missing.append(text + f"(a {type(kind).__name__.removesuffix('Type').lower()})")
        elif wanted is None:
            missing.append(text + f"({_text(_signature(kind))})")
        else:
            missing.append(text + f"({_text(_signature(kind))}; here it is ({_text(wanted)}))")
    if missing:
        remedies = [f". {space}: {_REMEDIES[space]}" for space in _REMEDIES if space in spaces]
        raise _failed(
            "ImportError",
            f"the module imports what is not here: {_some(list(dict.fromkeys(missing)))}. There "
            f"are {WASI}.*, engine.call and engine.log" + "".join(remedies),
        )
    return imports


def _signature(kind: FuncType) -> Signature:
    return "".join(map(_letter, kind.params)), "".join(map(_letter, kind.results))


def _letter(kind: ValType) -> str:
    return _LETTERS.get(str(kind), "?")


_LETTERS: Final = {"i32": "i", "i64": "I", "f32": "f", "f64": "F", "v128": "v"}
_WORDS: Final = {letter: word for word, letter in _LETTERS.items()} | {"?": "reference"}


def _text(signature: Signature) -> str:
    parameters, results = (" ".join(_WORDS[letter] for letter in part) for part in signature)
    return f"{parameters or 'nothing'} -> {results or 'nothing'}"


def _some(names: list[str]) -> str:
    more = len(names) - MISSING_SHOWN_MAX
    shown = ", ".join(name[:120] for name in names[:MISSING_SHOWN_MAX] if name)
    return shown + (f" and {more} more" if more > 0 else "")


def _failed(name: str, message: str) -> LoadFailed:
    return LoadFailed(GuestError(name=name, message=message[:4000]))
